"""What one node of a cluster says of itself.

Ray sends this module to the nodes as it is (by value), so that it works where accerl is missing or another one: it
imports nothing but the standard library before it is needed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "pyzmq", "mujoco")
GPU_FIELDS = ("name", "memory.free", "memory.total", "driver_version")
READ_WITHIN_S = 3.0
"""For a file that was written on another machine to be seen: a network file system remembers for a while what was not
there."""

_CUDA = """
import json, torch
nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None
print(json.dumps({"works": torch.cuda.is_available(), "torch_cuda": torch.version.cuda, "nccl": nccl}))
"""


class NodeProbe:
    """A visitor on one node. From construction on it greets whoever connects to its door with a word of its own.

    Args:
        host: address of the node.
    """

    def __init__(self, host: str):
        self._host = host
        self._word = secrets.token_hex(8)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._door = socket.create_server((host, 0), family=family, backlog=512)
        threading.Thread(target=self._greet, daemon=True).start()

    def door(self) -> tuple[str, int, str]:
        """Address, port and word."""
        return self._host, self._door.getsockname()[1], self._word

    def clock(self) -> float:
        return time.time()

    def facts(self) -> dict[str, Any]:
        return facts()

    def reach(self, doors: Mapping[str, tuple[str, int, str]], timeout_s: float) -> dict[str, float | str]:
        """For each door the seconds until its word was heard, or why it was not."""
        with ThreadPoolExecutor(max_workers=min(32, max(1, len(doors)))) as pool:
            results = pool.map(lambda door: _hear(door, timeout_s), doors.values())
            return dict(zip(doors, results, strict=True))

    def look_for(self, path: str) -> dict[str, Any]:
        """What the file holds (None: it is not there), and whether its folder can be made and written here."""
        return {"content": _read(Path(path)), "writable": _is_writable(Path(path).parent)}

    def _greet(self) -> None:
        while True:
            visitor, _ = self._door.accept()
            with visitor:
                visitor.sendall(self._word.encode())


def facts() -> dict[str, Any]:
    """Versions, memory and devices of this machine and of the Python that runs this; JSON-compatible."""
    accerl, source = _accerl()
    gpus, gpu_error = _gpus()
    return {
        "versions": {
            "python": platform.python_version(),
            "accerl": accerl,
            **{name: _version(name) for name in LIBRARIES},
        },
        "source": source,
        "executable": sys.executable,
        "hostname": platform.node(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "shared_memory": _space("/dev/shm"),
        "gpus": gpus,
        "gpu_error": gpu_error,
        "cuda": _cuda() if gpus else {},
        "has_curve": _has_curve(),
        "drawing": _drawing(),
        "ports": _ports(),
    }


def _hear(door: tuple[str, int, str], timeout_s: float) -> float | str:
    host, port, word = door
    start = time.perf_counter()
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            heard = connection.makefile("rb").read().decode(errors="replace")
    except OSError as error:
        return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
    return time.perf_counter() - start if heard == word else "something else answers there"


def _read(path: Path) -> str | None:
    deadline = time.monotonic() + READ_WITHIN_S
    while True:
        try:
            return path.read_text()
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)


def _is_writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _accerl() -> tuple[str | None, str]:
    """Version and a digest of the source; or None, and why it cannot be imported."""
    try:
        import accerl
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    folder = Path(accerl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return accerl.__version__, digest.hexdigest()[:8]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> tuple[int, int]:
    """Bytes free and in all; those of the container where it has fewer."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = (1024 * int(fields[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max": there is none
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free, total
    return min(free, limit - used), min(total, limit)


def _space(path: str) -> tuple[int, int]:
    """Bytes free and in all."""
    if not Path(path).is_dir():
        return 0, 0
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def _gpus() -> tuple[list[dict[str, str]], str]:
    """As nvidia-smi sees them, whatever Ray lets this process see, memory in MiB; and what it complains of."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        return [], " ".join((result.stdout + result.stderr).split())
    rows = csv.reader(result.stdout.splitlines(), skipinitialspace=True)
    return [dict(zip(GPU_FIELDS, row, strict=True)) for row in rows], ""


def _cuda() -> dict[str, Any]:
    """What torch makes of the GPUs, in a process that keeps none of their memory."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-W", "ignore", "-c", _CUDA]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if result.returncode != 0:
        return {"works": False, "torch_cuda": None, "nccl": None}
    return json.loads(result.stdout.splitlines()[-1])


def _has_curve() -> bool:
    try:
        import zmq
    except ImportError:
        return False
    return zmq.has("curve")


def _drawing() -> tuple[bool, str]:
    """Whether MuJoCo can draw, and with what, or why not."""
    try:
        from accerl.envs.rendering import choose_backend

        return True, choose_backend()
    except Exception as error:
        return False, str(error)


def _ports() -> str:
    """Range of the ports that the system gives to a socket that asks for any."""
    try:
        return "-".join(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except OSError:
        return "32768-60999"
