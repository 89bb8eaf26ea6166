"""PNG images and films, uint8 [height, width, 3], to and from the bytes of a data set."""

from __future__ import annotations

import io
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from accerl.lerobot.columns import Columns
from accerl.lerobot.layout import broken
from accerl.types import Array

CODEC = "h264"
QUALITY = ("-crf", "18", "-g", "2", "-bf", "0", "-movflags", "+faststart")
"""Every second frame can be jumped to, as LeRobot's loader does at random; it uses AV1, which costs ten times as much
to encode and refuses images below 64 pixels."""

RATE_TOLERANCE = 1e-3
"""Of frames a second, which ffmpeg gives as the mean: a film that has lost a frame has another one."""


def to_png(image: UInt8[Array, "height width 3"]) -> bytes:
    """Without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def from_png(content: bytes, size: tuple[int, int], source: Path, where: str) -> UInt8[Array, "height width 3"]:
    """A PNG or JPEG image in colour.

    Args:
        size: height and width that it must have.
        where: the image's place in `source`, for the error.

    Raises:
        ConfigError: it is damaged or of another size.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            found = (image.height, image.width)  # known before anything is decoded
            pixels = np.asarray(image.convert("RGB")) if found == size else None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:  # PIL's, if damaged
        raise broken(source, f"{where} is no PNG or JPEG image ({error})") from None
    if pixels is None:
        reason = f"{where} has {found[0]} x {found[1]} pixels, and meta/info.json says {size[0]} x {size[1]}"
        raise broken(source, reason)
    return pixels


def fit(image: UInt8[Array, "height width 3"], size: int, columns: Columns) -> UInt8[Array, "size size 3"]:
    """Square, of `size` pixels; made smaller with antialiasing (Lanczos)."""
    height, width = image.shape[:2]
    if columns.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


class Film:
    """A film that is decoded once, from its start on, whatever its codec.

    Args:
        size: height and width that it must have.
        fps: frames a second that it must have.

    Raises:
        ConfigError: it is missing, damaged or another one.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float):
        self.path = path
        self._size = size
        self._next = 0
        if not path.is_file():
            raise broken(path, "is missing")
        self._frames: Generator[Any, None, None] = imageio_ffmpeg.read_frames(
            str(path),
            # whatever the file claims to be, it cannot make ffmpeg open other files or addresses
            input_params=["-protocol_whitelist", "file", "-f", "mov"],
            output_params=["-fps_mode", "passthrough"],  # each frame once, none invented
        )
        try:
            about = next(self._frames)
        except (OSError, RuntimeError, StopIteration):
            raise broken(path, "is no film that ffmpeg can decode") from None
        found = (about["size"][1], about["size"][0])
        if found != size:
            self.close()
            raise broken(path, f"has {found[0]} x {found[1]} pixels, and meta/info.json says {size[0]} x {size[1]}")
        if about["fps"] and abs(about["fps"] / fps - 1) > RATE_TOLERANCE:
            self.close()
            reason = f"has {about['fps']:g} frames a second, and meta/info.json says {fps:g}"
            raise broken(path, reason, "encode it again at a constant rate, without gaps")

    def has_passed(self, number: int) -> bool:
        """Frame `number` cannot be had any more."""
        return number < self._next

    def frame(self, number: int) -> UInt8[Array, "height width 3"]:
        """The frame of that number, counted from 0; not before the last one that was asked for.

        Raises:
            ConfigError: the film ends before it.
        """
        content = None
        while self._next <= number:
            try:
                content = next(self._frames)
            except (OSError, RuntimeError, StopIteration):
                raise broken(self.path, f"ends after {self._next} frames, before frame {number}") from None
            self._next += 1
        assert content is not None, number
        return np.frombuffer(content, np.uint8).reshape(*self._size, 3)

    def close(self) -> None:
        """Ends ffmpeg."""
        self._frames.close()


class FilmWriter:
    """A film that is made frame by frame."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.num_frames = 0
        self._sink: Generator[Any, Any, None] = imageio_ffmpeg.write_frames(
            str(path),
            (size[1], size[0]),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            output_params=list(QUALITY),
        )
        self._sink.send(None)

    def add(self, image: UInt8[Array, "height width 3"]) -> None:
        self._sink.send(np.ascontiguousarray(image))
        self.num_frames += 1

    def close(self) -> None:
        """Raises RuntimeError if frames are missing, of which ffmpeg does not tell its caller."""
        self._sink.close()
        found, _ = imageio_ffmpeg.count_frames_and_secs(str(self.path))
        if found != self.num_frames:
            raise RuntimeError(
                f"{self.path}: ffmpeg has written {found} of {self.num_frames} frames; is the disk full?"
            )
