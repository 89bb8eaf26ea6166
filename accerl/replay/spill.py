"""The segments of a shard that are on disk: those for which there is no room in memory, and those in a snapshot."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Literal

from accerl import trajectories
from accerl.config import ConfigError
from accerl.files import sync
from accerl.replay.order import Entry
from accerl.types import Trajectory

MIB = 2**20


class SegmentFiles:
    """One file a segment, in a folder of its own that is emptied first. Files are written once, and never changed.

    Args:
        memory_mb: of images in memory, MiB; beyond it those that are least likely to be used next are on disk only.
        order: `replay.order`, which says which these are: the most used ones; of a fifo the newest; of a ring the
            oldest.
    """

    def __init__(
        self,
        folder: Path,
        memory_mb: int | None = None,
        order: Literal["least_used", "fifo", "ring"] = "least_used",
    ):
        self._folder = folder
        self._limit = None if memory_mb is None else memory_mb * MIB
        self._order = order
        self._in_memory: dict[int, OrderedDict[Entry, None]] = {}  # by rank: the highest one is the last to be used
        self._writing = threading.Lock()  # a snapshot is written by another thread
        self._kept: list[Path] | None = None  # to be removed when it is
        self.memory_bytes = 0
        """Of the images in memory."""
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._in_memory.clear()
        self.memory_bytes = 0

    def hold(self, entry: Entry) -> None:
        """It came, or was used.

        Raises:
            ConfigError: the disk is full.
        """
        if self._limit is None or entry.is_spilled:
            return
        self._leave_memory(entry)
        entry.rank = entry.uses if self._order == "least_used" else 0
        self._in_memory.setdefault(entry.rank, OrderedDict())[entry] = None
        self.memory_bytes += entry.trajectory.images.nbytes
        while self.memory_bytes > self._limit:
            self._spill(self._least_likely())

    def drop(self, entry: Entry) -> None:
        """Nobody will ask for it again."""
        self._leave_memory(entry)
        with self._writing:
            if entry.copy is not None:
                entry.copy.unlink(missing_ok=True)
            if entry.file is None:
                return
            if self._kept is None:
                entry.file.unlink(missing_ok=True)
            else:
                self._kept.append(entry.file)

    def keep(self) -> None:
        """Remove no file until `unkeep`."""
        self._kept = []

    def unkeep(self) -> None:
        kept, self._kept = self._kept or [], None
        for path in kept:
            path.unlink(missing_ok=True)

    def read(self, entry: Entry) -> Trajectory:
        """All of it, wherever it is."""
        if not entry.is_spilled:
            return entry.trajectory
        assert entry.file is not None
        return trajectories.load(entry.file)

    def link(self, entry: Entry, trajectory: Trajectory, target: Path) -> None:
        """Give its file a second name, writing it first if that was not done yet.

        Args:
            trajectory: of the entry, when it was in memory.
        """
        with self._writing:
            if entry.file is None:
                entry.file = self._write(entry, trajectory)
                if self._kept is not None and not entry.is_held and entry.batch is None:
                    self._kept.append(entry.file)
            _link(entry.file, target)
            is_new, entry.is_synced = not entry.is_synced, True
        if is_new:
            sync(target)

    def copy(self, entry: Entry, target: Path) -> None:
        """The same for one that has just come, for as long as it is there, and no longer than the machine is up."""
        with self._writing:
            if entry.file is None:
                entry.file = self._write(entry, entry.trajectory)
            _link(entry.file, target)
            entry.copy = target

    def adopt(self, entry: Entry, file: Path) -> None:
        """The entry is what `file` holds, which stays where it is."""
        entry.file = self._path(entry)
        _link(file, entry.file)
        entry.is_synced = True
        self.hold(entry)

    def _spill(self, entry: Entry) -> None:
        self._leave_memory(entry)
        try:
            with self._writing:
                if entry.file is None:
                    entry.file = self._write(entry, entry.trajectory)
        except OSError as error:
            raise _explained(error, self._folder) from error
        entry.trajectory = replace(entry.trajectory, images=entry.trajectory.images[:0].copy())
        entry.is_spilled = True

    def _least_likely(self) -> Entry:
        entries = self._in_memory[max(self._in_memory)]
        return next(reversed(entries)) if self._order == "fifo" else next(iter(entries))

    def _leave_memory(self, entry: Entry) -> None:
        if entry.rank is not None:
            del self._in_memory[entry.rank][entry]
            if not self._in_memory[entry.rank]:
                del self._in_memory[entry.rank]
            self.memory_bytes -= entry.trajectory.images.nbytes
            entry.rank = None

    def _write(self, entry: Entry, trajectory: Trajectory) -> Path:
        path = self._path(entry)
        trajectories.save(path, trajectory)
        return path

    def _path(self, entry: Entry) -> Path:
        return self._folder / file_name(entry.number)


def file_name(number: int) -> str:
    return f"{number:08d}.safetensors"


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK):
            raise
        shutil.copyfile(file, target)  # a file system without links


def _explained(error: OSError, folder: Path) -> ConfigError:
    return ConfigError(
        f"replay.memory_mb: what does not fit in memory could not be written to {folder} ({error.strerror}); free some "
        f"of that disk, lower replay.capacity_decisions, or raise replay.memory_mb"
    )
