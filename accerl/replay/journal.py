"""The snapshots of one shard, one after the other, and what came and happened since the newest of them.

A shard that dies loses nothing that it has answered for: what comes is in a file before it is. A snapshot is made under
another name and renamed, then the one before is removed: one that was interrupted leaves that.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from accerl.files import discard, sync
from accerl.replay import snapshot
from accerl.replay.order import Entry
from accerl.replay.snapshot import Content, Record
from accerl.replay.spill import SegmentFiles, file_name

Event = Literal["used", "confirmed", "reclaimed", "aged", "overwritten", "left"]


class Snapshots:
    """A folder of them, of which the newest counts: `begin`, `write` (in any thread), `finish`, and `note` at any time.

    Args:
        start: differs from one start of the run to the next.
    """

    def __init__(self, folder: Path, files: SegmentFiles, start: str):
        self._folder = folder
        self._files = files
        self._start = start
        folder.mkdir(parents=True, exist_ok=True)
        self.newest = max(folder.glob("snapshot-*"), default=None)
        self.is_whole = False
        """The newest one and its journal hold all that a process needs which takes over."""
        self._journal: int | None = None  # descriptor of the newest one's
        self._since: list[bytes] | None = None  # lines since `begin`, for the snapshot that is being written
        self._came: list[Entry] = []  # since then
        self._next = self._temporary = folder
        self.tidy()

    @property
    def is_of_this_start(self) -> bool:
        """The newest one was written by a process of this run which has died, not by the run before it was resumed."""
        return self.newest is not None and (self.newest / "start").read_text() == self._start

    def note(self, event: Event, entries: Sequence[Entry] = (), batch: int | None = None) -> None:
        """Something happened to what a snapshot may hold. If the disk is full, there is no snapshot from here on."""
        self._write_line({"event": event, "batch": batch, "segments": [entry.number for entry in entries]})

    def came(self, entry: Entry, newest_version: int) -> None:
        """It was pushed. What a full disk does not take is lost if the shard dies before the next snapshot."""
        if self._since is not None:
            self._came.append(entry)
        if self.newest is not None:
            try:
                self._files.copy(entry, self.newest / file_name(entry.number))
            except OSError as error:
                print(f"{self._folder.name}: what came was not written ({error})", file=sys.stderr)
                self.is_whole = False
                return
        record = asdict(Record.of(entry))
        self._write_line({"event": "pushed", "batch": None, "segments": [], "record": record, "newest": newest_version})

    def _write_line(self, line: dict[str, Any]) -> None:
        data = f"{json.dumps(line)}\n".encode()
        if self._journal is not None:
            try:
                os.write(self._journal, data)
            except OSError as error:
                print(f"{self._folder.name}: removes its snapshot, whose journal is cut off ({error})", file=sys.stderr)
                self.forget()
        if self._since is not None:
            self._since.append(data)

    def begin(self) -> None:
        """The content is taken now."""
        number = 0 if self.newest is None else int(self.newest.name.removeprefix("snapshot-")) + 1
        self._next = self._folder / f"snapshot-{number:08d}"
        self._temporary = self._next.with_name(f".{self._next.name}.tmp")
        self._since, self._came = [], []
        self._files.keep()

    def write(self, content: Content) -> None:
        """All but the renaming."""
        self._temporary.mkdir()
        (self._temporary / "start").write_text(self._start)
        snapshot.write(self._temporary, content, self._files)

    def finish(self) -> None:
        """From now on this snapshot is the newest one."""
        assert self._since is not None
        for entry in self._came:
            if entry.is_held or entry.batch is not None:
                self._files.copy(entry, self._temporary / file_name(entry.number))
                entry.copy = self._next / file_name(entry.number)
        journal = os.open(self._temporary / "journal.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(journal, b"".join(self._since))
        self._temporary.rename(self._next)
        self._close()
        self._journal, self.newest, self._since, self._came = journal, self._next, None, []
        self.is_whole = True
        self._files.unkeep()

    def abandon(self) -> None:
        """It could not be written; the one before stays."""
        self._since, self._came = None, []
        self._files.unkeep()
        self.tidy()

    def forget(self) -> None:
        """Remove the newest one: without its journal it would bring back what was used up."""
        self._close()
        self.is_whole = False
        if self.newest is not None:
            shutil.rmtree(self.newest, ignore_errors=True)
            self.newest = None

    def tidy(self) -> None:
        """Remove what is older than the newest one, and what was not finished."""
        sync(self._folder)
        for folder in (*self._folder.glob("snapshot-*"), *self._folder.glob(".snapshot-*")):
            if folder != self.newest:
                shutil.rmtree(folder, ignore_errors=True)

    def _close(self) -> None:
        if self._journal is not None:
            os.close(self._journal)
            self._journal = None


def clean(folder: Path, keeps_snapshots: bool) -> None:
    """Remove what the shards of a run that has ended left below `folder`."""
    for shard in folder.glob("shard-*"):
        _discard(shard / "segments")
        if not (keeps_snapshots and any(shard.glob("snapshot-*"))):
            _discard(shard)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def _discard(folder: Path) -> None:
    """Also where a process that is being ended still adds files: it does not find the folder by another name."""
    with suppress(FileNotFoundError):
        discard(folder)
