"""What this machine has and lacks: versions, cores, memory, a way to draw, shared memory for Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accerl.config import ClusterConfig
from accerl.envs import rendering
from accerl.envs.libero.installation import INSTALL as INSTALL_LIBERO

LIBRARIES = ("torch", "ray", "mujoco", "metaworld", "gymnasium", "safetensors", "matplotlib", "imageio_ffmpeg")
KERNELS = """
import json
from accerl.kernels import examine
found = examine("auto")
print(json.dumps([[*key, kernel.function is not None, kernel.reason] for key, kernel in found.items()]))
"""
MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool | None
    """None: it works, but worse than it could."""
    detail: str
    remedy: str = ""


def examine_machine() -> list[Finding]:
    """Everything that a run needs, each with the command that mends it where it is missing."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.submit(_kernels)
        libraries = [*pool.map(_library, LIBRARIES), _libero(), *found.result()]
        return [_python(), *libraries, _devices(), _memory(), *_drawing(rendering.probe()), _shared_memory(), _disk()]


def machine() -> dict[str, Any]:
    """What figures measured here depend on; JSON-compatible."""
    import psutil
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    remedy = "" if ok else "install Python 3.11 or newer and make the environment anew"
    return Finding(subject="python", ok=ok, detail=f"{platform.python_version()}  {sys.executable}", remedy=remedy)


def _library(name: str) -> Finding:
    """Imported in a child process: a library built for another processor ends the process that imports it."""
    program = f"import {name}; from importlib.metadata import version; print(version({name!r}))"
    environment = {**os.environ, "MUJOCO_GL": "disabled"} if name in ("mujoco", "metaworld") else None
    result = _in_child(program, environment)
    if result.returncode == 0:
        return Finding(subject=name, ok=True, detail=result.stdout.split()[-1])
    remedy = f"{sys.executable} -m pip install --force-reinstall {name.replace('_', '-')}"
    return Finding(subject=name, ok=False, detail=_last_line(result), remedy=remedy)


def _in_child(program: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=environment
    )


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Of what a child that failed said."""
    return (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]


def _libero() -> Finding:
    """An extra: `accerl.envs.libero.doctor` examines it."""
    if importlib.util.find_spec("libero") is None:
        return Finding(subject="libero", ok=None, detail="not installed: an extra", remedy=INSTALL_LIBERO)
    return Finding(subject="libero", ok=True, detail="there; whether it works: accerl doctor --libero")


def _kernels() -> list[Finding]:
    """An extra: each operation that has a kernel, and where."""
    result = _in_child(KERNELS)
    if result.returncode:
        return [Finding(subject="kernels", ok=None, detail=f"not examined: {_last_line(result)}")]
    found = json.loads(result.stdout)
    if not found:
        remedy = "pip install 'accerl[kernels]'"
        return [Finding(subject="kernels", ok=None, detail="torch: accerl_ext is not installed", remedy=remedy)]
    return [
        Finding(subject=name, ok=works or None, detail=f"{device}: {'accerl_ext' if works else 'torch'} ({reason})")
        for name, device, works, reason in found
    ]


def _devices() -> Finding:
    cores = len(os.sched_getaffinity(0))
    ok = True if cores >= 2 else None
    remedy = "" if ok else "one core does everything in turn: expect half the speed of the documented figures"
    return Finding(subject="cores", ok=ok, detail=f"{cores} of {os.cpu_count()}, {_processor()}", remedy=remedy)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    available = memory.available / 2**30
    ok = True if available >= MIN_MEMORY_GB else None
    remedy = "" if ok else f"close something: a small run wants {MIN_MEMORY_GB:.0f} GB"
    detail = f"{available:.1f} of {memory.total / 2**30:.1f} GB free"
    return Finding(subject="memory", ok=ok, detail=detail, remedy=remedy)


def _drawing(trials: dict[str, rendering.Trial]) -> list[Finding]:
    """One backend is enough; where none works, installing either mends it."""
    works = any(trial.ok for trial in trials.values())
    sudo = "" if os.geteuid() == 0 else "sudo "
    findings = []
    for backend, trial in trials.items():
        if trial.ok:
            findings.append(Finding(subject=backend, ok=True, detail=f"{trial.frames_per_s:.0f} frames/s of a sphere"))
        elif works:
            findings.append(Finding(subject=backend, ok=None, detail=f"not needed, as another works ({trial.detail})"))
        else:
            remedy = f"{sudo}apt-get update && {sudo}{rendering.INSTALL[backend]}"
            findings.append(Finding(subject=backend, ok=False, detail=trial.detail, remedy=remedy))
    return findings


def _shared_memory() -> Finding:
    wanted = ClusterConfig().object_store_mb
    path = Path("/dev/shm")
    free = shutil.disk_usage(path).free / 2**20 if path.is_dir() else 0.0
    ok = True if free >= wanted else None
    remedy = "" if ok else f"Ray would use /tmp, which is slower; in Docker add --shm-size={2 * wanted}m"
    return Finding(subject="/dev/shm", ok=ok, detail=f"{free:.0f} MB free, a run uses {wanted}", remedy=remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    ok = True if free >= MIN_DISK_GB else None
    remedy = "" if ok else f"make room: runs want {MIN_DISK_GB:.0f} GB, or put them elsewhere with --root"
    return Finding(subject="disk", ok=ok, detail=f"{free:.0f} GB free in {Path.cwd()}", remedy=remedy)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
