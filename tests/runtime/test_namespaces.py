"""A cluster of two hosts, which are namespaces of this machine, from `ray start` to a finished run."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.local_cluster import REPOSITORY, STORE_MB
from tests.runtime.hosts import DEVICE, Host, why_not

HEAD = "10.77.0.1:6379"
RAY_START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")
RAY_START += ("--num-cpus", "2", "--object-store-memory", str(STORE_MB * 2**20))
RAY_START += ("--node-manager-port", "7000", "--object-manager-port", "7001", "--runtime-env-agent-port", "7002")
RAY_START += ("--dashboard-agent-listen-port", "7003", "--dashboard-agent-grpc-port", "7004")
RAY_START += ("--metrics-export-port", "7005", "--min-worker-port", "10002", "--max-worker-port", "10100")
NO_CONNECTION_TO_HIGH_PORTS = """qdisc add dev eth0 root handle 1: htb default 2 r2q 100000
    class add dev eth0 parent 1: classid 1:1 htb rate 10gbit
    class add dev eth0 parent 1: classid 1:2 htb rate 10gbit
    qdisc add dev eth0 parent 1:1 handle 10: bfifo limit 1
    filter add dev eth0 parent 1: protocol ip u32 match ip protocol 6 0xff match u16 0x8000 0x8000 at 22
        match u8 0x02 0x12 at 33 flowid 1:1""".replace("\n        ", " ")
"""Commands of tc: a first packet (SYN) to a TCP port from 32768 on goes into a queue that is too short for it."""
TRAIN = """train --name two-hosts --root runs --env.suite dots --env.tasks red,blue --env.image-size 32
    --env.steps-per-action 1 --env.max-decisions 5 --policy.width 64 --rollout.num-workers 2
    --rollout.slots-per-worker 4 --learner.batch-decisions 64 --learner.value-warmup-updates 5
    --replay.min-decisions 64 --limits.max-updates 30"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why := why_not()), reason=why)]


@dataclass(frozen=True, slots=True)
class Site:
    """Two hosts that share a folder."""

    head: Host
    other: Host
    shared: Path
    environment: Mapping[str, str]

    def accerl(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command on the head's host, in the shared folder."""
        command = [sys.executable, "-m", "accerl.cli", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.head.start(command, {**self.environment, **environment}, self.shared, **options)
        printed, errors = process.communicate(timeout=200)
        return subprocess.CompletedProcess(command, process.returncode, printed, errors)


@pytest.fixture(scope="module")
def head_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`ray start --head` on one host, with a token; nothing yet on the other."""
    shared = tmp_path_factory.mktemp("shared")
    token = shared / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "300",
    }
    folders = (shared, REPOSITORY, Path(sys.prefix))
    with ExitStack() as hosts:
        head = hosts.enter_context(Host("host-1", "10.77.0.1/24", *folders))
        other = hosts.enter_context(Host("host-2", "10.77.0.2/24", *folders))
        head.join(other)
        start_ray(head, ["--head", "--node-ip-address", head.address, "--include-dashboard", "false"], environment)
        yield Site(head, other, shared, environment)


@pytest.fixture(scope="module")
def site(head_only: Site) -> Site:
    """`ray start --address` on the other host too."""
    start_ray(head_only.other, ["--address", HEAD], head_only.environment)
    return head_only


def test_a_host_that_has_not_joined_is_told_how_to(head_only: Site) -> None:
    outside = Site(head_only.other, head_only.head, head_only.shared, head_only.environment)
    ended = outside.accerl("doctor", "--cluster", HEAD)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert line.startswith(f"accerl: error: cannot join the cluster at {HEAD} ")
    assert line.endswith(f"this machine must be one of its nodes: `ray start --address {HEAD}`")


def test_the_doctor_finds_two_hosts_in_order(site: Site) -> None:
    ended = site.accerl("doctor", "--cluster", HEAD, "--nodes", "2")
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    found = {line.split()[0]: " ".join(line.split()[1:]) for line in ended.stdout.splitlines()}
    assert found["token"] == f"ok {HEAD} asks for one, and lets this machine in"
    assert found["nodes"] == "ok 2 have joined, 2 were wanted"
    assert found["tcp"].startswith("ok every node reaches every other")
    assert found["10.77.0.1"].startswith("ok host-1, ")
    assert found["10.77.0.2"].startswith("ok host-2, ")
    assert found["root"] == f"ok {site.shared}/runs is the same folder on all 2 nodes"


def test_the_doctor_notes_a_folder_that_only_one_host_has(site: Site) -> None:
    ended = site.accerl("doctor", "--cluster", HEAD, "--root", "/tmp/runs")
    assert ended.returncode == 0
    assert "note  /tmp/runs is another folder on 10.77.0.2" in ended.stdout


@pytest.mark.skipif(shutil.which("tc") is None, reason="tc is not installed")
def test_a_firewall_that_knows_only_rays_ports_is_found(site: Site) -> None:
    for command in NO_CONNECTION_TO_HIGH_PORTS.splitlines():
        site.head.run(["tc", *command.split()])
    try:
        ended = site.accerl("doctor", "--cluster", HEAD)
    finally:
        site.head.run(["tc", "qdisc", "del", "dev", DEVICE, "root"])
    assert ended.returncode == 1
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert "tcp from 10.77.0.1 fails 10.77.0.2 timed out" in lines
    assert any(line.startswith("tcp from 10.77.0.1: on 10.77.0.2 let 10.77.0.1 in on TCP ports ") for line in lines)
    assert any(line.startswith("tcp from 10.77.0.2 ok 10.77.0.1 ") for line in lines)


def test_a_run_uses_both_hosts_and_what_crosses_the_wire_is_encrypted(site: Site) -> None:
    tap = site.head.start(
        [sys.executable, str(Path(__file__).with_name("wire_tap.py")), DEVICE],
        {},
        site.shared,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert tap.stdout is not None
    assert tap.stdout.readline() == "listening\n"
    ended = site.accerl(*TRAIN.split(), "--cluster.address", HEAD)
    heard, _ = tap.communicate()
    assert ended.returncode == 0, ended.stderr + ended.stdout

    run = site.shared / "runs" / "two-hosts"
    hosts = hosts_of_roles(run)
    assert hosts["learner-0"] == hosts["replay-0"] == "host-1", "not where the run was started"
    assert {hosts["rollout-0"], hosts["rollout-1"]} == {"host-1", "host-2"}
    far = next(name for name in ("rollout-0", "rollout-1") if hosts[name] != hosts["inference-0"])
    assert list((run / "trajectories").glob(f"{far}.*")), "the other host's worker delivered nothing"
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert (last["updates"], last["discarded_decisions"], last["incidents"]) == (30, 0, 0)

    conversations = json.loads(heard)
    assert {each["mechanism"] for each in conversations} == {"CURVE"}
    assert not any(each["readable"] for each in conversations)
    assert max(each["bytes"] for each in conversations) > 100_000


def start_ray(host: Host, options: list[str], environment: Mapping[str, str]) -> None:
    """Returns when the node is up."""
    log = Path(environment["RAY_AUTH_TOKEN_PATH"]).with_name(f"{host.name}.log")
    with log.open("w") as stream:
        process = host.start([*RAY_START, *options], environment, Path("/"), stdout=subprocess.PIPE, stderr=stream)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ray runtime started." in line:
            return
    raise AssertionError(f"Ray did not start on {host.name}: {log.read_text()[-2000:]}")


def hosts_of_roles(run: Path) -> dict[str, str]:
    """Host names by role, as the traces have them."""
    headers = [json.loads(path.read_text().splitlines()[0]) for path in (run / "trace").glob("*.jsonl")]
    return {header["process"]: header["node"] for header in headers}
