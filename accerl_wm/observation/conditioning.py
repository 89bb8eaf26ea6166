"""What all observation models are told beside the pixels.

    proprio, actions ─► Kinematics ─► free motion ─► Contact ─► next proprio ─┐
                                                       ▲                      ├─► Keypoints ─► planes, modulation
    frames ─► window around the body ──────────────────┘     present proprio ─┘

Letters of shapes: B batch, H history, V cameras (views), P proprio, K keypoints, S half the image's side, W half the
window's. Rows of what concerns one camera are batch by camera, camera fastest (BV).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from accerl_wm.observation.body import Keypoints, Kinematics, body_planes
from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.layers import starting_at_zero, to_pixels, to_planes
from accerl_wm.observation.window import Window

MIN_REACH = 1e-3
"""Of proprioception that hardly changes."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known of the next frame before it is drawn. Pixels are at half size, 2 x 2 of them in 12 channels."""

    present: Tensor
    """The present frame [BV, 12, S, S], as it was given: scaled, or uint8."""
    pixels: Tensor
    """Of it, in the window [BV, 12, W, W], scaled."""
    window: Window
    """Where it can change."""
    planes: Tensor
    """Of the window [BV, C, W, W]: the history's pixels, the body's planes, and what stands still."""
    modulation: Tensor
    """[BV, M]: motion and actions."""
    points: Tensor
    """The body in the image, now and next [BV, 2 K, 2]."""
    proprio: Tensor
    """One decision later [B, P], scaled."""

    def window_of(self, image: Tensor) -> Tensor:
        """Of another frame [B, V, 3, 2 S, 2 S], in the window [BV, 12, W, W]."""
        return self.window.cut(to_planes(image.flatten(0, 1)))

    def finish(self, patch: Tensor) -> Tensor:
        """The next frame [B, V, 3, 2 S, 2 S], of the present one's type, whose window is the patch [BV, 12, W, W]."""
        patch = patch if self.present.is_floating_point() else to_levels(patch)
        return to_pixels(self.window.paste(self.present, patch)).unflatten(0, (len(self.proprio), -1))


class Conditioning(nn.Module):
    """See the module's picture."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        self.config = config
        self.kinematics = Kinematics(config)
        self.keypoints = Keypoints(config)
        self.place = nn.Parameter(
            0.1 * torch.randn(config.num_cameras, config.place_channels, config.image_size // 2, config.image_size // 2)
        )
        self.num_planes = 12 * config.history + 8 * config.num_keypoints + config.place_channels
        num_motion = self.kinematics.num_inputs + config.proprio_dim
        self.contact = Contact(self.num_planes, num_motion, config.proprio_dim)
        self.modulation = nn.Sequential(
            nn.Linear(num_motion, config.modulation),
            nn.SiLU(),
            nn.Linear(config.modulation, config.modulation),
            nn.SiLU(),
        )

    def forward(self, images: Tensor, proprio: Tensor, actions: Tensor) -> Conditions:
        """What is known of the next frame.

        Args:
            images: of the history [B, H, V, 3, 2 S, 2 S], in [-1, 1], or uint8: of those only the window is scaled.
            proprio: of the history [B, H, P], scaled.
            actions: [B, H, chunk, action].
        """
        views = images.shape[2]
        halves = to_planes(images.transpose(1, 2).flatten(2, 3).flatten(0, 1))
        motion = self.kinematics.features(proprio, actions)
        free = self.kinematics(proprio, actions)
        now, then = self.keypoints(proprio[:, -1]), self.keypoints(free.detach())
        points = torch.cat([now, then], dim=2).flatten(0, 1)
        window = Window.around(points, halves.shape[-1], (self.config.window or self.config.image_size) // 2)
        seen, place = from_levels(window.cut(halves)), self.place.expand(len(images), *self.place.shape).flatten(0, 1)
        still = torch.cat([seen, window.cut(place)], dim=1)
        hint = torch.cat([still, body_planes(points.detach(), *window.coordinates())], dim=1)
        moved = free + self.contact(hint, torch.cat([motion, free.detach()], dim=1), views)
        told = moved.detach()  # how to draw a body teaches nothing about how it moves
        points = torch.cat([now, self.keypoints(told)], dim=2).flatten(0, 1)
        return Conditions(
            present=halves[:, -12:],
            pixels=seen[:, -12:],
            window=window,
            planes=torch.cat([still, body_planes(points, *window.coordinates())], dim=1),
            modulation=self.modulation(torch.cat([motion, told], dim=1)).repeat_interleave(views, 0),
            points=points,
            proprio=moved,
        )


class Contact(nn.Module):
    """What the surroundings add to free motion: planes [BV, C, W, W], motion [B, M] -> [B, P]. At first, nothing."""

    def __init__(self, num_planes: int, num_motion: int, proprio_dim: int, width: int = 32) -> None:
        super().__init__()
        self.eyes = nn.Sequential(
            nn.Conv2d(num_planes, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(2 * width + num_motion, 64), nn.SiLU(), starting_at_zero(nn.Linear(64, proprio_dim))
        )

    def forward(self, planes: Tensor, motion: Tensor, views: int) -> Tensor:
        seen = self.eyes(planes)
        pooled = torch.cat([seen.mean((-1, -2)), seen.amax((-1, -2))], dim=1).unflatten(0, (-1, views)).mean(1)
        return self.head(torch.cat([pooled, motion], dim=1))


def from_levels(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]; what is scaled already stays as it is."""
    return images if images.is_floating_point() else images.float().div(127.5).sub(1.0)


def to_levels(images: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class Scaling(nn.Module):
    """Images to [-1, 1], channels first, and proprioception to about [-1, 1]; and back."""

    def __init__(self, config: SceneConfig) -> None:
        super().__init__()
        bounds = torch.tensor(config.proprio_bounds or [(-1.0, 1.0)] * config.proprio_dim, dtype=torch.float32)
        low, high = bounds.unbind(-1)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("reach", ((high - low) / 2).clamp(min=MIN_REACH), persistent=False)
        self.centre: Tensor
        self.reach: Tensor

    def images_in(self, images: Tensor) -> Tensor:
        """[..., X, Y, 3] uint8 to [..., 3, X, Y]."""
        return from_levels(images.movedim(-1, -3))

    def images_out(self, images: Tensor) -> Tensor:
        """[..., 3, X, Y] to [..., X, Y, 3] uint8."""
        return to_levels(images).movedim(-3, -1).contiguous()

    def proprio_in(self, proprio: Tensor) -> Tensor:
        return (proprio - self.centre) / self.reach

    def proprio_out(self, proprio: Tensor) -> Tensor:
        return proprio * self.reach + self.centre
