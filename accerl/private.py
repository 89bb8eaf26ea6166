"""Folders that only this user can enter, files that only this user can read.

A name in a shared folder such as /tmp may have been taken by somebody else, who would read what is put there or swap
it: what exists is looked at before it is used.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

UMASK = 0o077
LONGEST = 23
"""Of a temporary folder's parent: paths of sockets below it have at most 107 bytes, 84 of which Ray takes."""


def keep_private() -> None:
    """What this process and its children make is for this user alone; what torch compiles they find and leave in the
    user's cache, and not, as by default, in a folder of /tmp that others can make before.
    """
    os.umask(UMASK)
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_compiled())


def temporary_folder() -> Path:
    """A new folder for sockets, keys and Ray's session; in RAY_TMPDIR, in TMPDIR, or in /tmp if those are too long."""
    parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="accerl-", dir=parent if len(os.fsencode(parent)) <= LONGEST else "/tmp"))


def make_folder(path: Path) -> None:
    """Make this folder if it is not there; its parent must be.

    Raises:
        PermissionError: it is there, and others own it or can enter it.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PermissionError(f"{path} is no folder; remove it")
    _check(path, status, "700")


def read_secret(path: Path) -> str:
    """The content of a file that nobody else can have written or read.

    Raises:
        PermissionError: others own it or can open it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PermissionError(f"{path} cannot be read by user {os.geteuid()} ({error.strerror})") from None
    with os.fdopen(descriptor) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"{path} is no file; remove it")
        _check(path, status, "600")
        return file.read()


def check_writers(folder: Path) -> None:
    """Raises PermissionError if others can put something into the folder."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise PermissionError(f"{folder} can be written by others (mode {mode:o}); chmod go-w {folder}")


def _compiled() -> Path:
    """A temporary folder where the user has no home to write to."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accerl" / "inductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="accerl-"))
    return folder


def _check(path: Path, status: os.stat_result, wanted: str) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}; go on as that user")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise PermissionError(f"{path} can be opened by others (mode {mode:o}); chmod {wanted} {path}")
