"""Models that learn beside the policy, each by a trainer of its own: a checkpoint of the run names those of its moment.

RUN/world/observation-00000040/           after so many updates of its trainer; never changed
    observation.json, …                   what the trainer wrote
    checkpoint.json                       sizes and checksums of that
RUN/checkpoints/step-00000120/run.json    "companions": {"observation": "observation-00000040"}

One is kept for as long as a checkpoint names it, the newest two of each trainer in any case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from accerl.checkpoint import Newest, list_checkpoints
from accerl.files import discard, replaced, set_aside, sweep
from accerl.manifest import NAME, Damaged, read_manifest, verify, write_manifest
from accerl.tensor_files import Digest

KEPT = 2
"""Somebody may be reading the one before the newest."""
Fill = Callable[[Path], Mapping[str, Digest]]
"""Writes the files into a folder; gives the digests that it knows."""


def write(folder: Path, name: str, updates: int, fill: Fill) -> str:
    """Write NAME-UPDATES below `folder`; returns that.

    Raises:
        OSError: the disk did not take it; nothing of it is left.
    """
    target = folder / f"{name}-{updates:08d}"
    with replaced(target) as temporary:
        write_manifest(temporary, fill(temporary))
    return target.name


class CompanionWriter:
    """Saves the model of one trainer again and again. What the disk does not take costs no training.

    Args:
        checkpoints: of the run.
        accompany: makes the next checkpoint name what was written; returns what the last one names, which may not be
            on the disk yet.
        on_failure: told why it was not written, once until it is again.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: Path,
        name: str,
        accompany: Callable[[str], Collection[str]],
        on_failure: Callable[[str], None],
    ):
        self._folder = folder
        self._checkpoints = checkpoints
        self._name = name
        self._accompany = accompany
        self._on_failure = on_failure
        self._is_failing = False

    def save(self, updates: int, fill: Fill) -> None:
        """After so many updates; what nothing names any more goes."""
        try:
            written = write(self._folder, self._name, updates, fill)
        except OSError as error:
            if not self._is_failing:
                self._on_failure(f"{self._name}-{updates:08d} was not written ({error.strerror or error})")
            self._is_failing = True
            return
        self._is_failing = False
        let_go(self._folder, self._checkpoints, self._name, self._accompany(written))


def list_companions(folder: Path, name: str | None = None) -> list[Path]:
    """Those that were finished, of one trainer or of all; oldest first."""
    found = [path for path in folder.glob("*-*") if path.is_dir() and _parts(path) is not None]
    return sorted((path for path in found if name in (None, _name(path))), key=num_updates)


def num_updates(path: Path) -> int:
    """Of the trainer, when it wrote this."""
    parts = _parts(path)
    assert parts is not None
    return parts[1]


def newest_names(folder: Path) -> dict[str, str]:
    """By trainer."""
    return {_name(path): path.name for path in list_companions(folder)}


def newest_whole(folder: Path, name: str) -> Newest:
    """The newest of a trainer whose files are all as they were written; `folder` None: there is none."""
    damaged: dict[Path, str] = {}
    for path in reversed(list_companions(folder, name)):
        try:
            verify(path, read_manifest(path).get("files", (NAME,)))
        except Damaged as reason:
            damaged[path] = str(reason)
        else:
            return Newest(path, damaged)
    return Newest(None, damaged)


def named(checkpoint: Path) -> dict[str, str]:
    """By trainer, what a checkpoint names; nothing if that cannot be read."""
    try:
        found = json.loads((checkpoint / "run.json").read_text()).get("companions", {})
        return {name: each for name, each in found.items() if _parts(Path(each)) is not None}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def let_go(folder: Path, checkpoints: Path, name: str, kept: Collection[str]) -> None:
    """Remove those of a trainer that neither `kept` nor a checkpoint names, but for the newest two.

    Args:
        kept: what a checkpoint that is being written names; asked for before this is called, so that it is among them
            or on the disk.
    """
    needed = {*kept, *_named_by_any(checkpoints)}
    for path in list_companions(folder, name)[:-KEPT]:
        if path.name not in needed:
            discard(path)


def recover(folder: Path, checkpoints: Path) -> list[str]:
    """Before a run goes on: leave what its checkpoints name, so that the newest of each trainer is what the newest
    checkpoint names, and the one before it where that is damaged. Returns a sentence for each that is not to be had.

    What is newer has seen what the policy has not, and goes. Damaged ones become `damaged-NAME-UPDATES`.
    """
    sweep(folder)
    written = list_checkpoints(checkpoints)
    current = named(written[-1]) if written else {}
    needed = _named_by_any(checkpoints)
    for path in list_companions(folder):
        wanted = current.get(_name(path))
        if path.name not in needed or wanted is None or num_updates(path) > num_updates(folder / wanted):
            discard(path)
    told = []
    for name, wanted in current.items():
        newest = newest_whole(folder, name)
        for path in newest.damaged:
            set_aside(path)
        if newest.folder is None or newest.folder.name != wanted:
            reason = newest.damaged.get(folder / wanted)
            what = "missing" if reason is None else f"damaged ({reason})"
            then = "what the run was given" if newest.folder is None else newest.folder.name
            told.append(f"{wanted}, which {written[-1].name} names, is {what}; going on from {then}")
    return told


def _named_by_any(checkpoints: Path) -> set[str]:
    return {each for checkpoint in list_checkpoints(checkpoints) for each in named(checkpoint).values()}


def _parts(path: Path) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?!damaged-|\.)(.+)-(\d{8,})", path.name)
    return None if match is None else (match[1], int(match[2]))


def _name(path: Path) -> str:
    parts = _parts(path)
    assert parts is not None
    return parts[0]
