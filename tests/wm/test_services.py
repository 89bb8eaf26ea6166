"""The models as services, without Ray: what they answer, and who shares a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from accerl.inference import InferenceService, Window
from accerl_wm import store
from accerl_wm.carriers import Frames
from accerl_wm.conformance import check_observation_model, check_reward_model
from accerl_wm.services import AskedObservation, AskedReward, PooledModels, Seen, Sight, judge, predict
from accerl_wm.world import Question, WorldModel
from tests.wm.scenes import SPEC


class Moving:
    """Brightens by what was done; remembers how often it was asked."""

    history = 2

    def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
        brighter = past.images[:, -1].float() + 10 * actions[:, -1].sum((1, 2))[:, None, None, None, None]
        memory = [(row or 0) + 1 for row in past.memory or [None] * len(actions)]
        proprio = past.proprio[:, -1] + actions[:, -1].mean(1)
        return Frames(images=brighter.clamp(0, 255).to(torch.uint8), proprio=proprio, memory=memory)


class Bright:
    """The brighter the likelier."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> torch.Tensor:
        told = torch.tensor([0.5 if each == "half" else 1.0 for each in instructions])
        return told * frames.images.float().flatten(1).mean(1) / 255


def questions(num: int, seed: int) -> list[Question]:
    generator = np.random.default_rng(seed)
    size = SPEC.image_size
    return [
        Question(
            images=generator.integers(256, size=(2, 1, size, size, 3), dtype=np.uint8),
            proprio=generator.random((2, SPEC.proprio_dim), np.float32),
            action=None if row == 1 else generator.random((2, 2, SPEC.action_dim), np.float32),
            instruction="half" if row % 2 else "whole",
            memory=row,
        )
        for row in range(num)
    ]


class Pair:
    """Both services; the sizes of their batches."""

    def __init__(self, batch: int):
        self.sizes: dict[str, list[int]] = {"seen": [], "judged": []}
        window = Window(batch_size=batch, max_wait_s=0.5)
        self.observation: InferenceService[Question, Seen] = InferenceService(self._predict, window)
        self.reward: InferenceService[Sight, float] = InferenceService(self._judge, window)

    def _predict(self, requests: Sequence[Question]) -> list[Seen]:
        self.sizes["seen"].append(len(requests))
        return predict(Moving(), requests, "cpu")

    def _judge(self, requests: Sequence[Sight]) -> list[float]:
        self.sizes["judged"].append(len(requests))
        return judge(Bright(), requests, "cpu")


def test_two_imaginations_share_batches_and_get_what_a_model_of_their_own_would_say():
    pair = Pair(batch=6)
    first, second = questions(4, 0), questions(4, 1)

    async def imagine() -> list[Any]:
        one, other = PooledModels(pair.observation, pair.reward), PooledModels(pair.observation, pair.reward)
        return await asyncio.gather(*map(one.ask, first), *map(other.ask, second))

    with pair.observation, pair.reward:
        found = asyncio.run(imagine())
    expected = WorldModel(Moving(), Bright()).answer([*first, *second])
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.images, other.images) and np.array_equal(one.proprio, other.proprio)
        assert (one.success, one.memory) == (other.success, other.memory)
    assert pair.sizes["seen"] == [6]  # two of the eight ask only for success
    assert sum(pair.sizes["judged"]) == 8


def test_services_keep_the_promises_of_the_models_behind_them():
    pair = Pair(batch=3)

    async def check() -> None:
        loop = asyncio.get_running_loop()
        seeing, judging = AskedObservation(pair.observation, loop, 2), AskedReward(pair.reward, loop)
        await asyncio.to_thread(check_observation_model, seeing, SPEC)
        await asyncio.to_thread(check_reward_model, judging, SPEC, ("half", "whole"))

    with pair.observation, pair.reward:
        asyncio.run(check())


def test_in_bfloat16_the_shipped_models_say_nearly_the_same_and_all_arrangements_agree():
    exact, rounded = store.load(Path("quickstart")), store.load(Path("quickstart"), dtype="bfloat16")
    scene = cast(Any, exact.observation).config
    generator = np.random.default_rng(0)
    size, history = scene.image_size, exact.history
    asked = [
        Question(
            images=generator.integers(256, size=(history, scene.num_cameras, size, size, 3), dtype=np.uint8),
            proprio=generator.random((history, scene.proprio_dim), np.float32),
            action=generator.uniform(-1, 1, (history, scene.chunk_length, scene.action_dim)).astype(np.float32),
            instruction="press a handle down",
            memory=None,
        )
        for _ in range(3)
    ]
    answers = exact.answer(asked), rounded.answer(asked)
    for one, other in zip(*answers, strict=True):
        assert other.images.dtype == np.uint8 and other.proprio.dtype == np.float32
        difference = np.abs(one.images.astype(float) - other.images)
        assert 0 < difference.mean() < 1.5 and np.abs(one.proprio - other.proprio).max() < 0.02
        assert abs(one.success - other.success) < 0.05
    seen = predict(rounded.observation, asked, "cpu", "bfloat16")
    judged = judge(rounded.reward, [Sight(each, "press a handle down") for each in seen], "cpu", "bfloat16")
    for row, success, other in zip(seen, judged, answers[1], strict=True):
        assert np.array_equal(row.images, other.images) and np.array_equal(row.proprio, other.proprio)
        assert success == other.success
