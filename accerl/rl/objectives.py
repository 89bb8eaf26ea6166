r"""Policy objectives on log-ratios: one function each, all in log space, averaged over the valid tokens.

Every function takes `log_ratio` $l = \log\rho = \log\pi(a) - \log\mu(a)$, which carries the gradient, the `advantage` A
of the decision (broadcast over its tokens) and `mask`. It returns the loss and each token's effective weight u, where
the loss has the gradient of -u A log pi; `accerl.rl.diagnostics` reads u. At rho = 1 it is 1, unless a proximal policy
says otherwise.

    importance_sampling   rho                                                   unbounded
    gipo                  rho exp(-l²/2σ²), or another kernel                   exp(σ²/2); the others: see there
    tis                   min(rho, cap)                                         cap
    mis                   rho where low <= rho <= high, else 0                  high
    cispo                 clip(rho, 1 - low, 1 + high)                          1 + high
    sapo                  4 p (1 - p) rho, p = sigmoid(tau (rho - 1))           4 exp(tau - 1) / tau
    ppo                   rho, or 0 where the clip binds                        1 + clip for A > 0, else unbounded
    dual_clip_ppo         the same, and 0 for A < 0 where rho > dual_clip       the larger of 1 + clip and dual_clip
    decoupled_ppo         rho, or 0 where the clip of pi/pi_prox binds          unbounded

No weight exceeds exp(20), whatever its bound: see `LOG_RATIO_CEILING`. Where an equation gives only a gradient, the
loss has the value -E[u A]. Ratios of whole actions or chunks are made by `accerl.rl.granularity`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_CEILING = 20.0
"""No weight exceeds exp(20) = 4.9e8, so that a single token cannot make a loss or a gradient norm overflow.

The gradient does not vanish there: the weight saturates.
"""

Kernel: TypeAlias = Literal["gaussian", "laplace", "cauchy"]


class Objective(NamedTuple):
    """A loss and the weight with which each token's gradient enters it."""

    loss: Float[Tensor, ""]
    weight: Float[Tensor, "decision token"]
    """u; 0 where the token is masked."""


def masked_mean(values: Float[Tensor, "decision token"], mask: Bool[Tensor, "decision token"]) -> Float[Tensor, ""]:
    """Mean over the tokens where `mask` holds; 0 if there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def importance_sampling(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
) -> Objective:
    r"""Plain importance sampling: $L = -E[\rho A]$, unbiased and unbounded (see `LOG_RATIO_CEILING`)."""
    log_ratio = _valid(log_ratio, mask)
    return _objective(log_ratio, log_ratio, advantage, mask)


def gipo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    sigma: float,
    sigma_negative: float | None = None,
    kernel: Kernel = "gaussian",
) -> Objective:
    r"""GIPO: $L = -E[w(\mathrm{sg}(\rho))\, \rho\, A]$ with $w = \exp(-l^2 / 2\sigma^2)$ (arXiv 2603.03955, eq. 8-9).

    The weight is $u = w\rho$. `gaussian` is the paper's kernel: u is at most $\exp(\sigma^2/2)$, where
    $\rho = \exp(\sigma^2)$. The other two are for comparison and have heavier tails:

    - `laplace`, $w = \exp(-|l|/\sigma)$: u is at most 1 if $\sigma \le 1$, otherwise it grows without bound;
    - `cauchy`, $w = 1 / (1 + l^2/\sigma^2)$: u grows without bound for every $\sigma$.

    Args:
        sigma: width of the kernel in log-ratio; inf: plain importance sampling.
        sigma_negative: the same where the advantage is negative; none: `sigma`.
    """
    log_ratio = _valid(log_ratio, mask)
    fixed = log_ratio.detach()
    width = sigma if sigma_negative is None else torch.where(advantage[:, None] < 0, sigma_negative, sigma)
    match kernel:
        case "gaussian":
            log_trust = -fixed.square() / (2 * width**2)
        case "laplace":
            log_trust = -fixed.abs() / width
        case "cauchy":
            log_trust = -torch.log1p((fixed / width).square())
    return _objective(log_ratio, fixed + log_trust, advantage, mask)


def tis(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    cap: float,
) -> Objective:
    r"""Truncated importance sampling: the gradient of $-E[\mathrm{sg}(\min(\rho, c))\, A \log\pi]$.

    The truncation is Ionides' (2008); Yao et al., "Your efficient RL framework secretly brings you off-policy RL
    training" (2025), use it against policies that differ between sampling and training.
    """
    log_ratio = _valid(log_ratio, mask)
    return _objective(log_ratio, log_ratio.clamp(max=math.log(cap)), advantage, mask)


def mis(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    low: float,
    high: float,
) -> Objective:
    r"""Masked importance sampling: $L = -E[\rho\, 1(a \le \rho \le b)\, A]$: a token outside contributes nothing.

    It is still counted in the mean, so the loss does not depend on how a batch is split; slime and others divide by the
    tokens that are left. The mask is that of Liu, Li et al., "When speed kills stability" (2025).

    Args:
        low: a, in [0, 1].
        high: b, at least 1.
    """
    log_ratio = _valid(log_ratio, mask)
    inside = (log_ratio >= _log(low)) & (log_ratio <= _log(high))
    return _objective(log_ratio, torch.where(inside, log_ratio, -math.inf), advantage, mask)


def cispo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    clip_high: float,
    clip_low: float = 1.0,
) -> Objective:
    r"""CISPO: the gradient of $-E[\mathrm{sg}(\mathrm{clip}(\rho, 1-a, 1+b))\, A \log\pi]$ (arXiv 2506.13585, eq. 4-5).

    The weight is clipped, not the update, so no token loses its gradient. Without a lower clip, as in the paper's
    experiments, it is `tis` with the cap 1 + b.

    Args:
        clip_high: b.
        clip_low: a; 1: no lower clip.
    """
    log_ratio = _valid(log_ratio, mask)
    clipped = log_ratio.clamp(min=_log(1 - clip_low), max=math.log1p(clip_high))
    return _objective(log_ratio, clipped, advantage, mask)


def sapo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    temperature: float = 1.0,
    temperature_negative: float = 1.05,
) -> Objective:
    r"""SAPO: $L = -E[\frac{4}{\tau}\, \mathrm{sigmoid}(\tau(\rho - 1))\, A]$, a soft clip (arXiv 2511.20347).

    The weight is $u = 4p(1-p)\rho$ with p the sigmoid; the factor $4/\tau$ makes it 1 at $\rho = 1$ (where the loss is
    $-2A/\tau$). It falls like $\rho\,e^{-\tau\rho}$ and is below $4 e^{\tau-1}/\tau$.

    Args:
        temperature: tau where the advantage is positive.
        temperature_negative: tau elsewhere; the paper has it larger, because such updates raise many other tokens.
    """
    log_ratio = _valid(log_ratio, mask)
    fixed = log_ratio.detach()
    tau = torch.where(advantage[:, None] > 0, temperature, temperature_negative)
    gate = tau * torch.expm1(fixed)  # may be infinite: then it is shut, and its logarithm is -inf
    log_sigmoid = F.logsigmoid(gate)
    log_weight = math.log(4) + log_sigmoid + F.logsigmoid(-gate) + fixed
    return _objective(log_ratio, log_weight, advantage, mask, log_value=log_sigmoid + math.log(4) - torch.log(tau))


def ppo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    clip: float,
    clip_high: float | None = None,
) -> Objective:
    r"""PPO: $L = -E[\min(\rho A, \mathrm{clip}(\rho, 1-a, 1+b) A)]$ (arXiv 1707.06347, eq. 7).

    Nothing bounds it where A < 0 and $\rho$ is large; `dual_clip_ppo` does.

    Args:
        clip: a, and b too if `clip_high` is not given.
        clip_high: b, if it differs ("clip-higher", arXiv 2503.14476, eq. 10).
    """
    log_ratio = _valid(log_ratio, mask)
    ratio = log_ratio.detach()
    return _clipped_objective(log_ratio, ratio, _clip(ratio, advantage, clip, clip_high), advantage, mask)


def dual_clip_ppo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    clip: float,
    clip_high: float | None = None,
    dual_clip: float = 3.0,
) -> Objective:
    r"""Dual-clip PPO: where A < 0, $L = -E[\max(\min(\rho A, \mathrm{clip}(\rho) A), cA)]$ (arXiv 1912.09729, eq. 5).

    Elsewhere it is `ppo`.

    Args:
        dual_clip: c, greater than 1 + `clip_high`; 3 in the paper.
    """
    log_ratio = _valid(log_ratio, mask)
    ratio = log_ratio.detach()
    clipped = _clip(ratio, advantage, clip, clip_high)
    clipped = torch.where(advantage[:, None] > 0, clipped, clipped.clamp(max=math.log(dual_clip)))
    return _clipped_objective(log_ratio, ratio, clipped, advantage, mask)


def decoupled_ppo(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    proximal_log_ratio: Float[Tensor, "decision token"],
    clip: float,
    clip_high: float | None = None,
    weight_cap: float = math.inf,
) -> Objective:
    r"""Decoupled PPO: $L = -E[\frac{\pi'}{\mu} \min(rA, \mathrm{clip}(r, 1-a, 1+b) A)]$ with $r = \pi/\pi'$.

    The proximal policy $\pi'$ bounds the update, the behaviour policy $\mu$ only corrects for where the data came from
    (arXiv 2110.00641, section 3; for asynchronous training arXiv 2505.24298). With $\pi' = \mu$ it is `ppo`; with
    $\pi' = \pi$, as for one update a batch and an exact $\pi'$, the clip never binds.

    Args:
        proximal_log_ratio: log pi' - log mu, a constant: from a forward pass before the update, or from
            `interpolated_proximal`.
        clip: a, and b too if `clip_high` is not given.
        weight_cap: largest $\pi'/\mu$, truncated as in `tis`; AReaL drops the tokens above its cap instead.
    """
    log_ratio = _valid(log_ratio, mask)
    proximal = _valid(proximal_log_ratio, mask).detach()
    moved = log_ratio.detach() - proximal
    clipped = _clip(moved, advantage, clip, clip_high)
    correction = proximal.clamp(max=math.log(weight_cap))
    return _clipped_objective(log_ratio, moved, clipped, advantage, mask, correction)


def interpolated_proximal(
    log_prob: Float[Tensor, "decision token"],
    behaviour_log_prob: Float[Tensor, "decision token"],
    policy_lag: Int[Tensor, " decision"],
) -> Float[Tensor, "decision token"]:
    r"""The `proximal_log_ratio` of `decoupled_ppo` without a forward pass.

    $\log\pi' = \frac1d \log\mu + (1 - \frac1d) \log\pi$ with d = max(lag, 1): the policy one version before the newest,
    as if each version since the one that acted had moved the log-probability by the same amount (A-3PO, arXiv
    2512.06547; `loglinear` in AReaL). So $\pi/\pi' = \rho^{1/d}$: the older a decision is, the later the clip binds. It
    carries no gradient.
    """
    share = 1 - 1 / policy_lag.clamp(min=1)
    return share[:, None] * (_wide(log_prob.detach()) - _wide(behaviour_log_prob))


def reference_kl(
    log_prob: Float[Tensor, "decision token"],
    reference_log_prob: Float[Tensor, "decision token"],
    mask: Bool[Tensor, "decision token"],
) -> Float[Tensor, ""]:
    r"""$KL(\pi \| \pi_0)$ from (nearly on-policy) samples: the mean of $r - 1 - \log r$ with $r = \pi_0 / \pi$.

    Never negative; the estimator that Schulman calls k3.
    """
    return masked_mean(k3(_valid(reference_log_prob - log_prob, mask)), mask)


def behaviour_kl(log_ratio: Float[Tensor, "decision token"], mask: Bool[Tensor, "decision token"]) -> Float[Tensor, ""]:
    r"""$KL(\mu \| \pi)$ from samples of $\mu$: the mean of $\rho - 1 - l$, unbiased and never negative."""
    return masked_mean(k3(_valid(log_ratio, mask)), mask)


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""$\rho - 1 - l$, with its tangent in place of $\rho$ above `LOG_RATIO_CEILING`: finite, convex, never flat."""
    beyond = log_ratio > LOG_RATIO_CEILING
    inside = torch.where(beyond, 0.0, log_ratio)
    tangent = math.exp(LOG_RATIO_CEILING) * (1 + log_ratio - LOG_RATIO_CEILING) - 1 - log_ratio
    return torch.where(beyond, tangent, torch.expm1(inside) - inside)


def _objective(
    log_ratio: Float[Tensor, "decision token"],
    log_weight: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    log_value: Float[Tensor, "decision token"] | None = None,
) -> Objective:
    """The loss with the gradient of -u A log pi and the value -value A; the value is u if it is not given."""
    weight = torch.where(mask, torch.exp(log_weight.detach().clamp(max=LOG_RATIO_CEILING)), 0.0)
    value = weight if log_value is None else torch.exp(log_value.detach().clamp(max=LOG_RATIO_CEILING))
    surrogate = value + weight * (log_ratio - log_ratio.detach())  # the difference is 0 and has the gradient of log pi
    return Objective(-masked_mean(surrogate * advantage[:, None], mask), weight)


def _clipped_objective(
    log_ratio: Float[Tensor, "decision token"],
    moved: Float[Tensor, "decision token"],
    clipped: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    correction: Float[Tensor, "decision token"] | float = 0.0,
) -> Objective:
    """Without a gradient where the clip has changed `moved`, the log-ratio that it bounds."""
    log_weight = torch.where(clipped == moved, correction + moved, -math.inf)
    return _objective(log_ratio, log_weight, advantage, mask, log_value=correction + clipped)


def _clip(
    log_ratio: Float[Tensor, "decision token"], advantage: Float[Tensor, " decision"], clip: float, high: float | None
) -> Float[Tensor, "decision token"]:
    """The log-ratio that PPO's minimum lets through: bounded above where A > 0 and below elsewhere."""
    above, below = math.log1p(clip if high is None else high), _log(1 - clip)
    return torch.where(advantage[:, None] > 0, log_ratio.clamp(max=above), log_ratio.clamp(min=below))


def _valid(log_ratio: Float[Tensor, "decision token"], mask: Bool[Tensor, "decision token"]) -> Tensor:
    """In float32 at least, and 0 at masked tokens, so that nothing which stands there reaches a gradient."""
    return torch.where(mask, _wide(log_ratio), 0.0)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
