"""A second user of the machine gets nothing from a live run, which goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from accerl.runtime.run import Run
from tests.runtime.conftest import launching
from tests.runtime.intruder import CALLS
from tests.runtime.test_run import processes_of, wait_for

REPOSITORY = Path(__file__).parents[2]
MORE = {"weights.channel": "shared", "limits.max_updates": 100_000}
"""With weights in shared memory there is one thing more to be stolen."""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; CI is root")


@pytest.fixture(scope="module")
def live(start: Path) -> Iterator[Run]:
    """Where others can look for it: pytest's own folders would keep them out by themselves."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch, launching(start, root) as start_run:
            patch.setenv("RAY_TMPDIR", str(root))
            run = start_run(MORE)
            wait_for(run, lambda status: status.get("updates", 0) >= 2)
            yield run


def test_a_second_user_gets_nothing_and_the_run_goes_on(live: Run):
    processes = processes_of(live)
    ports = sorted({port for process in processes for port in ports_of(process)})
    before = live.status()
    loot = intruded(live, [process.pid for process in processes], ports)
    assert loot["taken"] == []
    assert loot["found"] == ports
    assert loot["guarded"] == ports, "a port where nothing was refused was not understood"
    reached = ("folder", "file", "shared memory", "private folder", "process", "signal", "handle", "unix socket")
    spoken = ("garbage", "zmq", "outside", "http", *(f"grpc {call.partition('/')[0]}" for call in CALLS))
    assert {*reached, *spoken} <= loot["refused"].keys()
    token = (live.folder / "ray.token").read_text()
    assert len(token) == 64 and token not in "".join(loot["seen"])
    wait_for(live, lambda now: now["updates"] > before["updates"] + 2 and now["decisions"] > before["decisions"] + 100)
    assert (live.incidents(), processes_of(live)) == ([], processes)


def test_nothing_of_a_run_can_be_opened_by_others(live: Run):
    (private,) = live.folder.parent.glob("accerl-*")
    for folder in (live.folder, private):
        assert folder.stat().st_mode & 0o077 == 0, folder
    for process in processes_of(live):
        assert umask_of(process.pid) == 0o077, process.cmdline()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_ray_itself_is_not_let_in_without_the_token(live: Run, environment: dict[str, str]):
    address = json.loads((live.folder / "connection.json").read_text())["address"]
    program = f"import ray; ray.init(address={address!r}); print('let in')"
    mode = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **environment}
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **mode}, capture_output=True, text=True, timeout=120
    )
    assert "let in" not in result.stdout
    assert "InvalidAuthToken" in result.stderr and f"Failed to connect to Ray cluster at {address}" in result.stderr


def intruded(run: Run, processes: list[int], ports: list[int]) -> dict[str, Any]:
    facts = {"root": str(run.folder.parent), "name": run.name, "processes": processes, "ports": ports}
    command = [sys.executable, "-m", "tests.runtime.intruder"]
    result = subprocess.run(command, cwd=REPOSITORY, input=json.dumps(facts), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def ports_of(process: psutil.Process) -> list[int]:
    return [each.laddr.port for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]


def umask_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)
