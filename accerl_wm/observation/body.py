"""Where the body will be, as numbers and in the picture.

A body moves almost exactly as told, and a camera that stands still shows it where projection says. A network that is
handed both has only to draw; one that has to find them out from pixels smears instead.

Letters of shapes: B batch, H history, V cameras (views), K keypoints, P proprio, Y rows, X columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.layers import starting_at_zero

CAMERA_RATE = 10.0
"""The camera's weights are kept this much smaller, so that at a network's learning rate it finds its place in tens of
updates."""
NARROW, WIDE = 0.06, 0.15
"""Widths of the planes' Gaussians; an image reaches from -1 to 1, so 2 and 5 pixels of 64."""


class Kinematics(nn.Module):
    """proprio_BHP, actions [B, H, chunk, action] -> proprio_BP one decision later: a line, and an MLP for the rest."""

    def __init__(self, config: SceneConfig, width: int = 128) -> None:
        super().__init__()
        self.num_inputs = config.history * (config.proprio_dim + config.chunk_length * config.action_dim)
        self.line = starting_at_zero(nn.Linear(self.num_inputs, config.proprio_dim))  # at first the body stands still
        self.curve = nn.Sequential(
            nn.Linear(self.num_inputs, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            starting_at_zero(nn.Linear(width, config.proprio_dim)),
        )

    def forward(self, proprio_BHP: Tensor, actions: Tensor) -> Tensor:
        features = self.features(proprio_BHP, actions)
        return proprio_BHP[:, -1] + self.line(features) + self.curve(features)

    def features(self, proprio_BHP: Tensor, actions: Tensor) -> Tensor:
        """[B, num_inputs]: the present proprioception, how it changed (tenfold), and the actions."""
        changes = 10 * (proprio_BHP[:, 1:] - proprio_BHP[:, :-1])
        return torch.cat([proprio_BHP[:, -1], changes.flatten(1), actions.flatten(1)], 1)


class Keypoints(nn.Module):
    """proprio_BP -> points_BVK2 in image coordinates, x and y from -1 to 1: a pinhole camera, bent by a small MLP."""

    def __init__(self, config: SceneConfig, width: int = 64) -> None:
        super().__init__()
        self.shape = (config.num_cameras, config.num_keypoints)
        num_points = config.num_cameras * config.num_keypoints
        self.plane = nn.Linear(config.proprio_dim, 2 * num_points)
        self.depth = starting_at_zero(nn.Linear(config.proprio_dim, num_points, bias=False))
        self.bend = nn.Sequential(
            nn.Linear(config.proprio_dim, width), nn.SiLU(), starting_at_zero(nn.Linear(width, 2 * num_points))
        )
        for small in (self.plane.weight, self.plane.bias):  # from the middle of the image
            nn.init.normal_(small, std=0.1 / CAMERA_RATE)

    def forward(self, proprio_BP: Tensor) -> Tensor:
        points = CAMERA_RATE * self.plane(proprio_BP).unflatten(-1, (*self.shape, 2))
        nearness = self.depth(proprio_BP).clamp(-2, 2).exp().unflatten(-1, self.shape)
        return points * nearness[..., None] + self.bend(proprio_BP).unflatten(-1, (*self.shape, 2))


def body_planes(points_BK2: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[B, 4 K, Y, X]: around each point a narrow and a wide Gaussian, and the offsets from it under the wide one.

    Args:
        points_BK2: in image coordinates, from -1 to 1.
        x: coordinates of the columns [B, X].
        y: of the rows [B, Y].
    """
    right, down = _offsets(points_BK2, x, y)
    wide = torch.exp(-right.square() / (2 * WIDE**2)) * torch.exp(-down.square() / (2 * WIDE**2))
    narrow = torch.exp(-right.square() / (2 * NARROW**2)) * torch.exp(-down.square() / (2 * NARROW**2))
    return torch.cat([narrow, wide, wide * (right / WIDE), wide * (down / WIDE)], dim=1)


def localisation_loss(points_BK2: Tensor, changed_BYX: Tensor) -> Tensor:
    """Minus the log-likelihood of the changed pixels under Gaussians around the points: points go where things move.

    Its gradient reaches a point from anywhere in the image; that of the planes, only from nearby.
    """
    size = changed_BYX.shape[-1]
    centres = (torch.arange(size, device=points_BK2.device) + 0.5) * (2 / size) - 1
    right, down = _offsets(points_BK2, centres.expand(len(points_BK2), -1), centres.expand(len(points_BK2), -1))
    log_density = torch.logsumexp(-(right.square() + down.square()) / (2 * WIDE**2), dim=1)
    return -(changed_BYX * log_density).sum() / changed_BYX.sum().clamp(min=1.0)


def _offsets(points_BK2: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """From each point to each column [B, K, 1, X] and each row [B, K, Y, 1]."""
    return (x[:, None] - points_BK2[..., :1])[:, :, None, :], (y[:, None] - points_BK2[..., 1:])[..., None]
