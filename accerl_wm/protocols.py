"""The two models that stand in for a simulator. Whatever predicts plugs in here, the simulator itself included.

Axes: `batch` imaginations under way; `history` their last decisions, oldest first; `chunk` actions of a decision.
A frame is what the cameras show at a decision (`Observation["images"]`), uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32, UInt8


class ObservationModel(Protocol):
    """frames -> frames: what the cameras would show next."""

    @property
    def history(self) -> int:
        """Decisions it looks back on; at the start of an episode the first frame is repeated, with zero actions."""
        ...

    def predict(
        self,
        frames: UInt8[np.ndarray, "batch history camera height width 3"],
        actions: Float32[np.ndarray, "batch history chunk action"],
    ) -> UInt8[np.ndarray, "batch camera height width 3"]:
        """The frames one decision later.

        Args:
            frames: seen at each decision of the history; the last is the present one.
            actions: in [-1, 1], executed after each of these frames; the last is the one whose outcome is asked for.
        """
        ...


class RewardModel(Protocol):
    """frames -> success: how near to done the task is. The imagined reward of a decision is its increase."""

    def predict(
        self, frames: UInt8[np.ndarray, "batch camera height width 3"], instruction: Sequence[str]
    ) -> Float32[np.ndarray, " batch"]:
        """Probability in [0, 1] that each frame shows its instruction fulfilled."""
        ...
