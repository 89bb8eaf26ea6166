"""`meta/` of a LeRobot data set as it is written: what there is, where each episode lies, instructions, statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accerl.config import ConfigError, EnvConfig
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.files import write_file
from accerl.lerobot.columns import Columns
from accerl.lerobot.layout import INDEX_COLUMNS, INFO, NOTE, parquet
from accerl.lerobot.pictures import CODEC
from accerl.lerobot.summaries import Summary

Version = Literal["v2.1", "v3.0"]
FILES_A_CHUNK = 1000
DATA_MB, FILM_MB = 100, 200
"""Size from which the next file is begun, v3.0."""
PATHS: Mapping[Version, tuple[str, str]] = {
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}
"""Of rows and of films."""
LIBERO_NAMES = {
    "proprio": ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"],
    "action": ["x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper"],
}
PANDAS_INDEX = {
    "index_columns": ["task"],
    "column_indexes": [],
    "columns": [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ],
    "pandas_version": "2.0.0",
}
"""LeRobot reads `meta/tasks.parquet` with pandas and finds the instructions in the index of the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a data set shall be.

    Raises:
        ConfigError: its columns do not differ or do not fit the cameras, or films cannot have the images' size.
    """

    env: EnvConfig
    columns: Columns
    fps: int
    robot: str | None
    films: bool
    """Else images are kept in the rows."""
    version: Version

    def __post_init__(self) -> None:
        if len(self.cameras) != len(self.env.cameras):
            raise ConfigError(f"columns.cameras: {len(self.cameras)} for {len(self.env.cameras)}; name one for each")
        names = [*self.cameras, self.columns.proprio, self.columns.action, *INDEX_COLUMNS]
        for name in names:
            if not name or names.count(name) > 1 or "/" in name:
                raise ConfigError(f"columns: {name!r} is not possible, as it is empty, has a '/' or is there twice")
        if self.films and self.env.image_size % 2:
            raise ConfigError(f"images: films want even sides, not {self.env.image_size} pixels; use 'image'")

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.columns.cameras or tuple(f"observation.images.{camera}" for camera in self.env.cameras)


@dataclass(slots=True)
class Contents:
    """What it has become."""

    episodes: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `meta/episodes`, without statistics."""
    instructions: dict[str, int] = field(default_factory=dict)
    """To task index."""
    num_frames: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """Numbers in each vector, by column."""
    summary: Summary = field(default_factory=Summary)


def write_meta(folder: Path, plan: Plan, contents: Contents) -> None:
    """Everything in `meta/` that is LeRobot's."""
    _write_json(folder / INFO, _info(plan, contents))
    if plan.version == "v3.0":
        _write_tables(folder, contents)
    else:
        _write_lines(folder, contents)


def write_note(
    folder: Path, plan: Plan, demos: Mapping[str, Any] | None, episodes: Sequence[Mapping[str, Any]]
) -> None:
    """Our own file, `accerl.lerobot.layout.Note`."""
    env, columns = plan.env.model_dump(mode="json"), plan.columns.model_dump(mode="json")
    _write_json(folder / NOTE, {"env": env, "demos": demos, "columns": columns, "episodes": list(episodes)})


def _info(plan: Plan, contents: Contents) -> dict[str, Any]:
    num_episodes = len(contents.episodes)
    if plan.version == "v3.0":
        of_version = {"data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": FILM_MB}
    else:
        num_films = num_episodes * len(plan.cameras) * plan.films
        of_version = {"total_videos": num_films, "total_chunks": -(-num_episodes // FILES_A_CHUNK)}
    return {
        "codebase_version": plan.version,
        "robot_type": plan.robot,
        "total_episodes": num_episodes,
        "total_frames": contents.num_frames,
        "total_tasks": len(contents.instructions),
        "chunks_size": FILES_A_CHUNK,
        **of_version,
        "fps": plan.fps,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": PATHS[plan.version][0],
        "video_path": PATHS[plan.version][1] if plan.films else None,
        "features": _features(plan, contents.sizes),
    }


def _features(plan: Plan, sizes: Mapping[str, int]) -> dict[str, Any]:
    side = plan.env.image_size
    camera: dict[str, Any] = {"dtype": "image", "shape": [side, side, 3], "names": ["height", "width", "channels"]}
    if plan.films:
        film = {"height": side, "width": side, "codec": CODEC, "pix_fmt": "yuv420p", "is_depth_map": False}
        film |= {"fps": plan.fps, "channels": 3}
        camera |= {"dtype": "video", "info": {f"video.{name}": value for name, value in film.items()}}
        camera["info"]["has_audio"] = False
    features = dict.fromkeys(plan.cameras, camera)
    for part, column in (("proprio", plan.columns.proprio), ("action", plan.columns.action)):
        size = sizes[column]
        is_libero = plan.env.suite in LIBERO and size == len(LIBERO_NAMES[part])
        names = LIBERO_NAMES[part] if is_libero else [f"{part}_{at}" for at in range(size)]
        features[column] = {"dtype": "float32", "shape": [size], "names": names}
    for column in INDEX_COLUMNS:
        dtype = "float32" if column == "timestamp" else "int64"
        features[column] = {"dtype": dtype, "shape": [1], "names": None}
    return features


def _write_tables(folder: Path, contents: Contents) -> None:
    """Of v3.0."""
    import pyarrow as pa

    _write_json(folder / "meta/stats.json", contents.summary.overall())
    rows = []
    for row, summary in zip(contents.episodes, contents.summary.episodes, strict=True):
        flat = {f"stats/{column}/{name}": value for column, of in summary.items() for name, value in of.items()}
        rows.append({**row, **flat, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    parquet().write_table(pa.Table.from_pylist(rows), path)
    tasks = pa.table({"task_index": [*contents.instructions.values()], "task": [*contents.instructions]})
    tasks = tasks.replace_schema_metadata({"pandas": json.dumps(PANDAS_INDEX)})
    parquet().write_table(tasks, folder / "meta/tasks.parquet")


def _write_lines(folder: Path, contents: Contents) -> None:
    """Of v2.1."""
    lines = {
        "tasks": [{"task_index": index, "task": text} for text, index in contents.instructions.items()],
        "episodes": [{name: row[name] for name in ("episode_index", "tasks", "length")} for row in contents.episodes],
        "episodes_stats": [
            {"episode_index": number, "stats": summary} for number, summary in enumerate(contents.summary.episodes)
        ],
    }
    for name, rows in lines.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_file(folder / f"meta/{name}.jsonl", text)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_file(path, json.dumps(content, indent=4, ensure_ascii=False))
