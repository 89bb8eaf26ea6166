"""The roles on Ray: learning, steering, and what happens when processes are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from accerl.checkpoint import load_checkpoint, load_policy
from accerl.config import ConfigError, InferenceConfig
from accerl.envs import make_env
from accerl.evaluation import evaluate, plan_episodes
from accerl.inference import PolicyServer
from accerl.runtime.run import Run, attach, runs
from tests.docs.explained import unexplained
from tests.runtime.conftest import DOTS, launching

START_WITHIN_S = 120.0

StartRun = Callable[..., Run]


def test_the_asynchronous_loop_learns(start_run: StartRun, start: Path) -> None:
    run = start_run({"limits.max_decisions": 15_000})
    assert run.wait(START_WITHIN_S + 240) == "finished"
    line = run.metrics()[-1]
    assert line["discarded_decisions"] == 0
    assert not unexplained(run.metrics())
    assert line["run_policy_lag_max"] >= 1, "nothing was trained off-policy, so nothing ran asynchronously"
    before, after = (success_of(load_policy(folder)) for folder in (start, run.checkpoints()[-1]))
    assert after.interval[0] > before.interval[1], f"{before} before, {after} after"


def test_a_task_whose_environment_keeps_failing_is_given_up_and_the_run_goes_on(start_run: StartRun) -> None:
    broken = {"env.suite": "tests.runtime.fragile:fragile", "env.tasks": ("red", "blue")}
    run = start_run({**broken, "limits.max_updates": 25})
    assert run.wait(START_WITHIN_S + 60) == "finished"
    line = run.metrics()[-1]
    assert (line["updates"], line["discarded_decisions"]) == (25, 0)
    assert line["quarantined"] == ["blue"]
    incidents = [json.loads(text) for text in (run.folder / "incidents.jsonl").read_text().splitlines()]
    ended = [each for each in incidents if each["what"] == "blue: OSError: the simulator of blue is broken"]
    assert [each["action"] for each in ended[:3]] == [
        *["environment replaced"] * 2,
        "task put into quarantine after 3 failures",
    ]


def test_a_run_without_a_task_that_works_fails_and_says_why(start_run: StartRun) -> None:
    run = start_run({"env.suite": "tests.runtime.fragile:brittle"})
    assert run.wait(START_WITHIN_S) == "failed"
    reason = "every task is in quarantine, the last one for OSError: the simulator is brittle"
    assert run.status()["reason"] == reason


def test_a_running_run_is_watched_steered_and_stopped_from_another_handle(start_run: StartRun, tmp_path: Path) -> None:
    run = start_run()
    wait_for(run, lambda status: status.get("updates", 0) >= 5)
    other = attach("run", tmp_path)
    assert [each.name for each in runs(tmp_path)] == ["run"]
    assert other.status()["state"] == "running"

    trajectory = other.trajectories(3)[-1]
    assert trajectory.images.shape == (trajectory.num_decisions + 1, 1, 32, 32, 3)
    cursor, seen = other.watch({}, 4)
    assert 0 < len(seen) <= 4 and not any(each.is_imagined for each in seen)
    named = {(each.origin, each.episode) for each in seen}
    wait_for(run, lambda _: len(other.watch(cursor, 1).trajectories) == 1)
    assert named.isdisjoint({(each.origin, each.episode) for each in other.watch(cursor, 4).trajectories})

    assert other.set(sigma=0.5) == {"objective": {"sigma": 0.5}}
    with pytest.raises(ConfigError, match=r"sigmma.*did you mean 'sigma'"):
        other.set(sigmma=0.5)
    with pytest.raises(ConfigError, match="sigma: input should be greater than 0"):
        other.set(sigma=-1)

    event = run.events()[-1]
    assert (event["set"], event["from"], event["to"]) == ("sigma", 0.2, 0.5) and "process" in event["by"]

    result = other.evaluate(episodes_per_task=4, greedy=True)
    assert (result["episodes"], result["greedy"]) == (4, True)
    assert [each["updates"] for each in run.evaluations()] == [result["updates"]]
    with pytest.raises(ConfigError, match="checkpoint: run has no 'step-x'; there are step-"):
        other.evaluate(checkpoint="step-x")

    other.pause()
    assert other.status()["state"] == "paused"
    saved = other.checkpoint()
    assert saved in run.checkpoints()
    other.resume()
    learner, _ = load_checkpoint(saved)
    wait_for(run, lambda status: status["updates"] > learner["updates"])

    processes = processes_of(run)
    other.stop()
    assert run.status()["state"] == "finished"
    assert not [process for process in processes if is_alive(process)]
    assert other.trajectories(3), "the sample in the folder can be looked at after the end"
    assert not (run.folder / "connection.json").exists()
    with pytest.raises(RuntimeError, match="run is finished"):
        run.pause()


def test_a_run_whose_every_process_was_killed_goes_on_from_its_checkpoint(start_run: StartRun, tmp_path: Path) -> None:
    bounded = {"learner.checkpoint_every_s": 3, "rollout.max_policy_lag": 8, "replay.capacity_decisions": 4096}
    run = start_run(bounded)
    wait_for(run, lambda status: bool(run.checkpoints()) and status["updates"] >= 10)
    for process in processes_of(run):
        process.kill()
    wait_for(run, lambda status: status["state"] == "dead")
    with pytest.raises(ConfigError, match="holds a run; resume it"):
        start_run(bounded)
    learner, saved = load_checkpoint(run.checkpoints()[-1])

    resumed = start_run(bounded, resume=True)
    wait_for(resumed, lambda status: status.get("updates", 0) > learner["updates"] and status["state"] == "running")
    lines = resumed.metrics()
    counters = [(line["decisions"], line["wall_s"], line["updates"]) for line in lines]
    assert counters == sorted(counters), "the curve goes back"
    assert lines[-1]["run_policy_lag_max"] <= 8
    first = next(line for line in lines if line["decisions"] > saved["metrics"]["decisions"])
    assert first["episodes"] > saved["metrics"]["episodes"]
    assert learner["optimizer"]["state"][0]["step"] == learner["updates"]


def test_a_run_ends_with_the_process_that_owns_it(start_run: StartRun) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = start_run(owner_pid=owner.pid)
    wait_for(run, lambda status: status.get("updates", 0) >= 2)
    owner.kill()
    owner.wait()
    assert run.wait(30) == "finished"
    assert run.checkpoints()


def test_a_run_that_cannot_start_says_why(start_run: StartRun) -> None:
    with pytest.raises(ConfigError, match=r"env.tasks: .*'rde'.*'red'"):
        start_run({"env.tasks": ["rde"]})
    with pytest.raises(ConfigError, match=r"env.image_size: 64 does not fit policy.checkpoint"):
        start_run({"env.image_size": 64})
    with pytest.raises(ConfigError, match=r"learner.device: "):
        start_run({"learner.device": "cpuu"})
    run = start_run({"env.suite": "tests.runtime.conftest:broken_env"})
    assert run.wait(START_WITHIN_S) == "failed"
    assert "no camera" in run.status()["reason"]


def test_a_stop_signal_to_the_host_saves_and_ends_the_run(start_run: StartRun) -> None:
    run = start_run()
    wait_for(run, lambda status: status.get("updates", 0) >= 2)
    os.kill(run.status()["host_pid"], signal.SIGTERM)
    assert run.wait(30) == "finished"
    learner, _ = load_checkpoint(run.checkpoints()[-1])
    assert learner["updates"] >= run.metrics()[-1]["updates"] - 1


@pytest.fixture(scope="module")
def robust_run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One whose roles are killed in turn."""
    with launching(start, tmp_path_factory.mktemp("robust")) as start_run:
        run = start_run({"rollout.num_workers": 2, "rollout.slots_per_worker": 8, "learner.checkpoint_every_s": 5})
        wait_for(run, lambda status: status.get("updates", 0) >= 5 and bool(run.checkpoints()))
        yield run


@pytest.mark.parametrize("role", ["RolloutActor", "InferenceActor", "ReplayActor", "LearnerActor"])
def test_a_killed_role_is_replaced_and_the_run_goes_on(robust_run: Run, role: str) -> None:
    run, num_incidents = robust_run, len(robust_run.incidents())
    victim = next(process for process in processes_of(run) if f"ray::{role}" in " ".join(process.cmdline()))
    victim.kill()
    wait_for(run, lambda status: len(run.incidents()) > num_incidents)
    before = run.status()
    wait_for(run, lambda status: status["updates"] > before["updates"] and status["decisions"] > before["decisions"])
    assert {incident["action"] for incident in run.incidents()[num_incidents:]} == {"restarted"}


def success_of(policy: Any):
    plans = plan_episodes(DOTS.tasks, 400, seed=0, greedy=False)
    return evaluate(PolicyServer(policy, InferenceConfig()), lambda: make_env(DOTS), plans).success


def wait_for(run: Run, condition: Callable[[dict[str, Any]], bool], timeout_s: float = START_WITHIN_S) -> None:
    """Returns when the run's status meets the condition; fails at once when the run has failed."""
    deadline = time.monotonic() + timeout_s
    while not condition(status := run.status()):
        assert status["state"] != "failed", status["reason"]
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {status}, {host_log(run)}"
        time.sleep(0.2)


def processes_of(run: Run) -> list[psutil.Process]:
    host = psutil.Process(json.loads((run.folder / "status.json").read_text())["host_pid"])
    return [host, *host.children(recursive=True)]


def is_alive(process: psutil.Process) -> bool:
    """Not ended, and not merely waiting for its parent to notice."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def host_log(run: Run) -> str:
    return (run.folder / "logs" / "host.log").read_text()[-2000:]
