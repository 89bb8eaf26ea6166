"""Jobs played by processes, some of which die, hang or raise: each job has one result, and no process is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from accerl.episode_pool import Channel, EpisodePool, Incident, Outcome, PoolConfig

ROOT = Path(__file__).parents[2]
HANG_S = 6.0
"""Starting a process takes 0.2 s, on a busy machine ten times as long."""


class Job(NamedTuple):
    """`what` is done the first time that this job is played, or `always`."""

    task: str
    number: int = 0
    what: str = "succeed"
    always: bool = False


class Told(NamedTuple):
    """What a worker says of a job."""

    job: Job
    pid: int
    player: int
    """Counts the players that its process has made."""
    answer: Any = None


class Player:
    """Does what its jobs say; a file in the folder marks those that it has begun before."""

    made = 0

    def __init__(self, folder: Path):
        type(self).made += 1
        self._folder = folder

    def play(self, job: Job, channel: Channel) -> Any:
        begun = self._folder / f"{job.task}-{job.number}"
        first = not begun.exists()
        begun.touch()
        answer = None
        if first or job.always:
            answer = self._do(job, channel)
        return Told(job, os.getpid(), self.made, answer)

    def close(self) -> None:
        (self._folder / "closed").touch()

    def _do(self, job: Job, channel: Channel) -> Any:
        match job.what:
            case "ask":
                return [channel.ask((job.number, turn)) for turn in range(3)]
            case "raise":
                raise ValueError(f"episode {job.number}\nis unlucky")
            case "break a pipe":
                raise BrokenPipeError("of the player's own")
            case "give what cannot be sent":
                return lambda: None
            case "exit":
                os._exit(3)
            case "be killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "be stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "be stopped in the middle of a word":
                os.write(channel._connection.fileno(), b"\0\0\4\0half")  # 1024 bytes are announced
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                time.sleep(600)
            case "work long":
                for _ in range(int(HANG_S / 0.1) + 10):
                    time.sleep(0.1)
                    channel.beat()
            case "meet":
                await_files([self._folder / f"{task}-{job.number}" for task in ("push", "pull")])


def await_files(paths: Sequence[Path]) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def play(
    folder: Path, jobs: Sequence[Job], answer: Callable | None = None, **fields: Any
) -> tuple[Outcome[Told], Counter[Job]]:
    """The outcome, and how often each job was reported."""
    told: Counter[Job] = Counter()
    incidents: list[Incident] = []
    config = PoolConfig(**{"num_workers": 2, "hang_s": 30.0, **fields})
    pool: EpisodePool[Job, Told] = EpisodePool(config, partial(Player, folder), lambda job: job.task, answer)
    outcome = pool.run(jobs, lambda job, result: told.update([job]), incidents.append)
    assert incidents == outcome.incidents
    assert pool.pids == []
    assert workers_of(os.getpid()) == []
    return outcome, told


def workers_of(owner: int) -> list[psutil.Process]:
    """Processes that multiprocessing has spawned, apart from its resource tracker."""
    children = psutil.Process(owner).children(recursive=True)
    return [child for child in children if any("--multiprocessing-fork" in word for word in cmdline(child))]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_every_job_has_one_result_at_its_index(tmp_path):
    jobs = [Job(task, number) for number in range(3) for task in ("push", "pull")]
    outcome, told = play(tmp_path, jobs)
    assert [outcome.results[index].job for index in range(6)] == jobs
    assert told == Counter(jobs)
    assert (outcome.incidents, outcome.given_up) == ([], {})


def test_nothing_to_play_starts_no_process(tmp_path):
    outcome, told = play(tmp_path, [])
    assert outcome.results == told == {}


def test_a_worker_stays_with_its_task(tmp_path):
    outcome, _ = play(tmp_path, [Job(task, number, "meet") for number in range(4) for task in ("push", "pull")])
    assert outcome.incidents == []
    played_by = {told.job: told.pid for told in outcome.results.values()}
    pids = {task: {pid for job, pid in played_by.items() if job.task == task} for task in ("push", "pull")}
    assert [len(of_task) for of_task in pids.values()] == [1, 1]
    assert pids["push"] != pids["pull"]


def test_a_single_worker_plays_task_after_task_with_one_player(tmp_path):
    order: list[str] = []
    jobs = [Job(task, number) for number in range(2) for task in ("push", "pull", "lift")]
    pool: EpisodePool[Job, Told] = EpisodePool(
        PoolConfig(num_workers=1), partial(Player, tmp_path), lambda job: job.task
    )
    outcome = pool.run(jobs, lambda job, result: order.append(job.task))
    assert order == ["push", "push", "pull", "pull", "lift", "lift"]
    assert {told.player for told in outcome.results.values()} == {1}
    assert len({told.pid for told in outcome.results.values()}) == 1


def test_the_pool_answers_what_workers_ask_in_batches(tmp_path):
    asked: list[int] = []

    def answer(requests: Sequence[Any]) -> list[str]:
        asked.append(len(requests))
        return [f"{number}.{turn}" for number, turn in requests]

    outcome, _ = play(tmp_path, [Job("push", number, "ask") for number in range(4)], answer)
    assert [outcome.results[number].answer for number in range(4)] == [[f"{n}.{t}" for t in range(3)] for n in range(4)]
    assert sum(asked) == 12
    assert max(asked) <= 2


def test_an_exception_in_the_place_of_an_answer_is_raised_in_the_worker(tmp_path):
    outcome, _ = play(tmp_path, [Job("push", 0, "ask")], lambda requests: [KeyError("no such version")])
    (incident,) = outcome.incidents
    assert (incident.task, incident.kind) == ("push", "raised")
    assert incident.reason == "raised: KeyError: 'no such version'"
    assert outcome.results[0].answer is None


@pytest.mark.parametrize("answer", [None, lambda requests: 1 / 0])
def test_a_pool_that_cannot_answer_ends_its_workers_and_says_so(answer, tmp_path):
    with pytest.raises((RuntimeError, ZeroDivisionError), match=r"nothing to answer with|division by zero"):
        play(tmp_path, [Job("push", 0, "ask"), Job("push", 1, "sleep")], answer)
    assert workers_of(os.getpid()) == []


def test_a_worker_that_waits_for_a_slow_answer_has_not_hung(tmp_path):
    def slowly(requests: Sequence[Any]) -> list[int]:
        time.sleep(0 if requests[0][1] else HANG_S + 0.5)
        return [0] * len(requests)

    outcome, _ = play(tmp_path, [Job("push", 0, "ask")], slowly, hang_s=HANG_S)
    assert outcome.results[0].answer == [0, 0, 0]
    assert outcome.incidents == []


def test_a_worker_that_gives_signs_of_life_has_not_hung(tmp_path):
    outcome, _ = play(tmp_path, [Job("push", 0, "work long")], hang_s=HANG_S)
    assert outcome.incidents == []
    assert len(outcome.results) == 1


@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ("raise", "raised", "raised: is unlucky"),
        ("break a pipe", "raised", "raised: BrokenPipeError: of the player's own"),
        ("give what cannot be sent", "raised", "raised: .*pickle.*"),
        ("exit", "died", "died: exit status 3"),
        ("be killed", "died", "died: signal SIGKILL"),
        ("be stopped", "hung", f"hung: no sign of life for {HANG_S:g} s"),
        ("be stopped in the middle of a word", "hung", f"hung: no sign of life for {HANG_S:g} s"),
        ("sleep", "hung", f"hung: no sign of life for {HANG_S:g} s"),
    ],
)
def test_what_goes_wrong_once_is_an_incident_and_the_job_is_played_again(what, kind, reason, tmp_path):
    jobs = [Job("push", 0, what), Job("push", 1), Job("pull", 0)]
    outcome, told = play(tmp_path, jobs, hang_s=HANG_S)
    (incident,) = outcome.incidents
    assert (incident.task, incident.kind) == ("push", kind)
    assert re.fullmatch(reason, incident.reason)
    assert {index: result.job for index, result in outcome.results.items()} == dict(enumerate(jobs))
    assert told == Counter(jobs)
    assert outcome.given_up == {}
    assert (tmp_path / "closed").exists() == (kind == "raised")


def test_a_player_that_raised_is_made_anew_in_the_same_process(tmp_path):
    outcome, _ = play(tmp_path, [Job("push", 0, "raise"), Job("push", 1)], num_workers=1)
    assert {told.player for told in outcome.results.values()} == {2}
    assert len({told.pid for told in outcome.results.values()}) == 1


@pytest.mark.parametrize("what", ["raise", "be killed"])
def test_a_task_that_always_fails_is_given_up_while_the_others_finish(what, tmp_path):
    bad = [Job("bad", number, what, always=True) for number in range(5)]
    good = [Job("good", number) for number in range(5)]
    outcome, told = play(tmp_path, [*bad, *good])
    assert set(outcome.results) == {5, 6, 7, 8, 9}
    assert told == Counter(good)
    assert outcome.given_up == {"bad": outcome.incidents[-1].reason}
    assert [incident.task for incident in outcome.incidents] in (["bad"] * 3, ["bad"] * 4)  # the fourth was under way


def test_a_single_bad_episode_does_not_cost_the_others_of_its_task(tmp_path):
    jobs = [Job("push", 0, "raise", always=True), *(Job("push", number) for number in range(1, 5))]
    outcome, _ = play(tmp_path, jobs, num_workers=1)
    assert set(outcome.results) == {1, 2, 3, 4}
    assert outcome.given_up == {"push": "raised: is unlucky"}


def fail(folder: Path) -> Player:
    raise OSError("no display")


def test_an_environment_that_cannot_be_made_is_told(tmp_path):
    pool: EpisodePool[Job, Told] = EpisodePool(PoolConfig(num_workers=1), partial(fail, tmp_path), lambda job: job.task)
    outcome = pool.run([Job("push"), Job("pull")])
    assert outcome.given_up == dict.fromkeys(("push", "pull"), "raised: OSError: no display")
    assert str(outcome.incidents[0]) == "push: a worker raised: OSError: no display"


def test_a_pool_can_run_again(tmp_path):
    pool: EpisodePool[Job, Told] = EpisodePool(
        PoolConfig(num_workers=1), partial(Player, tmp_path), lambda job: job.task
    )
    for number in (0, 1):
        outcome = pool.run([Job("push", number, "raise", always=True)])
        assert outcome.results == {}
        assert len(outcome.incidents) == 3


def test_an_interruption_ends_the_workers(tmp_path):
    seen: list[psutil.Process] = []

    def interrupt(job: Job, result: Told) -> None:
        seen.extend(workers_of(os.getpid()))
        raise KeyboardInterrupt

    pool: EpisodePool[Job, Told] = EpisodePool(
        PoolConfig(num_workers=2), partial(Player, tmp_path), lambda job: job.task
    )
    with pytest.raises(KeyboardInterrupt):
        pool.run([Job("push"), Job("pull", 0, "sleep")], interrupt)
    assert len(seen) == 2
    assert not any(worker.is_running() for worker in seen)


OWNER = """
import sys
from functools import partial
from pathlib import Path
from accerl.episode_pool import EpisodePool, PoolConfig
from tests.roles.test_episode_pool import Job, Player

if __name__ == "__main__":
    jobs = [Job("a", 0, "sleep"), Job("b", 0, "be stopped"), Job("c", 0, "work long", always=True)]
    EpisodePool(PoolConfig(num_workers=3), partial(Player, Path(sys.argv[1])), lambda job: job.task).run(jobs)
"""


def test_workers_end_with_the_process_that_owns_the_pool(tmp_path):
    (tmp_path / "owner.py").write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, tmp_path / "owner.py", tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        await_files([tmp_path / f"{task}-0" for task in "abc"])
        workers = workers_of(owner.pid)
        assert len(workers) == 3
    finally:
        owner.kill()
        owner.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert alive == []
