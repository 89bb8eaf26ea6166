"""The C++ kernels as a shared library: compiled at first use, kept for every later process, loaded by ctypes.

    csrc/*.cpp ─► c++ (CXX, or what is on PATH) ─► ~/.cache/accerl/kernels/HASH.so ─► library()

The functions take pointers and sizes and know nothing of torch, so no version of torch is the wrong one and nvcc, ninja
and torch's headers are not needed. The file's name holds a hash of the sources, the flags, the compiler and the
processor: whatever changes, it is built anew.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = sorted((Path(__file__).parent / "csrc").glob("*.cpp"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
"""Without fused multiply-adds, which round differently from torch's separate operations."""
WITHIN_S = 120


class BuildError(RuntimeError):
    """There are no C++ kernels here; the message says why."""


def library() -> ctypes.CDLL:
    """All functions of csrc.

    Raises:
        BuildError: no compiler, or it failed; for every later call the same, without trying again.
    """
    found = _loaded(os.environ.get("CXX"))
    if isinstance(found, str):
        raise BuildError(found)
    return found


@cache
def _loaded(compiler: str | None) -> ctypes.CDLL | str:
    """Or why there is none; `compiler` is what the environment asks for."""
    try:
        return ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        return str(error)


def build(folder: Path | None = None) -> Path:
    """The library's file in a folder, default `cache_folder()`; built if it is not there. Processes take turns.

    Raises:
        BuildError: no compiler, it failed, or others may write into the folder.
    """
    folder = folder or cache_folder()
    compiler = find_compiler()
    path = folder / f"{_fingerprint(compiler)}.so"
    _check_private(folder)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _compile(compiler, path)
    return path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/accerl/kernels`, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accerl" / "kernels"


def find_compiler() -> str:
    """That of the environment variable CXX, else the first one on PATH.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildError(
        f"CXX: {wanted!r} is not on PATH"
        if wanted
        else "no C++ compiler; on Debian or Ubuntu: sudo apt-get install -y g++"
    )


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler}: {error}") from None
        if result.returncode or not made.exists():
            said = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[0]
            raise BuildError(f"{compiler} failed: {said}")
        made.rename(path)


def _fingerprint(compiler: str) -> str:
    """Of everything that the library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [*(source.read_text() for source in SOURCES), *FLAGS, compiler, version, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` looks at; on a shared home, each kind of node has its own library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _check_private(folder: Path) -> None:
    """Code is loaded from there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BuildError(f"{folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written") from None
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"{folder}: others may write there; chmod 700 it, or set XDG_CACHE_HOME")
