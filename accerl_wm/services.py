"""The two models as services of their own, which many imaginations share: what they are asked, and who asks.

 Question ─► observation service ─► Seen ─► reward service ─► success          each answers whatever waits in one batch

`accerl.inference.InferenceService` batches on the services' side; `accerl_wm.runtime.pool` carries it over Ray. Another
arrangement of the same models is `WorldModel`, where both are in the asker's process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from accerl.types import Array
from accerl_wm.carriers import Frames
from accerl_wm.protocols import ObservationModel, RewardModel
from accerl_wm.world import Dtype, Imagined, Question, computing

Request = TypeVar("Request", contravariant=True)
Response = TypeVar("Response", covariant=True)


class Seen(NamedTuple):
    """observation service -> whoever asked."""

    images: UInt8[Array, "camera height width 3"]
    proprio: Float32[Array, " proprio"]
    memory: Any
    """`Frames.memory`, of this row."""


class Sight(NamedTuple):
    """imagination -> reward service: does this show the instruction fulfilled?"""

    seen: Seen
    instruction: str


class Asks(Protocol[Request, Response]):
    """Many may ask at once."""

    async def ask(self, request: Request, /) -> Response: ...


def predict(
    model: ObservationModel, questions: Sequence[Question], device: torch.device | str, dtype: Dtype = "float32"
) -> list[Seen]:
    """What comes of each question's actions, by one call of the model."""
    past = Frames(
        images=_stacked([question.images for question in questions], device),
        proprio=_stacked([question.proprio for question in questions], device),
        memory=[question.memory for question in questions],
    )
    with torch.inference_mode(), computing(device, dtype):
        seen = model.predict(past, _stacked([question.action for question in questions], device))
    memory = [None] * len(questions) if seen.memory is None else seen.memory
    rows = (seen.images.numpy(force=True), seen.proprio.float().numpy(force=True), memory)
    return [Seen(*row) for row in zip(*rows, strict=True)]


def judge(
    model: RewardModel, sights: Sequence[Sight], device: torch.device | str, dtype: Dtype = "float32"
) -> list[float]:
    """Probability of success of each, by one call of the model."""
    frames = Frames(
        images=_stacked([sight.seen.images for sight in sights], device),
        proprio=_stacked([sight.seen.proprio for sight in sights], device),
        memory=[sight.seen.memory for sight in sights],
    )
    with torch.inference_mode(), computing(device, dtype):
        return model.predict(frames, [sight.instruction for sight in sights]).tolist()


class PooledModels:
    """`Models` of an imagination, out of two services."""

    def __init__(self, observation: Asks[Question, Seen], reward: Asks[Sight, float]):
        self._observation = observation
        self._reward = reward

    async def ask(self, request: Question) -> Imagined:
        if request.action is None:
            seen = Seen(request.images[-1], request.proprio[-1], request.memory)
        else:
            seen = await self._observation.ask(request)
        success = await self._reward.ask(Sight(seen, request.instruction))
        return Imagined(seen.images, seen.proprio, success, seen.memory)


class AskedObservation:
    """An `ObservationModel` that asks a service, and waits; from any thread but the loop's."""

    def __init__(self, service: Asks[Question, Seen], loop: asyncio.AbstractEventLoop, history: int):
        self.history = history
        self._ask_all = _waiting(service, loop)

    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        memory = [None] * len(past) if past.memory is None else past.memory
        columns = (past.images.numpy(force=True), past.proprio.numpy(force=True), actions.numpy(force=True), memory)
        seen = self._ask_all(
            [
                Question(images=images, proprio=proprio, action=action, instruction="", memory=kept)
                for images, proprio, action, kept in zip(*columns, strict=True)
            ]
        )
        kept = [each.memory for each in seen]
        return Frames(
            images=_stacked([each.images for each in seen], past.images.device),
            proprio=_stacked([each.proprio for each in seen], past.proprio.device),
            memory=None if all(each is None for each in kept) else kept,
        )


class AskedReward:
    """A `RewardModel` that asks a service, and waits; from any thread but the loop's."""

    def __init__(self, service: Asks[Sight, float], loop: asyncio.AbstractEventLoop):
        self._ask_all = _waiting(service, loop)

    def predict(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        memory = [None] * len(frames) if frames.memory is None else frames.memory
        columns = (frames.images.numpy(force=True), frames.proprio.numpy(force=True), memory)
        sights = [
            Sight(Seen(*row), instruction)
            for row, instruction in zip(zip(*columns, strict=True), instructions, strict=True)
        ]
        return torch.tensor(self._ask_all(sights), device=frames.images.device)


def _waiting(service: Asks[Any, Any], loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Any]], list[Any]]:
    async def ask_all(requests: Sequence[Any]) -> list[Any]:
        return await asyncio.gather(*map(service.ask, requests))

    return lambda requests: asyncio.run_coroutine_threadsafe(ask_all(requests), loop).result()


def _stacked(arrays: Sequence[Any], device: torch.device | str) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).to(device)
