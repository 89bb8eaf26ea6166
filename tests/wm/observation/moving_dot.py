"""A dot on a striped floor: actions move it, proprioception is where it is, a wall stops it on the right."""

from __future__ import annotations

import torch
from torch import Tensor

from accerl_wm.carriers import Frames, Windows

SIZE, CHUNK, WALL = 16, 2, 0.5


def windows(count: int, decisions: int, seed: int, num_cameras: int = 1) -> Windows:
    """Random walks; each further camera sees the world upside down or not, in turn."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(count, 2, generator=generator) - 0.75
    actions = torch.rand(count, decisions, CHUNK, 2, generator=generator) * 2 - 1
    places = [place]
    for step in range(decisions):
        place = (place + 0.2 * actions[:, step].sum(1)).clamp(-0.8, 0.8)
        place = torch.stack([place[:, 0].clamp(max=WALL), place[:, 1]], 1)
        places.append(place)
    proprio = torch.stack(places, 1)
    views = [draw(proprio).flip(2) if camera % 2 else draw(proprio) for camera in range(num_cameras)]
    return Windows(
        frames=Frames(images=torch.stack(views, 2), proprio=proprio),
        actions=actions,
        is_real=torch.ones(count, decisions, dtype=torch.bool),
        success=torch.zeros(count, decisions + 1, dtype=torch.bool),
        instructions=["move"] * count,
    )


def draw(place: Tensor) -> Tensor:
    """Pictures [..., y, x, 3] uint8 of a soft red dot at x, y."""
    centres = (torch.arange(SIZE) + 0.5) * (2 / SIZE) - 1
    right = centres - place[..., 0, None, None]
    down = centres[:, None] - place[..., 1, None, None]
    dot = torch.exp(-((right.square() + down.square()) / 0.06).square())[..., None]
    floor = torch.where(torch.arange(SIZE)[:, None, None] % 8 < 4, 60.0, 90.0).expand(SIZE, SIZE, 3)
    red = torch.tensor([250.0, 40.0, 40.0])
    return (floor + dot * (red - floor)).round().to(torch.uint8)


def psnr(images: Tensor, truth: Tensor) -> float:
    """Mean over rows, decibels."""
    squared = (images.float() - truth.float()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / squared.clamp(min=1e-2))).mean().item()
