"""Faults follow from their seed, every kind comes by turns, and a run that goes on recovers from each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from accerl.config import ConfigError
from accerl.runtime import chaos, strikes
from accerl.runtime.beat import Beat, note_path
from accerl.runtime.run import Run
from benchmarks.chaos import small_disk
from tests.runtime.test_survival import until, updates

KINDS = ("kill-rollout", "stop-learner", "kill-node", "fill-disk")


def test_a_plan_follows_from_its_seed_and_has_all_kinds_by_turns():
    first, again, other = (chaos.plan(600.0, 6.0, seed, KINDS) for seed in (3, 3, 4))
    assert first == again != other
    counts = Counter(fault.kind for fault in first)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert 70 < len(first) < 130
    assert [fault.at_s for fault in first] == sorted(fault.at_s for fault in first)


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes that a run's folder calls its own: the controller and a service here, a worker on another node."""
    nodes = {"controller": "here", "inference-0": "here", "rollout-0": "there"}
    started = {name: subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for name in nodes}
    (tmp_path / "logs").mkdir()
    for name, process in started.items():
        note(tmp_path, name, process.pid, nodes[name])
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def note(folder: Path, name: str, process: int, node: str) -> None:
    beat = Beat(pid=process, created=psutil.Process(process).create_time(), node=node, stalled_s=0.0)
    note_path(folder, name).write_text(beat.to_json())


def test_kinds_are_those_that_fit_the_run(tmp_path: Path, sleepers: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    roles = {f"{how}-{role}" for role in ("rollout", "inference") for how in ("kill", "stop", "slow")}
    expected = {*roles, "kill-controller", "stop-controller", "kill-node"}
    large = shutil.disk_usage(tmp_path)._replace(total=strikes.LARGEST_DISK + 1)
    monkeypatch.setattr(strikes.shutil, "disk_usage", lambda folder: large)
    assert set(strikes.possible(tmp_path)) == expected
    monkeypatch.setattr(strikes.shutil, "disk_usage", lambda folder: large._replace(total=strikes.LARGEST_DISK))
    assert set(strikes.possible(tmp_path)) == {*expected, "fill-disk"}
    with pytest.raises(ConfigError, match=r"kinds: 'kill-learner' does not fit this run; .*kill-"):
        chaos.kinds_of(Run(tmp_path), ("kill-learner",))


def test_a_run_that_is_elsewhere_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no process of .* is on this machine"):
        strikes.possible(tmp_path)


def test_a_killed_process_is_over_when_another_has_its_place(tmp_path: Path, sleepers: dict[str, Any]):
    struck = strikes.strike(tmp_path, "kill-inference", 0.9, ())
    assert struck is not None
    assert struck.met == {"inference-0"}
    assert sleepers["inference-0"].wait(5) == -signal.SIGKILL
    assert not struck.is_over()
    assert strikes.strike(tmp_path, "kill-inference", 0.9, ()) is None
    note(tmp_path, "inference-0", sleepers["rollout-0"].pid, "here")
    assert struck.is_over()


def test_a_slowed_process_gets_its_time_back(tmp_path: Path, sleepers: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strikes, "SLOW_S", 0.15)
    struck = strikes.strike(tmp_path, "slow-rollout", 0.0, ())
    assert struck is not None
    assert not struck.is_over()
    assert struck.is_over()
    assert psutil.Process(sleepers["rollout-0"].pid).status() != psutil.STATUS_STOPPED
    assert strikes.strike(tmp_path, "slow-rollout", 0.0, {"rollout-0"}) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_is_filled_up_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strikes, "FULL_S", 0.0)
    with small_disk(tmp_path / "disk", 4):
        struck = strikes.strike(tmp_path / "disk", "fill-disk", 0.0, ())
        assert struck is not None
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(bytes(8192))
        assert struck.is_over()
        (tmp_path / "disk" / "more").write_bytes(bytes(8192))


class Struck:
    """What a strike met, that is over."""

    def __init__(self, *met: str):
        self.met = frozenset(met)

    def is_over(self) -> bool:
        return True


class Answering:
    """A run that says what it is told to."""

    def __init__(self, **progress: float):
        self.progress = {name.replace("_", "-"): count for name, count in progress.items()}
        self.updates = 7

    def counters(self) -> dict[str, int]:
        return {"decisions": 100, "updates_made": self.updates}

    def progress_of(self, names: list[str]) -> dict[str, float]:
        return {name: self.progress[name] for name in names if name in self.progress}


def watch(run: Answering, *met: str) -> Any:
    return chaos._Watch(cast(Run, run), chaos.Fault(0.0, "kill", 0.0), Struck(*met))


def test_a_worker_is_back_when_it_has_played_whatever_its_count_was():
    run = Answering(rollout_0=50)
    watched = watch(run, "rollout-0")
    assert watched.look() is None
    assert watched.look() is None, "it has played nothing more"
    for count in (0, 3):  # restarted once more
        run.progress["rollout-0"] = count
        assert (watched.look() is not None) == (count > 0)


def test_a_service_is_back_when_the_workers_know_it_and_a_controller_when_it_answers():
    run = Answering()
    service, controller = watch(run, "inference-0"), watch(run, "controller")
    assert service.look() is service.look() is None
    run.progress["inference-0"] = 0
    assert service.look() is None and service.look() is not None
    assert controller.look() is None and controller.look() is not None


def test_a_node_is_back_when_all_that_was_on_it_is():
    run = Answering(rollout_0=0)
    watched = watch(run, "rank-0", "rollout-0")
    assert watched.look() is None
    run.progress["rollout-0"] = 5
    assert watched.look() is None, "no update was made"
    run.updates += 1
    outcome = watched.look()
    assert outcome.is_of_trainer and outcome.role == "rank-0, rollout-0"


@pytest.mark.slow
def test_a_run_recovers_from_what_is_done_to_it(start_run: Callable[..., Run]) -> None:
    run = start_run({"limits.max_updates": 5000})
    until(run, lambda: updates(run) >= 3)
    faults = [chaos.Fault(0.0, "kill-replay", 0.0), chaos.Fault(4.0, "slow-rollout", 0.5)]
    outcomes = list(chaos.unleash(run, faults))
    assert {outcome.role for outcome in outcomes} == {"replay-0", "rollout-0"}
    assert all(outcome.recovered_s is not None for outcome in outcomes)
    run.pause()
    until(run, lambda: run.counters()["episodes_in_flight"] == 0, "paused")
    assert run.lost_episodes() == 0
    assert run.pushed_decisions() >= run.counters()["decisions"]
