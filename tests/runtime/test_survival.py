"""Processes of a run are killed and stopped: each is replaced, nothing collected is lost, nothing counts twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable

import psutil

from accerl.runtime.beat import note_path
from accerl.runtime.run import Run
from tests.runtime.test_scale import is_accounted_for

StartRun = Callable[..., Run]
WITHIN_S = 120.0


def until(run: Run, is_met: Callable[[], bool], *states: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not is_met():
        assert run.status()["state"] in (*states, "starting", "running"), run.status()
        assert time.monotonic() < deadline, run.status()
        time.sleep(0.1)


def updates(run: Run) -> int:
    return run.status().get("updates", 0)


def process_of(run: Run, role: str) -> int:
    return json.loads((run.folder / "logs" / f"{role}.process.json").read_text())["pid"]


def niceness(process: int) -> int:
    """Of the thread that cares least for itself; what starts, and the controller, come before those at work."""
    threads = psutil.Process(process).threads()
    return min(os.getpriority(os.PRIO_PROCESS, thread.id) for thread in threads)


def signalled(run: Run, role: str, number: int) -> None:
    """Send a signal to the process of a role and wait until ten more updates were made."""
    before, incidents = updates(run), len(run.incidents())
    os.kill(process_of(run, role), number)
    until(run, lambda: len(run.incidents()) > incidents)
    before = updates(run)
    until(run, lambda: updates(run) >= before + 3)


def test_a_controller_that_is_killed_or_stopped_is_replaced_by_one_that_finds_everybody_at_work(start_run: StartRun):
    run = start_run({"limits.max_updates": 2000, "rollout.max_policy_lag": 4, "replay.max_reuse": 1})
    until(run, lambda: updates(run) >= 3)
    learner, worker = process_of(run, "learner-0"), process_of(run, "rollout-0")
    until(run, lambda: min(map(niceness, (learner, worker))) > niceness(process_of(run, "controller")))
    run.set(sigma=0.3)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        signalled(run, "controller", number)
    assert (process_of(run, "learner-0"), process_of(run, "rollout-0")) == (learner, worker)
    assert run.status()["knobs"] == {"objective": {"sigma": 0.3}}
    assert {(each["role"], each["action"]) for each in run.incidents()} == {
        ("controller", "another one has taken over")
    }
    run.pause()
    until(run, lambda: is_accounted_for(run), "paused")
    run.stop()
    lines = run.metrics()
    assert run.status()["state"] == "finished"
    assert [line["updates"] for line in lines] == sorted(line["updates"] for line in lines)


def test_a_process_that_cannot_be_made_is_made_anew_until_it_can(start_run: StartRun) -> None:
    run = start_run({"limits.max_updates": 2000})
    until(run, lambda: updates(run) >= 3)
    process, note = process_of(run, "rollout-0"), note_path(run.folder, "rollout-0")
    note.unlink()
    (note / "in the way").mkdir(parents=True)
    os.kill(process, signal.SIGKILL)
    until(run, lambda: any(each["action"] == "made anew" for each in run.incidents()))
    shutil.rmtree(note)
    before = run.counters()["decisions"]
    until(run, lambda: run.counters()["decisions"] > before + 100)
    assert {each["role"] for each in run.incidents()} == {"rollout-0"}
    assert any("Is a directory" in each["what"] for each in run.incidents())


def test_processes_that_are_stopped_are_replaced(start_run: StartRun) -> None:
    run = start_run({"limits.max_updates": 2000})
    until(run, lambda: updates(run) >= 3)
    for role in ("inference-0", "learner-0"):
        signalled(run, role, signal.SIGSTOP)
    found = [(each["role"], each["what"]) for each in run.incidents()]
    what = "its process was stopped from outside"
    assert found == [(role, what) for role in ("inference-0", "learner-0")]
