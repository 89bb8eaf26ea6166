"""The preflight of a cluster: what the answers of nodes mean, what a node says of itself, the command on real nodes."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accerl.config import ConfigError
from accerl.runtime import cluster_findings, node_probe
from accerl.runtime.knock import knock
from benchmarks.local_cluster import REPOSITORY, LocalCluster

GB = 2**30
HERE: dict[str, Any] = {
    "versions": {"python": "3.11.7", "accerl": "0.1.0", "ray": "2.60.0", "torch": "2.13.0+cu130", "pyzmq": "27.3.0"},
    "source": "abcd1234",
    "executable": "/env/bin/python",
    "hostname": "gpu-1",
    "cores": 64,
    "memory": (100 * GB, 128 * GB),
    "shared_memory": (60 * GB, 64 * GB),
    "gpus": [],
    "gpu_error": "",
    "cuda": {},
    "has_curve": True,
    "drawing": (True, "egl"),
    "ports": "32768-60999",
}
GPU = {"name": "NVIDIA H100 80GB HBM3", "memory.free": "80000", "memory.total": "81559", "driver_version": "580.65"}
CUDA = {"works": True, "torch_cuda": "13.0", "nccl": "2.27.7"}


def but(**changes: Any) -> dict[str, Any]:
    """The facts of this machine with changes; `versions` is merged."""
    facts = copy.deepcopy(HERE)
    facts["versions"].update(changes.pop("versions", {}))
    return {**facts, **changes}


@pytest.mark.parametrize(
    ("there", "subject", "ok", "detail", "remedy"),
    [
        (
            but(versions={"torch": "2.12.0+cu130"}),
            "b torch",
            False,
            "2.12.0+cu130, here 2.13.0+cu130",
            "on b: /env/bin/python -m pip install torch==2.13.0+cu130",
        ),
        (but(versions={"torch": "2.13.0+cpu"}), "b torch", None, "2.13.0+cpu, here", "fine between nodes with and"),
        (but(versions={"pyzmq": None}), "b pyzmq", False, "missing, here 27.3.0", "pip install pyzmq==27.3.0"),
        (but(versions={"python": "3.11.9"}), "b python", None, "3.11.9, here 3.11.7", "with Python 3.11.7"),
        (but(versions={"python": "3.12.7"}), "b python", False, "3.12.7, here 3.11.7", "with Python 3.11.7"),
        (but(source="ffff0000"), "b accerl", False, "0.1.0 of other source (ffff0000, here abcd1234)", "same commit"),
        (
            but(versions={"accerl": None}, source="ModuleNotFoundError: No module named 'accerl'"),
            "b accerl",
            False,
            "No module named 'accerl'",
            "for /env/bin/python on b",
        ),
    ],
)
def test_a_node_with_another_version_is_named_with_what_mends_it(there, subject, ok, detail, remedy):
    (finding,) = cluster_findings.versions(HERE, {"a": HERE, "b": there})
    assert (finding.subject, finding.ok) == (subject, ok)
    assert detail in finding.detail
    assert remedy in finding.remedy


def test_equal_versions_are_told_once():
    (finding,) = cluster_findings.versions(HERE, {"a": HERE, "b": HERE})
    assert finding.ok
    assert finding.detail.startswith("python 3.11.7, accerl 0.1.0 (abcd1234), ray 2.60.0")
    assert finding.detail.endswith("on all 2 nodes")


def test_a_clock_is_wrong_only_by_more_than_the_reading_may_be():
    (finding,) = cluster_findings.clocks({"a": (0.2, 0.001), "b": (-0.05, 0.045), "c": (0.0, 0.001)})
    assert (finding.subject, finding.ok, finding.detail) == (
        "a clock",
        None,
        "200.0 ms ahead of this machine's (± 1.0 ms)",
    )
    (fine,) = cluster_findings.clocks({"b": (-0.004, 0.002)})
    assert (fine.ok, fine.detail) == (True, "within 6.0 ms of this machine's")


def test_a_barred_way_shows_the_matrix_and_who_has_to_open_what():
    ports = {"a": "32768-60999", "b": "40000-50000"}
    first, second = cluster_findings.ways({"a": {"b": "timed out"}, "b": {"a": 0.0004}}, ports)
    assert (first.subject, first.ok, first.detail) == ("tcp from a", False, "b timed out")
    assert "on b let a in on TCP ports 40000-50000" in first.remedy
    assert (second.subject, second.ok, second.detail, second.remedy) == ("tcp from b", True, "a 0.4 ms", "")


def test_open_ways_are_told_once_with_the_slowest():
    (finding,) = cluster_findings.ways({"a": {"b": 0.002}, "b": {"a": 0.0004}}, {})
    assert (finding.ok, finding.detail) == (True, "every node reaches every other, in 2.0 ms at most")
    (alone,) = cluster_findings.ways({"a": {}}, {})
    assert (alone.ok, alone.detail) == (True, "there is one node")


def test_a_node_without_gpus_is_well():
    (finding,) = cluster_findings.hardware("a", HERE, {"object_store_memory": 30 * GB})
    assert finding.ok
    assert finding.detail == "gpu-1, 64 cores, 100.0 of 128.0 GB free, /dev/shm 60.0 of 64.0 GB free"


def test_gpus_are_described():
    facts = but(gpus=[GPU, {**GPU, "memory.free": "79872"}], cuda=CUDA)
    (finding,) = cluster_findings.hardware("a", facts, {"GPU": 2.0})
    assert finding.detail.endswith("2 x NVIDIA H100 80GB HBM3 (at least 78.0 GB free), driver 580.65, NCCL 2.27.7")


@pytest.mark.parametrize(
    ("there", "ok", "subject", "detail", "remedy"),
    [
        (but(memory=(GB, 8 * GB)), None, "a memory", "1.0 GB free", "want 4 GB"),
        (but(shared_memory=(0, GB)), None, "a store", "30.0 GB lies on disk", "--shm-size"),
        (but(has_curve=False), False, "a curve", "lacks CURVE", "pip install --force-reinstall pyzmq"),
        (but(drawing=(False, "no libEGL")), False, "a drawing", "no libEGL", "run `accerl doctor` there"),
        (but(gpu_error="Driver/library mismatch"), False, "a gpus", "nvidia-smi: Driver", "--num-gpus 0"),
        (but(gpus=[GPU], cuda=CUDA), None, "a gpus", "Ray counts 0, nvidia-smi 1", "--num-gpus 1"),
    ],
)
def test_what_a_node_lacks_is_a_finding_of_its_own(there, ok, subject, detail, remedy):
    _, finding = cluster_findings.hardware("a", there, {"object_store_memory": 30 * GB})
    assert (finding.subject, finding.ok) == (subject, ok)
    assert detail in finding.detail
    assert remedy in finding.remedy


def test_gpus_that_torch_cannot_use_or_that_others_use_are_found():
    cpu_build = but(gpus=[GPU], cuda={"works": False, "torch_cuda": None, "nccl": None})
    assert "built for no CUDA, cannot use them" in cluster_findings.hardware("a", cpu_build, {"GPU": 1.0})[1].detail
    taken = but(gpus=[GPU, {**GPU, "memory.free": "9000"}], cuda=CUDA)
    finding = cluster_findings.hardware("a", taken, {"GPU": 2.0})[1]
    assert (finding.ok, finding.detail) == (None, "another process holds memory of number 1")


def test_two_versions_of_nccl_cannot_form_a_group():
    old = but(gpus=[GPU], cuda={**CUDA, "nccl": "2.26.2"})
    (finding,) = cluster_findings.gpu_software({"a": but(gpus=[GPU], cuda=CUDA), "b": old, "c": HERE})
    assert (finding.ok, finding.detail) == (False, "2.27.7 on a; 2.26.2 on b")
    assert cluster_findings.gpu_software({"b": old, "c": HERE}) == []


def test_a_folder_that_is_not_shared_is_a_note_and_one_that_cannot_be_written_an_error():
    shared, apart = {"content": "word", "writable": True}, {"content": None, "writable": True}
    path = Path("/shared/runs")
    (same,) = cluster_findings.root(path, "word", {"a": shared, "b": shared})
    assert (same.ok, same.detail) == (True, "/shared/runs is the same folder on all 2 nodes")
    (other,) = cluster_findings.root(path, "word", {"a": shared, "b": apart})
    assert (other.ok, other.detail) == (None, "/shared/runs is another folder on b")
    (closed,) = cluster_findings.root(path, "word", {"a": shared, "b": {**apart, "writable": False}})
    assert (closed.ok, closed.detail) == (False, "/shared/runs cannot be written on b")


def test_a_probe_reaches_a_door_and_says_what_is_in_the_way_of_another():
    probe, other = node_probe.NodeProbe("127.0.0.1"), node_probe.NodeProbe("127.0.0.1")
    host, port, word = other.door()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        closed = (host, bound.getsockname()[1], word)
        reached = probe.reach({"open": (host, port, word), "stranger": (host, port, "other"), "closed": closed}, 1.0)
    assert isinstance(reached["open"], float)
    assert reached["stranger"] == "something else answers there"
    assert reached["closed"] == "connection refused"


def test_a_probe_finds_a_word_or_nothing_and_whether_it_could_write(tmp_path, monkeypatch):
    monkeypatch.setattr(node_probe, "READ_WITHIN_S", 0.0)
    probe = node_probe.NodeProbe("127.0.0.1")
    (tmp_path / "word").write_text("abc")
    assert probe.look_for(str(tmp_path / "word")) == {"content": "abc", "writable": True}
    assert probe.look_for(str(tmp_path / "not" / "there")) == {"content": None, "writable": True}
    assert probe.look_for(str(tmp_path / "word" / "below")) == {"content": None, "writable": False}


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    nvidia_smi(tmp_path, "NVIDIA H100 80GB HBM3, 80000, 81559, 580.65")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert node_probe.facts()["gpus"] == [GPU]
    nvidia_smi(tmp_path, "Driver/library version mismatch", code=18)
    facts = node_probe.facts()
    assert (facts["gpus"], facts["gpu_error"]) == ([], "Driver/library version mismatch")


@pytest.mark.parametrize("address", ["auto", "here", "ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:", ":6379"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match=r"cluster: .* is no address; give host:port"):
        knock(address)


def test_nobody_and_a_stranger_at_the_address_are_no_cluster():
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127.0.0.1:1 .*refused"):
        knock("127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_as_a_web_server, args=(server,), daemon=True).start()
        with pytest.raises(ConnectionError, match="no Ray cluster answers"):
            knock(f"127.0.0.1:{server.getsockname()[1]}")


# --- on real nodes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def test_a_cluster_is_examined_from_the_command_line(cluster: LocalCluster, tmp_path: Path) -> None:
    ended = doctor(cluster.address, tmp_path / "runs", cluster.environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{cluster.address} asks for one, and lets this machine in" in ended.stdout
    assert "on the one node" in ended.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves something behind"


def test_nodes_that_do_not_come_are_missed(cluster: LocalCluster, tmp_path: Path) -> None:
    program = "import sys; from accerl.runtime import cluster_doctor; cluster_doctor.JOIN_WITHIN_S = 1.0; "
    program += "from accerl.cli import main; sys.exit(main())"
    ended = doctor(cluster.address, tmp_path / "runs", cluster.environment, "-c", program, more=("--nodes", "2"))
    assert ended.returncode == 1
    assert "nodes fails 1 of 2 have joined after 1 s" in " ".join(ended.stdout.split())


def test_wrong_tokens_are_refused_in_one_line(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0" * 64)
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    missing = {**cluster.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "missing")}
    unused = {**cluster.environment, "RAY_AUTH_MODE": ""}
    for environment, reason in (
        (wrong, f"asks for a token and that of {tmp_path}/other is another; set RAY_AUTH_MODE=token"),
        (missing, "asks for a token and there is none here"),
        (unused, "fits, but is not used; set RAY_AUTH_MODE=token"),
    ):
        ended = doctor(cluster.address, tmp_path, environment)
        (line,) = ended.stderr.splitlines()
        assert (ended.returncode, ended.stdout) == (1, "")
        assert line.startswith(f"accerl: error: the cluster at {cluster.address} ")
        assert reason in line


def test_what_is_wrong_with_one_node_is_found(cluster: LocalCluster, tmp_path: Path) -> None:
    """The other node's clock is 5 s ahead, it has another accerl, and a GPU that Ray does not know."""
    odd = tmp_path / "odd"
    (odd / "accerl").mkdir(parents=True)
    (odd / "accerl" / "__init__.py").write_text("__version__ = '0.0.9'\n")
    (odd / "sitecustomize.py").write_text("import time\nnow = time.time\ntime.time = lambda: now() + 5\n")
    nvidia_smi(odd, "NVIDIA H100 80GB HBM3, 80000, 81559, 580.65")
    node = cluster.add({"PYTHONPATH": str(odd), "PATH": f"{odd}:{os.environ['PATH']}"})
    try:
        ended = doctor(cluster.address, tmp_path / "runs", cluster.environment)
    finally:
        cluster.remove(node)
    assert ended.returncode == 1
    rows = [line for line in ended.stdout.splitlines() if f"/{node[:4]}" in line]
    for part in (
        "accerl fails 0.0.9, here ",
        "clock note 5.0 s ahead of this machine's",
        "gpus note Ray counts 0, nvidia-smi 1",
    ):
        assert [row for row in rows if part in " ".join(row.split())], f"{part} is not in {rows}"
    assert not [row for row in ended.stdout.splitlines() if f"/{cluster.head[:4]} " in row and " fails " in row]


def doctor(
    address: str, root: Path, environment: dict[str, str], *program: str, more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    python = [sys.executable, *(program or ("-m", "accerl.cli"))]
    return subprocess.run(
        [*python, "doctor", "--cluster", address, "--root", str(root), *more],
        cwd=Path(environment["RAY_AUTH_TOKEN_PATH"]).parent,  # Ray shows the nodes this folder's modules too
        env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )


def nvidia_smi(folder: Path, line: str, code: int = 0) -> None:
    """A program of that name."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
    program.chmod(0o755)


def answer_as_a_web_server(server: socket.socket) -> None:
    while True:
        try:
            visitor, _ = server.accept()
        except OSError:
            return
        with visitor:
            visitor.recv(1024)
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
