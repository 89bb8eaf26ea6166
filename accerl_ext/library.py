"""The C++ kernels as a shared library: built with the wheel or at first use, loaded by ctypes.

    csrc/*.cpp ─► c++, when a wheel is made (hatch_build.py) ─► prebuilt/x86-64-v3-HASH.so ──── fits? ─┬─► library()
          └─────► c++ (CXX, or what is on PATH), at first use ─► ~/.cache/accerl/kernels/HASH.so ─ else ┘

The functions take pointers and sizes and know nothing of torch, so no version of torch is the wrong one and nvcc, ninja
and torch's headers are not needed. What was built with the wheel is taken if the hash in its name is that of the
sources and flags that lie here and the processor has what `BASELINE` means. The other's name holds a hash of the
compiler and the processor too: whatever changes, it is built anew.
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
from typing import NamedTuple

SOURCES = sorted((Path(__file__).parent / "csrc").glob("*.cpp"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
"""Without fused multiply-adds, which round differently from torch's separate operations."""
WITHIN_S = 120
PREBUILT = Path(__file__).parent / "prebuilt"
BASELINE = "x86-64-v3"
"""Processors that a library in a wheel is for: since Haswell and Zen."""
BASELINE_FEATURES = frozenset(("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"))
"""As /proc/cpuinfo names them."""


class BuildError(RuntimeError):
    """There are no C++ kernels here; the message says why."""


class Loaded(NamedTuple):
    """The library, and where it comes from."""

    functions: ctypes.CDLL
    origin: str


def library() -> ctypes.CDLL:
    """All functions of csrc.

    Raises:
        BuildError: none was built with the wheel, or it does not fit, and there is no compiler, or it failed; for every
            later call the same, without trying again.
    """
    return _found().functions


def origin() -> str:
    """Where `library` is from, in words; raises as that does."""
    return _found().origin


def _found() -> Loaded:
    found = _loaded(os.environ.get("CXX"))
    if isinstance(found, str):
        raise BuildError(found)
    return found


@cache
def _loaded(compiler: str | None) -> Loaded | str:
    """Or why there is none; `compiler` is what the environment asks for."""
    unfit = ""
    try:
        if path := prebuilt(PREBUILT):
            return Loaded(ctypes.CDLL(str(path)), f"built with the wheel for {BASELINE}")
    except (BuildError, OSError) as error:
        unfit = str(error)
    try:
        functions = ctypes.CDLL(str(build()))
    except (BuildError, OSError) as error:
        return "; ".join(each for each in (unfit, str(error)) if each)
    return Loaded(functions, f"compiled here ({unfit})" if unfit else "compiled here")


def prebuilt(folder: Path) -> Path | None:
    """What was built with the wheel; None: nothing was.

    Raises:
        BuildError: it does not fit the sources that lie here, or the processor.
    """
    there = sorted(folder.glob("*.so"))
    if not there:
        return None
    path = folder / prebuilt_name()
    if path not in there:
        raise BuildError(f"the library in the wheel, {there[0].name}, is not of these sources, {path.name}")
    if missing := BASELINE_FEATURES.difference(_processor().split()):
        raise BuildError(
            f"the library in the wheel is for {BASELINE}; this processor has no {', '.join(sorted(missing))}"
        )
    return path


def prebuilt_name() -> str:
    """Of sources, flags and kind of processor."""
    return f"{BASELINE}-{_hash(*(source.read_text() for source in SOURCES), *FLAGS)}.so"


def build_ahead(folder: Path) -> Path:
    """For a wheel; the folder is there.

    Raises:
        BuildError: no compiler, it failed, or `BASELINE` is not what this machine builds for.
    """
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise BuildError(f"built at first use on {platform.system()} {platform.machine()}")
    path = folder / prebuilt_name()
    _compile(find_compiler(), path, BASELINE)
    return path


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
            _compile(compiler, path, "native")
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


def _compile(compiler: str, path: Path, processor: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, f"-march={processor}", *map(str, SOURCES), "-o", str(made)]
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
    parts = (source.read_text() for source in SOURCES)
    return _hash(*parts, *FLAGS, compiler, version, platform.machine(), _processor())


def _hash(*parts: str) -> str:
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
