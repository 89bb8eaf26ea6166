"""Which tokens of a decision count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accerl import kernels


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


def slim_log_prob(
    states: Float[Tensor, "*axes width"], weight: Float[Tensor, "width bin"], tokens: Int[Tensor, "*axes"]
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Log-probability of chosen tokens and entropy, nats, of a linear head without bias; in float32 at least.

    Args:
        states: what the head reads.
        tokens: in [0, bin).
    """
    is_narrow = weight.shape[0] <= weight.shape[1]  # else it is all matrix product: on a CPU there is nothing to win
    if (is_narrow or states.is_cuda) and (kernel := kernels.find("slim_log_prob", states)):
        return kernel(states, weight, tokens)
    logits = states @ weight
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return log_prob_and_entropy(torch.log_softmax(wide, dim=-1), tokens)


def log_prob_and_entropy(
    log_probs: Float[Tensor, "*axes bin"], tokens: Int[Tensor, "*axes"]
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Of chosen tokens and of the distribution, nats."""
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return chosen(log_probs, tokens), entropy


def chosen(log_probs: Float[Tensor, "*axes bin"], tokens: Int[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The log-probs of these tokens."""
    return log_probs.gather(-1, tokens[..., None]).squeeze(-1)
