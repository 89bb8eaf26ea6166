"""A world model: an observation model and a reward model that answer questions in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from accerl.types import Array
from accerl_wm.carriers import Frames
from accerl_wm.frames import Start
from accerl_wm.protocols import ObservationModel, RewardModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """imagination -> world model: one of them wants to know what its actions lead to."""

    images: UInt8[Array, "history camera height width 3"]
    proprio: Float32[Array, "history proprio"]
    """Seen at the last decisions, the present one last."""
    action: Float32[Array, "history chunk action"] | None
    """Executed after each of these; None: only how near to success the present one is."""
    instruction: str
    memory: Any
    """Of the present one (`Frames.memory`)."""


class Imagined(NamedTuple):
    """world model -> imagination."""

    images: UInt8[Array, "camera height width 3"]
    proprio: Float32[Array, " proprio"]
    success: float
    """Probability that it shows the instruction fulfilled."""
    memory: Any


class Past:
    """What an imagination looks back on: the real moments that it started from, then imagined ones."""

    def __init__(self, start: Start, history: int):
        self.images = deque(start.images, maxlen=history)
        self.proprio = deque(start.proprio, maxlen=history)
        self._actions = deque(start.action, maxlen=history)
        self._instruction = start.instruction
        self._memory: Any = start.origin

    def question(self, action: Float32[Array, "chunk action"] | None) -> Question:
        """What comes of `action`; None: how near to success the present moment is."""
        if action is not None:
            self._actions.append(action)
        return Question(
            images=np.stack(self.images),
            proprio=np.stack(self.proprio),
            action=None if action is None else np.stack(self._actions),
            instruction=self._instruction,
            memory=self._memory,
        )

    def take(self, imagined: Imagined) -> None:
        """The answer is the present moment."""
        self.images.append(imagined.images)
        self.proprio.append(imagined.proprio)
        self._memory = imagined.memory


Dtype = Literal["float32", "bfloat16"]


def computing(device: torch.device | str, dtype: Dtype) -> AbstractContextManager[Any]:
    """What models compute inside is of this type, as far as autocasting goes; their weights stay as they are."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16")


class WorldModel:
    """Two models that plug in, on a device. Questions of one batch are answered by one call of each.

    Args:
        dtype: `imagination.dtype`.
    """

    def __init__(
        self,
        observation: ObservationModel,
        reward: RewardModel,
        device: torch.device | str = "cpu",
        dtype: Dtype = "float32",
    ):
        self.observation = observation
        self.reward = reward
        self.device = torch.device(device)
        self.dtype: Dtype = dtype

    @property
    def history(self) -> int:
        return self.observation.history

    def answer(self, questions: Sequence[Question]) -> list[Imagined]:
        """In order."""
        answers: list[Imagined | None] = [None] * len(questions)
        for only_success in (False, True):
            rows = [row for row, question in enumerate(questions) if (question.action is None) == only_success]
            if rows:
                found = self._answer([questions[row] for row in rows], only_success)
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
        return [answer for answer in answers if answer is not None]

    def _answer(self, questions: Sequence[Question], only_success: bool) -> list[Imagined]:
        with torch.inference_mode(), computing(self.device, self.dtype):
            past = Frames(
                images=self._stacked([question.images for question in questions]),
                proprio=self._stacked([question.proprio for question in questions]),
                memory=[question.memory for question in questions],
            )
            if only_success:
                seen = Frames(images=past.images[:, -1], proprio=past.proprio[:, -1], memory=past.memory)
            else:
                seen = self.observation.predict(past, self._stacked([question.action for question in questions]))
            success = self.reward.predict(seen, [question.instruction for question in questions])
        memory = [None] * len(questions) if seen.memory is None else seen.memory
        rows = (seen.images.numpy(force=True), seen.proprio.float().numpy(force=True), success.tolist(), memory)
        return [Imagined(*row) for row in zip(*rows, strict=True)]

    def _stacked(self, arrays: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device)
