"""Processes that live and do nothing are told from those that are busy; a controller's knowledge outlives it."""

from __future__ import annotations

import asyncio
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

from accerl.admission import Admission
from accerl.config import RunConfig, SupervisionConfig, TaskConfig, merge
from accerl.runtime import beat as beats
from accerl.runtime.beat import Beat, examine, note_path, read_note
from accerl.runtime.board import Board
from accerl.runtime.heartbeats import Heartbeats
from accerl.runtime.memory import Memory
from accerl.tasks import TaskSampler
from accerl.types import Episode

BUSY = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1, open(sys.argv[1], "w"))
def spin():
    print("ready", flush=True)
    while True: time.sleep(0.01)
spin()
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "crash.log"


@pytest.fixture
def process(log: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", BUSY, str(log)], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline() == "ready\n"
        yield started
        started.kill()


def beat_of(process: subprocess.Popen[str]) -> Beat:
    return Beat(pid=process.pid, created=psutil.Process(process.pid).create_time(), node="here", stalled_s=0.0)


def test_a_busy_process_is_left_alone(process: subprocess.Popen[str]) -> None:
    assert examine(beat_of(process), must_end=False) == "busy"
    assert process.poll() is None


def test_a_stopped_process_is_ended(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert examine(beat_of(process), must_end=False) == "stopped"
    assert process.wait(10) == -signal.SIGKILL


def test_a_hung_process_leaves_its_stacks(process: subprocess.Popen[str], log: Path) -> None:
    assert examine(beat_of(process), must_end=True) == "hung"
    assert process.wait(10) == -signal.SIGKILL
    assert "in spin" in log.read_text()


def test_another_process_with_the_same_number_is_not_touched(process: subprocess.Popen[str]) -> None:
    older = beat_of(process)._replace(created=1.0)
    assert examine(older, must_end=True) == "gone"
    assert process.poll() is None


class Call:
    """A remote method that answers, never answers, or tells of no progress."""

    def __init__(self, answer: Callable[[], Any]):
        self.remote = answer


class Actor:
    def __init__(self, beat: Beat, is_silent: bool = False):
        self._beat = beat
        self._is_silent = is_silent
        self.beat = Call(self._answer)

    async def _answer(self) -> Beat:
        if self._is_silent:
            await asyncio.Event().wait()
        return self._beat


def watched(monkeypatch: pytest.MonkeyPatch, folder: Path, actor: Actor, finding: str) -> tuple[list[bool], str | None]:
    """With which `must_end` its process was looked at within a second, and what the reason is."""
    looks: list[bool] = []

    def look(beat: Beat, must_end: bool) -> str:
        looks.append(must_end)
        return finding

    from accerl.runtime import heartbeats

    monkeypatch.setattr(heartbeats, "examine", look)
    monkeypatch.setattr(heartbeats, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(heartbeats, "SUSPECT_AFTER_S", 0.1)
    watch = Heartbeats(folder, SupervisionConfig(answer_s=0.5, stall_s=5.0), "here")

    async def play() -> None:
        task = asyncio.create_task(watch.watch(lambda: [("rollout-0", actor)]))
        await asyncio.sleep(1.0)
        task.cancel()

    asyncio.run(play())
    return looks, watch.reason("rollout-0")


class Neighbour(Actor):
    """A role on another node, which finds what it is told to."""

    def __init__(self, beat: Beat, finding: str):
        super().__init__(beat)
        self.looked_at: list[Beat] = []
        self.look = self
        self._finding = finding

    async def remote(self, beat: Beat, must_end: bool) -> str:
        self.looked_at.append(beat)
        return self._finding


HERE = Beat(pid=1, created=1.0, node="here", stalled_s=0.0)


def test_who_answers_is_never_looked_at(monkeypatch, tmp_path):
    assert watched(monkeypatch, tmp_path, Actor(HERE), "stopped") == ([], None)


def test_who_is_silent_is_looked_at_and_ended_after_a_while(monkeypatch, tmp_path):
    (tmp_path / "logs").mkdir()
    note_path(tmp_path, "rollout-0").write_text(HERE.to_json())
    looks, _ = watched(monkeypatch, tmp_path, Actor(HERE, is_silent=True), "busy")
    assert looks[0] is False and looks[-1] is True
    _, reason = watched(monkeypatch, tmp_path, Actor(HERE, is_silent=True), "stopped")
    assert reason == "its process was stopped from outside"


def test_who_is_silent_on_another_node_is_looked_at_by_a_role_there(monkeypatch, tmp_path):
    from accerl.runtime import heartbeats

    (tmp_path / "logs").mkdir()
    silent, well = HERE._replace(node="there"), HERE._replace(node="there", pid=2)
    note_path(tmp_path, "rollout-0").write_text(silent.to_json())
    monkeypatch.setattr(heartbeats, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(heartbeats, "SUSPECT_AFTER_S", 0.1)
    watch = Heartbeats(tmp_path, SupervisionConfig(), "here")
    neighbour = Neighbour(well, "stopped")
    roles = {"rollout-0": Actor(silent, is_silent=True), "inference-0": neighbour, "learner-0": Actor(HERE)}

    async def play() -> None:
        task = asyncio.create_task(watch.watch(roles.items))
        while not neighbour.looked_at:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()

    asyncio.run(asyncio.wait_for(play(), 10))
    assert set(neighbour.looked_at) == {silent}
    assert watch.reason("rollout-0") == "its process was stopped from outside"


def test_whose_work_does_not_move_is_ended(monkeypatch, tmp_path):
    looks, reason = watched(monkeypatch, tmp_path, Actor(HERE._replace(stalled_s=6.0)), "hung")
    assert looks[0] is True
    assert reason == "its work has not moved for 6 s; stacks in logs/rollout-0.crash.log"


def test_a_note_that_is_torn_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    note_path(tmp_path, "learner-0").write_text('{"pid": 3')
    assert read_note(tmp_path, "learner-0") is None
    note_path(tmp_path, "learner-0").write_text(HERE.to_json())
    assert read_note(tmp_path, "learner-0") == HERE
    assert beats.own_beat().pid == os.getpid()


# --- a controller that takes over -------------------------------------------------------------------------------------


def test_memory_gives_the_next_process_what_was_kept(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    assert memory.found is None
    memory.keep(run={"updates": 3}, tasks={"a": 1})
    memory.keep(run={"updates": 4})
    assert Memory(tmp_path).found == {"run": {"updates": 4}, "tasks": {"a": 1}}
    assert (tmp_path / "controller.json").stat().st_mode & 0o777 == 0o600


def test_a_board_that_takes_over_gives_nothing_before_it_is_complete_and_then_numbers_above() -> None:
    async def play() -> None:
        board = Board("nothing yet", above=1 << 32)
        assert await board.newer(-1, 0.01) is None
        await board.post("complete")
        assert await board.newer(7, 0.01) == ((1 << 32) + 1, "complete")

    asyncio.run(play())


def admission(**fields: Any) -> Admission:
    small = {
        "rollout": {"slots_per_worker": 4},
        "inference": {"batch_size": 4},
        "env": {"suite": "dots", "tasks": ("red", "blue")},
    }
    config = RunConfig(**merge(small, fields))
    return Admission(config, TaskSampler(config.env.tasks, TaskConfig(), 0))


def finish(desk: Admission, number: int) -> bool:
    facts: dict[str, Any] = {"success": True, "episode_return": 1.0, "num_decisions": 5, "num_env_steps": 5}
    return desk.finish(Episode(task="red", policy_version=0, origin="w", number=number, **facts))


@pytest.mark.parametrize(
    "fields", [{}, {"rollout.max_policy_lag": 2}, {"mode": "sync"}, {"mode": "one_step_off"}], ids=str
)
def test_admission_goes_on_in_another_process_as_in_the_one_before(fields: dict[str, Any]) -> None:
    first = admission(**fields)
    plans = [first.start("w.0", ask) for ask in (1, 2, 3)]
    assert finish(first, 0)
    first.lose("nobody")
    first.fail(1)
    other = admission(**fields)
    other.tasks.load_state_dict(first.tasks.state_dict())
    other.load(json.loads(json.dumps(first.content())))
    for desk in (first, other):
        assert desk.start("w.0", 3) == plans[2], "asked again, it is the same answer"
        assert not finish(desk, 0), "said again, it does not count again"
    following = [[desk.start("w.0", ask) for ask in range(4, 9)] for desk in (first, other)]
    assert following[0] == following[1]
    for desk in (first, other):
        desk.train(1, {0})
        desk.train(1, {0})
    assert first.content() == other.content()
