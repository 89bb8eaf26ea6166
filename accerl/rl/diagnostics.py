"""What to look at in every update, whatever the objective: cheap functions of log-ratios and weights."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accerl.metrics import LAG_BINS
from accerl.rl.objectives import k3

DEAD_WEIGHT = 1e-3
"""A token whose weight is below this has no gradient to speak of."""


def token_diagnostics(
    log_ratio: Float[Tensor, "decision token"],
    weight: Float[Tensor, "decision token"],
    mask: Bool[Tensor, "decision token"],
) -> dict[str, float]:
    r"""Over the valid tokens: |log rho| p95 and maximum, KL(mu || pi), and of the weights u the mean, the effective
    sample size and the dead fraction (clipped, or trusted less than `DEAD_WEIGHT`).

    The effective sample size is $(\sum u)^2 / (N \sum u^2)$, in (0, 1].
    """
    ratios, weights = log_ratio.detach()[mask].float(), weight[mask]
    if not len(ratios):
        return {}
    distance = ratios.abs()
    squares = weights.square().sum()
    return {
        "abs_log_ratio_p95": quantile(distance, 0.95),
        "abs_log_ratio_max": distance.max().item(),
        "behaviour_kl": k3(ratios).mean().item(),
        "weight_mean": weights.mean().item(),
        "effective_sample_size": (weights.sum().square() / (len(weights) * squares.clamp(min=1e-30))).item(),
        "dead_fraction": (weights < DEAD_WEIGHT).float().mean().item(),
    }


def lag_diagnostics(policy_lag: Int[Tensor, " decision"]) -> dict[str, float]:
    """How many versions old the decisions are: mean, p95 and maximum, and which share of them is in each bin."""
    if not len(policy_lag):
        return {}
    lag = policy_lag.float()
    edges = torch.tensor(LAG_BINS[1:], device=lag.device)
    counts = torch.bincount(torch.bucketize(lag, edges, right=True), minlength=len(LAG_BINS))
    shares = (counts / len(lag)).tolist()
    return {
        **{f"policy_lag_share_{low}": share for low, share in zip(LAG_BINS, shares, strict=True)},
        "policy_lag_mean": lag.mean().item(),
        "policy_lag_p95": quantile(lag, 0.95),
        "policy_lag_max": lag.max().item(),
    }


def explained_variance(value: Float[Tensor, " decision"], target: Float[Tensor, " decision"]) -> float:
    """1 - Var(target - value) / Var(target); 0 where the target does not vary."""
    variance = target.var(correction=0)
    if variance < 1e-12:
        return 0.0
    return (1 - (target - value).var(correction=0) / variance).item()


def quantile(values: Float[Tensor, " n"], q: float) -> float:
    """The nearest-rank quantile; works on any number of values, which torch.quantile does not."""
    rank = max(1, math.ceil(q * len(values)))
    return values.kthvalue(rank).values.item()
