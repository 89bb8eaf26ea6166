"""Which tokens of a decision count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def executed_mask(
    num_actions: Int[Tensor, " decision"], chunk_length: int, num_tokens: int
) -> Bool[Tensor, "decision token"]:
    """True for the tokens of actions that were executed before the episode ended.

    Tokens are ordered by action. A policy with a single log-prob for the chunk keeps it whole.

    Raises:
        ValueError: `num_tokens` is neither 1 nor a multiple of `chunk_length`.
    """
    if num_tokens == 1:
        return torch.ones(len(num_actions), 1, dtype=torch.bool)
    tokens_per_action, rest = divmod(num_tokens, chunk_length)
    if rest or not tokens_per_action:
        raise ValueError(f"num_tokens: {num_tokens} is neither 1 nor a multiple of chunk_length={chunk_length}")
    executed = torch.arange(chunk_length)[None] < num_actions[:, None]
    return executed.repeat_interleave(tokens_per_action, dim=1)
