"""What a process did when: named spans of time, cheap enough to be kept always.

    with tracer.span("forward"): ...  ─►  RUN/trace/inference-0.0.jsonl  ─►  accerl.timeline  ─►  RUN/trace.json

The first line of a file describes its process, each other line is one span: name, start, end, lane, arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accerl.files import write_file

Entry = tuple[str, float, float, str, Mapping[str, Any]]
"""Name, start and end by the monotonic clock, lane, arguments."""


class Tracer:
    """The newest spans of one process, and the seconds spent under each name since the start.

    A name that begins with `wait` is idleness. The lane "" is the main work of the process; slots and further threads
    have lanes of their own. Any thread may call any method.

    Args:
        path: file that `flush` replaces; None: none is written.
        process: row of the picture, `ROLE-NUMBER`; successive processes of the same name share it.
        max_events: newest spans that are kept; 0: totals only.
    """

    def __init__(self, path: Path | None, process: str, max_events: int):
        self._path = path
        self._process = process
        self._enabled = True
        self._max_events = max_events
        self._num_spans = 0
        self._totals: dict[str, float] = {}
        self._open: dict[int, tuple[str, float, str, dict[str, Any]]] = {}
        self._new: deque[Entry] = deque(maxlen=max_events)
        self._lines: deque[str] = deque(maxlen=max_events)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    @classmethod
    def off(cls) -> Tracer:
        """A tracer that records nothing, totals neither."""
        tracer = cls(None, "", 0)
        tracer._enabled = False
        return tracer

    def add(self, name: str, start_s: float, end_s: float, lane: str = "", **args: Any) -> None:
        """A span that has ended, in seconds of `time.monotonic()`; arguments are JSON-compatible."""
        if self._enabled:
            self._record((name, start_s, end_s, lane, args))

    def span(self, name: str, lane: str = "", **args: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """A context whose time is recorded under `name`; it gives the arguments, to which more may be added."""
        return _Span(self, name, lane, args) if self._enabled else contextlib.nullcontext(args)

    def totals(self) -> dict[str, float]:
        """Seconds by name since the start, summed over lanes; a `span` counts up to now while it is open."""
        with self._lock:
            totals = dict(self._totals)
            open_spans = list(self._open.values())
        now = time.monotonic()
        for name, start_s, _, _ in open_spans:
            totals[name] = totals.get(name, 0.0) + now - start_s
        return totals

    def flush(self) -> None:
        """Replace the file by one of the newest spans, those that are open included; nothing if there is none new.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        with self._flushing:
            with self._lock:
                new = list(self._new)
                self._new.clear()
                open_spans = list(self._open.values())
                num_spans = self._num_spans
            if not new and not open_spans:
                return
            self._lines.extend(_line(*entry) for entry in new)
            now = time.monotonic()
            unfinished = [
                _line(name, start_s, now, lane, {**args, "open": True}) for name, start_s, lane, args in open_spans
            ]
            header = {
                "process": self._process,
                "pid": os.getpid(),
                "node": platform.node(),
                "wall_offset_s": round(wall_offset(), 6),
                "num_spans": num_spans,
            }
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, "".join([json.dumps(header) + "\n", *self._lines, *unfinished]))

    def _record(self, entry: Entry, opened: int | None = None) -> None:
        name, start_s, end_s, _, _ = entry
        with self._lock:
            if opened is not None:
                del self._open[opened]
            self._totals[name] = self._totals.get(name, 0.0) + end_s - start_s
            self._num_spans += 1
            self._new.append(entry)


def wall_offset() -> float:
    """Seconds from the monotonic clock to the time since the epoch; of five readings the one least interrupted."""
    readings: list[tuple[float, float]] = []
    for _ in range(5):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, wall - (before + after) / 2))
    return min(readings)[1]


class _Span:
    """An open span of a tracer."""

    __slots__ = ("_args", "_lane", "_name", "_start_s", "_tracer")

    def __init__(self, tracer: Tracer, name: str, lane: str, args: dict[str, Any]):
        self._tracer, self._name, self._lane, self._args = tracer, name, lane, args

    def __enter__(self) -> dict[str, Any]:
        self._start_s = time.monotonic()
        with self._tracer._lock:
            self._tracer._open[id(self)] = (self._name, self._start_s, self._lane, self._args)
        return self._args

    def __exit__(self, *_: object) -> None:
        entry = (self._name, self._start_s, time.monotonic(), self._lane, self._args)
        self._tracer._record(entry, opened=id(self))


def _line(name: str, start_s: float, end_s: float, lane: str, args: Mapping[str, Any]) -> str:
    return json.dumps([name, round(start_s, 6), round(end_s, 6), lane, args]) + "\n"
