"""Linux namespaces as separate hosts: network, host name, processes, /tmp and /dev/shm of their own.

    with Host("host-1", "10.77.0.1/24", shared) as one, Host("host-2", "10.77.0.2/24", shared) as two:
        one.join(two)
        one.run(["ip", "address"])

All other files are those of this machine. A host ends with everything that runs on it, and its network with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
DEVICE = "eth0"
BOOT = """
set -e
hostname "$1"; shift
mount -t tmpfs tmpfs /mnt
number=0
for folder; do number=$((number + 1)); mkdir /mnt/$number; mount --bind "$folder" /mnt/$number; done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
number=0
for folder; do number=$((number + 1)); mkdir -p "$folder"; mount --move /mnt/$number "$folder"; done
ip link set lo up
echo up
while :; do sleep 1; done
"""


class Host:
    """One host. Processes on it see no other host's processes, sockets or shared memory.

    Args:
        address: with the length of the network's prefix.
        shared: folders that it shares with this machine although they may be below /tmp.
    """

    def __init__(self, name: str, address: str, *shared: Path):
        self.name = name
        self.address = address.partition("/")[0]
        self._network = address
        self._outer = subprocess.Popen(
            ["unshare", *SPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", BOOT, "sh", name, *shared],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "up\n", f"{name} did not come up"
        (self._inner,) = psutil.Process(self._outer.pid).children()

    def join(self, other: Host) -> None:
        """Lay a cable to another host of the same network."""
        ends = [DEVICE, "netns", str(self._outer.pid), "type", "veth", "peer", "name"]
        subprocess.run(["ip", "link", "add", *ends, DEVICE, "netns", str(other._outer.pid)], check=True)
        for host in (self, other):
            host.run(["ip", "address", "add", host._network, "dev", DEVICE])
            host.run(["ip", "link", "set", DEVICE, "up"])
            host.run(["ip", "route", "add", "default", "dev", DEVICE])  # by which Ray finds the host's own address

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, **options: Any
    ) -> subprocess.Popen[str]:
        """A process there, in a folder; it ends with the host."""
        full = [*self._enter(), "env", f"--chdir={folder}", *command]
        return subprocess.Popen(full, env={**os.environ, **environment}, text=True, **options)

    def run(self, command: Sequence[str]) -> str:
        """What a short command prints there. Raises if it fails."""
        return subprocess.run([*self._enter(), *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.kill()  # takes the first process of the host with it, and that one all others
        self._outer.wait()

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self._inner.pid), *SPACES, "--"]


def why_not() -> str:
    """What keeps this machine from having hosts; empty if nothing does."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "unshare", "nsenter", "mount") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    trial = ["unshare", *SPACES, "--fork", "ip", "link", "add", "name", "a", "type", "veth", "peer", "name", "b"]
    tried = subprocess.run(trial, capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no namespaces or no veth here: {tried.stderr.strip()}"
