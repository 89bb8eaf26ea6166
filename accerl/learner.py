"""The training role: values recomputed, advantages normalised, one optimizer step a global batch.

    micro-batches of whole segments ─► values ─► GAE ─► normalisation ─► objective ─► gradients ─► … ─► step

Plain torch on one device. Micro-batches are trained on as they come; gradients are sums over decisions, divided by
their number when the batch is whole, so the result does not depend on how it was split.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.packing import split
from accerl.protocols import Policy
from accerl.rl import objectives
from accerl.rl.diagnostics import explained_variance, token_diagnostics
from accerl.rl.gae import gae
from accerl.rl.normalization import Moments, moments, normalize
from accerl.trace import Tracer
from accerl.types import Batch, Evaluation, Weights


class Learner:
    """Owns the parameters that train.

    Args:
        reference: the frozen policy that `objective.reference_kl` holds on to.

    `updates` counts its optimizer steps. `version` names the parameters and rises with each step; a learner that was
    restarted goes on above every version that is already in use.
    """

    def __init__(
        self,
        policy: Policy,
        learner: LearnerConfig,
        objective: ObjectiveConfig,
        reference: Policy | None = None,
        tracer: Tracer | None = None,
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
            fused=torch.device(learner.device).type in ("cpu", "cuda"),  # on a CPU six times as fast
        )
        self._last_moments: Moments | None = None
        self._tracer = tracer or Tracer.off()
        self._forget_parts()

    def update(self, batch: Batch, progress: float = 0.0) -> dict[str, float]:
        """One optimizer step on one global batch; returns what to log.

        Args:
            progress: share of the run's budget that is spent, in [0, 1]; the learning rates follow it.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        for micro in split(batch, self._config.micro_batch_decisions):
            self.accumulate(micro)
        return self.step(progress)

    def accumulate(self, batch: Batch) -> None:
        """Take a part of the global batch. With `recompute = "fused"` it is trained on at once; otherwise the parts
        wait for the statistics of all of them.
        """
        with self._tracer.span("train" if self._config.recompute == "fused" else "recompute", size=batch.num_decisions):
            lag = (self.version - batch.policy_version).float()
            self._lags.append((lag.sum().item(), lag.max().item(), batch.num_decisions))
            if self._config.recompute == "fused":
                evaluation = self._evaluate(batch)
                value = evaluation.value.detach()
                raw = self._gae(batch, value)
                self._seen.append(moments(raw))
                scaled = self._normalize(raw, self._last_moments or _total(self._seen))
                self._backward(_Part(batch, evaluation, raw + value, scaled))
            else:
                value = self._values(batch)
                raw = self._gae(batch, value)
                self._seen.append(moments(raw))
                self._parts.append((batch, value, raw))

    def step(self, progress: float = 0.0, before_step: Callable[[], None] | None = None) -> dict[str, float]:
        """One optimizer step on everything accumulated; returns what to log.

        Args:
            progress: as for `update`.
            before_step: called when only the parameters are left to be changed.

        Raises:
            RuntimeError: a gradient is not finite, or nothing was accumulated.
        """
        if not self.has_parts:
            raise RuntimeError("nothing was accumulated for this step")
        with self._tracer.span("train"):
            return self._step(progress, before_step)

    def skip(self) -> None:
        """Count a global batch that was lost: its version is the same as the one before."""
        self.version += 1

    @property
    def has_parts(self) -> bool:
        """Something was accumulated since the last step."""
        return bool(self._lags)

    @property
    def publish_every(self) -> int:
        """Updates between two publications, as it is set now."""
        return self._config.publish_every

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

    def _step(self, progress: float, before_step: Callable[[], None] | None) -> dict[str, float]:
        statistics = _total(self._seen)
        for batch, value, raw in self._parts:
            self._backward(_Part(batch, self._evaluate(batch), raw + value, self._normalize(raw, statistics)))
        lag_sums, lag_maxima, sizes = zip(*self._lags, strict=True)
        num_decisions = sum(sizes)
        metrics = _weighted_mean(self._metrics)
        for parameter in (*self._policy_parameters, *self._value_parameters):
            if parameter.grad is not None:
                parameter.grad.div_(num_decisions)
        metrics["grad_norm"] = self._clip(self._policy_parameters)
        metrics["value_grad_norm"] = self._clip(self._value_parameters)
        policy_lr, value_lr = self._learning_rates(progress)
        for group, rate in zip(self._optimizer.param_groups, (policy_lr, value_lr), strict=True):
            group["lr"] = rate
        if before_step is not None:
            before_step()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._last_moments = statistics
        self._forget_parts()
        self.version += 1
        self.updates += 1
        return metrics | {
            "policy_lr": policy_lr,
            "batch_decisions": float(num_decisions),
            "policy_lag_mean": sum(lag_sums) / num_decisions,
            "policy_lag_max": max(lag_maxima),
        }

    def _forget_parts(self) -> None:
        """Nothing of a global batch is accumulated."""
        self._lags: list[tuple[float, float, int]] = []
        self._seen: list[Moments] = []
        self._parts: list[tuple[Batch, Tensor, Tensor]] = []
        self._metrics: list[tuple[int, dict[str, float]]] = []

    def _backward(self, part: _Part) -> None:
        """Add the part's gradients: sums over its decisions, the mean over the tokens of each."""
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
        executed = mask.sum() / mask.shape[1]  # decisions, a shortened one for its share
        (executed * policy_loss + batch.num_decisions * config.value_coefficient * value_loss).backward()
        metrics = {
            "policy_loss": objective.loss.item(),
            "value_loss": value_loss.item(),
            "reference_kl": reference_kl.item(),
            "entropy": entropy.item(),
            "explained_variance": explained_variance(evaluation.value.detach(), target),
            "value_mean": evaluation.value.mean().item(),
            **token_diagnostics(log_ratio, objective.weight, mask),
        }
        self._metrics.append((batch.num_decisions, metrics))

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


class _Part(NamedTuple):
    """A part of the global batch with its advantages, and its forward pass, which gradients go through."""

    batch: Batch
    evaluation: Evaluation
    target: Tensor
    advantage: Tensor


def _total(parts: list[Moments]) -> Moments:
    return Moments(*(torch.stack(sums).sum(0) for sums in zip(*parts, strict=True)))


def _weighted_mean(parts: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    names = {name for _, metrics in parts for name in metrics}
    total = sum(size for size, _ in parts)
    return {name: sum(size * metrics.get(name, 0.0) for size, metrics in parts) / total for name in names}
