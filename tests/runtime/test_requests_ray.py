"""Requests as calls of an actor, with an actor that lives in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from accerl.inference import InferenceService, Window
from accerl.runtime import requests as module
from accerl.runtime.requests import RequestClient, RequestError
from accerl.runtime.requests_ray import RayAnswers, RayCalls
from accerl.types import Decision, DecisionRequest
from tests.roles.fakes import observation


def request(seed: int, num_cameras: int = 1) -> DecisionRequest:
    return DecisionRequest(observation=observation(abs(seed), num_cameras=num_cameras), episode_step=0, seed=seed)


def answer(requests: Sequence[DecisionRequest]) -> list[Decision | Exception]:
    return [
        LookupError("less than nothing")
        if request.seed < 0
        else Decision(
            action=request.observation["proprio"][None],
            log_prob=np.zeros(1, np.float32),
            value=float(request.seed),
            blob={"tokens": np.array([request.seed], np.int16)},
            policy_version=4,
        )
        for request in requests
    ]


class Actor:
    """A handle: `ask.remote(message)`. Each of `errors` meets one call."""

    def __init__(self, service: InferenceService[DecisionRequest, Decision], *errors: Exception):
        self.service = service
        self.ask = self
        self.num_calls = 0
        self._answers = RayAnswers(service)
        self._errors = list(errors)

    async def remote(self, message: Any) -> Any:
        self.num_calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return await self._answers.ask(message)


def play(
    scene: Callable[[RequestClient, Actor], Coroutine[Any, Any, None]],
    *errors: Exception,
    lockstep: bool = False,
) -> None:
    async def whole(actor: Actor) -> None:
        async with RequestClient(RayCalls(), "me", lockstep=lockstep) as client:
            client.set_services({"one": actor})
            await scene(client, actor)

    with InferenceService(answer, Window(batch_size=3, max_wait_s=0.01, lockstep=lockstep)) as service:
        asyncio.run(asyncio.wait_for(whole(Actor(service, *errors)), 20))


def test_every_request_gets_its_own_answer_and_one_call_holds_many():
    async def scene(client: RequestClient, actor: Actor) -> None:
        decisions = await asyncio.gather(*(client.act(request(seed)) for seed in range(5)))
        assert [decision.value for decision in decisions] == [0, 1, 2, 3, 4]
        assert [decision.blob["tokens"].tolist() for decision in decisions] == [[0], [1], [2], [3], [4]]
        assert decisions[0].policy_version == 4
        assert actor.num_calls == 1

    play(scene)


def test_different_shapes_and_failures_do_not_disturb_one_another():
    async def scene(client: RequestClient, actor: Actor) -> None:
        first, wide, failed = await asyncio.gather(
            client.act(request(1)),
            client.act(request(2, num_cameras=2)),
            client.act(request(-1)),
            return_exceptions=True,
        )
        assert isinstance(first, Decision)
        assert isinstance(wide, Decision)
        assert (first.value, wide.value) == (1, 2)
        assert isinstance(failed, RequestError)
        assert str(failed) == "LookupError: less than nothing"

    play(scene)


def test_a_call_that_a_dead_actor_did_not_answer_is_made_again(monkeypatch):
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.02)

    async def scene(client: RequestClient, actor: Actor) -> None:
        assert (await client.act(request(3))).value == 3
        assert actor.num_calls == 2

    play(scene, ActorUnavailableError("gone", b"\0" * 16))


def test_what_fails_in_the_actor_is_raised_and_not_repeated():
    async def scene(client: RequestClient, actor: Actor) -> None:
        with pytest.raises(RequestError, match="broken"):
            await client.act(request(3))
        assert actor.num_calls == 1

    play(scene, RayTaskError("ask", "broken", ValueError("broken")))


def test_what_a_closing_service_refuses_is_asked_again_elsewhere(monkeypatch):
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.02)

    async def scene(client: RequestClient, actor: Actor) -> None:
        actor.service.close()
        asked = asyncio.create_task(client.act(request(3)))
        while not actor.num_calls:
            await asyncio.sleep(0.005)
        with InferenceService(answer, Window(batch_size=1, max_wait_s=0)) as service:
            client.set_services({"one": actor, "two": Actor(service)})
            assert (await asked).value == 3

    play(scene)


def test_in_lockstep_a_batch_waits_for_all_slots():
    async def scene(client: RequestClient, actor: Actor) -> None:
        client.enter()
        client.enter()
        first = asyncio.create_task(client.act(request(1)))
        await asyncio.sleep(0.05)
        assert not first.done()
        assert (await client.act(request(2))).value == 2
        assert (await first).value == 1
        client.leave()
        assert (await client.act(request(3))).value == 3

    play(scene, lockstep=True)


def test_what_is_no_message_is_refused():
    async def scene(client: RequestClient, actor: Actor) -> None:
        with pytest.raises(ValueError):
            await actor.remote([b"{}", b""])

    play(scene)
