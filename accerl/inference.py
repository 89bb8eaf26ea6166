"""Dynamic batching of requests, and the policy behind it."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch

from accerl.config import InferenceConfig
from accerl.protocols import Policy
from accerl.types import Decision, DecisionRequest, ObservationBatch, Weights

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(slots=True)
class BatchingStatistics:
    """Sums since the start; differences of two readings give rates."""

    num_batches: int = 0
    num_requests: int = 0
    wait_s: float = 0.0
    """Summed over the requests, from arrival to the start of their batch."""
    forward_s: float = 0.0
    sizes: dict[int, int] = field(default_factory=dict)
    """Batch size to number of batches."""


class InferenceService(Generic[Request, Response]):
    """Collects requests until B wait or the oldest has waited T_max, then answers up to B of them at once.

    The batch function runs in a thread of its own; requests go on queueing meanwhile, and the next batch leaves as
    soon as the thread is free and the window, counted from the oldest request's arrival, is over (paper eq. 1).
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Sequence[Response]], batch_size: int, max_wait_s: float
    ) -> None:
        self.statistics = BatchingStatistics()
        self._answer = answer
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s
        self._waiting: deque[tuple[float, Request, asyncio.Future[Response]]] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def ask(self, request: Request) -> Response:
        """The answer to one request. Raises what the batch function raised for its batch."""
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._waiting.append((time.monotonic(), request, future))
        self._arrived.set()
        return await future

    async def serve(self) -> None:
        """Answer requests until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._window()
            batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            started = time.monotonic()
            self._count(batch, started)
            requests = [request for _, request, _ in batch]
            try:
                responses = await loop.run_in_executor(self._thread, self._answer, requests)
            except Exception as error:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, _, future), response in zip(batch, responses, strict=True):
                    if not future.done():
                        future.set_result(response)
            self.statistics.forward_s += time.monotonic() - started

    async def _window(self) -> None:
        """Returns when a batch is due."""
        while True:
            self._arrived.clear()
            if len(self._waiting) >= self._batch_size:
                return
            remaining = None
            if self._waiting:
                remaining = self._waiting[0][0] + self._max_wait_s - time.monotonic()
                if remaining <= 0:
                    return
            try:
                await asyncio.wait_for(self._arrived.wait(), remaining)
            except TimeoutError:
                return

    def _count(self, batch: Sequence[tuple[float, Request, asyncio.Future[Response]]], started: float) -> None:
        statistics = self.statistics
        statistics.num_batches += 1
        statistics.num_requests += len(batch)
        statistics.wait_s += sum(started - arrival for arrival, _, _ in batch)
        statistics.sizes[len(batch)] = statistics.sizes.get(len(batch), 0) + 1


class PolicyServer:
    """Answers decision requests with the newest weights it was given.

    `load` fills a second copy of the policy from any thread; the copies change places between two batches, so that a
    batch is answered by one version throughout and inference never stops for new weights.
    """

    def __init__(self, policy: Policy, config: InferenceConfig, version: int = 0):
        self._active = policy.to(config.device).train(False)
        self._shadow = copy.deepcopy(self._active)
        self._version = version
        self._loaded: int | None = None
        self._swap = threading.Lock()

    @property
    def version(self) -> int:
        """Of the newest weights it was given, in use from the next batch on."""
        with self._swap:
            return self._version if self._loaded is None else self._loaded

    def load(self, weights: Weights) -> None:
        """Use `weights` from the next batch on. Call from one thread only."""
        tensors = {name: torch.as_tensor(value) for name, value in weights.tensors.items()}
        with self._swap:
            self._loaded = None  # a batch must not take the copy that is being written
            shadow = self._shadow
        shadow.load_state_dict(tensors)
        with self._swap:
            self._loaded = weights.version

    def answer(self, requests: Sequence[DecisionRequest]) -> list[Decision]:
        """One decision for each request."""
        with self._swap:
            if self._loaded is not None:
                self._active, self._shadow = self._shadow, self._active
                self._version, self._loaded = self._loaded, None
            policy, version = self._active, self._version
        with torch.inference_mode():
            output = policy.act(stack_requests(requests), np.array([request.seed for request in requests]))
            action, log_prob, value = (tensor.detach().float().cpu().numpy() for tensor in output[:3])
            blob = {key: tensor.cpu().numpy() for key, tensor in output.blob.items()}
        return [
            Decision(
                action=action[row],
                log_prob=log_prob[row],
                value=float(value[row]),
                blob={key: array[row] for key, array in blob.items()},
                policy_version=version,
            )
            for row in range(len(requests))
        ]


class LocalClient:
    """Answers the requests of one event loop in that loop, deterministically: everything that is waiting at once.

    For evaluation and `runtime.inline`, where environments are stepped in the loop itself: a batch leaves when no
    slot can go on without an answer.
    """

    def __init__(self, server: PolicyServer):
        self._server = server
        self._waiting: list[tuple[DecisionRequest, asyncio.Future[Decision]]] = []

    async def act(self, request: DecisionRequest) -> Decision:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Decision] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            loop.create_task(self._flush())  # noqa: RUF006 - the futures keep it alive
        return await future

    async def _flush(self) -> None:
        seen = 0
        while seen != len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(0)
        batch, self._waiting = self._waiting, []
        try:
            decisions = self._server.answer([request for request, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), decision in zip(batch, decisions, strict=True):
            if not future.done():
                future.set_result(decision)


def stack_requests(requests: Sequence[DecisionRequest]) -> ObservationBatch:
    """The observations of the requests as one batch."""
    observations = [request.observation for request in requests]
    return ObservationBatch(
        images=torch.from_numpy(np.stack([observation["images"] for observation in observations])),
        proprio=torch.from_numpy(np.stack([observation["proprio"] for observation in observations])),
        instructions=[observation["instruction"] for observation in observations],
        episode_step=torch.tensor([request.episode_step for request in requests]),
    )
