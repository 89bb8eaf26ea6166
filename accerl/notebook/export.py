"""An episode as a file: film, animation, picture, or the trajectory itself."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from accerl import trajectories
from accerl.types import Trajectory

FORMATS = {
    "mp4": "video/mp4",
    "gif": "image/gif",
    "png": "image/png",
    "safetensors": "application/octet-stream",
}
"""Suffix to media type."""
SIDE = 256
"""Pixels that small frames are enlarged to."""
FRAME_S = 0.2
HOLD_S = 1.0
"""How long the last frame stays."""


def export(trajectory: Trajectory, suffix: str) -> bytes:
    """The content of a file of this format.

    Raises:
        ValueError: there is no such format.
    """
    match suffix:
        case "mp4":
            from accerl.films import FRAMES_PER_S, write_film

            frames = _repeated(frames_of(trajectory), FRAMES_PER_S)
            return _written(suffix, lambda path: write_film(path, iter(frames)))
        case "gif":
            return _gif(frames_of(trajectory))
        case "png":
            from accerl.notebook.picture import episodes_picture
            from accerl.notebook.strip import curves_of, facts_of

            return episodes_picture([(facts_of(trajectory, 0), trajectory.images, curves_of(trajectory))])
        case "safetensors":
            return _written(suffix, lambda path: trajectories.save(path, trajectory))
    raise ValueError(f"suffix: {suffix!r} is none of {', '.join(FORMATS)}")


def frames_of(trajectory: Trajectory) -> list[np.ndarray]:
    """Cameras side by side, with even sides, large enough to be looked at."""
    time, cameras, height, width = trajectory.images.shape[:4]
    factor = max(1, SIDE // max(height, width))
    rows = trajectory.images.transpose(0, 2, 1, 3, 4).reshape(time, height, cameras * width, 3)
    large = rows.repeat(factor, 1).repeat(factor, 2)
    return list(np.ascontiguousarray(large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]))


def _repeated(frames: list[np.ndarray], rate: float) -> list[np.ndarray]:
    """For a film of `rate` frames a second."""
    times = max(1, round(FRAME_S * rate))
    return [frame for frame in frames for _ in range(times)] + [frames[-1]] * round(HOLD_S * rate)


def _gif(frames: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [round(1000 * FRAME_S)] * (len(frames) - 1) + [round(1000 * HOLD_S)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _written(suffix: str, write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"episode.{suffix}"
        write(path)
        return path.read_bytes()
