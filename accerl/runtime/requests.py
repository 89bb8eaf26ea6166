"""rollout -> inference: the `PolicyClient` of a worker, over whatever medium connects it to the services.

slots ─► requests of one loop iteration ─► the least loaded services ─► answers, many to a message ─► slots
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from accerl.runtime.wire import Answers
from accerl.types import Decision, DecisionRequest, NoDecision

RESEND_AFTER_S = 10.0
RETRY_AFTER_S = 0.5
"""After which what was sent to a service that is gone is sent again."""
REPORT_HOLDS_S = 1.0
"""For which a service's word about its queue is believed."""


class RequestError(RuntimeError):
    """A service could not answer; says what it said."""


class Link(Protocol):
    """The way from one client to one service. Used in the thread of the client's loop."""

    def send(self, numbers: Sequence[int], requests: Sequence[DecisionRequest], slots: int | None) -> None:
        """Never waits, and may lose what it is given.

        Args:
            numbers: of the requests, to come back with their answers.
            slots: of the client, of which a batch in lockstep waits for a request; None: not in lockstep.
        """
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """What a link tells its client, in the thread of the client's loop."""

    def answered(self, answers: Answers) -> None: ...

    def lost(self, numbers: Iterable[int]) -> None:
        """No answer will come from this service."""
        ...


class Medium(Protocol):
    """Sockets, or calls of Ray actors."""

    def connect(self, endpoint: Any, client: str, receiver: Receiver) -> Link: ...


@dataclass(slots=True)
class _Pending:
    request: DecisionRequest
    answer: asyncio.Future[Decision]
    service: _Service | None = None
    """That was asked last."""
    resend_s: float = math.inf


class RequestClient:
    """A `PolicyClient` that spreads its requests over services, which may come and go.

    Each request goes to the service with the least to do: requests of this client that it has not answered, and what
    it has said about those of others. A request that nobody answers is sent again: answers are repeatable. Without a
    service requests wait. Use as an async context manager, in one event loop.

    Args:
        name: of the worker; one that takes the place of another has the same.
        index: of the worker, by which workers with equal choices choose differently.
        lockstep: all requests go to one service, which answers when all slots that have entered have asked.
    """

    def __init__(
        self,
        medium: Medium,
        name: str,
        index: int = 0,
        lockstep: bool = False,
        resend_after_s: float = RESEND_AFTER_S,
    ):
        self._medium = medium
        self._name = name
        self._index = index
        self._lockstep = lockstep
        self._resend_after_s = resend_after_s
        self._numbers = itertools.count()
        self._pending: dict[int, _Pending] = {}
        self._unsent: dict[int, None] = {}  # a set that keeps its order
        self._services: dict[str, _Service] = {}
        self._slots = 0
        self._flush_is_due = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.create_task(self._keep_resending())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._clock.cancel()
        self._unsent.clear()
        self._slots = 0
        self._flush()  # nobody is to wait for its slots
        self.set_services({})
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(RequestError("the client was closed"))

    @property
    def num_unanswered(self) -> int:
        return len(self._pending)

    def set_services(self, services: Mapping[str, Any]) -> None:
        """From now on these answer, by name; what others have not answered is sent to them.

        Args:
            services: the endpoint of each, as the medium takes it. A service with a new endpoint is a new one.
        """
        for name, service in list(self._services.items()):
            if name not in services or services[name] != service.endpoint:
                service.link.close()
                del self._services[name]
                self._unsent.update((n, None) for n, pending in self._pending.items() if pending.service is service)
        for name in services.keys() - self._services.keys():
            self._services[name] = _Service(self, self._medium, services[name], self._name)
        self._flush_soon()

    async def act(self, request: DecisionRequest) -> Decision:
        """Raises `NoDecision` if what the policy gives is not finite, `RequestError` if the service cannot answer."""
        number = next(self._numbers)
        pending = self._pending[number] = _Pending(request, self._loop.create_future())
        self._unsent[number] = None
        self._flush_soon()
        try:
            return await pending.answer
        finally:
            del self._pending[number]
            self._assign(pending, None)

    def enter(self) -> None:
        self._slots += 1
        self._flush_soon()

    def leave(self) -> None:
        self._slots -= 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        """Once the slots that can go on in this iteration of the loop have done so."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if not self._services:
            return
        names = sorted(self._services)
        has_no_choice = self._lockstep or len(names) == 1
        bound = self._services[names[self._index % len(names)]] if has_no_choice else None
        batches: dict[_Service, list[int]] = {}
        unsent, self._unsent = self._unsent, {}
        for number in unsent:
            if (pending := self._pending.get(number)) is None or pending.answer.done():
                continue
            service = bound or self._least_loaded(names)
            self._assign(pending, service)
            batches.setdefault(service, []).append(number)
        if self._lockstep:
            for service in self._services.values():
                slots = self._slots if service is bound else 0
                if service in batches or service.slots != slots:
                    self._send(service, batches.get(service, []), slots)
        else:
            for service, numbers in batches.items():
                self._send(service, numbers, None)

    def _send(self, service: _Service, numbers: Sequence[int], slots: int | None) -> None:
        service.slots = slots or 0
        service.link.send(numbers, [self._pending[number].request for number in numbers], slots)

    def _least_loaded(self, names: Sequence[str]) -> _Service:
        now = self._loop.time()
        first = self._index % len(names)
        services = [self._services[name] for name in (*names[first:], *names[:first])]
        return min(services, key=lambda service: service.load(now))

    def _assign(self, pending: _Pending, service: _Service | None) -> None:
        if pending.service is not None:
            pending.service.unanswered -= 1
        pending.service = service
        if service is not None:
            service.unanswered += 1
            pending.resend_s = self._loop.time() + self._resend_after_s

    def _take(self, answers: Answers) -> None:
        for row, number in enumerate(answers.numbers):
            pending = self._pending.get(number)
            if pending is None or pending.answer.done():
                continue  # an answer to a request that was sent again, or given up
            if answers.reason is None:
                pending.answer.set_result(answers.decisions[row])
            else:
                pending.answer.set_exception(_error(answers.reason))

    def _lose(self, numbers: Iterable[int], service: _Service) -> None:
        for number in numbers:
            pending = self._pending.get(number)
            if pending is not None and pending.service is service:
                self._assign(pending, None)
                pending.resend_s = self._loop.time() + RETRY_AFTER_S

    async def _keep_resending(self) -> None:
        while True:
            await asyncio.sleep(min(RETRY_AFTER_S, self._resend_after_s) / 2)
            now = self._loop.time()
            late = [number for number, pending in self._pending.items() if pending.resend_s <= now]
            if late:
                self._unsent.update(dict.fromkeys(late))
                self._flush_soon()


def _error(reason: str) -> Exception:
    """What a service gave in the place of a decision, whose class and text are in `reason`."""
    kind, _, text = reason.partition(": ")
    return NoDecision(text) if kind == NoDecision.__name__ else RequestError(reason)


class _Service:
    """What a client knows of one service; its `Receiver`."""

    def __init__(self, client: RequestClient, medium: Medium, endpoint: Any, name: str):
        self.endpoint = endpoint
        self.unanswered = 0
        self.slots = 0
        """It was told to expect."""
        self._client = client
        self._queue = 0.0
        self._believed_until = -math.inf
        self.link = medium.connect(endpoint, name, self)

    def load(self, now: float) -> float:
        """Requests that it has to answer, as far as is known."""
        return self.unanswered + (self._queue if now < self._believed_until else 0.0)

    def answered(self, answers: Answers) -> None:
        self._report(answers.queue)
        self._client._take(answers)

    def lost(self, numbers: Iterable[int]) -> None:
        self._report(math.inf)
        self._client._lose(numbers, self)

    def _report(self, queue: float) -> None:
        self._queue = queue
        self._believed_until = self._client._loop.time() + REPORT_HOLDS_S
