"""What a shard held at one moment, in a folder, and what happened to it since.

snapshot-00000007/
    state.json            counters, generator, and of each segment how often it was used
    00000123.safetensors  the segments: links to files that are written once, whichever snapshots they are in
    journal.jsonl         what came, was used, confirmed and let go afterwards

After the end of one process another one goes on with what the journal makes of the snapshot: nothing is lost, and
nothing is used too often. (`accerl.replay.journal` says how one snapshot follows the other.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from accerl import trajectories
from accerl.files import sync, write_file
from accerl.reading import read_object
from accerl.replay.order import Entry
from accerl.replay.spill import SegmentFiles, file_name
from accerl.types import Trajectory

FORMAT = 1
SUMS = ("pushed_decisions", "used_decisions", "sampled_decisions", "aged_decisions", "overwritten_decisions")
"""Of `Replay`: what cannot be counted from the segments."""


@dataclass(slots=True, kw_only=True)
class Record:
    """A segment in `state.json`."""

    number: int
    key: int
    uses: int
    place: int
    succeeded: bool
    is_held: bool
    batch: int | None
    num_decisions: int
    episode: int

    @classmethod
    def of(cls, entry: Entry) -> Record:
        return cls(
            number=entry.number,
            key=entry.key,
            uses=entry.uses,
            place=entry.place,
            succeeded=entry.succeeded,
            is_held=entry.is_held,
            batch=entry.batch,
            num_decisions=entry.num_decisions,
            episode=entry.trajectory.episode,
        )


@dataclass(slots=True, kw_only=True)
class Content:
    """What a shard holds and has lent, and its sums."""

    next_key: int
    newest_version: int
    generator: Mapping[str, Any]
    sums: dict[str, int]
    """Those of `SUMS`."""
    segments: list[tuple[Record, Entry, Trajectory]]
    order: Mapping[str, Any] = field(default_factory=dict)
    """Of the `Order`; older snapshots have none."""

    def facts(self) -> dict[str, Any]:
        """JSON-compatible: all but the segments themselves."""
        return {
            "format": FORMAT,
            "next_key": self.next_key,
            "newest_version": self.newest_version,
            "generator": self.generator,
            "sums": self.sums,
            "order": self.order,
            "segments": [asdict(record) for record, _, _ in self.segments],
        }


class _Facts(TypedDict):
    """`Content.facts` without what is read apart."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]

    next_key: int
    newest_version: int
    generator: dict[str, Any]
    sums: dict[str, int]
    order: NotRequired[dict[str, Any]]


RECORD = TypeAdapter(Record)
FACTS = TypeAdapter(_Facts)
"""They refuse what is missing or of another type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a run is resumed from: what came later has never been."""

    version: int
    """Of the learner's parameters: it has trained on the batches with smaller numbers."""
    first_episode: int
    """Number of the first episode that is played from here on."""


def write(folder: Path, content: Content, files: SegmentFiles | None = None) -> None:
    """Write everything into an empty folder.

    Args:
        files: where the segments are on disk, so that those which are need not be written again.
    """
    for record, entry, trajectory in content.segments:
        target = folder / file_name(record.number)
        if files is None:
            trajectories.save(target, trajectory)
        else:
            files.link(entry, trajectory, target)
    write_file(folder / "state.json", json.dumps(content.facts()))
    sync(folder)


def read(
    folder: Path, max_reuse: int, files: SegmentFiles | None = None, checkpoint: Checkpoint | None = None
) -> Content:
    """What `write` wrote, as far as the journal says that it was not used up or let go since.

    Args:
        files: takes over the segments.
        checkpoint: go back to it: what was trained on since is to be trained on again, what was played since is not
            there. None: go on from the end of the journal.

    Raises:
        ValueError: it is damaged, or of another format.
        OSError: a file is missing.
    """
    try:
        return _read(folder, max_reuse, files, checkpoint)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{folder} is damaged ({error!r})") from None


def _read(folder: Path, max_reuse: int, files: SegmentFiles | None, checkpoint: Checkpoint | None) -> Content:
    facts = read_object(folder / "state.json")
    if facts.pop("format") != FORMAT:
        raise ValueError(f"{folder} is of another format than {FORMAT}")
    records = {each["number"]: RECORD.validate_python(each) for each in facts.pop("segments")}
    before = set(records)
    content = Content(**FACTS.validate_python(facts), segments=[])
    journal = folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    is_past = False
    for event in (json.loads(line) for line in lines if line.endswith("\n")):
        is_past |= checkpoint is not None and event["event"] == "used" and event["batch"] >= checkpoint.version
        if event["event"] == "pushed":
            _add(event, records, content)
        elif not is_past:
            _apply(event, records, content, max_reuse)
    if checkpoint is not None:
        _go_back(records, content, checkpoint)
    for record in records.values():
        record.is_held &= record.uses < max_reuse
        if record.is_held or record.batch is not None:
            path = folder / file_name(record.number)
            if record.number not in before and not path.exists():  # it was just being let go
                continue
            entry = _entry(record, trajectories.load(path))
            if files is not None:
                files.adopt(entry, path)
            content.segments.append((record, entry, entry.trajectory))
    return content


def _add(line: dict[str, Any], records: dict[int, Record], content: Content) -> None:
    record = RECORD.validate_python(line["record"])
    records[record.number] = record
    content.sums["pushed_decisions"] += record.num_decisions
    content.next_key = max(content.next_key, record.key + 1)
    content.newest_version = max(content.newest_version, line["newest"])


def _apply(line: dict[str, Any], records: Mapping[int, Record], content: Content, max_reuse: int) -> None:
    """Repeat one event."""
    batch = line["batch"]
    if line["event"] == "reclaimed":
        _reclaim(records.values(), content)
    known = (records[number] for number in line["segments"] if number in records)  # what came since is not there
    for record in records.values() if line["event"] == "confirmed" else known:
        match line["event"]:
            case "used":
                content.sums["sampled_decisions"] += record.num_decisions
                if record.uses == 0:
                    content.sums["used_decisions"] += record.num_decisions
                    record.batch = batch
                record.uses += 1
                record.is_held &= record.uses < max_reuse
            case "confirmed":
                if record.batch is not None and record.batch <= batch:
                    record.batch = None
            case "aged" | "overwritten" as reason:
                record.is_held = False
                content.sums[f"{reason}_decisions"] += record.num_decisions
            case "left":
                record.is_held = False


def _reclaim(records: Iterable[Record], content: Content) -> None:
    for record in records:
        if record.batch is not None:
            content.sums["sampled_decisions"] -= record.uses * record.num_decisions
            record.uses, record.batch, record.is_held, record.key = 0, None, True, content.next_key
            content.next_key += 1
            content.sums["used_decisions"] -= record.num_decisions


def _go_back(records: dict[int, Record], content: Content, checkpoint: Checkpoint) -> None:
    """To what a learner that goes on from the checkpoint has trained on, and episodes that are not played again."""
    for record in records.values():
        if record.batch is not None and record.batch < checkpoint.version:
            record.batch = None
    _reclaim(records.values(), content)
    for record in [record for record in records.values() if record.episode >= checkpoint.first_episode]:
        del records[record.number]
        content.sums["pushed_decisions"] -= record.num_decisions
        content.sums["sampled_decisions"] -= record.uses * record.num_decisions
        content.sums["used_decisions"] -= record.num_decisions if record.uses else 0


def _entry(record: Record, trajectory: Trajectory) -> Entry:
    return Entry(
        trajectory,
        record.key,
        number=record.number,
        uses=record.uses,
        place=record.place,
        succeeded=record.succeeded,
        is_held=record.is_held,
        batch=record.batch,
    )
