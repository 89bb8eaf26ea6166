"""Requests over a socket: answered in any order, and asked again when the service was restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest

from accerl.runtime.requests import RequestClient, RequestServer
from accerl.types import Decision, DecisionRequest
from tests.roles.fakes import observation

Ask = Callable[[DecisionRequest], Awaitable[Decision]]


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('zmq')}/s"  # a socket's path has at most 107 characters


def request(seed: int) -> DecisionRequest:
    return DecisionRequest(observation=observation(seed), episode_step=seed, seed=seed)


def decision(request: DecisionRequest, version: int = 1) -> Decision:
    return Decision(
        action=request.observation["proprio"][None],
        log_prob=np.array([request.seed], np.float32),
        value=float(request.seed),
        blob={"tokens": np.array([request.episode_step], np.int16)},
        policy_version=version,
    )


@asynccontextmanager
async def serving(endpoint: str, ask: Ask):
    server = asyncio.create_task(RequestServer(endpoint, ask).serve())
    try:
        yield server
    finally:
        server.cancel()
        with suppress(asyncio.CancelledError):
            await server


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


def test_every_request_gets_its_own_answer_in_whatever_order_they_come(endpoint):
    async def answer_the_last_first(request: DecisionRequest) -> Decision:
        await asyncio.sleep(0.002 * (10 - request.seed))
        return decision(request)

    async def scene() -> None:
        async with serving(endpoint, answer_the_last_first), RequestClient(endpoint) as client:
            answers = await asyncio.gather(*(client.act(request(seed)) for seed in range(10)))
            for seed, answer in enumerate(answers):
                assert answer.value == seed
                assert answer.blob["tokens"].tolist() == [seed]
                assert np.array_equal(answer.action[0], observation(seed)["proprio"])

    play(scene())


def test_several_clients_do_not_get_each_others_answers(endpoint):
    async def answer(request: DecisionRequest) -> Decision:
        return decision(request)

    async def scene() -> None:
        async with (
            serving(endpoint, answer),
            RequestClient(endpoint) as first,
            RequestClient(endpoint) as second,
        ):
            asked = [client.act(request(seed)) for seed in range(6) for client in (first, second)]
            assert [answer.value for answer in await asyncio.gather(*asked)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]

    play(scene())


def test_a_request_is_asked_again_of_a_restarted_service(endpoint):
    arrived = asyncio.Event()

    async def never(request: DecisionRequest) -> Decision:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def answer(request: DecisionRequest) -> Decision:
        return decision(request, version=2)

    async def scene() -> None:
        async with RequestClient(endpoint, resend_after_s=0.1) as client:
            async with serving(endpoint, never):
                asked = asyncio.create_task(client.act(request(4)))
                await arrived.wait()
            await asyncio.sleep(0.05)
            assert not asked.done()
            async with serving(endpoint, answer):
                received = await asked
                assert (received.value, received.policy_version) == (4, 2)

    play(scene())


def test_a_client_may_come_before_its_service(endpoint):
    async def answer(request: DecisionRequest) -> Decision:
        return decision(request)

    async def scene() -> None:
        async with RequestClient(endpoint) as client:
            asked = asyncio.create_task(client.act(request(3)))
            await asyncio.sleep(0.02)
            async with serving(endpoint, answer):
                assert (await asked).value == 3

    play(scene())


def test_a_second_answer_to_a_request_that_was_sent_again_is_ignored(endpoint):
    asked: list[int] = []

    async def slowly(request: DecisionRequest) -> Decision:
        asked.append(request.seed)
        await asyncio.sleep(0.15 if request.seed == 1 else 0)
        return decision(request)

    async def scene() -> None:
        async with serving(endpoint, slowly), RequestClient(endpoint, resend_after_s=0.04) as client:
            assert (await client.act(request(1))).value == 1
            assert asked.count(1) > 1
            for seed in (2, 3):
                assert (await client.act(request(seed))).value == seed
            await asyncio.sleep(0.15)
            assert (await client.act(request(4))).value == 4

    play(scene())


def test_a_request_that_failed_is_asked_again_and_the_others_are_answered(endpoint):
    failed: list[int] = []

    async def fail_once(request: DecisionRequest) -> Decision:
        if request.seed == 1 and not failed:
            failed.append(1)
            raise ValueError("once")
        return decision(request)

    async def scene() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        async with serving(endpoint, fail_once), RequestClient(endpoint, resend_after_s=0.1) as client:
            answers = await asyncio.gather(*(client.act(request(seed)) for seed in range(3)))
            assert [answer.value for answer in answers] == [0, 1, 2]

    told: list[Any] = []
    play(scene())
    assert [str(error) for error in told] == ["once"], "and the failure is told"


def test_a_request_that_was_given_up_leaves_nothing_behind(endpoint):
    async def answer(request: DecisionRequest) -> Decision:
        await asyncio.sleep(0.05 if request.seed == 1 else 0)
        return decision(request)

    async def scene() -> None:
        async with serving(endpoint, answer), RequestClient(endpoint) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.act(request(1)), 0.01)
            await asyncio.sleep(0.08)
            assert (await client.act(request(2))).value == 2
            assert not client._pending

    play(scene())
