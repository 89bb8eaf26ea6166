"""A trajectory as what a browser shows: one JPEG with every frame, and a few curves."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from accerl.types import Trajectory

LARGEST = 128
"""Pixels of a side that are sent; of larger images each is the mean of a square of them."""
QUALITY = 88


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """Frames in the tiles of one picture, row by row; all cameras of a frame side by side in its tile."""

    jpeg: bytes
    num_frames: int
    columns: int
    width: int
    """Of a tile, pixels."""
    height: int

    def layout(self) -> dict[str, int]:
        return {"frames": self.num_frames, "columns": self.columns, "width": self.width, "height": self.height}


def make_strip(images: np.ndarray) -> Strip:
    """Of images, uint8 [time, camera, height, width, 3]."""
    num_frames, cameras, height, width = images.shape[:4]
    whole = math.ceil(max(height, width) / LARGEST)
    images = images[:, :, : height - height % whole, : width - width % whole]
    height, width = images.shape[2:4]
    columns = math.ceil(math.sqrt(num_frames))
    rows = math.ceil(num_frames / columns)
    tiles = np.zeros((rows * columns, height, cameras * width, 3), np.uint8)
    tiles[:num_frames] = images.transpose(0, 2, 1, 3, 4).reshape(num_frames, height, cameras * width, 3)
    sheet = tiles.reshape(rows, columns, height, cameras * width, 3).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray(np.ascontiguousarray(sheet).reshape(rows * height, columns * cameras * width, 3))
    if whole > 1:
        picture, height, width = picture.reduce(whole), height // whole, width // whole
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return Strip(jpeg=buffer.getvalue(), num_frames=num_frames, columns=columns, width=cameras * width, height=height)


def curves_of(trajectory: Trajectory) -> dict[str, list[float | None]]:
    """What the viewer draws, a number for each frame; what a decision leads to stands at the frame after it.

    `surprise` is the mean of -log p over a decision's tokens, nats, under the policy that chose them: an unbiased
    sample of its entropy, which is not stored.
    """
    curves: dict[str, list[float | None]] = {
        "reward": [None, *_numbers(trajectory.reward)],
        "value": [*_numbers(trajectory.value), None],
        "surprise": [*_numbers(-trajectory.log_prob.mean(1)), None],
    }
    if trajectory.success_probability is not None:
        curves["success probability"] = [None, *_numbers(trajectory.success_probability)]
    elif trajectory.ended or trajectory.success:
        known = [0.0] * trajectory.num_decisions + [float(trajectory.success)]
        curves["success"] = list(known)
    return curves


def facts_of(trajectory: Trajectory, number: int) -> dict[str, Any]:
    """What the list shows and the filters look at. `number` counts what a viewer was given."""
    versions = trajectory.policy_version
    outcome = "success" if trajectory.success else "failure" if trajectory.ended else "open"
    return {
        "number": number,
        "task": trajectory.task,
        "instruction": trajectory.instruction,
        "source": "imagined" if trajectory.is_imagined else "real",
        "outcome": outcome,
        "versions": [int(versions.min()), int(versions.max())],
        "decisions": trajectory.num_decisions,
        "return": float(trajectory.reward.sum()),
        "firstStep": int(trajectory.episode_step[0]),
        "origin": trajectory.origin,
    }


def _numbers(array: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in array]
