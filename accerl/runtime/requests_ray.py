"""The request path as plain calls of Ray actors: both sides."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError

from accerl.runtime.requests import Receiver
from accerl.runtime.wire import Answers, decode_answers, decode_requests, encode_answers, encode_requests, group_alike
from accerl.types import Decision, DecisionRequest
from accerl.window import ServiceClosed

if TYPE_CHECKING:
    from accerl.inference import InferenceService

Message = list[Any]
"""Frames of `accerl.runtime.wire`, whose buffer Ray carries out of band."""


class RayCalls:
    """A `Medium` whose endpoints are handles of actors with the `ask` of `RayAnswers`."""

    def connect(self, endpoint: Any, client: str, receiver: Receiver) -> ActorLink:
        return ActorLink(endpoint, client, receiver)


class ActorLink:
    """A `Link` that makes one call for each message."""

    def __init__(self, actor: Any, client: str, receiver: Receiver):
        self._actor = actor
        self._client = client
        self._receiver = receiver
        self._calls: set[asyncio.Task[None]] = set()

    def send(self, numbers: Sequence[int], requests: Sequence[DecisionRequest], slots: int | None) -> None:
        for own_numbers, own in group_alike(numbers, requests) or [([], [])]:
            message = encode_requests(own_numbers, own, client=self._client, slots=slots)
            call = asyncio.get_running_loop().create_task(self._ask(own_numbers, message))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def close(self) -> None:
        for call in self._calls:
            call.cancel()

    async def _ask(self, numbers: Sequence[int], message: Message) -> None:
        try:
            messages = await self._actor.ask.remote(message)
        except RayTaskError as error:
            self._receiver.answered(Answers(list(numbers), [], str(error), queue=0))
            return
        except RayError:
            self._receiver.lost(numbers)
            return
        answered: set[int] = set()
        for frames in messages:
            answers = decode_answers(frames)
            answered.update(answers.numbers)
            self._receiver.answered(answers)
        if missing := set(numbers) - answered:
            self._receiver.lost(missing)


class RayAnswers:
    """What an actor offers to `RayCalls`."""

    def __init__(self, service: InferenceService[DecisionRequest, Decision]):
        self._service = service
        self._unanswered: Counter[str] = Counter()

    async def ask(self, message: Message) -> list[Message]:
        """The answers to a message of requests, once all of them are there.

        Raises:
            ValueError: it is no such message.
        """
        numbers, requests, fields = decode_requests(message)
        client: str = fields["client"]
        if fields["slots"] is not None:
            self._service.expect(client, fields["slots"])
        if not requests:
            return []
        self._unanswered[client] += len(requests)
        try:
            answers = await self._service.ask_many(requests, client)
        finally:
            self._unanswered[client] -= len(requests)
        rows = [row for row, answer in enumerate(answers) if not isinstance(answer, ServiceClosed)]
        queue = self._unanswered.total() - self._unanswered[client]
        return encode_answers([numbers[row] for row in rows], [answers[row] for row in rows], queue)
