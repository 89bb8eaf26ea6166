r"""OpenVLA's action tokens: ids of Llama's vocabulary to actions and back, un-normalisation, LIBERO's gripper.

    action of the env ─ to_dataset ─► of the data set ─ normalize ─► [-1, 1] ─ to_tokens ─► 0 … 255
    action of the env ◄─ to_env ───── of the data set ◄─ unnormalize ─ [-1, 1] ◄─ to_actions ─ 0 … 255

A token here counts from the first action token: its id in the vocabulary is 31744 more. Token t is
$256 - \mathrm{digitize}(a)$ over 256 equal places from -1 to 1, so that -1 is 255, 0 is 128 and 1 is 0. It stands for
the middle of one of 255 bins: tokens 0 and 1 are the same action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from accerl.types import Array

NUM_TOKENS = 256
EDGES = torch.from_numpy(np.linspace(-1, 1, NUM_TOKENS))
"""As upstream computes them: those of torch are others, in the last bit."""
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2
EPSILON = 1e-8
"""Added to the range of a dimension, as upstream does."""


def to_tokens(action: Float[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    """The tokens of values in [-1, 1]; those outside are clipped."""
    clipped = action.double().clamp(-1, 1)
    return NUM_TOKENS - torch.bucketize(clipped, EDGES.to(action.device), right=True)


def to_actions(token: Int[Tensor, "*axes"]) -> Float64[Tensor, "*axes"]:
    """The middle of each token's bin."""
    bins = (NUM_TOKENS - 1 - token.long()).clamp(0, NUM_TOKENS - 2)
    return CENTRES.to(token.device)[bins]


def normalize(values: Float[Array, "*batch dim"], statistics: Mapping[str, Any]) -> Float64[Array, "*batch dim"]:
    """q01 to -1, q99 to 1, clipped to that; dimensions outside the mask are only clipped."""
    low, high, mask = _bounds(statistics)
    scaled = 2 * (np.asarray(values, np.float64) - low) / (high - low + EPSILON) - 1
    return np.clip(np.where(mask, scaled, values), -1, 1)


def unnormalize(values: Float[Array, "*batch dim"], statistics: Mapping[str, Any]) -> Float64[Array, "*batch dim"]:
    """-1 to q01, 1 to q99; dimensions outside the mask stay as they are."""
    low, high, mask = _bounds(statistics)
    return np.where(mask, 0.5 * (np.asarray(values) + 1) * (high - low + EPSILON) + low, values)


def to_env(actions: Float[Array, "*batch dim"], gripper: Literal["libero", "none"]) -> Float64[Array, "*batch dim"]:
    """Of the data set to robosuite's: the gripper, 1 open to 0 closed, becomes -1 open or 1 closed, -sign(2 g - 1)."""
    if gripper == "none":
        return actions
    return np.concatenate([actions[..., :-1], -np.sign(2 * actions[..., -1:] - 1)], axis=-1)


def to_dataset(actions: Float[Array, "*batch dim"], gripper: Literal["libero", "none"]) -> Float64[Array, "*batch dim"]:
    """The inverse of `to_env` for a gripper that is open or closed."""
    if gripper == "none":
        return actions
    return np.concatenate([actions[..., :-1], (1 - actions[..., -1:]) / 2], axis=-1)


def action_table(statistics: Mapping[str, Any], gripper: Literal["libero", "none"]) -> Float[Tensor, "256 action"]:
    """What each token does in the environment, for each dimension of an action."""
    num_dims = len(statistics["q01"])
    centres = to_actions(torch.arange(NUM_TOKENS, device="cpu")).numpy()
    normalized = np.repeat(centres[:, None], num_dims, axis=1)
    return torch.from_numpy(to_env(unnormalize(normalized, statistics), gripper)).float()


def _bounds(statistics: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    low, high = (np.asarray(statistics[name], np.float64) for name in ("q01", "q99"))
    return low, high, np.asarray(statistics.get("mask", np.ones_like(low)), bool)
