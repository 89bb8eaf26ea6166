"""Newest weights of the models, over fakes: what a dead trainer had handed out is passed over."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from torch import nn

from accerl_wm.runtime import models
from accerl_wm.runtime.models import Follower
from tests.wm.test_pool import Called


class Lost:
    """A reference whose owner is gone."""

    def __await__(self) -> Any:
        raise models.RayError("its owner has died")
        yield


class Kept:
    def __init__(self, state: dict[str, np.ndarray]):
        self._state = state

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self._state


class Controller:
    """Has news one after the other, then none."""

    def __init__(self, *references: Any):
        self.news = Called(self._news)
        self._references = list(references)

    async def _news(self, topic: str, seen: int, timeout_s: float) -> tuple[int, list[Any]] | None:
        await asyncio.sleep(0.001)
        return (seen + 1, [self._references.pop(0)]) if self._references else None


def followed(*references: Any) -> tuple[Follower, nn.Linear]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    follower = Follower(Controller(*references), {"reward": model})

    async def follow() -> None:
        task = asyncio.create_task(follower.follow("reward"))
        await asyncio.sleep(0.1)
        assert not task.done(), "it goes on"
        task.cancel()

    asyncio.run(follow())
    return follower, model


def weights(value: float) -> Kept:
    return Kept({"weight": np.full((1, 1), value, np.float32)})


def test_what_a_dead_trainer_had_handed_out_is_passed_over_and_its_next_weights_are_taken():
    follower, model = followed(Lost(), weights(2.0))
    follower.settle()
    assert model.weight.item() == 2.0 and follower.taken == 1


def test_weights_are_put_in_place_when_nobody_predicts():
    follower, model = followed(weights(2.0), weights(3.0))
    assert model.weight.item() == 0.0
    follower.settle()
    assert torch.equal(model.weight, torch.full((1, 1), 3.0)) and follower.taken == 1
