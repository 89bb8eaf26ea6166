"""V-trace over packed, ragged segments: value targets and advantages corrected for who chose the actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accerl.rl.gae import accumulate_backwards, following
from accerl.rl.objectives import LOG_RATIO_CEILING


class VTrace(NamedTuple):
    """What `vtrace` gives, in float32."""

    target: Float[Tensor, " decision"]
    """v_t, for the critic."""
    advantage: Float[Tensor, " decision"]
    """Of the decision, without the ratio of that decision itself, which belongs to the objective."""


def vtrace(
    reward: Float[Tensor, " decision"],
    value: Float[Tensor, " decision"],
    bootstrap_value: Float[Tensor, " segment"],
    lengths: Int[Tensor, " segment"],
    terminal: Bool[Tensor, " segment"],
    log_ratio: Float[Tensor, " decision"],
    discount: float,
    trace: float,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> VTrace:
    r"""V-trace (arXiv 1802.01561, eq. 1, with the trace of its remark 2).

    $v_t - V_t = \rho_t \delta_t + \gamma c_t (v_{t+1} - V_{t+1})$ with $\delta_t = r_t + \gamma V_{t+1} - V_t$,
    $\rho_t = \min(\bar\rho, \pi/\mu)$ and $c_t = \lambda \min(\bar c, \pi/\mu)$. The advantage is
    $r_t + \gamma (\lambda v_{t+1} + (1 - \lambda) V_{t+1}) - V_t$: the paper's where $\lambda = 1$, and on-policy
    always `gae`'s, whose target is also $v_t$ then. For the paper's policy gradient, give it to `objectives.tis` with
    the cap $\bar\rho$ on the chunk's ratio.

    The arguments are `gae`'s, and these:

    Args:
        log_ratio: log pi - log mu of each decision, summed over its executed tokens; carries no gradient from here.
        rho_bar: bounds the ratio in the temporal difference; it decides whose values these are: mu's near 0, pi's at
            inf.
        c_bar: bounds the ratio in the trace, at most `rho_bar` in the paper; it decides how fast and noisy they are.
    """
    reward, value = reward.float(), value.float()
    beyond = torch.where(terminal, 0.0, bootstrap_value.float())
    ratio = torch.exp(log_ratio.detach().float().clamp(max=LOG_RATIO_CEILING))
    next_value = following(value, beyond, lengths)
    delta = reward + discount * next_value - value
    correction = accumulate_backwards(
        ratio.clamp(max=rho_bar) * delta, discount * trace * ratio.clamp(max=c_bar), lengths
    )
    advantage = delta + discount * trace * following(correction, torch.zeros_like(beyond), lengths)
    return VTrace(value + correction, advantage)
