"""Dynamic batching with fake batch functions, and the policy server with a policy of one number."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import accerl.inference
from accerl.config import InferenceConfig
from accerl.inference import InferenceService, LocalClient, PolicyServer
from accerl.types import DecisionRequest, ObservationBatch, PolicyOutput, Weights
from tests.roles.fakes import observation

NEVER_S = 60.0


class Recorder:
    """A batch function that doubles numbers and keeps every batch; it waits where `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        self.started.release()
        assert self.gate.wait(20)
        if -1 in requests:
            raise ValueError("minus one")
        return [2 * request for request in requests]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The service's clock, set by hand: a window of NEVER_S seconds ends when it says so, at the next arrival."""
    clock = Clock()
    monkeypatch.setattr(accerl.inference, "time", clock)
    return clock


def serving(
    answer: Recorder, batch_size: int, max_wait_s: float, scene: Callable[[InferenceService], Coroutine[Any, Any, None]]
) -> InferenceService:
    """Play `scene` beside a serving service; returns the service."""

    async def play() -> InferenceService:
        service = InferenceService(answer, batch_size, max_wait_s)
        server = asyncio.create_task(service.serve())
        try:
            await asyncio.wait_for(scene(service), 30)
        finally:
            server.cancel()
            with suppress(asyncio.CancelledError):
                await server
        return service

    return asyncio.run(play())


async def settle() -> None:
    """Let everything happen that does not need time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call)


# --- the window -------------------------------------------------------------------------------------------------------


def test_a_batch_leaves_when_b_requests_wait():
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        asks = [asyncio.create_task(service.ask(number)) for number in (1, 2)]
        await settle()
        assert not answer.batches
        asks.append(asyncio.create_task(service.ask(3)))
        assert await asyncio.gather(*asks) == [2, 4, 6]

    serving(answer, 3, NEVER_S, scene)
    assert answer.batches == [[1, 2, 3]]


def test_a_batch_leaves_when_its_oldest_request_is_old_enough_however_young_the_others_are(clock):
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        asks = [asyncio.create_task(service.ask(1))]
        await settle()
        clock.now += 0.9 * NEVER_S
        asks.append(asyncio.create_task(service.ask(2)))
        await settle()
        assert not answer.batches
        clock.now += 0.2 * NEVER_S
        asks.append(asyncio.create_task(service.ask(3)))
        assert await asyncio.gather(*asks) == [2, 4, 6]

    service = serving(answer, 10, NEVER_S, scene)
    assert answer.batches == [[1, 2, 3]]
    assert service.statistics.wait_s == pytest.approx((1.1 + 0.2 + 0) * NEVER_S)


def test_an_idle_gap_does_not_use_up_the_window_of_the_next_request(clock):
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        await asyncio.gather(service.ask(0), service.ask(1))
        clock.now += 10 * NEVER_S
        asks = [asyncio.create_task(service.ask(2))]
        await settle()
        asks.append(asyncio.create_task(service.ask(3)))
        await asyncio.gather(*asks)

    serving(answer, 2, NEVER_S, scene)
    assert answer.batches == [[0, 1], [2, 3]]


def test_without_new_arrivals_the_window_ends_by_itself():
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        assert await service.ask(4) == 8

    assert serving(answer, 10, 0.02, scene).statistics.wait_s >= 0.02


def test_b_is_a_cap_and_requests_are_answered_in_order():
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        assert await asyncio.gather(*(service.ask(number) for number in range(7))) == [0, 2, 4, 6, 8, 10, 12]

    service = serving(answer, 3, 0.05, scene)
    assert answer.batches == [[0, 1, 2], [3, 4, 5], [6]]
    assert service.statistics.sizes == {3: 2, 1: 1}
    assert (service.statistics.num_batches, service.statistics.num_requests) == (3, 7)
    assert service.statistics.wait_s >= 0.05


def test_requests_queue_while_the_device_is_busy_and_leave_when_it_is_free():
    answer = Recorder()
    answer.gate.clear()

    async def scene(service: InferenceService[int, int]) -> None:
        asks = [asyncio.create_task(service.ask(number)) for number in (1, 2)]
        await in_thread(answer.started.acquire)
        asks += [asyncio.create_task(service.ask(number)) for number in (3, 4, 5, 6)]
        await settle()
        assert answer.batches == [[1, 2]]
        answer.gate.set()
        assert await asyncio.gather(*asks) == [2, 4, 6, 8, 10, 12]

    serving(answer, 2, NEVER_S, scene)
    assert answer.batches == [[1, 2], [3, 4], [5, 6]]


def test_a_request_that_waited_out_its_window_behind_a_busy_device_leaves_at_once(clock):
    answer = Recorder()
    answer.gate.clear()

    async def scene(service: InferenceService[int, int]) -> None:
        asks = [asyncio.create_task(service.ask(number)) for number in (1, 2)]
        await in_thread(answer.started.acquire)
        asks.append(asyncio.create_task(service.ask(3)))
        await settle()
        clock.now += 2 * NEVER_S
        answer.gate.set()
        await asyncio.gather(*asks)

    service = serving(answer, 2, NEVER_S, scene)
    assert answer.batches == [[1, 2], [3]]
    assert service.statistics.forward_s == 2 * NEVER_S


def test_an_exception_reaches_its_askers_and_the_service_goes_on():
    answer = Recorder()

    async def scene(service: InferenceService[int, int]) -> None:
        failed = await asyncio.gather(service.ask(1), service.ask(-1), return_exceptions=True)
        assert [str(error) for error in failed] == ["minus one", "minus one"]
        assert await asyncio.gather(service.ask(5), service.ask(6)) == [10, 12]

    serving(answer, 2, NEVER_S, scene)


def test_an_asker_that_gave_up_does_not_disturb_the_others():
    answer = Recorder()
    answer.gate.clear()

    async def scene(service: InferenceService[int, int]) -> None:
        gone, stays = (asyncio.create_task(service.ask(number)) for number in (1, 2))
        await in_thread(answer.started.acquire)
        gone.cancel()
        await settle()
        answer.gate.set()
        assert await stays == 4
        assert await asyncio.gather(service.ask(5), service.ask(6)) == [10, 12]

    serving(answer, 2, NEVER_S, scene)


# --- the policy behind it ---------------------------------------------------------------------------------------------


class OneNumber(nn.Module):
    """A policy whose action and value are its only parameter. `on_act` is called in the middle of each batch."""

    def __init__(self, on_act: Callable[[int], None] = lambda size: None) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.on_act = on_act

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        size = len(observations)
        own = torch.from_numpy(seeds)
        action = self.number * torch.ones(size, 1, 1)
        self.on_act(size)
        return PolicyOutput(action, own[:, None].float(), self.number * torch.ones(size), {"seed": own})


def server_of(policy: OneNumber, version: int = 0) -> PolicyServer:
    return PolicyServer(policy, InferenceConfig(), version)  # pyright: ignore[reportArgumentType]


def request(seed: int = 0) -> DecisionRequest:
    return DecisionRequest(observation=observation(seed), episode_step=0, seed=seed)


def weights(version: int) -> Weights:
    return Weights(version=version, tensors={"number": np.float32(version)})


def test_each_request_gets_its_own_row():
    decisions = server_of(OneNumber()).answer([request(seed) for seed in (4, 9, 2)])
    assert [decision.log_prob.tolist() for decision in decisions] == [[4.0], [9.0], [2.0]]
    assert [int(decision.blob["seed"]) for decision in decisions] == [4, 9, 2]
    assert all(decision.action.shape == (1, 1) for decision in decisions)


def test_decisions_carry_the_version_that_made_them():
    server = server_of(OneNumber(), version=3)
    assert server.answer([request()])[0].policy_version == server.version == 3
    server.load(weights(5))
    assert server.version == 5
    (decision,) = server.answer([request()])
    assert (decision.policy_version, decision.value) == (5, 5.0)


def test_of_several_versions_loaded_between_two_batches_the_newest_is_used():
    server = server_of(OneNumber())
    for version in (1, 2, 3):
        server.load(weights(version))
    assert [(d.policy_version, d.value) for d in server.answer([request()])] == [(3, 3.0)]
    server.load(weights(4))
    server.load(weights(5))
    assert [(d.policy_version, d.value) for d in server.answer([request()])] == [(5, 5.0)]
    assert [(d.policy_version, d.value) for d in server.answer([request()])] == [(5, 5.0)]


def test_weights_loaded_while_a_batch_runs_are_used_from_the_next_batch_on():
    server: PolicyServer

    def load_meanwhile(size: int) -> None:
        if server.version < 3:
            for version in (1, 2, 3):
                server.load(weights(version))

    server = server_of(OneNumber(load_meanwhile))
    (running,) = server.answer([request()])
    assert (running.policy_version, running.action.item(), running.value) == (0, 0.0, 0.0)
    (following,) = server.answer([request()])
    assert (following.policy_version, following.action.item(), following.value) == (3, 3.0, 3.0)


def test_loading_beside_answering_never_mixes_versions():
    server = server_of(OneNumber())
    ended = threading.Event()

    def keep_loading() -> None:
        version = 0
        while not ended.is_set():
            version += 1
            server.load(weights(version))

    loader = threading.Thread(target=keep_loading)
    loader.start()
    decisions = []
    try:
        while not decisions or decisions[-1].policy_version < 30:
            decisions += server.answer([request(), request()])
    finally:
        ended.set()
        loader.join()
    assert all(decision.policy_version == decision.value == decision.action.item() for decision in decisions)


def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay():
    server = server_of(OneNumber())
    with pytest.raises(RuntimeError, match="other"):
        server.load(Weights(version=1, tensors={"other": np.float32(1)}))
    assert server.answer([request()])[0].policy_version == server.version == 0


# --- in one loop ------------------------------------------------------------------------------------------------------


def test_everything_that_waits_leaves_in_one_batch():
    sizes: list[int] = []
    client = LocalClient(server_of(OneNumber(sizes.append)))

    async def slot(number: int, num_requests: int) -> None:
        for _ in range(num_requests):
            decision = await client.act(request(number))
            assert decision.log_prob.tolist() == [number]

    async def play() -> None:
        await asyncio.gather(slot(1, 3), slot(2, 1), slot(3, 2))

    asyncio.run(play())
    assert sizes == [3, 2, 1]


def test_an_exception_in_the_policy_reaches_every_slot_that_waits():
    def fail(size: int) -> None:
        if size == 2:
            raise ValueError("two")

    client = LocalClient(server_of(OneNumber(fail)))

    async def play() -> None:
        gone = asyncio.create_task(client.act(request()))
        stays = asyncio.create_task(client.act(request()))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(ValueError, match="two"):
            await asyncio.wait_for(stays, 5)
        assert (await client.act(request())).policy_version == 0

    asyncio.run(play())
