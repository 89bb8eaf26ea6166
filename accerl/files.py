"""Files that survive a crash: written to a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class replaced:  # noqa: N801 - reads as a verb: with replaced(folder) as temporary
    """A context that gives a temporary folder and puts it, synced, in the place of `folder` when nothing was raised."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        for path in (*self._temporary.iterdir(), self._temporary):
            sync(path)
        old = self._folder.with_name(f".{self._folder.name}.{os.getpid()}.old")
        if self._folder.exists():
            self._folder.rename(old)
        self._temporary.rename(self._folder)
        sync(self._folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, content: str, mode: int = 0o644) -> None:
    """Replace a text file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """The complete JSON lines of a file from number `after` on; a line that is still being written is left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True)[after:] if line.endswith("\n")]


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Append one JSON line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
