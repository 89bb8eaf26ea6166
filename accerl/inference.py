"""The inference role: dynamic batching of requests. The policy behind it is in `accerl.policy_server`."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Self, TypeVar

from accerl.policy_server import LocalClient, PolicyServer
from accerl.trace import Tracer
from accerl.window import RequestQueue, ServiceClosed, Waiting, Window

__all__ = ["BatchingStatistics", "InferenceService", "LocalClient", "PolicyServer", "ServiceClosed", "Window"]

Request = TypeVar("Request")
Response = TypeVar("Response")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchingStatistics:
    """Sums since the start; differences of two readings give rates."""

    num_batches: int = 0
    num_requests: int = 0
    num_failures: int = 0
    """Batches whose function raised."""
    wait_s: float = 0.0
    """Summed over the requests, from arrival to the start of their batch."""
    forward_s: float = 0.0
    idle_s: float = 0.0
    """Between two forwards: without requests, in the window, or handing out answers."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Batch size to number of batches."""


class InferenceService(Generic[Request, Response]):
    """Collects requests until B wait or the oldest has waited T_max, then answers up to B of them at once.

    It has a thread of its own. While that is busy requests queue, and what waits when it is free again leaves at once:
    the window, counted from the oldest request's arrival (paper eq. 1), is for an idle device only.

    Args:
        answer: one response for each request, in order; in the place of a response it may give an exception, which
            goes to that asker alone. What it raises goes to all askers of the batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Sequence[Response | Exception]],
        window: Window,
        tracer: Tracer | None = None,
    ) -> None:
        self.statistics = BatchingStatistics()
        self._answer = answer
        self._queue = RequestQueue(window)  # of the service's thread; everybody else puts into the inbox
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._tracer = tracer or Tracer.off()
        self._closed = False
        self._ended = False
        self._is_answering = False
        self._refusing = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)

    @property
    def num_waiting(self) -> int:
        """Requests that are in no batch yet, as far as the thread has seen them."""
        return len(self._queue)

    @property
    def batch_under_way(self) -> int | None:
        """Number of the batch that is being answered; None between two."""
        return self.statistics.num_batches if self._is_answering else None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End after the batch at hand; requests that still wait get `ServiceClosed`."""
        self._closed = True
        self._inbox.put(_nothing)
        if self._thread.is_alive():
            self._thread.join()
        self._ended = True
        self._refuse_waiting()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request, done: Callable[[Response | Exception], None], client: str = "") -> None:
        """Have `done` called with the answer, in the service's thread; from any thread."""
        self.submit_many([done], [request], _tell_each, client)

    def submit_many(
        self,
        tags: Sequence[Any],
        requests: Sequence[Request],
        done: Callable[[list[Any], list[Any]], None],
        client: str = "",
    ) -> None:
        """Have `done` called with tags and answers, in the service's thread; from any thread.

        It is called once for each batch, with everything in that batch that was submitted with an equal `done`.

        Args:
            tags: one for each request, given back with its answer.
            client: whose slots these are; matters in lockstep.
        """
        now = time.monotonic()
        entries = [Waiting(now, request, tag, done, client) for tag, request in zip(tags, requests, strict=True)]
        self._inbox.put(partial(self._queue.add, entries, now))
        if self._ended:
            self._refuse_waiting()

    async def ask(self, request: Request, client: str = "") -> Response:
        """The answer to one request. Raises what the batch function raised for it."""
        (response,) = await self.ask_many([request], client)
        if isinstance(response, Exception):
            raise response
        return response

    async def ask_many(self, requests: Sequence[Request], client: str = "") -> list[Response | Exception]:
        """The answers to several requests, which may be in different batches."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in requests]
        self.submit_many(futures, requests, _resolve, client)
        return await asyncio.gather(*futures)

    def expect(self, client: str, num_slots: int) -> None:
        """In lockstep: a batch waits for that many requests of `client`, until told otherwise."""
        self._inbox.put(partial(self._queue.expect, client, num_slots))

    def forget(self, client: str) -> None:
        """In lockstep: `client` is gone."""
        self.expect(client, 0)

    def _serve(self) -> None:
        ended = time.monotonic()
        while batch := self._collect():
            started = time.monotonic()
            self.statistics.idle_s += started - ended
            self._is_answering = True
            answers = self._answer_batch(batch)
            self._is_answering = False
            ended = time.monotonic()
            _deliver(batch, answers)
            self._count(batch, started, ended)

    def _collect(self) -> list[Waiting]:
        """The next batch, as soon as it is due; empty when the service is closed."""
        self._look()
        device_was_busy = len(self._queue) > 0
        if self._remaining_s(device_was_busy) > 0:
            with self._tracer.span("wait"):
                while (remaining := self._remaining_s(device_was_busy)) > 0:
                    with suppress(Empty):
                        self._inbox.get(timeout=None if remaining == math.inf else remaining)()
                    self._look()
        return [] if self._closed else self._queue.take()

    def _look(self) -> None:
        """Take in what has come."""
        while not self._inbox.empty():
            self._inbox.get()()

    def _remaining_s(self, device_was_busy: bool) -> float:
        return 0.0 if self._closed else self._queue.remaining_s(time.monotonic(), device_was_busy)

    def _answer_batch(self, batch: Sequence[Waiting]) -> Sequence[Response | Exception]:
        try:
            answers = self._answer([entry.request for entry in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
            return answers
        except Exception as error:
            _log.exception("a batch of %d failed", len(batch))
            self.statistics.num_failures += 1
            return [error] * len(batch)

    def _count(self, batch: Sequence[Waiting], started: float, ended: float) -> None:
        size, statistics = len(batch), self.statistics
        statistics.num_batches += 1
        statistics.num_requests += size
        statistics.wait_s += sum(started - entry.arrived_s for entry in batch)
        statistics.forward_s += ended - started
        statistics.sizes[size] = statistics.sizes.get(size, 0) + 1
        self._tracer.add("forward", started, ended, size=size)
        self._queue.learn(size, ended - started)

    def _refuse_waiting(self) -> None:
        """After the thread has ended; from any thread, for whatever was too late."""
        with self._refusing:
            self._look()
            left = self._queue.take_all()
        _deliver(left, [ServiceClosed("the inference service has ended")] * len(left))


def _deliver(batch: Sequence[Waiting], answers: Sequence[Any]) -> None:
    groups: dict[Callable[[list[Any], list[Any]], None], tuple[list[Any], list[Any]]] = {}
    for entry, answer in zip(batch, answers, strict=True):
        tags, own = groups.setdefault(entry.done, ([], []))
        tags.append(entry.tag)
        own.append(answer)
    for done, (tags, own) in groups.items():
        _tell(done, tags, own)


def _tell(done: Callable[..., None], *told: Any) -> None:
    """Whatever an asker does with its answer, the service goes on."""
    try:
        done(*told)
    except Exception:
        _log.exception("an asker could not take its answer")


def _tell_each(dones: list[Callable[[Any], None]], answers: list[Any]) -> None:
    for done, answer in zip(dones, answers, strict=True):
        _tell(done, answer)


def _resolve(futures: list[asyncio.Future[Any]], answers: list[Any]) -> None:
    """Give the answers to their loops, each of which is woken once."""
    for loop in {future.get_loop() for future in futures}:
        own = [pair for pair in zip(futures, answers, strict=True) if pair[0].get_loop() is loop]
        with suppress(RuntimeError):  # the loop has ended, and its askers with it
            loop.call_soon_threadsafe(_set_results, own)


def _set_results(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in pairs:
        if not future.done():
            future.set_result(answer)


def _nothing() -> None:
    """Wakes the thread."""
