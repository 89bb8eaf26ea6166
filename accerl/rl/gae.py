"""Generalised advantage estimation over packed, ragged segments (paper eq. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
    sizes = lengths.tolist()
    reward, value = reward.float(), value.float()
    beyond = torch.where(terminal, 0.0, bootstrap_value.float())
    last = lengths.cumsum(0) - 1
    next_value = torch.cat([value[1:], value.new_zeros(1)])
    next_value[last] = beyond
    delta = pad_sequence(list((reward + discount * next_value - value).split(sizes)), batch_first=True)

    advantage = torch.zeros_like(delta)
    carried = delta.new_zeros(len(sizes))
    for t in range(delta.shape[1] - 1, -1, -1):  # right padding is zero, so it carries nothing into a segment
        carried = delta[:, t] + discount * trace * carried
        advantage[:, t] = carried
    return torch.cat([row[:size] for row, size in zip(advantage, sizes, strict=True)])
