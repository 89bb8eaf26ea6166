"""The training role: values recomputed, advantages normalised, one optimizer step a batch.

    Batch ─► micro-batches of whole segments ─► values ─► GAE ─► normalisation ─► objective ─► gradients ─► step

Plain torch on one device. Gradients are weighted by tokens, so the result does not depend on how a batch is split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.protocols import Policy
from accerl.rl import objectives
from accerl.rl.diagnostics import explained_variance, token_diagnostics
from accerl.rl.gae import gae
from accerl.rl.normalization import Moments, moments, normalize
from accerl.types import Batch, Evaluation, ObservationBatch, Weights


class Learner:
    """Owns the parameters that train.

    Args:
        reference: the frozen policy that `objective.reference_kl` holds on to.

    `updates` counts its optimizer steps. `version` names the parameters and rises with each step; a learner that was
    restarted goes on above every version that is already in use.
    """

    def __init__(
        self, policy: Policy, learner: LearnerConfig, objective: ObjectiveConfig, reference: Policy | None = None
    ):
        self.policy = policy.to(learner.device).train()
        self._reference = None if reference is None else reference.to(learner.device).train(False)
        self.version = 0
        self.updates = 0
        self._config = learner
        self._objective = objective
        self._policy_parameters = list(policy.policy_parameters())
        self._value_parameters = list(policy.value_parameters())
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._policy_parameters, "lr": 0.0},
                {"params": self._value_parameters, "lr": 0.0},
            ],
            betas=learner.betas,
            weight_decay=learner.weight_decay,
        )
        self._last_moments: Moments | None = None

    def update(self, batch: Batch, progress: float = 0.0) -> dict[str, float]:
        """One optimizer step on one global batch; returns what to log.

        Args:
            progress: share of the run's budget that is spent, in [0, 1]; the learning rates follow it.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        policy_lr, value_lr = self._learning_rates(progress)
        lag = (self.version - batch.policy_version).float()
        parts = [self._accumulate(micro, batch) for micro in self._advantages(batch)]
        metrics = _weighted_mean(parts)
        metrics["grad_norm"] = self._clip(self._policy_parameters)
        metrics["value_grad_norm"] = self._clip(self._value_parameters)
        for group, rate in zip(self._optimizer.param_groups, (policy_lr, value_lr), strict=True):
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.version += 1
        self.updates += 1
        return metrics | {
            "policy_lr": policy_lr,
            "batch_decisions": float(batch.num_decisions),
            "policy_lag_mean": lag.mean().item(),
            "policy_lag_max": lag.max().item(),
        }

    def configure(self, learner: LearnerConfig, objective: ObjectiveConfig) -> None:
        """Use other settings from the next update on."""
        self._config, self._objective = learner, objective

    def weights(self) -> Weights:
        """The present parameters, copied to the CPU."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.policy.state_dict().items()}
        return Weights(version=self.version, tensors=tensors)

    def state_dict(self) -> dict[str, Any]:
        """Everything `update` depends on but the policy's own parameters."""
        return {
            "version": self.version,
            "updates": self.updates,
            "optimizer": self._optimizer.state_dict(),
            "moments": None if self._last_moments is None else [float(value) for value in self._last_moments],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version, self.updates = state["version"], state["updates"]
        self._optimizer.load_state_dict(state["optimizer"])
        last = state["moments"]
        self._last_moments = None if last is None else Moments(*torch.tensor(last, dtype=torch.float64))

    def _learning_rates(self, progress: float) -> tuple[float, float]:
        config = self._config
        low = config.final_lr_fraction
        decay = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        trained = self.updates - config.value_warmup_updates
        warmup = 0.0 if trained < 0 else min(1.0, (trained + 1) / max(1, config.warmup_updates))
        return config.policy_lr * decay * warmup, config.value_lr * decay

    def _advantages(self, batch: Batch) -> Iterator[_MicroBatch]:
        """The batch in micro-batches, each with its advantages and, where gradients go through it, its forward pass."""
        micros = list(split(batch, self._config.micro_batch_decisions))
        if self._config.recompute == "fused":
            statistics = self._last_moments
            seen: list[Moments] = []
            for micro in micros:
                evaluation = self._evaluate(micro)
                raw = self._gae(micro, evaluation.value.detach())
                seen.append(moments(raw))
                scaled = self._normalize(raw, statistics or _total(seen))
                yield _MicroBatch(micro, evaluation, raw + evaluation.value.detach(), scaled)
            self._last_moments = _total(seen)
            return
        values = [self._values(micro) for micro in micros]
        raws = [self._gae(micro, value) for micro, value in zip(micros, values, strict=True)]
        statistics = _total([moments(raw) for raw in raws])
        for micro, value, raw in zip(micros, values, raws, strict=True):
            yield _MicroBatch(micro, self._evaluate(micro), raw + value, self._normalize(raw, statistics))

    def _accumulate(self, part: _MicroBatch, whole: Batch) -> tuple[float, dict[str, float]]:
        batch, evaluation, target, advantage = part
        config = self._objective
        device = evaluation.log_prob.device
        mask = batch.mask.to(device)
        log_ratio = evaluation.log_prob - batch.log_prob.to(device)
        scaled = torch.where(advantage < 0, config.negative_scale * advantage, advantage)
        if config.kind == "gipo":
            objective = objectives.gipo(log_ratio, scaled, mask, config.sigma)
        else:
            objective = objectives.ppo(log_ratio, scaled, mask, config.clip)
        kl = objectives.behaviour_kl(log_ratio, mask) if config.behaviour_kl else log_ratio.new_zeros(())
        reference_kl = self._reference_kl(batch, evaluation.log_prob, mask)
        entropy = objectives.masked_mean(evaluation.entropy, mask)
        value_loss = self._value_loss(evaluation.value, target)
        policy_loss = (
            objective.loss
            + config.behaviour_kl * kl
            + config.reference_kl * reference_kl
            - config.entropy_coefficient * entropy
        )

        token_share = (mask.sum() / whole.mask.sum()).item()
        decision_share = batch.num_decisions / whole.num_decisions
        (token_share * policy_loss + decision_share * config.value_coefficient * value_loss).backward()
        return decision_share, {
            "policy_loss": objective.loss.item(),
            "value_loss": value_loss.item(),
            "reference_kl": reference_kl.item(),
            "entropy": entropy.item(),
            "explained_variance": explained_variance(evaluation.value.detach(), target),
            "value_mean": evaluation.value.mean().item(),
            **token_diagnostics(log_ratio, objective.weight, mask),
        }

    def _reference_kl(self, batch: Batch, log_prob: Tensor, mask: Tensor) -> Tensor:
        if self._reference is None or not self._objective.reference_kl:
            return log_prob.new_zeros(())
        with torch.no_grad():
            reference = self._reference.evaluate(batch.observations[: batch.num_decisions], batch.blob)
        return objectives.reference_kl(log_prob, reference.log_prob, mask)

    def _evaluate(self, batch: Batch) -> Evaluation:
        return self.policy.evaluate(batch.observations[: batch.num_decisions], batch.blob)

    def _values(self, batch: Batch) -> Tensor:
        if self._config.recompute == "off":
            return batch.behaviour_value.to(self._config.device)
        with torch.no_grad():
            return self.policy.value(batch.observations[: batch.num_decisions])

    def _gae(self, batch: Batch, value: Tensor) -> Tensor:
        """Advantages with the newest critic beyond the last decision of a segment, whose value nobody stored."""
        bootstrap = torch.zeros(len(batch.lengths))
        rows = batch.observations[batch.num_decisions :]
        if len(rows):
            with torch.no_grad():
                bootstrap[~batch.terminal] = self.policy.value(rows).float().cpu()
        config = self._objective
        advantage = gae(
            batch.reward, value.cpu(), bootstrap, batch.lengths, batch.terminal, config.discount, config.trace
        )
        return advantage.to(value.device)

    def _normalize(self, advantage: Tensor, statistics: Moments) -> Tensor:
        return normalize(advantage, statistics=statistics) if self._objective.normalize_advantages else advantage

    def _value_loss(self, value: Tensor, target: Tensor) -> Tensor:
        if self._objective.value_loss == "bce":
            return F.binary_cross_entropy(value, target.clamp(0, 1))
        return F.mse_loss(value, target)

    def _clip(self, parameters: list[torch.nn.Parameter]) -> float:
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm, error_if_nonfinite=True)
        return norm.item()


class _MicroBatch(NamedTuple):
    batch: Batch
    evaluation: Evaluation
    target: Tensor
    advantage: Tensor


def split(batch: Batch, max_decisions: int) -> Iterator[Batch]:
    """Whole segments in order, as many as fit into `max_decisions`; a longer segment goes alone."""
    lengths = batch.lengths.tolist()
    first = 0
    while first < len(lengths):
        end, size = first + 1, lengths[first]
        while end < len(lengths) and size + lengths[end] <= max_decisions:
            size += lengths[end]
            end += 1
        yield batch if (first, end) == (0, len(lengths)) else _segments(batch, first, end)
        first = end


def _segments(batch: Batch, first: int, end: int) -> Batch:
    offsets = F.pad(batch.lengths.cumsum(0), (1, 0))
    rows = slice(int(offsets[first]), int(offsets[end]))
    bootstraps = F.pad((~batch.terminal).long().cumsum(0), (1, 0)) + batch.num_decisions
    beyond = slice(int(bootstraps[first]), int(bootstraps[end]))
    decisions, tails = batch.observations[rows], batch.observations[beyond]
    return Batch(
        observations=ObservationBatch(
            images=torch.cat([decisions.images, tails.images]),
            proprio=torch.cat([decisions.proprio, tails.proprio]),
            instructions=decisions.instructions + tails.instructions,
            episode_step=torch.cat([decisions.episode_step, tails.episode_step]),
        ),
        blob={key: value[rows] for key, value in batch.blob.items()},
        log_prob=batch.log_prob[rows],
        mask=batch.mask[rows],
        behaviour_value=batch.behaviour_value[rows],
        reward=batch.reward[rows],
        policy_version=batch.policy_version[rows],
        lengths=batch.lengths[first:end],
        terminal=batch.terminal[first:end],
    )


def _total(parts: list[Moments]) -> Moments:
    return Moments(*(torch.stack(sums).sum(0) for sums in zip(*parts, strict=True)))


def _weighted_mean(parts: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    names = {name for _, metrics in parts for name in metrics}
    return {name: sum(share * metrics.get(name, 0.0) for share, metrics in parts) for name in names}
