"""What travels between the parts of the world model. (A module `types` would hide Python's from builds in this folder.)

Axes: `batch` imaginations, or windows of training data; `time` consecutive decisions; `history` the last of them that a
model looks back on, oldest first; `chunk` actions of a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What is seen at a decision, of every row; with further axes between batch and camera, of several decisions."""

    images: UInt8[Tensor, "*batch camera height width 3"]
    proprio: Float32[Tensor, "*batch proprio"]
    memory: Sequence[Any] | None = None
    """Of each row, at the last decision: whatever the model that predicted it wants back with the next question; where
    an imagination starts, the `Origin` of what is seen there. None: nothing is known but what is seen."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Frames:
        """Of rows, or of rows and decisions; the memory stays behind."""
        return Frames(images=self.images[index], proprio=self.proprio[index])

    def to(self, device: torch.device | str) -> Frames:
        return Frames(images=self.images.to(device), proprio=self.proprio.to(device), memory=self.memory)


class Origin(NamedTuple):
    """Where a real moment came from."""

    state: UInt8[np.ndarray, " byte"] | None
    """Of the simulator at an earlier decision, as `accerl.envs.state` packs it; None: it was not kept."""
    played: Float32[np.ndarray, "decision chunk action"]
    """What was executed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """frames -> training: consecutive decisions of real episodes, all of one length."""

    frames: Frames
    """Each [batch, time + 1, ...]."""
    actions: Float32[Tensor, "batch time chunk action"]
    """In [-1, 1], executed from one frame to the next. What a chunk had left over when the episode ended inside it is
    there too: the world stands still from there on."""
    is_real: Bool[Tensor, "batch time"]
    """False where the first frame is repeated, with zero actions, before an episode begins."""
    success: Bool[Tensor, "batch time+1"]
    """The frame shows the instruction fulfilled."""
    instructions: Sequence[str]

    def __len__(self) -> int:
        return len(self.actions)

    def to(self, device: torch.device | str) -> Windows:
        return Windows(
            frames=self.frames.to(device),
            actions=self.actions.to(device),
            is_real=self.is_real.to(device),
            success=self.success.to(device),
            instructions=self.instructions,
        )
