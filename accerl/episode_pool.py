"""Episodes played by worker processes. One that dies, hangs or raises is replaced, and its episode is played again.

pool: the next job of the worker's task  ->  worker: Player.play(job, channel)  ->  result
             requests of all workers, one batch  <-  channel.ask(request)
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

BEAT_S = 1.0
"""A worker says at most this often that it is alive."""
POLL_S = 0.5


class Channel:
    """A worker's side of the way to the pool."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._last_beat = 0.0

    def beat(self) -> None:
        """Tell that there is progress; to be called at every step."""
        now = time.monotonic()
        if now - self._last_beat > BEAT_S:
            self._last_beat = now
            self._connection.send(("beat", None))

    def ask(self, request: Any) -> Any:
        """The pool's answer, made for the requests of all workers that wait. Raises what the pool raised."""
        self._connection.send(("ask", request))
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Player(Protocol):
    """Plays episodes in a worker process; is made anew after it has raised."""

    def play(self, job: Any, channel: Channel, /) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """How many workers, and how long they are waited for."""

    num_workers: int
    hang_s: float = 120.0
    """Without a sign of life for so long, a worker is killed; also the time to make an environment."""
    max_failures: int = 3
    """In a row, after which a task is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A worker that did not finish its episode."""

    task: str
    kind: str
    """`died`, `hung` or `raised`."""
    detail: str


@dataclass(slots=True)
class Outcome(Generic[Job, Result]):
    """What came of the jobs."""

    results: dict[int, Result] = field(default_factory=dict)
    """By index of the job."""
    incidents: list[Incident] = field(default_factory=list)
    given_up: dict[str, str] = field(default_factory=dict)
    """Tasks that kept failing, and how the last time; their remaining jobs have no result."""


class EpisodePool(Generic[Job, Result]):
    """Plays all jobs once.

    Args:
        make_player: called in each worker, so it must be picklable.
        task_of: of a job. A worker stays with a task while that has jobs, because another one costs a compilation.
        answer: answers the requests of `Channel.ask`, in this process.
    """

    def __init__(
        self,
        config: PoolConfig,
        make_player: Callable[[], Player],
        task_of: Callable[[Job], str],
        answer: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
    ):
        self._config = config
        self._make_player = make_player
        self._task_of = task_of
        self._answer = answer
        self._workers: list[_Worker] = []
        self._failures: Counter[str] = Counter()
        self._waiting: dict[str, deque[int]] = {}

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def run(
        self,
        jobs: Sequence[Job],
        on_result: Callable[[Job, Result], None] = lambda job, result: None,
        on_incident: Callable[[Incident], None] = lambda incident: None,
    ) -> Outcome[Job, Result]:
        """Returns when every job has a result or its task was given up; ends all workers, whatever happens."""
        outcome: Outcome[Job, Result] = Outcome()
        self._waiting = {}
        for index, job in enumerate(jobs):
            self._waiting.setdefault(self._task_of(job), deque()).append(index)
        try:
            for _ in range(min(self._config.num_workers, len(jobs))):
                self._workers.append(_Worker(self._make_player))
            while self._assign(jobs):
                self._listen(jobs, outcome, on_result, on_incident)
        finally:
            for worker in self._workers:
                worker.end()
            self._workers.clear()
        return outcome

    def _assign(self, jobs: Sequence[Job]) -> bool:
        """Give every idle worker a job; whether any job is being played."""
        for worker in self._workers:
            if worker.job is None and (index := self._next(worker.task)) is not None:
                worker.start(index, self._task_of(jobs[index]), jobs[index])
        return any(worker.job is not None for worker in self._workers)

    def _next(self, task: str) -> int | None:
        """Of the same task, or of the one with the most jobs for each worker that is at it."""
        busy = Counter(worker.task for worker in self._workers if worker.job is not None)
        waiting = {name: queue for name, queue in self._waiting.items() if queue}
        if not waiting:
            return None
        if task not in waiting:
            task = max(waiting, key=lambda name: len(waiting[name]) / (1 + busy[name]))
        return waiting[task].popleft()

    def _listen(
        self,
        jobs: Sequence[Job],
        outcome: Outcome[Job, Result],
        on_result: Callable[[Job, Result], None],
        on_incident: Callable[[Incident], None],
    ) -> None:
        """Take in what workers say, answer them, and find those that say nothing."""
        wait([worker.connection for worker in self._workers], timeout=POLL_S)
        askers: list[tuple[_Worker, Any]] = []
        for place, worker in enumerate(self._workers):
            try:
                messages = worker.receive()
            except (EOFError, OSError):
                self._replace(place, "died", worker.cause_of_death(), outcome, on_incident)
                continue
            for kind, content in messages:
                if kind == "ask":
                    askers.append((worker, content))
                elif kind == "done":
                    assert worker.job is not None
                    outcome.results[worker.job] = content
                    self._failures[worker.task] = 0
                    index, worker.job = worker.job, None
                    on_result(jobs[index], content)
                elif kind == "raised":
                    self._count_failure(worker, "raised", content, outcome, on_incident)
            if worker.job is not None and time.monotonic() - worker.heard_s > self._config.hang_s:
                detail = f"no sign of life for {self._config.hang_s:.0f} s"
                self._replace(place, "hung", detail, outcome, on_incident)
        self._answer_all(askers)

    def _answer_all(self, askers: list[tuple[_Worker, Any]]) -> None:
        if not askers:
            return
        if self._answer is None:
            raise RuntimeError("a player asks, but the pool was given nothing to answer with")
        answers = self._answer([request for _, request in askers])
        for (worker, _), answer in zip(askers, answers, strict=True):
            with suppress(OSError):  # a worker that has died meanwhile is found by `_listen`
                worker.connection.send(answer)

    def _replace(
        self, place: int, kind: str, detail: str, outcome: Outcome[Job, Result], on_incident: Callable[[Incident], None]
    ) -> None:
        worker = self._workers[place]
        worker.end()
        self._workers[place] = _Worker(self._make_player)
        self._count_failure(worker, kind, detail, outcome, on_incident)

    def _count_failure(
        self,
        worker: _Worker,
        kind: str,
        detail: str,
        outcome: Outcome[Job, Result],
        on_incident: Callable[[Incident], None],
    ) -> None:
        """The job goes back to the front, unless its task has failed too often."""
        if worker.job is None:
            return
        task, index, worker.job = worker.task, worker.job, None
        incident = Incident(task=task, kind=kind, detail=detail)
        outcome.incidents.append(incident)
        on_incident(incident)
        self._failures[task] += 1
        if self._failures[task] >= self._config.max_failures:
            outcome.given_up[task] = f"{kind}: {detail.strip().splitlines()[-1]}"
            self._waiting[task].clear()
        elif task not in outcome.given_up:
            self._waiting[task].appendleft(index)


class _Worker:
    """A worker process, as the pool sees it."""

    def __init__(self, make_player: Callable[[], Player]):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(make_player, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.heard_s = time.monotonic()
        self.job: int | None = None
        self.task = ""

    def start(self, index: int, task: str, job: Any) -> None:
        self.job, self.task, self.heard_s = index, task, time.monotonic()
        with suppress(OSError):  # if it has died, `receive` will tell
            self.connection.send(job)

    def receive(self) -> list[tuple[str, Any]]:
        """Everything it has said since. Raises EOFError or OSError if it is dead."""
        messages = []
        while self.connection.poll():
            messages.append(self.connection.recv())
            self.heard_s = time.monotonic()
        return messages

    def cause_of_death(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        return f"exit status {code}" if code is None or code >= 0 else f"signal {-code}"

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(make_player: Callable[[], Player], connection: Connection, owner: int) -> None:
    """Play until the pool closes the connection or is gone."""
    channel = Channel(connection)
    player: Player | None = None
    with suppress(EOFError, OSError):
        while os.getppid() == owner:
            job = connection.recv()
            try:
                player = player or make_player()
                connection.send(("done", player.play(job, channel)))
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception:
                told = traceback.format_exc()
                with suppress(Exception):
                    if player is not None:
                        player.close()
                player = None
                connection.send(("raised", told))
    os._exit(0)  # without the destructors of graphics drivers, which complain
