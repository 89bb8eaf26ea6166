"""How long emulated devices were busy: written down by every process, added up afterwards."""

from __future__ import annotations

import os
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

WRITE_EVERY_S = 0.25


class Reading(NamedTuple):
    """What all devices of a kind did between two times."""

    busy_s: float
    decisions: float


class Meter:
    """Adds up the devices of one kind in one process and appends to a file of its own, some times a second.

    A line is: since when, until when (seconds of `time.time`), busy seconds, decisions.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._busy_s, self._decisions = 0.0, 0
        self._since = time.time()

    @staticmethod
    @lru_cache
    def of(folder: Path | None, kind: str) -> Meter:
        """This process's meter for a kind; without a folder it only adds up."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return Meter(None if folder is None else folder / f"{kind}-{os.getpid()}.txt")

    def add(self, busy_s: float, decisions: int) -> None:
        with self._lock:
            self._busy_s += busy_s
            self._decisions += decisions
            now = time.time()
            if self._path is not None and now - self._since >= WRITE_EVERY_S:
                with self._path.open("a") as file:
                    file.write(f"{self._since:.4f} {now:.4f} {self._busy_s:.6f} {self._decisions}\n")
                self._busy_s, self._decisions, self._since = 0.0, 0, now


def read(folder: Path, kind: str, begin: float, end: float) -> Reading:
    """Sums over all processes between two times; a line that lies partly between them counts in part."""
    lines = _lines(folder, kind)
    length = np.maximum(lines[:, 1] - lines[:, 0], 1e-9)
    overlap = np.minimum(lines[:, 1], end) - np.maximum(lines[:, 0], begin)
    share = np.clip(overlap / length, 0.0, 1.0)
    return Reading(float(share @ lines[:, 2]), float(share @ lines[:, 3]))


def time_of(folder: Path, kind: str, decisions: float) -> float:
    """When the devices of a kind had done so many decisions.

    Raises:
        ValueError: they have not.
    """
    lines = _lines(folder, kind)
    lines = lines[np.argsort(lines[:, 1])]
    done = np.cumsum(lines[:, 3])
    if not len(done) or done[-1] < decisions:
        raise ValueError(f"{kind}: {done[-1] if len(done) else 0:.0f} decisions were done, not {decisions:.0f}")
    return float(lines[np.searchsorted(done, decisions), 1])


def num_working(folder: Path, kind: str) -> int:
    """Processes whose devices of a kind have done decisions."""
    files = [_rows(path) for path in folder.glob(f"{kind}-*.txt")]
    return sum(bool(len(rows) and rows[:, 3].sum() > 0) for rows in files)


def _lines(folder: Path, kind: str) -> np.ndarray:
    return np.concatenate([np.zeros((0, 4)), *(_rows(path) for path in folder.glob(f"{kind}-*.txt"))])


def _rows(path: Path) -> np.ndarray:
    return np.array([row.split() for row in path.read_text().splitlines()], float).reshape(-1, 4)
