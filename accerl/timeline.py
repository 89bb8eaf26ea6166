"""What all processes of a run did when, on one clock, as a trace that https://ui.perfetto.dev opens.

RUN/trace/*.jsonl (one of each process, see `accerl.trace`)  ─►  spans  ─►  RUN/trace.json, `accerl.gantt`
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from accerl.files import write_file

FOLDER = "trace"
"""Below a run's folder: where its processes put their files."""
ROLES = ("learner", "replay", "inference", "rollout")
"""Rows from top to bottom; what is none of them comes after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one lane of one process did for a while."""

    process: str
    """`ROLE` or `ROLE-NUMBER`."""
    node: str
    lane: str
    name: str
    start_s: float
    """Since the epoch, by the clock of its node."""
    end_s: float
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """It waited."""
        return self.name.startswith("wait")


def read_spans(folder: Path) -> list[Span]:
    """The spans in the files of a folder, by process, lane and start.

    Of a file that a killed process left incomplete, the complete lines are read.
    """
    spans = [span for path in sorted(folder.glob("*.jsonl")) for span in _read(path)]
    return sorted(spans, key=lambda span: (order(span.process), order(span.lane), span.start_s, -span.end_s))


def merge(folder: Path) -> dict[str, Any]:
    """The spans in the files of a folder as one trace in Chrome's format."""
    return chrome_trace(read_spans(folder))


def write_chrome_trace(run_folder: Path, spans: Sequence[Span] | None = None) -> Path:
    """Write the `trace.json` of a run; returns its path.

    Args:
        spans: those of the run, where they have been read already.
    """
    path = run_folder / "trace.json"
    write_file(path, json.dumps(merge(run_folder / FOLDER) if spans is None else chrome_trace(spans)))
    return path


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """Chrome's trace event format: a process for each process, a thread for each lane, microseconds.

    Spans of one lane that overlap without one being inside the other are put on threads of their own: viewers would
    draw them wrong.
    """
    begin = min((span.start_s for span in spans), default=0.0)
    lanes: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        lanes[span.process, span.lane].append(span)
    nodes = {span.process: span.node for span in spans}
    several_nodes = len(set(nodes.values())) > 1
    process_ids = {process: index for index, process in enumerate(sorted(nodes, key=order), start=1)}
    events: list[dict[str, Any]] = []
    for process, pid in process_ids.items():
        label = f"{process} on {nodes[process]}" if several_nodes else process
        events.append(_metadata("process_name", pid, 0, {"name": label}))
        events.append(_metadata("process_sort_index", pid, 0, {"sort_index": pid}))
    slices: list[dict[str, Any]] = []
    thread_ids = count(1)
    for (process, lane), own in sorted(lanes.items(), key=lambda item: (order(item[0][0]), order(item[0][1]))):
        for index, track in enumerate(tracks(own)):
            pid, tid = process_ids[process], next(thread_ids)
            label = (lane or "main") if index == 0 else f"{lane or 'main'} ({index + 1})"
            events.append(_metadata("thread_name", pid, tid, {"name": label}))
            events.append(_metadata("thread_sort_index", pid, tid, {"sort_index": tid}))
            slices.extend(_slice(span, pid, tid, begin) for span in track)
    slices.sort(key=lambda event: (event["ts"], -event["dur"]))
    return {"traceEvents": [*events, *slices], "displayTimeUnit": "ms", "otherData": {"begin_s": begin}}


def tracks(spans: Iterable[Span]) -> list[list[Span]]:
    """As few lists as a first fit needs, in each of which two spans are apart or one is inside the other."""
    found: list[list[Span]] = []
    open_ends: list[list[float]] = []
    for span in sorted(spans, key=lambda span: (span.start_s, -span.end_s)):
        for track, ends in zip(found, open_ends, strict=True):
            while ends and ends[-1] <= span.start_s:
                ends.pop()
            if not ends or span.end_s <= ends[-1]:
                track.append(span)
                ends.append(span.end_s)
                break
        else:
            found.append([span])
            open_ends.append([span.end_s])
    return found


def flatten(track: Sequence[Span]) -> list[Span]:
    """A track without the spans that waited, each instant given to the innermost span over it."""
    pieces: list[Span] = []
    stack: list[Span] = []
    reached = float("-inf")

    def advance(until: float) -> None:
        nonlocal reached
        if stack and not stack[-1].is_idle and until > reached:
            pieces.append(replace(stack[-1], start_s=reached, end_s=until))
        reached = max(reached, until)

    for span in track:
        while stack and stack[-1].end_s <= span.start_s:
            advance(stack[-1].end_s)
            stack.pop()
        advance(span.start_s)
        stack.append(span)
    while stack:
        advance(stack[-1].end_s)
        stack.pop()
    return pieces


def busy_share(lanes: Mapping[str, Sequence[Span]], seconds: float) -> float:
    """Share of a window for which a process worked: its lane "" where it has one, or else its slots together.

    Slots are taken over as many as worked at once for at least a hundredth of the time: what the process can do.

    Args:
        lanes: work of each lane, flattened and cut to the window.
    """
    if "" in lanes:
        return sum(span.end_s - span.start_s for span in lanes[""]) / seconds
    work = [span for pieces in lanes.values() for span in pieces]
    changes = sorted([(span.start_s, 1) for span in work] + [(span.end_s, -1) for span in work])
    at_once: dict[int, float] = defaultdict(float)
    working = 0
    for (time_s, change), (next_s, _) in pairwise(changes):
        working += change
        at_once[working] += next_s - time_s
    total = sum(number * duration for number, duration in at_once.items())
    capacity = max((number for number in at_once if _time_above(at_once, number - 1) >= 0.01 * seconds), default=1)
    return min(1.0, total / (max(1, capacity) * seconds))


@cache
def order(name: str) -> tuple[Any, ...]:
    """Key that sorts processes by role and then by number, lanes by number: `rollout-2` before `rollout-10`."""
    role = name.split("-")[0]
    place = ROLES.index(role) if role in ROLES else len(ROLES)
    return place, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _time_above(at_once: Mapping[int, float], number: int) -> float:
    return sum(duration for working, duration in at_once.items() if working > number)


def _read(path: Path) -> Iterator[Span]:
    """The spans of one file up to the first line that is not complete."""
    process: Mapping[str, Any] | None = None
    for line in path.read_text(errors="replace").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            return
        if process is None:
            process = content
            continue
        name, start_s, end_s, lane, args = content
        offset_s = process["wall_offset_s"]
        yield Span(
            process=process["process"],
            node=process["node"],
            lane=lane,
            name=name,
            start_s=round(start_s + offset_s, 6),  # so that what follows at once starts at exactly this end
            end_s=round(end_s + offset_s, 6),
            args=args,
        )


def _metadata(name: str, pid: int, tid: int, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _slice(span: Span, pid: int, tid: int, begin: float) -> dict[str, Any]:
    start, end = (round((time_s - begin) * 1e6) for time_s in (span.start_s, span.end_s))
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.process.split("-")[0],
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": end - start,
        "args": dict(span.args),
    }
