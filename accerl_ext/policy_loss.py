"""Policy loss and diagnostics from log-probs, in one pass, on a GPU: twin of `accerl.losses.policy_loss`.

On a CPU there is nothing to win (docs/kernels.md) and the twin is used; on a GPU the twin is some forty launches, and
each number that is logged is waited for by itself. Ratios of tokens only; a proximal policy stays with the twin.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from accerl.config import ObjectiveConfig


class Form(NamedTuple):
    """An objective of `accerl.rl.objectives` as the kernel takes it."""

    shape: str
    first: float
    second: float
    third: float = 0.0


def policy_loss(
    log_prob: Float[Tensor, "decision token"],
    behaviour_log_prob: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    config: ObjectiveConfig,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """As `accerl.losses.policy_loss`, in float32."""
    statistics, _, distance = _policy_loss(log_prob, behaviour_log_prob, advantage, mask, *form_of(config))
    return statistics[0], logged(statistics.detach(), distance)


def form_of(config: ObjectiveConfig) -> Form:
    """Shape and numbers.

    Raises:
        ValueError: the twin has to do it.
    """
    high = config.clip if config.clip_high is None else config.clip_high
    below, above = math.log1p(-config.clip), math.log1p(high)
    match config.kind:
        case "gipo":
            negative = config.sigma if config.sigma_negative is None else config.sigma_negative
            return Form(config.kernel, config.sigma, negative)
        case "ppo":
            return Form("clip", below, above, math.inf)
        case "dual_clip_ppo":
            return Form("clip", below, above, math.log(config.dual_clip))
        case "importance_sampling":
            return Form("clamp", -math.inf, math.inf)
        case "tis":
            return Form("clamp", -math.inf, math.log(config.weight_cap))
        case "cispo":
            return Form("clamp", -math.inf, above)
        case "mis":
            low, top = config.ratio_range
            return Form("inside", math.log(low) if low > 0 else -math.inf, math.log(top))
        case "sapo":
            return Form("gate", config.temperature, config.temperature_negative)
        case "decoupled_ppo":
            raise ValueError("objective.kind: decoupled_ppo has a third policy, which the kernel does not take")


def logged(statistics: Tensor, distance: Tensor) -> dict[str, float]:
    """What the twin logs; waits for the device once."""
    valid = statistics[7]
    rank = torch.ceil(0.95 * valid.double()).long().clamp(min=1)
    ordered = distance.flatten().sort().values  # the masked ones, -1, come first
    place = (ordered.numel() - valid.long() + rank - 1).clamp(0, max(0, ordered.numel() - 1))
    quantile = ordered[place] if ordered.numel() else statistics[6]
    loss, _, kl, mean, effective, dead, farthest, tokens, p95 = torch.cat([statistics, quantile[None]]).tolist()
    if not tokens:
        return {"policy_loss": 0.0}
    return {
        "policy_loss": loss,
        "abs_log_ratio_p95": p95,
        "abs_log_ratio_max": farthest,
        "behaviour_kl": kl,
        "weight_mean": mean,
        "effective_sample_size": effective,
        "dead_fraction": dead,
    }


@torch.library.custom_op("accerl::policy_loss", mutates_args=(), device_types="cuda")
def _policy_loss(
    log_prob: Tensor,
    behaviour_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    shape: str,
    first: float,
    second: float,
    third: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics, whose first is the loss; the gradient of the summed loss by each log-prob; distances."""
    from accerl_ext.gpu import policy_loss as gpu

    return gpu.forward(log_prob, behaviour_log_prob, advantage, mask, shape, first, second, third)


@_policy_loss.register_fake
def _(log_prob: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    slope, distance = (log_prob.new_empty(log_prob.shape, dtype=torch.float32) for _ in range(2))
    return log_prob.new_empty(8, dtype=torch.float32), slope, distance


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    statistics, slope, distance = output
    ctx.save_for_backward(statistics, slope)
    ctx.dtype = inputs[0].dtype
    ctx.mark_non_differentiable(slope, distance)


def _differentiate(ctx: Any, grad_statistics: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Of the loss alone: the other statistics are for looking at."""
    statistics, slope = ctx.saved_tensors
    grad = (grad_statistics[0] * statistics[1]) * slope
    return grad.to(ctx.dtype), *(None,) * 7


_policy_loss.register_autograd(_differentiate, setup_context=_remember)
