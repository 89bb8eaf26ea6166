"""The newest trajectories, for those who look on: bounded, and none of it waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from accerl import trajectories
from accerl.config import ConfigError
from accerl.types import Trajectory

Source = Literal["real", "imagined"]
Cursor = Mapping[str, int]
"""Shard, or file, to what was seen of it: how many trajectories, or when it was written."""


class Seen(NamedTuple):
    """What there was that the cursor had not seen."""

    cursor: Cursor
    trajectories: list[Trajectory]
    """Real before imagined, and each shard's oldest first."""


class Recent:
    """Keeps the newest trajectories and counts them, so that a reader knows what it has not seen yet.

    Args:
        keep: at most so many.
        max_bytes: at most so many bytes of images, but always one trajectory.
    """

    def __init__(self, keep: int = 32, max_bytes: int = 32 * 2**20):
        self.count = 0
        """Trajectories so far."""
        self._kept: deque[Trajectory] = deque()
        self._keep = keep
        self._max_bytes = max_bytes
        self._bytes = 0

    def add(self, trajectory: Trajectory) -> None:
        """It must own its arrays."""
        self.count += 1
        self._kept.append(trajectory)
        self._bytes += trajectory.images.nbytes
        while len(self._kept) > self._keep or (self._bytes > self._max_bytes and len(self._kept) > 1):
            self._bytes -= self._kept.popleft().images.nbytes

    def newest(self, num: int, after: int = 0) -> tuple[int, Sequence[Trajectory]]:
        """The count, and at most `num` trajectories past the `after`-th, the newest ones, oldest first.

        An `after` that was never reached belongs to another process before this one: everything is new.
        """
        unseen = self.count - after if after <= self.count else self.count
        wanted = min(num, unseen, len(self._kept))
        return self.count, list(self._kept)[len(self._kept) - wanted :]


def check_source(source: Source | None) -> None:
    """Raises ConfigError if there is no such source."""
    if source is not None and source not in get_args(Source):
        raise ConfigError(f"source: {source!r} is none; there are {' and '.join(get_args(Source))}")


def watch_folder(folder: Path, cursor: Cursor, num: int, source: Source | None) -> Seen:
    """Of the sample that a run keeps in `folder`, at most the `num` newest of each source that `cursor` lacks."""
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    unseen = [name for name in sorted(written, key=written.__getitem__) if cursor.get(name) != written[name]]
    found: dict[Source, list[Trajectory]] = {"real": [], "imagined": []}
    for name in reversed(unseen):
        is_imagined = trajectories.facts(folder / name).get("is_imagined", False)
        part = found["imagined" if is_imagined else "real"]
        if len(part) < num and source in (None, "imagined" if is_imagined else "real"):
            part.append(trajectories.load(folder / name))
    return Seen(written, [trajectory for part in found.values() for trajectory in reversed(part)])
