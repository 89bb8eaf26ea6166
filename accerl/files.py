"""Files that survive a crash: written to a temporary name, synced, renamed. What a full disk does not take is said."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accerl.config import ConfigError

ROOM_EVERY_S = 0.5
"""Between two looks whether a full disk has room again."""


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
        try:
            for path in (*self._temporary.rglob("*"), self._temporary):
                sync(path)
        except OSError:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        old = self._folder.with_name(f".{self._folder.name}.{os.getpid()}.old")
        if self._folder.exists():
            self._folder.rename(old)
        self._temporary.rename(self._folder)
        sync(self._folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove a folder that others may be looking for: its name goes first, as a whole."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Give a damaged folder a name that nobody takes it by."""
    target = folder.with_name(f"damaged-{folder.name}")
    if target.exists():
        discard(target)
    folder.rename(target)


def sweep(folder: Path) -> None:
    """Remove what a killed process left of `replaced` and `discard`; what it was just replacing is put back."""
    for path in folder.glob(".*"):
        match = re.fullmatch(r"\.(.+)\.\d+\.(tmp|old|gone)", path.name)
        if match is None:
            continue
        name, kind = match.groups()
        if kind == "old" and not (folder / name).exists():
            path.rename(folder / name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_file(path: Path, content: str, mode: int = 0o644) -> None:
    """Replace a text file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def within(folder: Path, name: str) -> Path:
    """The file that an index names, which must lie in the folder itself.

    Raises:
        ConfigError: the name leads elsewhere.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ConfigError(f"{folder}: its index names {name!r}, which is no file in it; where does it come from?")
    return folder / name


def read_lines(path: Path, after: int = 0) -> list[dict[str, Any]]:
    """The complete JSON lines of a file from number `after` on; a line that is still being written is left out.

    Raises:
        ConfigError: one is no JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]
    return [_read_line(path, number, lines[number]) for number in range(after, len(lines))]


def _read_line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigError(f"run: line {number + 1} of {path} is damaged; remove that line")
    return content


def append_line(path: Path, line: Mapping[str, Any]) -> bool:
    """Append one JSON line, all of it or nothing; whether the disk had room for it. One writer a file.

    What a killed writer left of a line goes.
    """
    data = f"{json.dumps(line)}\n".encode()
    try:
        with path.open("ab+", buffering=0) as file:
            size = _whole_lines(file)
            try:
                is_whole = os.write(file.fileno(), data) == len(data)
            except OSError:
                file.truncate(size)
                raise
            if not is_whole:
                file.truncate(size)
    except OSError as error:
        if not is_full(error):
            raise
        is_whole = False
    if not is_whole:
        print(f"{path}: a line was not written, the disk is full", file=sys.stderr, flush=True)
    return is_whole


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room on the disk, or none that may be used."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _whole_lines(file: Any) -> int:
    """Cut off an unfinished last line; gives the bytes that are left."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    size = file.read().rfind(b"\n") + 1
    file.truncate(size)
    return size


def when_there_is_room(write: Callable[[], None]) -> None:
    """Write, and where the disk is full, wait and write again."""
    while True:
        try:
            return write()
        except OSError as error:
            if not is_full(error):
                raise
            time.sleep(ROOM_EVERY_S)
