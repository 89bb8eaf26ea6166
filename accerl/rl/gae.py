"""Generalised advantage estimation over packed, ragged segments (paper eq. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from accerl import kernels


def gae(
    reward: Float[Tensor, " decision"],
    value: Float[Tensor, " decision"],
    bootstrap_value: Float[Tensor, " segment"],
    lengths: Int[Tensor, " segment"],
    terminal: Bool[Tensor, " segment"],
    discount: float,
    trace: float,
) -> Float[Tensor, " decision"]:
    r"""Advantages, in float32.

    $\delta_t = r_t + \gamma V_{t+1} - V_t$ and $A_t = \delta_t + \gamma \lambda A_{t+1}$, where the value after a
    segment's last decision is `bootstrap_value`, or 0 if that decision was terminal.

    Args:
        reward: of all segments end to end, sum(lengths) long.
        value: of the observation before each decision.
        bootstrap_value: of the observation after each segment; not read where `terminal`.
        lengths: decisions of each segment, at least 1.
        terminal: whether the segment's last decision ended the episode in an absorbing state.
    """
    if kernel := kernels.find("gae", reward):
        return kernel(reward, value, bootstrap_value, lengths, terminal, discount, trace)
    reward, value = reward.float(), value.float()
    beyond = torch.where(terminal, 0.0, bootstrap_value.float())
    delta = reward + discount * following(value, beyond, lengths) - value
    return accumulate_backwards(delta, torch.full_like(delta, discount * trace), lengths)


def following(
    values: Float[Tensor, " decision"], beyond: Float[Tensor, " segment"], lengths: Int[Tensor, " segment"]
) -> Float[Tensor, " decision"]:
    """What stands at the next decision of the same segment; after its last one, `beyond`."""
    shifted = torch.cat([values[1:], values.new_zeros(1)])
    shifted[lengths.cumsum(0) - 1] = beyond
    return shifted


def accumulate_backwards(
    term: Float[Tensor, " decision"], decay: Float[Tensor, " decision"], lengths: Int[Tensor, " segment"]
) -> Float[Tensor, " decision"]:
    r"""$x_t = y_t + d_t x_{t+1}$ within each segment, with nothing beyond its last decision."""
    if kernel := kernels.find("accumulate_backwards", term):
        return kernel(term, decay, lengths)
    sizes = lengths.tolist()
    terms, decays = (pad_sequence(list(values.split(sizes)), batch_first=True) for values in (term, decay))
    total = torch.zeros_like(terms)
    carried = terms.new_zeros(len(sizes))
    for t in range(terms.shape[1] - 1, -1, -1):  # right padding is zero, so it carries nothing into a segment
        carried = terms[:, t] + decays[:, t] * carried
        total[:, t] = carried
    return torch.cat([row[:size] for row, size in zip(total, sizes, strict=True)])
