"""The client of pooled services, over fakes of their actors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from accerl_wm.runtime import pool
from accerl_wm.runtime.pool import Pool


class Called:
    """What stands for a method of an actor."""

    def __init__(self, function: Any):
        self.remote = function


class Service:
    """Answers each request with its own number and the request's; dead for so many calls."""

    def __init__(self, number: int, dead_calls: int = 0):
        self.batches: list[list[int]] = []
        self.ask = Called(self._ask)
        self._number = number
        self._dead_calls = dead_calls

    async def _ask(self, requests: Sequence[int]) -> list[tuple[int, int]]:
        await asyncio.sleep(0.01)
        if self._dead_calls:
            self._dead_calls -= 1
            raise pool.RayActorError()
        if 13 in requests:
            raise ValueError("13 cannot be answered")
        self.batches.append(list(requests))
        return [(self._number, request) for request in requests]


class Controller:
    """Knows the services; the first question comes too early."""

    def __init__(self, services: Sequence[Service]):
        self.news = Called(self._news)
        self._services = {f"judge-{number}": service for number, service in enumerate(services)}
        self._asked: set[str] = set()

    async def _news(self, topic: str, seen: int, timeout_s: float) -> Any:
        if topic not in self._asked:
            self._asked.add(topic)
            return None
        return seen + 1, [self._services[topic], 2]


def asked(services: Sequence[Service], *rounds: Sequence[int]) -> list[list[Any]]:
    """Answers to what is asked at once, round after round; exceptions in their place."""

    async def ask() -> list[list[Any]]:
        client: Pool[int, tuple[int, int]] = Pool(Controller(services), "judge", len(services))
        assert await client.open() == 2
        return [await asyncio.gather(*map(client.ask, each), return_exceptions=True) for each in rounds]

    return asyncio.run(ask())


def test_what_is_asked_at_once_is_one_message_and_answers_go_back_in_order():
    service = Service(0)
    assert asked([service], [1, 2, 3], [4]) == [[(0, 1), (0, 2), (0, 3)], [(0, 4)]]
    assert service.batches == [[1, 2, 3], [4]]


def test_messages_go_to_the_service_with_the_fewest_unanswered():
    first, second = Service(0), Service(1)

    async def ask() -> list[tuple[int, int]]:
        client: Pool[int, tuple[int, int]] = Pool(Controller([first, second]), "judge", 2)
        await client.open()
        one = asyncio.ensure_future(client.ask(1))
        await asyncio.sleep(0.001)  # the first is busy with it
        return [await client.ask(2), await one]

    assert asyncio.run(ask()) == [(1, 2), (0, 1)]


def test_what_a_dead_service_had_is_asked_of_another_one():
    assert asked([Service(0, dead_calls=99), Service(1)], [1, 2], [3]) == [[(1, 1), (1, 2)], [(1, 3)]]


def test_where_all_are_dead_it_is_asked_again_until_one_is_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "RETRY_AFTER_S", 0.01)
    assert asked([Service(0, dead_calls=3)], [1]) == [[(0, 1)]]


def test_what_a_model_raises_goes_to_those_who_asked_and_the_next_are_answered():
    (failed, answered) = asked([Service(0)], [12, 13], [14])
    assert [type(each) for each in failed] == [ValueError, ValueError]
    assert answered == [(0, 14)]
