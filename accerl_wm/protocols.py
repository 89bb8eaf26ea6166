"""The two models that stand in for a simulator. Whatever predicts plugs in here, the simulator itself included.

`accerl_wm.conformance` runs any implementation against these promises. Axes are those of `accerl_wm.carriers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from accerl_wm.carriers import Frames, Windows


@runtime_checkable
class ObservationModel(Protocol):
    """frames -> frames: what would be seen next."""

    @property
    def history(self) -> int:
        """Decisions it looks back on; at the start of an episode the first frame is repeated, with zero actions."""
        ...

    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        """What is seen one decision later, [batch, ...], on the device of what it is given.

        Args:
            past: seen at each decision of the history [batch, history, ...]; the last is the present one. Its memory is
                what this method gave for the present one or, where an imagination starts, an `Origin`.
            actions: in [-1, 1], executed after each of these; the last are those whose outcome is asked for.
        """
        ...


@runtime_checkable
class RewardModel(Protocol):
    """frames -> success: how near to done the task is."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        """Probability in [0, 1] that what is seen [batch, ...] shows each instruction fulfilled."""
        ...


class _Trainable(Protocol):
    """What training needs of either model, beside its verb."""

    def parameters(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def to(self, device: Any) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds the model without its weights; JSON-compatible."""
        ...


@runtime_checkable
class TrainableObservationModel(ObservationModel, _Trainable, Protocol):
    """One that learns from windows; a `torch.nn.Module` as a rule."""

    def loss(self, windows: Windows) -> tuple[Float32[Tensor, ""], dict[str, float]]:
        """What to minimise, with gradients, and what to log.

        Args:
            windows: of at least `history` decisions; the further ones can be predicted from the model's own outputs.
        """
        ...


@runtime_checkable
class TrainableRewardModel(RewardModel, _Trainable, Protocol):
    """One that learns from frames and whether they show success."""

    def logits(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        """Log-odds of success, with gradients, before calibration."""
        ...
