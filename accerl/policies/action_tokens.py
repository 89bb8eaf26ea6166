"""Action tokens: each action dimension in [-1, 1] as one of a number of equal bins; drawing them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def to_tokens(action: Float[Tensor, "*axes"], num_bins: int) -> Int[Tensor, "*axes"]:
    """The bin of each value; values outside [-1, 1] fall into the outermost bins."""
    return ((action + 1) * (num_bins / 2)).floor().long().clamp(0, num_bins - 1)


def to_actions(token: Int[Tensor, "*axes"], num_bins: int) -> Float[Tensor, "*axes"]:
    """The centre of each bin."""
    return (token.to(torch.float32) + 0.5) * (2 / num_bins) - 1


def soft_labels(token: Int[Tensor, "*axes"], num_bins: int, width: float) -> Float[Tensor, "*axes bin"]:
    """Gaussians of `width` bins around the tokens, normalised: a near miss in imitation is nearly right."""
    bins = torch.arange(num_bins, device=token.device)
    return torch.softmax(-(bins - token[..., None]).float().square() / (2 * width**2), dim=-1)


def sample_tokens(log_probs: Float[Tensor, "batch token bin"], seeds: np.ndarray) -> Int[Tensor, "batch token"]:
    """By inverse transform, each row from its own seed; rows with a negative seed take the most probable token."""
    greedy = torch.from_numpy(seeds < 0).to(log_probs.device)
    num_tokens = log_probs.shape[1]
    uniform = np.stack([np.random.Generator(np.random.Philox(key=abs(int(seed)))).random(num_tokens) for seed in seeds])
    cumulative = log_probs.double().exp().cumsum(-1)
    target = torch.from_numpy(uniform).to(log_probs.device)[..., None] * cumulative[..., -1:]
    sampled = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=log_probs.shape[-1] - 1)
    return torch.where(greedy[:, None], log_probs.argmax(-1), sampled)
