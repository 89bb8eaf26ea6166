"""What is asked of the request path: slots in closed loop on one side, a policy that does nothing on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from accerl.config import InferenceConfig
from accerl.inference import InferenceService, PolicyServer, Window
from accerl.runtime.requests import Medium, RequestClient
from accerl.types import DecisionRequest, ObservationBatch, PolicyOutput

CHUNK, ACTION = 8, 7


@dataclass(frozen=True)
class Load:
    """What is asked of the path."""

    slots: int
    batch_size: int
    forward_s: float
    image_size: int
    seed: int


class FakePolicy(nn.Module):
    """Sleeps for as long as a forward is to take and answers zeros."""

    def __init__(self, forward_s: float):
        super().__init__()
        self._forward_s = forward_s
        self._slept_s = 0.0
        self._sleeps_since: float | None = None

    def busy_s(self) -> float:
        """Seconds slept so far."""
        since = self._sleeps_since
        return self._slept_s + (0.0 if since is None else time.monotonic() - since)

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        if self._forward_s:
            started = self._sleeps_since = time.monotonic()
            time.sleep(self._forward_s)
            self._sleeps_since = None
            self._slept_s += time.monotonic() - started
        return zeros(len(observations))


@cache
def zeros(size: int) -> PolicyOutput:
    """The output of a policy whose forward is free."""
    tokens = torch.zeros(size, CHUNK * ACTION, dtype=torch.int16)
    return PolicyOutput(torch.zeros(size, CHUNK, ACTION), tokens.float(), torch.zeros(size), {"tokens": tokens})


class Server:
    """A service with the fake policy behind it."""

    def __init__(self, load: Load):
        torch.set_num_threads(1)
        config = InferenceConfig(batch_size=load.batch_size)
        self._policy = FakePolicy(load.forward_s)
        policy: Any = self._policy
        self.service = InferenceService(PolicyServer(policy, config).answer, Window.of(config))
        self.service.start()

    def reading(self) -> dict[str, float]:
        sums = self.service.statistics
        return {
            "time": time.monotonic(),
            "busy_s": self._policy.busy_s(),
            "cpu_s": time.process_time(),
            "batches": sums.num_batches,
            "requests": sums.num_requests,
        }


class Slots:
    """Slots in closed loop, each with images of its own."""

    def __init__(self, load: Load, client: RequestClient):
        generator = np.random.default_rng(load.seed)
        shape = (4, 1, load.image_size, load.image_size, 3)
        self._images = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(load.slots)]
        self._proprio = generator.normal(size=8).astype(np.float32)
        self._client = client
        self._latencies_s: list[float] = []

    async def play(self) -> None:
        async with asyncio.TaskGroup() as slots:
            for slot in range(len(self._images)):
                slots.create_task(self._play(slot))

    async def measure(self, seconds: float) -> dict[str, float]:
        """What the slots, which are playing, get in that time."""
        self._latencies_s = []
        started, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        latencies_s, elapsed = self._latencies_s, time.monotonic() - started
        return {
            "observations_per_s": len(latencies_s) / elapsed,
            "latency_p50_ms": 1000 * float(np.percentile(latencies_s, 50)),
            "latency_p99_ms": 1000 * float(np.percentile(latencies_s, 99)),
            "cpu_us": 1e6 * (time.process_time() - cpu_s) / len(latencies_s),
        }

    async def _play(self, slot: int) -> None:
        step = 0
        while True:
            request = DecisionRequest(
                observation={
                    "images": self._images[slot][step % len(self._images[slot])],
                    "proprio": self._proprio,
                    "instruction": "put the red block into the drawer",
                },
                episode_step=step,
                seed=step,
            )
            asked = time.monotonic()
            await self._client.act(request)
            self._latencies_s.append(time.monotonic() - asked)
            step += 1


async def play_and_measure(
    load: Load, medium: Medium, endpoint: Any, windows: list[float], tell: Callable[[dict[str, float]], None]
) -> None:
    """Play, and `tell` the figures of each window."""
    async with RequestClient(medium, "slots") as client:
        client.set_services({"service": endpoint})
        slots = Slots(load, client)
        playing = asyncio.create_task(slots.play())
        for seconds in windows:
            tell(await slots.measure(seconds))
        playing.cancel()


class RayServer:
    """The server as an actor."""

    def __init__(self, load: Load):
        from accerl.runtime.requests_ray import RayAnswers  # imports Ray, which the sockets do without

        self._server = Server(load)
        self._answers = RayAnswers(self._server.service)

    async def ask(self, message: Any) -> Any:
        return await self._answers.ask(message)

    async def reading(self) -> dict[str, float]:
        return self._server.reading()


class RayClient:
    """The slots as an actor."""

    def __init__(self, load: Load, server: Any, windows: list[float]):
        self._load, self._server, self._windows = load, server, windows
        self._figures: asyncio.Queue[dict[str, float]] = asyncio.Queue()

    async def play(self) -> None:
        from accerl.runtime.requests_ray import RayCalls

        await play_and_measure(self._load, RayCalls(), self._server, self._windows, self._figures.put_nowait)

    async def next_figures(self) -> dict[str, float]:
        return await self._figures.get()
