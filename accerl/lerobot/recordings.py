"""Recordings of `accerl demos` beside LeRobot data sets: read episode by episode, and made from one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accerl.config import ConfigError, DemosConfig, EnvConfig
from accerl.demos import Demonstration, every_of, read_index, read_shard, write_index, write_shard
from accerl.files import replaced, write_file
from accerl.lerobot.columns import Columns
from accerl.lerobot.layout import open_layout
from accerl.lerobot.reader import Reader

AS_IT_WAS = DemosConfig(speed=1.0, noise=0.0, patience=1.0)
"""Of demonstrations that nobody slowed down or disturbed on our behalf."""
SOURCE = "source.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Demonstrations, in a folder or in memory."""

    env: EnvConfig
    demos: Mapping[str, Any] | None
    """`DemosConfig`, where it is known."""
    episodes: Sequence[Mapping[str, Any]]
    """Of the index: task, instruction, length and, in a folder, what else is known."""
    play: Callable[[], Iterator[Demonstration]]
    """Gives them one by one."""


def open_recording(data: Path | tuple[Sequence[Demonstration], EnvConfig]) -> Recording:
    """A folder of `accerl demos`, without failed episodes, or what `accerl.demos.load` gives.

    Raises:
        ConfigError: the folder holds no complete data set of a known format.
    """
    if not isinstance(data, Path):
        demonstrations, env = data
        episodes = [{"task": d.task, "instruction": d.instruction, "length": len(d.action)} for d in demonstrations]
        return Recording(env=env, demos=None, episodes=episodes, play=lambda: iter(demonstrations))
    content = read_index(data)
    shards = content["shards"]
    if (every := every_of(content)) > 1:
        raise ConfigError(
            f"data: {data} keeps the observation of every {every}. step only, and LeRobot wants all; record it with "
            f"demos.draw_every = 1"
        )
    return Recording(
        env=EnvConfig(**content["env"]),
        demos=content["demos"],
        episodes=[episode for shard in shards for episode in shard["episodes"] if episode.get("success", True)],
        play=lambda: (demonstration for shard in shards for demonstration in read_shard(data, shard, every)),
    )


def convert(
    folder: Path,
    out: Path,
    env: EnvConfig | None = None,
    columns: Columns | None = None,
    tasks: Mapping[str, str] | None = None,
    on_episode: Callable[[str], None] = lambda task: None,
) -> int:
    """A LeRobot data set as a recording in `out`; all of it or nothing. Gives the number of episodes.

    Args:
        env: with `columns` and `tasks`, as in `accerl.lerobot.read`.
        on_episode: called with the task of each.

    Raises:
        ConfigError: `out` exists, or the data set is wrong.
    """
    if out.exists():
        raise ConfigError(f"out: {out} exists; remove it or give another folder")
    reader = Reader(open_layout(folder), env, columns, tasks)
    note = reader.layout.note
    config = DemosConfig(**note.demos) if note is not None and note.demos is not None else AS_IT_WAS
    with replaced(out) as temporary:
        shards: list[Path] = []
        part: list[Demonstration] = []
        for demonstration in reader:
            part.append(demonstration)
            on_episode(demonstration.task)
            if len(part) == config.episodes_per_shard:
                shards.append(_write_shard(temporary, len(shards), part, reader))
                part = []
        if part:
            shards.append(_write_shard(temporary, len(shards), part, reader))
        write_index(temporary, reader.env, config, shards)
        source = {"lerobot": str(folder.resolve()), "columns": reader.columns.model_dump(mode="json")}
        write_file(temporary / SOURCE, json.dumps(source, indent=1))
    return len(reader.numbers)


def _write_shard(folder: Path, number: int, part: Sequence[Demonstration], reader: Reader) -> Path:
    path = folder / f"shard-{number:05d}.safetensors"
    note = reader.layout.note
    write_shard(path, part, None if note is None else [note.episodes[each] for each in reader.numbers[-len(part) :]])
    return path
