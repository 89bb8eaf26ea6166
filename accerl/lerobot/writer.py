"""Recordings as LeRobot data sets.

    Demonstration ──► rows, with PNGs ──► data/*.parquet ──┐
                 └──► or films        ──► videos/*.mp4   ──┴──► meta/*

Everything is written into a folder beside the wanted one, which takes its name when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accerl.config import ConfigError, EnvConfig
from accerl.demos import Demonstration
from accerl.files import replaced, sync
from accerl.lerobot.columns import Columns, their_action, turn
from accerl.lerobot.layout import expand, parquet
from accerl.lerobot.meta import DATA_MB, FILES_A_CHUNK, FILM_MB, PATHS, Contents, Plan, Version, write_meta, write_note
from accerl.lerobot.pictures import FilmWriter, to_png
from accerl.lerobot.recordings import open_recording
from accerl.types import Array


def write(
    data: Path | tuple[Sequence[Demonstration], EnvConfig],
    folder: Path,
    *,
    fps: int,
    robot: str | None = None,
    images: Literal["image", "video"] = "image",
    version: Version = "v3.0",
    columns: Columns | None = None,
    on_episode: Callable[[str], None] = lambda task: None,
) -> int:
    """A recording as a LeRobot data set; all of it or nothing. Gives the number of episodes.

    Simulator states of a recording are left out.

    Args:
        data: a folder of `accerl demos`, or what `accerl.demos.load` gives.
        fps: actions a second of simulated time; 20 on LIBERO.
        robot: LeRobot's `robot_type`.
        images: `image` keeps every pixel; `video`, H.264, loses a little and takes a fraction of the space.
        on_episode: called with the task of each.

    Raises:
        ConfigError: `folder` exists, `data` is no recording, or the columns do not fit it.
    """
    if folder.exists():
        raise ConfigError(f"lerobot: {folder} exists; remove it or give another folder")
    parquet()
    recording = open_recording(data)
    if not recording.episodes:
        raise ConfigError("data: there is no demonstration to write")
    plan = Plan(
        env=recording.env,
        columns=Columns() if columns is None else columns,
        fps=fps,
        robot=robot,
        films=images == "video",
        version=version,
    )
    with replaced(folder) as temporary:
        writer = _Writer(temporary, plan)
        try:
            for demonstration in recording.play():
                writer.add(demonstration)
                on_episode(demonstration.task)
        finally:
            writer.close()
        write_meta(temporary, plan, writer.contents)
        write_note(temporary, plan, recording.demos, recording.episodes)
        for path in temporary.rglob("*"):
            sync(path)
    return len(recording.episodes)


class _Writer:
    """Rows and films of a data set under construction."""

    def __init__(self, folder: Path, plan: Plan):
        self.contents = Contents()
        self._plan = plan
        rows, films = PATHS[plan.version]
        self._rows = _Files(folder, rows, plan, DATA_MB)
        self._films = {
            name: _Files(folder, films.replace("{video_key}", name), plan, FILM_MB)
            for name in plan.cameras
            if plan.films
        }

    def add(self, demonstration: Demonstration) -> None:
        """Raises ConfigError if it does not have the shapes of the environment or of the episodes before."""
        contents, columns = self.contents, self._plan.columns
        number, length = len(contents.episodes), len(demonstration.action)
        side = self._plan.env.image_size
        shape = (length, len(self._plan.cameras), side, side, 3)
        if not length or demonstration.images.shape != shape or len(demonstration.proprio) != length:
            raise ConfigError(f"data: images of episode {number} are {demonstration.images.shape}, not {shape}")
        frames = np.arange(length)
        task_index = contents.instructions.setdefault(demonstration.instruction, len(contents.instructions))
        vectors = {
            columns.proprio: demonstration.proprio.astype(np.float32),
            columns.action: their_action(demonstration.action, columns),
            "timestamp": (frames / self._plan.fps).astype(np.float32)[:, None],
            "frame_index": frames[:, None],
            "episode_index": np.full((length, 1), number),
            "index": (contents.num_frames + frames)[:, None],
            "task_index": np.full((length, 1), task_index),
        }
        sizes = {name: values.shape[1] for name, values in vectors.items()}
        if contents.episodes and sizes != contents.sizes:
            raise ConfigError(f"data: vectors of episode {number} have sizes {sizes}, those before {contents.sizes}")
        images = dict(zip(self._plan.cameras, turn(demonstration.images, columns).swapaxes(0, 1), strict=True))
        row = {"episode_index": number, "tasks": [demonstration.instruction], "length": length}
        row |= self._write_rows(vectors, {} if self._plan.films else images)
        for name, files in self._films.items():
            row |= self._write_film(name, files, images[name])
        contents.episodes.append(row)
        contents.summary.add(vectors, images)
        contents.sizes = sizes
        contents.num_frames += length

    def close(self) -> None:
        """End the files that are open."""
        for files in (self._rows, *self._films.values()):
            files.close()

    def _write_rows(self, vectors: Mapping[str, Array], images: Mapping[str, Array]) -> dict[str, Any]:
        """Append the rows of an episode, a row group; gives its part of `meta/episodes`."""
        import pyarrow as pa

        png = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table, kinds = {}, {}
        for name, pictures in images.items():
            cells = [{"bytes": to_png(image), "path": f"frame-{at:06d}.png"} for at, image in enumerate(pictures)]
            table[name], kinds[name] = pa.array(cells, png), {"_type": "Image"}
        for name, values in vectors.items():
            size = values.shape[1]
            table[name] = numbers = pa.array(np.ascontiguousarray(values).ravel())
            kinds[name] = number = {"dtype": str(values.dtype), "_type": "Value"}
            if size > 1:  # LeRobot has a bare number where there is only one
                table[name] = pa.FixedSizeListArray.from_arrays(numbers, size)
                kinds[name] = {"feature": number, "length": size, "_type": "Sequence"}
        # what Hugging Face's `datasets`, below LeRobot, takes for images and what for plain structures
        rows = pa.table(table).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
        file, place = self._rows.next(lambda path: parquet().ParquetWriter(path, rows.schema))
        file.write_table(rows, row_group_size=len(rows))
        first = self.contents.num_frames
        here = {f"data/{name}": value for name, value in place.items()}
        return {**here, "dataset_from_index": first, "dataset_to_index": first + len(rows)}

    def _write_film(self, name: str, files: _Files, images: Array) -> dict[str, Any]:
        """Append the frames of an episode; gives its part of `meta/episodes`."""
        fps = self._plan.fps
        height, width = images.shape[1:3]
        film, place = files.next(lambda path: FilmWriter(path, (height, width), fps))
        here: dict[str, float] = {**place, "from_timestamp": film.num_frames / fps}
        for image in images:
            film.add(image)
        here["to_timestamp"] = film.num_frames / fps
        return {f"videos/{name}/{key}": value for key, value in here.items()}


class _Files:
    """The files of one kind, one of them open; v2.1 begins another for each episode, v3.0 when one is large."""

    def __init__(self, folder: Path, template: str, plan: Plan, limit_mb: int):
        self._folder, self._template = folder, template
        self._limit = limit_mb * 2**20 if plan.version == "v3.0" else 0
        self._number = -1
        self._path = folder
        self._file: Any = None

    def next(self, open_file: Callable[[Path], Any]) -> tuple[Any, dict[str, int]]:
        """The file for the next episode, and its place."""
        if self._file is not None and self._is_full():
            self.close()
        if self._file is None:
            self._number += 1
        chunk, number = divmod(self._number, FILES_A_CHUNK)
        place = {"chunk_index": chunk, "file_index": number}
        if self._file is None:
            of_episode = {"episode_chunk": chunk, "episode_index": self._number}
            self._path = self._folder / expand(self._template, {**place, **of_episode}, self._folder)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_file(self._path)
        return self._file, place

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _is_full(self) -> bool:
        written = self._path.stat().st_size if self._path.exists() else 0  # ffmpeg takes its time
        return written >= self._limit
