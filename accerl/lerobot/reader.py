"""LeRobot data sets as demonstrations.

    Layout ──► rows of an episode ──┬► action, proprio ─────────────────────► Demonstration
                                    └► PNGs, or frames of films ──► images ──────▲

One episode is held at a time, and a film with several of them is decoded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from accerl.config import ConfigError, EnvConfig
from accerl.demos import Demonstration
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.lerobot.columns import Columns, our_action, turn
from accerl.lerobot.layout import NOTE, Clip, Episode, Feature, Layout, broken, inside, open_layout, parquet
from accerl.lerobot.pictures import Film, fit, from_png
from accerl.types import Array

NEEDED = ("timestamp", "frame_index", "episode_index", "task_index")
ROWS = 64
"""Read at once: with images, some megabytes."""


def read(
    folder: Path,
    env: EnvConfig | None = None,
    columns: Columns | None = None,
    tasks: Mapping[str, str] | None = None,
) -> tuple[list[Demonstration], EnvConfig]:
    """The demonstrations of a LeRobot data set and their environment, as `accerl.demos.load` gives them.

    Args:
        env: images get its size; None: that of the recording which `accerl.lerobot.write` exported.
        columns: None: those it was written with, or else `Columns()`.
        tasks: instruction to the task of `env`; episodes with other instructions are left out. None: all are kept,
            and the instruction is the task, unless the data set was written by `accerl.lerobot.write`.

    Raises:
        ConfigError: naming the file and what is wrong with it, or the field.
    """
    reader = Reader(open_layout(folder), env, columns, tasks)
    return list(reader), reader.env


class Reader:
    """Iterates over the demonstrations of a data set, holding one at a time; arguments and errors are `read`'s."""

    def __init__(
        self,
        layout: Layout,
        env: EnvConfig | None = None,
        columns: Columns | None = None,
        tasks: Mapping[str, str] | None = None,
    ):
        self.layout = layout
        self.env = env if env is not None else noted_env(layout)
        self.columns = columns if columns is not None else Columns(**(layout.note.columns if layout.note else {}))
        self.numbers: list[int] = []
        """Of the episodes that were given so far."""
        self._tasks = tasks
        self._cameras = self._checked_cameras()
        self._proprio = self._dimensions(self.columns.proprio, "columns.proprio")
        self._action = self._dimensions(self.columns.action, "columns.action")
        self._films: dict[str, Film] = {}

    def __iter__(self) -> Iterator[Demonstration]:
        self.numbers.clear()
        lowest_gripper = np.inf
        try:
            for episode, rows in self._rows():
                demonstration = self._demonstration(episode, rows)
                if demonstration is not None:
                    self.numbers.append(episode.number)
                    lowest_gripper = min(lowest_gripper, demonstration.action[:, -1].min())
                    yield demonstration
        finally:
            for film in self._films.values():
                film.close()
            self._films.clear()
        if not self.numbers:
            there = ", ".join(repr(text) for text in list(self.layout.instructions.values())[:5])
            raise ConfigError(f"env.tasks: {self.layout.folder} has no episode of them; its instructions are {there} …")
        if self.env.suite in LIBERO and self.columns.gripper == "signed" and lowest_gripper >= 0:
            raise ConfigError(
                f"columns.gripper: the last number of {self.columns.action} is never negative, so that 1 seems to be "
                f"open; use 'open'"
            )

    def _checked_cameras(self) -> dict[str, Feature]:
        """Columns in the order of `env.cameras`."""
        names = self.columns.cameras or self.layout.cameras
        features = {name: self.layout.feature(name, "columns.cameras") for name in names}
        there = ", ".join(self.layout.cameras) or "none"
        if len(features) != len(self.env.cameras):
            raise ConfigError(
                f"columns.cameras: {len(features)} columns of images for {len(self.env.cameras)} cameras "
                f"({', '.join(self.env.cameras)}); choose from {there}, or change env.cameras"
            )
        for name, feature in features.items():
            if not feature.is_camera:
                raise ConfigError(f"columns.cameras: {name!r} holds no images; choose from {there}")
            if feature.image_size is None:
                shape = list(feature.shape)
                raise ConfigError(f"columns.cameras: {name!r} has shape {shape}, no image in colour; choose another")
            if self.columns.fit == "square" and len(set(feature.image_size)) == 2:
                height, width = feature.image_size
                raise ConfigError(f"columns.fit: {name!r} has {height} x {width} pixels; use 'crop' or 'stretch'")
        return features

    def _dimensions(self, column: str, field: str) -> int:
        feature = self.layout.feature(column, field)
        if len(feature.shape) != 1 or feature.shape[0] < 1 or not feature.dtype.startswith(("float", "int")):
            raise ConfigError(
                f"{field}: {column!r} is {feature.dtype} {list(feature.shape)}, no vector; choose another"
            )
        return feature.shape[0]

    def _rows(self) -> Iterator[tuple[Episode, Any]]:
        """The table of each episode, file by file.

        Raises:
            ConfigError: a file is missing or damaged, or does not have the episodes that it should have.
        """
        by_file: dict[Path, dict[int, Episode]] = {}
        for episode in self.layout.episodes:
            by_file.setdefault(episode.data, {})[episode.number] = episode
        embedded = [name for name, feature in self._cameras.items() if feature.dtype == "image"]
        wanted = [*NEEDED, self.columns.proprio, self.columns.action, *embedded]
        for path, missing in by_file.items():
            for number, rows in _tables(path, wanted):
                episode = missing.pop(number, None)
                if episode is None:
                    raise broken(path, f"has rows of episode {number}, which should not be there")
                if len(rows) != episode.length:
                    raise broken(path, f"episode {number} has {len(rows)} rows, and meta says {episode.length}")
                yield episode, rows
            if missing:
                raise broken(path, f"has no rows of episode {min(missing)}")

    def _demonstration(self, episode: Episode, rows: Any) -> Demonstration | None:
        """None: the episode is of none of the tasks."""
        where = f"episode {episode.number}"
        if not np.array_equal(_integers(rows, "frame_index", episode.data), np.arange(episode.length)):
            raise broken(episode.data, f"{where}: frame_index does not count from 0 to {episode.length - 1}")
        index = np.unique(_integers(rows, "task_index", episode.data)).tolist()
        if len(index) > 1:
            raise broken(episode.data, f"{where} has several instructions", "split it at the changes of task_index")
        if index[0] not in self.layout.instructions:
            raise broken(episode.data, f"{where} has task_index {index[0]}, which meta/tasks does not have")
        instruction = self.layout.instructions[index[0]]
        if self._tasks is not None and instruction not in self._tasks:
            return None
        action = _vectors(rows, self.columns.action, self._action, episode)
        try:
            action = our_action(action, self.columns)
        except ConfigError as error:
            raise ConfigError(f"lerobot: {episode.data}: {where}: {error}") from None
        return Demonstration(
            task=self._task(episode, instruction),
            instruction=instruction,
            images=self._images(episode, rows),
            proprio=_vectors(rows, self.columns.proprio, self._proprio, episode),
            action=action,
        )

    def _task(self, episode: Episode, instruction: str) -> str:
        if self._tasks is not None:
            return self._tasks[instruction]
        return self.layout.note.episodes[episode.number]["task"] if self.layout.note else instruction

    def _images(self, episode: Episode, rows: Any) -> UInt8[Array, "time camera height width 3"]:
        size = self.env.image_size
        images = np.empty((episode.length, len(self._cameras), size, size, 3), np.uint8)
        for place, (column, feature) in enumerate(self._cameras.items()):
            assert feature.image_size is not None, column
            if feature.dtype == "image":
                pictures = self._pngs(episode, rows, column, feature.image_size)
            else:
                times = _vectors(rows, "timestamp", 1, episode)[:, 0]
                pictures = self._frames(column, episode.clips[column], times, feature.image_size)
            for frame, picture in enumerate(pictures):
                images[frame, place] = turn(fit(picture, size, self.columns), self.columns)
        return images

    def _pngs(self, episode: Episode, rows: Any, column: str, size: tuple[int, int]) -> Iterator[Array]:
        """Images in the rows, or in the files that these name."""
        for frame, image in enumerate(rows.column(column)):
            where = f"{column} of episode {episode.number}, frame {frame},"
            parts = image.as_py()
            content, path = (parts.get("bytes"), parts.get("path")) if isinstance(parts, dict) else (None, None)
            if not isinstance(content, bytes) and isinstance(path, str):
                file = self.layout.folder / inside(path, episode.data)
                if not file.is_file():
                    raise broken(file, "is missing")
                content = file.read_bytes()
            if not isinstance(content, bytes):
                raise broken(episode.data, f"{where} is missing")
            yield from_png(content, size, episode.data, where)

    def _frames(
        self, column: str, clip: Clip, times: Float32[Array, " time"], size: tuple[int, int]
    ) -> Iterator[Array]:
        """Those of an episode, by their times."""
        fps = self.layout.info.fps
        numbers = np.rint((clip.start_s + times.astype(np.float64)) * fps).astype(int)
        if not np.array_equal(numbers, numbers[0] + np.arange(len(numbers))):
            raise broken(clip.path, f"the timestamps of its frames are not 1/{fps:g} s apart")
        film = self._films.get(column)
        if film is None or film.path != clip.path or film.has_passed(numbers[0]):
            if film is not None:
                film.close()
            film = self._films[column] = Film(clip.path, size, fps)
        return (film.frame(int(number)) for number in numbers)


def noted_env(layout: Layout) -> EnvConfig:
    """The environment that our writer has left a note of.

    Raises:
        ConfigError: it has left none, or names code of some package, which no data set may choose to run.
    """
    if layout.note is None:
        raise ConfigError(f"env: {layout.folder} does not say which environment it is of; give one, such as its suite")
    env = EnvConfig(**layout.note.env)
    if ":" in env.suite:
        raise ConfigError(f"env: {layout.folder / NOTE} names {env.suite!r}; give it yourself if you trust it")
    return env


def _tables(path: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Episode and its rows, in the order of the file.

    Raises:
        ConfigError: the file is missing or damaged, or lacks a column.
    """
    if not path.is_file():
        raise broken(path, "is missing")
    parquet()
    import pyarrow as pa

    number, kept = -1, []
    try:
        with parquet().ParquetFile(path) as file:
            for column in columns:
                if column not in file.schema_arrow.names:
                    raise broken(path, f"has no column {column!r}")
            for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
                index = batch.column("episode_index").to_numpy(zero_copy_only=False)
                for first, stop in pairwise([0, *(np.flatnonzero(np.diff(index)) + 1), len(index)]):
                    if kept and index[first] != number:
                        yield number, pa.Table.from_batches(kept)
                        kept = []
                    number = int(index[first])
                    kept.append(batch.slice(first, stop - first))
    except (OSError, pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise broken(path, f"cannot be read ({error})") from None
    if kept:
        yield number, pa.Table.from_batches(kept)


def _integers(rows: Any, column: str, path: Path) -> Int64[Array, " time"]:
    values = np.asarray(rows.column(column).to_pylist())
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise broken(path, f"column {column!r} has other values than integers")
    return values


def _vectors(rows: Any, column: str, size: int, episode: Episode) -> Float32[Array, "time size"]:
    """One of `size` numbers a row; a single number may stand without a list."""
    try:
        values = np.asarray(rows.column(column).to_pylist(), np.float32)
    except (TypeError, ValueError):
        values = np.empty(0)
    values = values[:, None] if values.shape == (len(rows),) else values
    if values.shape != (len(rows), size):
        raise broken(episode.data, f"{column!r} of episode {episode.number} is not {size} numbers a row")
    if not np.isfinite(values).all():
        raise broken(episode.data, f"{column!r} of episode {episode.number} has values that are not finite")
    return values
