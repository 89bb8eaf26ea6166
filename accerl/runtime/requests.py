"""rollout -> inference over ZeroMQ: the `PolicyClient` port and the socket that serves it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import zmq
import zmq.asyncio

from accerl.runtime import wire
from accerl.types import Decision, DecisionRequest

RESEND_AFTER_S = 10.0


class RequestServer:
    """Answers every request that arrives at `endpoint`, each in a task of its own."""

    def __init__(self, endpoint: str, ask: Callable[[DecisionRequest], Awaitable[Decision]]):
        self._ask = ask
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until cancelled."""
        try:
            while True:
                client, number, *frames = await self._socket.recv_multipart()
                task = asyncio.create_task(self._answer(client, number, wire.decode_request(frames)))
                self._tasks.add(task)
                task.add_done_callback(self._finished)
        finally:
            self._socket.close(linger=0)

    async def _answer(self, client: bytes, number: bytes, request: DecisionRequest) -> None:
        decision = await self._ask(request)
        await self._socket.send_multipart([client, number, *wire.encode_decision(decision)])

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


class RequestClient:
    """A `PolicyClient` that asks over a socket. A request that nobody answers is sent again: answers are repeatable.

    Use as an async context manager; it reconnects by itself when the service is restarted.
    """

    def __init__(self, endpoint: str, resend_after_s: float = RESEND_AFTER_S):
        self._endpoint = endpoint
        self._resend_after_s = resend_after_s
        self._numbers = itertools.count()
        self._pending: dict[bytes, asyncio.Future[Decision]] = {}

    async def __aenter__(self) -> RequestClient:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.connect(self._endpoint)
        self._receiver = asyncio.create_task(self._receive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._receiver.cancel()
        self._socket.close(linger=0)

    async def act(self, request: DecisionRequest) -> Decision:
        number = next(self._numbers).to_bytes(8, "big")
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        frames = [number, *wire.encode_request(request)]
        try:
            while True:
                await self._socket.send_multipart(frames)
                try:
                    return await asyncio.wait_for(asyncio.shield(answer), self._resend_after_s)
                except TimeoutError:
                    continue
        finally:
            del self._pending[number]

    async def _receive(self) -> None:
        while True:
            number, *frames = await self._socket.recv_multipart()
            answer = self._pending.get(number)
            if answer is not None and not answer.done():
                answer.set_result(wire.decode_decision(frames))
