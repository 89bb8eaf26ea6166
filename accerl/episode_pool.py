"""Episodes played by worker processes. One that dies, hangs or raises is replaced, and its episode is played again.

pool: the next job of the worker's task  ->  worker: Player.play(job, channel)  ->  result
             requests of all workers, one batch  <-  channel.ask(request)
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

BEAT_S = 1.0
"""A worker says at most this often that it is alive."""
POLL_S = 0.5
END_S = 5.0
"""Most that a killed worker is waited for; one that a driver holds may take longer."""
PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when its parent dies."""


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
            self.tell("beat", None)

    def ask(self, request: Any) -> Any:
        """The pool's answer, made for the requests of all workers that wait. Raises what the pool gave in its place."""
        self.tell("ask", request)
        answer = self.receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def tell(self, kind: str, content: Any) -> None:
        """For the worker, not its player."""
        try:
            self._connection.send((kind, content))
        except OSError:
            raise _PoolIsGone from None

    def receive(self) -> Any:
        """For the worker, not its player."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise _PoolIsGone from None


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

    @property
    def reason(self) -> str:
        """In one line."""
        return f"{self.kind}: {self.detail.strip().splitlines()[-1]}"

    def __str__(self) -> str:
        return f"{self.task}: a worker {self.reason}"


@dataclass(slots=True)
class Outcome(Generic[Result]):
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
        self._inbox: SimpleQueue[tuple[_Worker, str, Any]] = SimpleQueue()

    @property
    def pids(self) -> list[int]:
        """Of the worker processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def run(
        self,
        jobs: Sequence[Job],
        on_result: Callable[[Job, Result], None] = lambda job, result: None,
        on_incident: Callable[[Incident], None] = lambda incident: None,
    ) -> Outcome[Result]:
        """Returns when every job has a result or its task was given up; ends all workers, whatever happens."""
        self._jobs = jobs
        self._on_result, self._on_incident = on_result, on_incident
        self._outcome: Outcome[Result] = Outcome()
        self._failures: Counter[str] = Counter()
        self._waiting: dict[str, deque[int]] = {}
        for index, job in enumerate(jobs):
            self._waiting.setdefault(self._task_of(job), deque()).append(index)
        try:
            while self._assign():
                self._listen()
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.end()
            self._workers.clear()
        return self._outcome

    def _assign(self) -> bool:
        """Give jobs to idle workers and to new ones; whether any job is being played."""
        for worker in self._workers:
            if worker.job is None and (index := self._next(worker.task)) is not None:
                worker.start(index, self._task_of(self._jobs[index]), self._jobs[index])
        while len(self._workers) < self._config.num_workers and (index := self._next()) is not None:
            self._workers.append(worker := _Worker(self._make_player, self._inbox))
            worker.start(index, self._task_of(self._jobs[index]), self._jobs[index])
        return any(worker.job is not None for worker in self._workers)

    def _next(self, task: str | None = None) -> int | None:
        """Of the same task, or of the one with the most jobs for each worker that is at it."""
        busy = Counter(worker.task for worker in self._workers if worker.job is not None)
        waiting = {name: queue for name, queue in self._waiting.items() if queue}
        if not waiting:
            return None
        if task not in waiting:
            task = max(waiting, key=lambda name: len(waiting[name]) / (1 + busy[name]))
        return waiting[task].popleft()

    def _listen(self) -> None:
        """Take in what workers say, answer them, and find those that say nothing."""
        askers: list[tuple[_Worker, Any]] = []
        for worker, kind, content in self._told():
            if worker not in self._workers:
                continue  # it was killed
            match kind:
                case "ask":
                    askers.append((worker, content))
                case "done":
                    self._finish(worker, content)
                case "raised":
                    self._fail(worker, "raised", content)
                case "died":
                    cause = worker.cause_of_death()
                    self._end(worker)
                    self._fail(worker, "died", cause)
        self._answer_all(askers)
        for worker in [worker for worker in self._workers if worker.silent_s > self._config.hang_s]:
            self._end(worker)
            self._fail(worker, "hung", f"no sign of life for {self._config.hang_s:g} s")

    def _told(self) -> list[tuple[_Worker, str, Any]]:
        """Everything that workers have said since; waits a little for the first to say something."""
        told = []
        with suppress(Empty):
            told.append(self._inbox.get(timeout=POLL_S))
            while True:
                told.append(self._inbox.get_nowait())
        return told

    def _answer_all(self, askers: list[tuple[_Worker, Any]]) -> None:
        if not askers:
            return
        if self._answer is None:
            raise RuntimeError("a player asks, but the pool was given nothing to answer with")
        answers = self._answer([request for _, request in askers])
        for (worker, _), answer in zip(askers, answers, strict=True):
            worker.send(answer)

    def _end(self, worker: _Worker) -> None:
        """Where it is needed, `_assign` makes another one."""
        self._workers.remove(worker)
        worker.end()

    def _finish(self, worker: _Worker, result: Result) -> None:
        assert worker.job is not None
        index, worker.job = worker.job, None
        self._outcome.results[index] = result
        self._failures[worker.task] = 0
        self._on_result(self._jobs[index], result)

    def _fail(self, worker: _Worker, kind: str, detail: str) -> None:
        """The job goes to the end of its task's, behind those that may be better, unless the task is given up."""
        if worker.job is None:
            return
        task, index, worker.job = worker.task, worker.job, None
        incident = Incident(task=task, kind=kind, detail=detail)
        self._outcome.incidents.append(incident)
        self._on_incident(incident)
        self._failures[task] += 1
        if self._failures[task] >= self._config.max_failures:
            self._outcome.given_up[task] = incident.reason
            self._waiting[task].clear()
        elif task not in self._outcome.given_up:
            self._waiting[task].append(index)


class _Worker:
    """A worker process, as the pool sees it.

    A thread reads what it says: one that is stopped in the middle of a word must not hold up the pool.
    """

    def __init__(self, make_player: Callable[[], Player], inbox: SimpleQueue[tuple[_Worker, str, Any]]):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._inbox = inbox
        self._heard_s = time.monotonic()
        self.job: int | None = None
        self.task = ""
        self.process = context.Process(target=_work, args=(make_player, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, name=f"reader of {self.process.pid}", daemon=True)
        self._reader.start()

    @property
    def silent_s(self) -> float:
        """Since it has given a sign of life; 0 while it has nothing to do."""
        return 0.0 if self.job is None else time.monotonic() - self._heard_s

    def cause_of_death(self) -> str:
        self.process.join(POLL_S)
        code = self.process.exitcode
        return f"exit status {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"

    def start(self, index: int, task: str, job: Any) -> None:
        self.job, self.task = index, task
        self.send(job)

    def send(self, content: Any) -> None:
        """From now on it is waited for. If it has died, its reader tells."""
        self._heard_s = time.monotonic()
        with suppress(OSError):
            self._connection.send(content)

    def end(self) -> None:
        self.process.kill()
        self.process.join(END_S)
        self._reader.join(END_S)
        if not self._reader.is_alive():
            self._connection.close()

    def _read(self) -> None:
        try:
            with suppress(EOFError, OSError):
                while True:
                    kind, content = self._connection.recv()
                    self._heard_s = time.monotonic()
                    if kind != "beat":
                        self._inbox.put((self, kind, content))
        finally:
            self._inbox.put((self, "died", None))


class _PoolIsGone(BaseException):
    """Nobody waits for this worker any more; no `except Exception` of a player is to catch it."""


def _work(make_player: Callable[[], Player], connection: Connection, owner: int) -> None:
    """Play until the pool is gone."""
    _end_with(owner)
    channel = Channel(connection)
    player: Player | None = None
    with suppress(_PoolIsGone):
        while True:
            job = channel.receive()
            try:
                if player is None:
                    player = make_player()
                channel.tell("done", player.play(job, channel))
            except Exception:
                told = traceback.format_exc()
                with suppress(Exception):
                    if player is not None:
                        player.close()
                player = None
                channel.tell("raised", told)
    os._exit(0)  # without the destructors of graphics drivers, which complain


def _end_with(owner: int) -> None:
    """An interruption is the owner's affair; when that dies, so does this process, even if it hangs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(0)
