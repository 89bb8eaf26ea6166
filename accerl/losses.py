"""The loss of a part of a global batch (paper eq. 10), and what to log of it.

log-probs ─► log-ratios ─► granularity ─► objective ──┐
values ───► value loss ───────────────────────────────┼─► sum over the decisions
entropy, KL to the behaviour and to the reference ────┘
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accerl import kernels
from accerl.config import ObjectiveConfig
from accerl.rl import objectives
from accerl.rl.diagnostics import explained_variance, token_diagnostics
from accerl.rl.granularity import at_granularity
from accerl.types import Batch, Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the global batch with its advantages, and its forward pass, which gradients go through."""

    batch: Batch
    evaluation: Evaluation
    target: Float[Tensor, " decision"]
    """Of the values."""
    advantage: Float[Tensor, " decision"]
    """Normalised."""
    policy_lag: Int[Tensor, " decision"]
    """Versions between each decision and the parameters."""
    reference_log_prob: Float[Tensor, "decision token"] | None = None
    """Of the frozen policy, where `objective.reference_kl` wants it."""
    proximal_log_prob: Float[Tensor, "decision token"] | None = None
    """Of the snapshot, where decoupled PPO clips around one."""


def total_loss(part: Part, config: ObjectiveConfig) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Summed over the decisions of the part, a shortened one for its share, with the mean over the tokens of each."""
    batch, evaluation = part.batch, part.evaluation
    log_prob = evaluation.log_prob
    behaviour, mask = batch.log_prob.to(log_prob.device), batch.mask.to(log_prob.device)
    advantage = torch.where(part.advantage < 0, config.negative_scale * part.advantage, part.advantage)
    if config.granularity == "token" and config.kind != "decoupled_ppo":
        first_loss, diagnostics = policy_loss(log_prob, behaviour, advantage, mask, config)
    else:
        log_ratio = at_granularity(log_prob - behaviour, mask, batch.chunk_length, config.granularity)
        proximal = _proximal_log_ratio(part, config) if config.kind == "decoupled_ppo" else None
        first_loss, diagnostics = _observed(log_ratio, advantage, mask, config, proximal)
    zero = log_prob.new_zeros(())
    kl = objectives.behaviour_kl(log_prob - behaviour, mask) if config.behaviour_kl else zero
    reference_kl = zero
    if part.reference_log_prob is not None:
        reference_kl = objectives.reference_kl(evaluation.log_prob, part.reference_log_prob, mask)
    entropy = objectives.masked_mean(evaluation.entropy, mask)
    value_loss = _value_loss(evaluation.value, part.target, config)
    policy_terms = (
        first_loss
        + config.behaviour_kl * kl
        + config.reference_kl * reference_kl
        - config.entropy_coefficient * entropy
    )
    executed = mask.sum() / mask.shape[1]
    loss = executed * policy_terms + batch.num_decisions * config.value_coefficient * value_loss
    return loss, {
        "value_loss": value_loss.item(),
        "reference_kl": reference_kl.item(),
        "entropy": entropy.item(),
        "explained_variance": explained_variance(evaluation.value.detach(), part.target),
        "value_mean": evaluation.value.mean().item(),
        **diagnostics,
    }


def policy_loss(
    log_prob: Float[Tensor, "decision token"],
    behaviour_log_prob: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    config: ObjectiveConfig,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The objective on the ratios of tokens, and what to log of it; not for `decoupled_ppo`."""
    if kernel := kernels.find("policy_loss", log_prob):
        return kernel(log_prob, behaviour_log_prob, advantage, mask, config)
    return _observed(log_prob - behaviour_log_prob, advantage, mask, config)


def _observed(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    config: ObjectiveConfig,
    proximal_log_ratio: Float[Tensor, "decision token"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    objective = policy_objective(log_ratio, advantage, mask, config, proximal_log_ratio)
    seen = token_diagnostics(log_ratio, objective.weight, mask)
    return objective.loss, {"policy_loss": objective.loss.item(), **seen}


def policy_objective(
    log_ratio: Float[Tensor, "decision token"],
    advantage: Float[Tensor, " decision"],
    mask: Bool[Tensor, "decision token"],
    config: ObjectiveConfig,
    proximal_log_ratio: Float[Tensor, "decision token"] | None = None,
) -> objectives.Objective:
    """The configured one of `accerl.rl.objectives`; `decoupled_ppo` alone has a proximal policy."""
    match config.kind:
        case "gipo":
            kernel = config.kernel
            return objectives.gipo(log_ratio, advantage, mask, config.sigma, config.sigma_negative, kernel)
        case "ppo":
            return objectives.ppo(log_ratio, advantage, mask, config.clip, config.clip_high)
        case "dual_clip_ppo":
            bounds = config.clip, config.clip_high, config.dual_clip
            return objectives.dual_clip_ppo(log_ratio, advantage, mask, *bounds)
        case "decoupled_ppo":
            assert proximal_log_ratio is not None, "decoupled PPO clips around a policy"
            bounds = config.clip, config.clip_high, config.weight_cap
            return objectives.decoupled_ppo(log_ratio, advantage, mask, proximal_log_ratio, *bounds)
        case "importance_sampling":
            return objectives.importance_sampling(log_ratio, advantage, mask)
        case "tis":
            return objectives.tis(log_ratio, advantage, mask, config.weight_cap)
        case "mis":
            return objectives.mis(log_ratio, advantage, mask, *config.ratio_range)
        case "cispo":
            high = config.clip if config.clip_high is None else config.clip_high
            return objectives.cispo(log_ratio, advantage, mask, high)
        case "sapo":
            return objectives.sapo(log_ratio, advantage, mask, config.temperature, config.temperature_negative)


def _proximal_log_ratio(part: Part, config: ObjectiveConfig) -> Float[Tensor, "decision token"]:
    batch, log_prob = part.batch, part.evaluation.log_prob.detach()
    behaviour, mask = batch.log_prob.to(log_prob.device), batch.mask.to(log_prob.device)
    if part.proximal_log_prob is not None:
        log_ratio = part.proximal_log_prob - behaviour
    else:
        log_ratio = objectives.interpolated_proximal(log_prob, behaviour, part.policy_lag.to(log_prob.device))
    return at_granularity(log_ratio, mask, batch.chunk_length, config.granularity)


def _value_loss(value: Tensor, target: Tensor, config: ObjectiveConfig) -> Float[Tensor, ""]:
    if config.value_loss == "bce":
        return F.binary_cross_entropy(value, target.clamp(0, 1))
    return F.mse_loss(value, target)
