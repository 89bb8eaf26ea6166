"""Policy objectives on log-ratios: one function each, all in log space, averaged over the valid tokens.

Every function takes `log_ratio` l = log pi(a) - log mu(a), which carries the gradient, the `advantage` of the decision
(broadcast over its tokens) and `mask`; it returns the loss and each token's effective weight u, where the loss has the
gradient of -u A log pi. `accerl.rl.diagnostics` reads u.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Objective(NamedTuple):
    """A loss and the weight with which each token's gradient enters it."""

    loss: Float[Tensor, ""]
    weight: Float[Tensor, "decision token"]


def masked_mean(values: Float[Tensor, "decision token"], mask: Bool[Tensor, "decision token"]) -> Float[Tensor, ""]:
    """Mean over the tokens where `mask` holds; 0 if there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def gipo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    sigma: float,
) -> Objective:
    r"""GIPO: $L = -E[w(\mathrm{sg}(\rho))\, \rho\, A]$ with $w = \exp(-l^2 / 2\sigma^2)$ (arXiv 2603.03955, eq. 8-9).

    The weight is formed in log space, $u = \exp(l - l^2 / 2\sigma^2)$: at most $\exp(\sigma^2/2)$, never NaN. An
    infinite `sigma` is plain importance sampling.
    """
    fixed = log_ratio.detach()
    trust = torch.zeros_like(fixed) if math.isinf(sigma) else fixed.square() / (2 * sigma**2)
    weight = torch.exp(fixed - trust)
    surrogate = weight * torch.exp(log_ratio - fixed)  # its value is u, its gradient u times that of log pi
    return Objective(-masked_mean(surrogate * advantage[:, None], mask), weight)


def ppo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    clip: float,
) -> Objective:
    r"""PPO: $L = -E[\min(\rho A, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A)]$ (arXiv 1707.06347, eq. 7)."""
    ratio = torch.exp(log_ratio)
    factor = advantage[:, None]
    surrogate = torch.minimum(ratio * factor, ratio.clamp(1 - clip, 1 + clip) * factor)
    clipped = torch.where(factor > 0, ratio > 1 + clip, ratio < 1 - clip)
    return Objective(-masked_mean(surrogate, mask), torch.where(clipped, 0.0, ratio).detach())


def reference_kl(
    log_prob: Float[Tensor, "decision token"],
    reference_log_prob: Float[Tensor, "decision token"],
    mask: Bool[Tensor, "decision token"],
) -> Float[Tensor, ""]:
    r"""$KL(\pi \| \pi_0)$ from (nearly on-policy) samples: the mean of $r - 1 - \log r$ with $r = \pi_0 / \pi$.

    Never negative; the estimator that Schulman calls k3.
    """
    log_ratio = reference_log_prob - log_prob
    return masked_mean(torch.expm1(log_ratio) - log_ratio, mask)


def behaviour_kl(log_ratio: Float[Tensor, "decision token"], mask: Bool[Tensor, "decision token"]) -> Float[Tensor, ""]:
    r"""$KL(\mu \| \pi)$ from samples of $\mu$: the mean of $\rho - 1 - l$, unbiased and never negative."""
    return masked_mean(torch.expm1(log_ratio) - log_ratio, mask)
