"""Demonstrations whose images are numbered, and LeRobot data sets made by hand, without our writer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from accerl.config import EnvConfig
from accerl.demos import Demonstration
from accerl.lerobot import Columns

SIZE = 64
"""Pixels; AV1 encoders refuse fewer."""
ENV = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=SIZE, cameras=("front", "wrist"))
LENGTHS = (5, 3, 7)
BITS = 8


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """A smooth image with its number as black and white squares, which survive compression."""
    image = np.empty((size, size, 3), np.uint8)
    image[...] = np.linspace(60, 180, size)[:, None, None]
    side = size // BITS
    for bit in range(BITS):
        image[size // 4 : size // 4 + side, bit * side : (bit + 1) * side] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    size = len(image)
    side = size // BITS
    row = image[size // 4 : size // 4 + side].reshape(side, BITS, side, 3).mean((0, 2, 3))
    return sum(int(value > 128) << bit for bit, value in enumerate(row))


def demonstrations(lengths: Sequence[int] = LENGTHS, env: EnvConfig = ENV, seed: int = 0) -> list[Demonstration]:
    """Random numbers, and images that count over all episodes and cameras."""
    generator = np.random.default_rng(seed)
    made, count = [], 0
    for episode, length in enumerate(lengths):
        task = ("red", "blue")[episode % 2]
        numbers = count + np.arange(length * len(env.cameras)).reshape(length, -1)
        count += numbers.size
        made.append(
            Demonstration(
                task=task,
                instruction=f"go to the {task} dot",
                images=np.array([[picture(n % 256, env.image_size) for n in row] for row in numbers.tolist()]),
                proprio=generator.normal(size=(length, 3)).astype(np.float32),
                action=generator.uniform(-1, 1, (length, 4)).astype(np.float32),
            )
        )
    return made


def same(first: Demonstration, second: Demonstration) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Demonstration)]
    return all(
        np.array_equal(one, other) and getattr(one, "dtype", 0) == getattr(other, "dtype", 0) for one, other in pairs
    )


def all_same(first: Sequence[Demonstration], second: Sequence[Demonstration]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return 10 * np.log10(255**2 / error)


def frames_of(path: Path) -> int:
    return imageio_ffmpeg.count_frames_and_secs(str(path))[0] or 0


# --- data sets made by hand -------------------------------------------------------------------------------------------

CAMERAS = ("image", "wrist_image")
INSTRUCTIONS = ("open the drawer", "close it")
FPS = 10


def info(version: str, kind: str, **changes: Any) -> dict[str, Any]:
    camera = {"dtype": kind, "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    plain = {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "task_index")}
    v3 = version == "v3.0"
    return {
        "codebase_version": version,
        "robot_type": "panda",
        "total_episodes": 2,
        "chunks_size": 1,  # a chunk for each file of v2
        "fps": FPS,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            **dict.fromkeys(CAMERAS, camera),
            "state": {"dtype": "float32", "shape": [3], "names": ["state"]},
            "actions": {"dtype": "float32", "shape": [4], "names": ["actions"]},
            **plain,
        },
        **changes,
    }


def rows(episode: int, made: Demonstration, with_images: bool) -> dict[str, list[Any]]:
    length = len(made.action)
    columns: dict[str, list[Any]] = {
        "state": made.proprio.tolist(),  # lists of any length and double precision, as some converters write
        "actions": made.action.tolist(),
        "timestamp": [frame / FPS for frame in range(length)],
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
        "index": list(range(length)),
        "task_index": [INSTRUCTIONS.index(made.instruction)] * length,
    }
    for place, camera in enumerate(CAMERAS if with_images else ()):
        cells = []
        for image in made.images[:, place]:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        columns[camera] = cells
    return columns


def film(path: Path, images: np.ndarray, codec: str, fps: int = FPS, more: Sequence[str] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images.shape[1:3]
    quality = ["-preset", "12", "-svtav1-params", "lp=1"] if codec == "libsvtav1" else []
    options: dict[str, Any] = {"codec": codec, "macro_block_size": 1, "ffmpeg_log_level": "quiet"}
    sink = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, output_params=["-crf", "20", "-g", "2", *quality, *more], **options
    )
    sink.send(None)
    for image in images:
        sink.send(np.ascontiguousarray(image))
    sink.close()


def two_episodes() -> list[Demonstration]:
    made = demonstrations((6, 4), ENV, seed=1)
    return [
        Demonstration(task=text, instruction=text, images=d.images, proprio=d.proprio, action=d.action)
        for text, d in zip(INSTRUCTIONS, made, strict=True)
    ]


def put(path: Path, content: Any) -> None:
    """JSON, JSON lines or a table, by the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content))


def make_v2(folder: Path, kind: str = "image", version: str = "v2.1", codec: str = "libx264") -> list[Demonstration]:
    """A file for every episode."""
    made = two_episodes()
    put(folder / "meta/info.json", info(version, kind))
    put(
        folder / "meta/tasks.jsonl", [{"task_index": 1, "task": "close it"}, {"task_index": 0, "task": INSTRUCTIONS[0]}]
    )
    lines = [{"episode_index": n, "tasks": [d.instruction], "length": len(d.action)} for n, d in enumerate(made)]
    put(folder / "meta/episodes.jsonl", lines)
    for number, episode in enumerate(made):
        chunk = f"chunk-{number:03d}"
        put(folder / f"data/{chunk}/episode_{number:06d}.parquet", rows(number, episode, kind == "image"))
        for place, camera in enumerate(CAMERAS if kind == "video" else ()):
            film(folder / f"videos/{chunk}/{camera}/episode_{number:06d}.mp4", episode.images[:, place], codec)
    return made


def make_v3(folder: Path, kind: str = "image", codec: str = "libx264") -> list[Demonstration]:
    """Both episodes in one file; the second one comes first in `meta/episodes`, and the films begin with a third."""
    made = two_episodes()
    put(folder / "meta/info.json", info("v3.0", kind))
    # pandas' index without a name, as lerobot 0.4 writes it
    put(folder / "meta/tasks.parquet", {"task_index": [0, 1], "__index_level_0__": list(INSTRUCTIONS)})
    before, first = 3, len(made[0].action)
    starts = {0: before / FPS, 1: (before + first) / FPS}
    table: dict[str, list[Any]] = {
        "episode_index": [1, 0],
        "length": [len(made[1].action), first],
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        "stats/state/min": [[0.0], [0.0]],
    }
    for camera in CAMERAS if kind == "video" else ():
        table |= {f"videos/{camera}/chunk_index": [0, 0], f"videos/{camera}/file_index": [2, 2]}
        table[f"videos/{camera}/from_timestamp"] = [starts[1], starts[0]]
    put(folder / "meta/episodes/chunk-000/file-000.parquet", table)
    parts = [rows(number, episode, kind == "image") for number, episode in enumerate(made)]
    put(folder / "data/chunk-000/file-000.parquet", {name: parts[0][name] + parts[1][name] for name in parts[0]})
    for place, camera in enumerate(CAMERAS if kind == "video" else ()):
        other = np.stack([picture(200 + n) for n in range(before)])
        images = np.concatenate([other, *(episode.images[:, place] for episode in made)])
        film(folder / f"videos/{camera}/chunk-000/file-002.mp4", images, codec)
    return made


BY_HAND = Columns(proprio="state", action="actions")


def check_films(found: Sequence[Demonstration], expected: Sequence[Demonstration], least_psnr: float) -> None:
    assert [len(d.images) for d in found] == [len(d.images) for d in expected]
    for one, other in zip(found, expected, strict=True):
        pairs = zip(*(images.reshape(-1, SIZE, SIZE, 3) for images in (one.images, other.images)), strict=True)
        for image, original in pairs:
            assert number_of(image) == number_of(original)
            assert psnr(image, original) > least_psnr
        assert np.array_equal(one.action, other.action) and np.array_equal(one.proprio, other.proprio)
