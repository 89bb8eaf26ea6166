"""Which request goes where and when, with a medium that only remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from accerl.runtime import requests as module
from accerl.runtime.requests import Receiver, RequestClient, RequestError
from accerl.runtime.wire import Answers
from accerl.types import Decision, DecisionRequest, NoDecision
from tests.roles.fakes import observation


def request(seed: int = 0) -> DecisionRequest:
    return DecisionRequest(observation=observation(seed), episode_step=0, seed=seed)


def decision(value: float) -> Decision:
    return Decision(
        action=np.zeros((1, 2), np.float32), log_prob=np.zeros(1, np.float32), value=value, blob={}, policy_version=0
    )


class Link:
    """Remembers what was sent; a test answers in its place."""

    def __init__(self, receiver: Receiver):
        self.receiver = receiver
        self.messages: list[list[int]] = []
        self.slots: list[int | None] = []
        self.is_closed = False

    @property
    def numbers(self) -> list[int]:
        return [number for message in self.messages for number in message]

    def send(self, numbers: Sequence[int], requests: Sequence[DecisionRequest], slots: int | None) -> None:
        assert len(numbers) == len(requests)
        self.messages.append(list(numbers))
        self.slots.append(slots)

    def close(self) -> None:
        self.is_closed = True

    def answer(self, numbers: Iterable[int], queue: int = 0, reason: str | None = None) -> None:
        numbers = list(numbers)
        decisions = [] if reason else [decision(number) for number in numbers]
        self.receiver.answered(Answers(numbers, decisions, reason, queue))


class Memory:
    """The medium; its endpoints are names."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}

    def __getitem__(self, endpoint: str) -> Link:
        return self.links[endpoint]

    def connect(self, endpoint: str, client: str, receiver: Receiver) -> Link:
        assert client == "me"
        self.links[endpoint] = Link(receiver)
        return self.links[endpoint]


def play(scene: Callable[[RequestClient, Memory], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def whole() -> None:
        medium = Memory()
        async with RequestClient(medium, "me", **options) as client:
            await scene(client, medium)

    asyncio.run(asyncio.wait_for(whole(), 20))


async def settle() -> None:
    """Let everything happen that does not need time."""
    for _ in range(10):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def ask(client: RequestClient, num: int) -> list[asyncio.Task[Decision]]:
    return [asyncio.create_task(client.act(request(seed))) for seed in range(num)]


def test_requests_of_one_iteration_travel_together():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        first = ask(client, 3)
        await settle()
        ask(client, 1)
        await settle()
        assert medium["one"].messages == [[0, 1, 2], [3]]
        medium["one"].answer([2, 0])
        await settle()
        assert [task.done() for task in first] == [True, False, True]
        assert [(await first[row]).value for row in (0, 2)] == [0, 2]
        assert medium["one"].slots == [None, None], "nobody counts slots where there is no lockstep"

    play(scene)


def test_slots_that_were_answered_together_ask_together():
    async def scene(client: RequestClient, medium: Memory) -> None:
        async def slot() -> None:
            for seed in range(3):
                await client.act(request(seed))

        client.set_services({"one": "one"})
        slots = [asyncio.create_task(slot()) for _ in range(4)]
        for _ in range(3):
            await settle()
            medium["one"].answer(medium["one"].messages[-1])
        await asyncio.gather(*slots)
        assert [len(message) for message in medium["one"].messages] == [4, 4, 4]

    play(scene)


def test_each_request_goes_to_the_service_with_the_fewest_that_wait():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        ask(client, 5)
        await settle()
        assert (medium["one"].messages, medium["two"].messages) == ([[0, 2, 4]], [[1, 3]])
        medium["one"].answer([0, 2, 4])
        await settle()
        ask(client, 4)
        await settle()
        assert (medium["one"].messages[1:], medium["two"].messages[1:]) == ([[5, 6, 7]], [[8]])

    play(scene)


def test_workers_with_the_same_choice_choose_differently():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        ask(client, 1)
        await settle()
        assert (medium["one"].messages, medium["two"].messages) == ([], [[0]])

    play(scene, index=3)


def test_what_others_wait_for_counts_while_it_is_news(monkeypatch):
    monkeypatch.setattr(module, "REPORT_HOLDS_S", 0.2)

    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        ask(client, 1)
        await settle()
        medium["one"].answer([0], queue=3)
        await settle()
        ask(client, 3)
        await settle()
        assert (medium["one"].messages, medium["two"].messages) == ([[0]], [[1, 2, 3]])
        await asyncio.sleep(0.25)
        ask(client, 1)
        await settle()
        assert medium["one"].messages == [[0], [4]]

    play(scene)


def test_what_a_service_did_not_answer_goes_to_others_when_it_leaves():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        asked = ask(client, 4)
        await settle()
        medium["one"].answer([0])
        client.set_services({"two": "two"})
        await settle()
        assert medium["one"].is_closed
        assert medium["two"].messages == [[1, 3], [2]]
        medium["two"].answer([1, 2, 3])
        assert [(await task).value for task in asked] == [0, 1, 2, 3]

    play(scene)


def test_a_service_that_came_back_elsewhere_is_asked_again():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "before"})
        ask(client, 2)
        await settle()
        client.set_services({"one": "after"})
        await settle()
        assert medium["before"].is_closed
        assert medium["after"].messages == [[0, 1]]
        client.set_services({"one": "after"})
        await settle()
        assert medium["after"].messages == [[0, 1]], "an unchanged directory changes nothing"

    play(scene)


def test_without_a_service_requests_wait_for_one():
    async def scene(client: RequestClient, medium: Memory) -> None:
        (asked,) = ask(client, 1)
        await settle()
        client.set_services({"one": "one"})
        await settle()
        client.set_services({})
        client.set_services({"two": "two"})
        await settle()
        medium["two"].answer([0])
        assert (await asked).value == 0

    play(scene)


def test_what_waits_for_a_service_is_sent_once_when_there_is_one():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        ask(client, 2)
        await settle()
        client.set_services({})
        await asyncio.sleep(0.1)
        client.set_services({"two": "two"})
        await settle()
        assert medium["two"].messages == [[0, 1]]

    play(scene, resend_after_s=0.02)


def test_what_nobody_answers_is_sent_again_and_the_first_answer_counts():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        (asked,) = ask(client, 1)
        await until(lambda: len(medium["one"].messages) == 3)
        assert medium["one"].messages == [[0], [0], [0]]
        medium["one"].answer([0])
        medium["one"].answer([0])
        assert (await asked).value == 0
        medium["one"].answer([0])
        assert client.num_unanswered == 0

    play(scene, resend_after_s=0.03)


def test_what_was_sent_again_is_counted_once():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        asked = ask(client, 2)
        await until(lambda: len(medium["one"].messages) > 2)
        medium["one"].answer([0, 1])
        await asyncio.gather(*asked)
        client.set_services({"one": "one", "two": "two"})
        ask(client, 2)
        await settle()
        assert (medium["one"].messages[-1], medium["two"].messages[-1]) == ([2], [3])

    play(scene, resend_after_s=0.03)


def test_a_service_that_cannot_be_reached_is_avoided(monkeypatch):
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.02)

    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        asked = ask(client, 2)
        await settle()
        medium["one"].receiver.lost([0, 17])
        await until(lambda: medium["two"].numbers == [1, 0])
        medium["two"].answer([0, 1])
        await asyncio.gather(*asked)
        ask(client, 2)
        await settle()
        assert medium["one"].messages == [[0]]

    play(scene)


def test_the_reason_of_a_service_is_raised():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        first, second = ask(client, 2)
        await settle()
        medium["one"].answer([1], reason="ValueError: no such head")
        with pytest.raises(RequestError, match="ValueError: no such head"):
            await second
        medium["one"].answer([0])
        assert (await first).value == 0

    play(scene)


def test_what_the_policy_could_not_decide_is_known_from_what_the_service_could_not_do():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one"})
        (asked,) = ask(client, 1)
        await settle()
        medium["one"].answer([0], reason="NoDecision: version 7 of the policy gave value that is not finite")
        with pytest.raises(NoDecision, match=r"^version 7 of"):
            await asked

    play(scene)


def test_a_request_that_was_given_up_leaves_nothing_behind():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"one": "one", "two": "two"})
        given_up, stays = ask(client, 2)
        await settle()
        given_up.cancel()
        await settle()
        assert client.num_unanswered == 1
        medium["one"].answer([0])
        ask(client, 1)
        await settle()
        assert medium["one"].messages == [[0], [2]], "it is not waited for"
        medium["two"].answer([1])
        assert (await stays).value == 1

    play(scene)


def test_a_client_that_ends_leaves_nobody_waiting():
    async def scene() -> None:
        medium = Memory()
        async with RequestClient(medium, "me") as client:
            client.set_services({"one": "one"})
            (asked,) = ask(client, 1)
            await settle()
        with pytest.raises(RequestError, match="closed"):
            await asked
        assert medium["one"].is_closed

    asyncio.run(asyncio.wait_for(scene(), 20))


# --- lockstep ---------------------------------------------------------------------------------------------------------


def test_in_lockstep_all_requests_go_to_one_service_and_say_how_many_slots_there_are():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"a": "a", "b": "b", "c": "c"})
        client.enter()
        client.enter()
        ask(client, 2)
        await settle()
        assert (medium["b"].messages, medium["b"].slots) == ([[], [0, 1]], [2, 2])
        assert medium["a"].messages == medium["c"].messages == []

    play(scene, index=4, lockstep=True)


def test_in_lockstep_a_service_is_told_of_slots_that_come_and_go_without_a_request():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"a": "a"})
        client.enter()
        client.enter()
        await settle()
        client.leave()
        await settle()
        client.leave()
        client.enter()
        await settle()
        assert medium["a"].messages == [[], []]
        assert medium["a"].slots == [2, 1], "one that follows another at once changes nothing"

    play(scene, lockstep=True)


def test_in_lockstep_a_client_moves_as_a_whole_when_services_change():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"b": "b"})
        client.enter()
        ask(client, 1)
        await settle()
        client.set_services({"a": "a", "b": "b"})
        await settle()
        assert (medium["b"].slots[-1], medium["a"].slots) == (0, [1])
        ask(client, 1)
        await settle()
        assert medium["a"].messages[-1] == [1]
        client.set_services({"b": "b"})
        await settle()
        assert (medium["b"].messages[-1], medium["b"].slots[-1]) == ([1], 1)

    play(scene, lockstep=True)


def test_in_lockstep_a_client_that_ends_is_not_waited_for():
    async def scene() -> None:
        medium = Memory()
        async with RequestClient(medium, "me", lockstep=True) as client:
            client.set_services({"a": "a"})
            client.enter()
            await settle()
        assert medium["a"].slots == [1, 0]

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_without_lockstep_slots_come_and_go_silently():
    async def scene(client: RequestClient, medium: Memory) -> None:
        client.set_services({"a": "a"})
        client.enter()
        client.leave()
        await settle()
        assert medium["a"].messages == []

    play(scene)
