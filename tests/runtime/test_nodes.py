"""A run on several Ray nodes of this machine: who is where, how requests cross, and what the loss of a node does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import pytest

from accerl.runtime.run import Run
from benchmarks.local_cluster import LocalCluster
from tests.runtime.test_run import wait_for

StartRun = Callable[..., Run]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head, to which this process and its children can connect."""
    with LocalCluster(tmp_path_factory.mktemp("cluster")) as cluster, pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        yield cluster


def test_a_run_spans_nodes_and_requests_cross_between_them_over_tcp(cluster: LocalCluster, start_run: StartRun) -> None:
    head = cluster.head
    other = cluster.add()
    run = start_run({"cluster.address": cluster.address, "rollout.num_workers": 2, "rollout.slots_per_worker": 8})
    wait_for(run, lambda status: status.get("updates", 0) >= 5)

    actors = cluster.actors()
    node_of = {name.removeprefix("run/"): node for name, (node, _) in actors.items()}
    assert {node_of[name] for name in ("controller", "learner-0", "replay-0")} == {head}, (
        "not where the run was started"
    )
    assert {node_of["rollout-0"], node_of["rollout-1"]} == {head, other}

    endpoint = cluster.endpoints("run")["inference-0"]
    assert endpoint["node"] == node_of["inference-0"]
    port = int(endpoint["tcp"].rpartition(":")[2])
    crosses = {name: port in ports_of(actors[f"run/{name}"][1]) for name in ("rollout-0", "rollout-1")}
    assert crosses == {name: node_of[name] != endpoint["node"] for name in crosses}
    players = {trajectory.origin.split(".")[0] for trajectory in run.trajectories(32)}
    assert players == {"rollout-0", "rollout-1"}

    run.stop()
    assert run.status()["state"] == "finished"
    assert run.incidents() == []
    assert run.metrics()[-1]["discarded_decisions"] == 0
    cluster.remove(other)


def test_a_node_that_dies_takes_only_its_own_roles_and_they_go_on_elsewhere(
    cluster: LocalCluster, start_run: StartRun
) -> None:
    other = cluster.add()
    run = start_run(
        {
            "name": "lossy",
            "cluster.address": cluster.address,
            "rollout.num_workers": 2,
            "rollout.slots_per_worker": 8,
            "inference.num_services": 2,
        }
    )
    wait_for(run, lambda status: status.get("updates", 0) >= 5)
    lost = {name.removeprefix("lossy/") for name, (node, _) in cluster.actors().items() if node == other}
    assert lost, "nobody was there"

    cluster.remove(other)
    wait_for(run, lambda _: {incident["role"] for incident in run.incidents()} == lost)
    before = run.status()
    wait_for(run, lambda status: status["updates"] > before["updates"] and len(cluster.endpoints("lossy")) == 2)
    wait_for(run, lambda _: lost <= node_of_role(cluster).keys())
    assert {node_of_role(cluster)[name] for name in lost} == {cluster.head}
    ends = [incident["role"] for incident in run.incidents() if incident["what"] == "its process ended"]
    assert sorted(ends) == sorted(lost)

    run.stop()
    assert run.status()["state"] == "finished"
    assert run.metrics()[-1]["discarded_decisions"] == 0


@pytest.mark.slow
def test_a_node_on_which_processes_keep_failing_is_left_out(cluster: LocalCluster, start_run: StartRun) -> None:
    bad = cluster.add()  # two cores there and two at the head: a worker has no other place
    run = start_run(
        {
            "name": "lossy",
            "cluster.address": cluster.address,
            "rollout.num_workers": 2,
            "rollout.slots_per_worker": 8,
            "placement.rollout_cpus": 2,
        }
    )
    wait_for(run, lambda status: status.get("updates", 0) >= 3)
    (name,) = [name for name, node in node_of_role(cluster).items() if node == bad and name.startswith("rollout")]
    while not any("left out for the rest" in incident["action"] for incident in run.incidents()):
        number = len(run.incidents())
        assert number < 10
        node, process = cluster.actors()[f"lossy/{name}"]
        assert node == bad
        psutil.Process(process).kill()
        wait_for(run, lambda _, number=number: len(run.incidents()) > number)
        wait_for(
            run, lambda _, process=process: cluster.actors().get(f"lossy/{name}", (bad, process)) != (bad, process)
        )
        before = run.status()["updates"]
        wait_for(run, lambda status, before=before: status["updates"] > before + 2)

    good = cluster.add()
    wait_for(run, lambda _: node_of_role(cluster).get(name) == good)
    assert bad not in node_of_role(cluster).values()
    wait_for(run, lambda _: any(each.origin.startswith(name) for each in run.trajectories(16)))
    run.stop()
    assert run.metrics()[-1]["discarded_decisions"] == 0
    cluster.remove(good)
    cluster.remove(bad)


def node_of_role(cluster: LocalCluster) -> dict[str, str]:
    """Of the roles that live at this moment."""
    return {name.removeprefix("lossy/"): node for name, (node, _) in cluster.actors().items()}


def ports_of(process: int) -> set[int]:
    """That the process has TCP connections to."""
    return {each.raddr.port for each in psutil.Process(process).net_connections("tcp") if each.raddr}
