"""What a LeRobot data set holds, and in which files: `meta/`, checked before anything else is opened.

v2: a parquet file and a film of each camera for every episode, `meta/*.jsonl`. v3.0: several episodes in a file, one
after another; `meta/episodes/*/*.parquet` says in which one each lies, and from which second of its films.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from accerl.config import ConfigError, NonNegative, Positive, PositiveFloat

Model = TypeVar("Model", bound=BaseModel)
VERSIONS = ("v2.0", "v2.1", "v3.0")
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Of every data set: seconds since the start, frame and episode, frame of the whole data set, instruction."""
INFO, NOTE = "meta/info.json", "meta/accerl.json"
INSTALL = "pip install 'accerl[lerobot]'"

PLACEHOLDER = re.compile(r"\{(\w+)(?::0?(\d{0,2})d)?\}")
AGAIN = "copy the data set again"
MOST_PIXELS = 8192
"""Of a side of an image."""


class Feature(BaseModel):
    """A column; `names` are those of its axes or of its numbers."""

    model_config = ConfigDict(frozen=True)

    dtype: str
    shape: tuple[NonNegative, ...]
    names: Any = None

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width, pixels; None: it is no image of three colours."""
        if len(self.shape) != 3:
            return None
        first = self.names[0] if isinstance(self.names, list) and self.names else ""
        channels_first = str(first).startswith("channel") or (self.shape[2] != 3 and self.shape[0] == 3)
        channels, height, width = self.shape if channels_first else (self.shape[2], *self.shape[:2])
        possible = channels == 3 and 0 < height <= MOST_PIXELS and 0 < width <= MOST_PIXELS
        return (height, width) if possible else None


class Info(BaseModel):
    """What we need of `meta/info.json`."""

    model_config = ConfigDict(frozen=True)

    codebase_version: str
    fps: PositiveFloat
    chunks_size: Positive = 1000
    data_path: str
    video_path: str | None = None
    robot_type: str | None = None
    features: dict[str, Feature]


class Note(BaseModel):
    """What our writer adds in `meta/accerl.json`: what a recording has and LeRobot's layout has no place for."""

    model_config = ConfigDict(frozen=True)

    env: dict[str, Any]
    """`EnvConfig` of the recording."""
    demos: dict[str, Any] | None = None
    """Its `DemosConfig`."""
    columns: dict[str, Any]
    """`Columns` that it was written with."""
    episodes: list[dict[str, Any]]
    """What the recording's index says of each, by episode number."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a film."""

    path: Path
    start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """Where an episode lies."""

    number: int
    length: int
    """Frames."""
    data: Path
    clips: Mapping[str, Clip]
    """By column; of the columns that are films."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A data set before its frames are read."""

    folder: Path
    info: Info
    instructions: Mapping[int, str]
    """By task index."""
    episodes: tuple[Episode, ...]
    """Ascending."""
    note: Note | None
    """None: the data set is not of our writer."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """All columns of images."""
        return tuple(name for name, feature in self.info.features.items() if feature.is_camera)

    def feature(self, column: str, field: str) -> Feature:
        """Raises ConfigError, naming `field`, if there is no such column."""
        if column not in self.info.features:
            there = ", ".join(name for name in self.info.features if name not in INDEX_COLUMNS)
            raise ConfigError(f"{field}: {self.folder} has no column {column!r}; it has {there or 'none'}")
        return self.info.features[column]


def open_layout(folder: Path) -> Layout:
    """Raises ConfigError if `folder` holds no complete data set of a known version."""
    if not (folder / INFO).is_file():
        raise ConfigError(f"lerobot: {folder} has no {INFO}; give the folder that holds meta, data and videos")
    info = _checked(Info, read_json(folder / INFO), folder / INFO)
    version = info.codebase_version
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise broken(folder / INFO, f"codebase_version is {version!r}", f"convert it with lerobot to one of {known}")
    is_v3 = version == "v3.0"
    instructions = dict((_tasks_v3 if is_v3 else _tasks_v2)(folder))
    episodes = (_episodes_v3 if is_v3 else _episodes_v2)(folder, info)
    numbers = [episode.number for episode in episodes]
    if not episodes:
        raise broken(folder, "there is no episode")
    if len(set(numbers)) != len(numbers):
        raise broken(folder, "two episodes have the same episode_index")
    ordered = tuple(sorted(episodes, key=lambda episode: episode.number))
    note = _note(folder / NOTE, ordered)
    return Layout(folder=folder, info=info, instructions=instructions, episodes=ordered, note=note)


def broken(path: Path, reason: str, remedy: str = AGAIN) -> ConfigError:
    """The error of a data set: file, reason, remedy."""
    return ConfigError(f"lerobot: {path}: {reason}; {remedy}")


def expand(template: str, values: Mapping[str, int | str], source: Path) -> str:
    """A template such as `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`, filled in.

    Raises:
        ConfigError: an unknown placeholder, or a path that leaves the folder.
    """

    def fill(match: re.Match[str]) -> str:
        name, width = match.groups()
        if name not in values:
            raise broken(source, f"path {template!r} wants {name!r}", f"known: {', '.join(values)}")
        return str(values[name]).zfill(int(width or 0))

    path = PLACEHOLDER.sub(fill, template)
    return inside(path, source)


def inside(path: str, source: Path) -> str:
    """`path` if it stays below a folder; what lies there may be a link, as in the Hub's cache.

    Raises:
        ConfigError: it does not.
    """
    parts = PurePosixPath(path)
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or set("\\\0{}") & set(path):
        raise broken(source, f"path {path!r} is none inside of the data set", "do not use this data set")
    return path


def parquet() -> Any:
    """`pyarrow.parquet`.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"lerobot: pyarrow is not installed; run `{INSTALL}`") from None
    return pyarrow.parquet


def read_json(path: Path) -> Any:
    """Raises ConfigError if the file is missing or not well-formed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise broken(path, f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise broken(path, f"is not valid JSON ({error})") from None


def _note(path: Path, episodes: Sequence[Episode]) -> Note | None:
    if not path.is_file():
        return None
    note = _checked(Note, read_json(path), path)
    lengths = {number: episode.get("length") for number, episode in enumerate(note.episodes)}
    if lengths != {episode.number: episode.length for episode in episodes}:
        raise broken(path, "tells of other episodes", "remove it if the data set was changed after it was written")
    for episode in note.episodes:
        _text(episode, "task", path)
    return note


def _tasks_v2(folder: Path) -> Iterator[tuple[int, str]]:
    path = folder / "meta/tasks.jsonl"
    for line in _json_lines(path):
        yield _integer(line, "task_index", path), _text(line, "task", path)


def _episodes_v2(folder: Path, info: Info) -> list[Episode]:
    path = folder / "meta/episodes.jsonl"
    return [_episode_v2(folder, info, _integer(line, "episode_index", path), line) for line in _json_lines(path)]


def _episode_v2(folder: Path, info: Info, number: int, line: Mapping[str, Any]) -> Episode:
    values = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    clips = {
        column: Clip(folder / _video_path(info, {**values, "video_key": column}, folder / INFO), 0.0)
        for column, feature in info.features.items()
        if feature.dtype == "video"
    }
    length = _integer(line, "length", folder / "meta/episodes.jsonl", least=1)
    data = folder / expand(info.data_path, values, folder / INFO)
    return Episode(number=number, length=length, data=data, clips=clips)


def _tasks_v3(folder: Path) -> Iterator[tuple[int, str]]:
    path = folder / "meta/tasks.parquet"
    for row in _rows(path):
        # the instructions are pandas' index, which has a name in newer files only
        row.setdefault("task", row.get("__index_level_0__"))
        yield _integer(row, "task_index", path), _text(row, "task", path)


def _episodes_v3(folder: Path, info: Info) -> list[Episode]:
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise broken(folder / "meta/episodes", "there is no parquet file")
    return [_episode_v3(folder, info, row, path) for path in paths for row in _rows(path, without="stats/")]


def _episode_v3(folder: Path, info: Info, row: Mapping[str, Any], path: Path) -> Episode:
    def place(of: str) -> dict[str, int]:
        return {name: _integer(row, f"{of}/{name}", path) for name in ("chunk_index", "file_index")}

    clips = {}
    for column, feature in info.features.items():
        if feature.dtype == "video":
            film = _video_path(info, {**place(f"videos/{column}"), "video_key": column}, folder / INFO)
            clips[column] = Clip(folder / film, _seconds(row, f"videos/{column}/from_timestamp", path))
    return Episode(
        number=_integer(row, "episode_index", path),
        length=_integer(row, "length", path, least=1),
        data=folder / expand(info.data_path, place("data"), folder / INFO),
        clips=clips,
    )


def _video_path(info: Info, values: Mapping[str, int | str], source: Path) -> str:
    if info.video_path is None:
        raise broken(source, f"{values['video_key']} is a film, but there is no video_path")
    return expand(info.video_path, values, source)


def _rows(path: Path, without: str = " ") -> list[dict[str, Any]]:
    """Of a small parquet file; columns that start with `without` are left out."""
    parquet()
    import pyarrow as pa

    if not path.is_file():
        raise broken(path, "is missing")
    try:
        with parquet().ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith(without)]
            return file.read(columns=names, use_threads=False).select(names).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise broken(path, f"cannot be read ({error})") from None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise broken(path, "is missing")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise broken(path, f"cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise broken(path, f"line {number} is not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise broken(path, f"line {number} is no object")
        yield content


def _integer(row: Mapping[str, Any], name: str, path: Path, least: int = 0) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise broken(path, f"{name} is {value!r}, not a number from {least} on")
    return value


def _seconds(row: Mapping[str, Any], name: str, path: Path) -> float:
    value = row.get(name)
    if not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise broken(path, f"{name} is {value!r}, not seconds")
    return float(value)


def _text(row: Mapping[str, Any], name: str, path: Path) -> str:
    if not isinstance(row.get(name), str):
        raise broken(path, f"{name} is {row.get(name)!r}, not an instruction")
    return row[name]


def _checked(model: type[Model], content: Any, path: Path) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise broken(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
