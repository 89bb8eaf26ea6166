"""The training role: values recomputed, advantages normalised, one optimizer step a global batch.

    micro-batches of whole segments ─► values ─► GAE ─► normalisation ─► objective ─► gradients ─► … ─► step

Micro-batches are trained on as they come; gradients are sums over decisions, divided by their number when the batch is
whole, so the result does not depend on how it was split. What is not finite is not trained on, and where the device has
no room for a micro-batch the update begins again with smaller ones (`accerl.guards`).
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from accerl.advantages import Estimate, estimate
from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.engine import Engine, StepFacts, TorchEngine, placed
from accerl.guards import (
    Broken,
    Guard,
    NonFiniteGradient,
    is_out_of_memory,
    not_finite,
    require_finite,
    smaller,
)
from accerl.losses import Part, total_loss
from accerl.mixed import MixedEngine
from accerl.packing import split
from accerl.protocols import Policy
from accerl.rl.diagnostics import lag_diagnostics
from accerl.rl.normalization import Moments, moments, normalize
from accerl.trace import Tracer
from accerl.types import Batch, Evaluation, FreshValues, Weights


class Learner:
    """Owns the parameters that train.

    Args:
        reference: the frozen policy that `objective.reference_kl` holds on to.
        engine: one of several ranks; each has a learner, which trains on its parts of the global batch. None: the only
            one.
        guard: is told of what was skipped or had no room.

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
        engine: Engine | None = None,
        guard: Guard | None = None,
    ):
        self.policy = (placed(policy, learner) if engine is None else policy).train()
        require_finite((*policy.policy_parameters(), *policy.value_parameters()))
        if learner.gradient_checkpointing:
            cast(Any, policy).gradient_checkpointing_enable()
        self._reference = None if reference is None else reference.to(learner.device).train(False)
        self.version = 0
        self.updates = 0
        self._config = learner
        self._objective = objective
        self._engine = engine or (MixedEngine if learner.dtype == "bfloat16" else TorchEngine)(self.policy, learner)
        self._last_moments: Moments | None = None
        self._proximal: Policy | None = None
        self._renew_proximal()
        self._tracer = tracer or Tracer.off()
        self._guard = guard or Guard()
        self._micro_decisions = learner.micro_batch_decisions  # less where the device had no room
        self._changing = threading.Lock()  # held while the parameters change, or are read by another thread
        self._forget_parts()

    def update(self, batch: Batch, progress: float = 0.0) -> dict[str, float]:
        """One optimizer step on one global batch; returns what to log.

        Args:
            progress: share of the run's budget that is spent, in [0, 1]; the learning rates follow it.

        Raises:
            GaveUp: as `step`.
            NonFiniteWeights: as `step`.
        """
        self.accumulate(batch)
        return self.step(progress)

    def accumulate(self, batch: Batch, counts: bool = True) -> None:
        """Take a part of the global batch. With `recompute = "fused"` it is trained on at once; otherwise, and before
        there are statistics to lag behind, the parts wait for the statistics of all of them.

        Args:
            counts: False runs it without an effect, so that each of several ranks has as many parts.

        Raises:
            GaveUp: the device has no room for the smallest part.
        """
        self._taken.append((batch, counts))
        self._with_room(lambda: self._take(batch, counts))

    def revalued(self, batch: Batch) -> Batch:
        """The batch with values of the newest weights, where `recompute = "prefetch"` wants no more than them; else as
        it is, also where the device has no room for it. For the thread that makes batches: only the moment in which the
        parameters change has to wait for it.
        """
        if self._config.recompute != "prefetch" or self._objective.advantages == "vtrace":
            return batch
        try:
            with self._changing, self._tracer.span("recompute", "prefetch", size=batch.num_decisions), torch.no_grad():
                value = self.policy.value(batch.observations).float()
        except RuntimeError as error:
            if is_out_of_memory(error):
                return batch
            raise
        bootstrap = torch.zeros(len(batch.lengths))
        bootstrap[~batch.terminal] = value[batch.num_decisions :].cpu()
        return replace(batch, values=FreshValues(value[: batch.num_decisions], bootstrap))

    def step(self, progress: float = 0.0, before_step: Callable[[], None] | None = None) -> dict[str, float]:
        """One optimizer step on everything accumulated; returns what to log.

        If a loss or gradient is not finite, nothing changes but the version, and `skipped_updates` is among what it
        returns.

        Args:
            progress: as for `update`.
            before_step: called when only the parameters are left to be changed.

        Raises:
            GaveUp: `learner.max_skipped_updates` in a row were skipped, or the device has no room.
            NonFiniteWeights: the step has spoiled the parameters.
            RuntimeError: nothing was accumulated.
        """
        with self._tracer.span("train"):
            return self._step(progress, before_step)

    def begin(self, version: int) -> None:
        """The parameters are of this version."""
        self.version = version

    def skip(self) -> None:
        """Count a global batch that was lost: its version is the same as the one before."""
        self.version += 1

    @property
    def has_parts(self) -> bool:
        """Something was accumulated since the last step."""
        return bool(self._taken)

    @property
    def publish_every(self) -> int:
        """Updates between two publications, as it is set now."""
        return self._config.publish_every

    def configure(self, learner: LearnerConfig, objective: ObjectiveConfig) -> None:
        """Use other settings from the next update on."""
        self._config, self._objective = learner, objective

    def weights(self) -> Weights:
        """The present parameters, copied to the CPU."""
        return Weights(version=self.version, tensors=copied(self.policy))

    def state_dict(self) -> dict[str, Any]:
        """Everything `update` depends on but the policy's own parameters."""
        return {
            "version": self.version,
            "updates": self.updates,
            "optimizer": self._engine.state_dict(),
            "moments": None if self._last_moments is None else [float(value) for value in self._last_moments],
            "proximal": None if self._proximal is None else copied(self._proximal),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version, self.updates = state["version"], state["updates"]
        self._engine.load_state_dict(state["optimizer"])
        last = state["moments"]
        self._last_moments = None if last is None else Moments(*torch.tensor(last, dtype=torch.float64))
        if self._proximal is not None and state["proximal"] is not None:
            self._proximal.load_state_dict(state["proximal"])

    def _learning_rates(self, progress: float) -> tuple[float, float]:
        config = self._config
        low = config.final_lr_fraction
        decay = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        trained = self.updates - config.value_warmup_updates
        warmup = 0.0 if trained < 0 else min(1.0, (trained + 1) / max(1, config.warmup_updates))
        return config.policy_lr * decay * warmup, config.value_lr * decay

    def _step(self, progress: float, before_step: Callable[[], None] | None) -> dict[str, float]:
        self._with_room(self._train_waiting)
        statistics = self._statistics
        if not statistics.count:
            raise RuntimeError("nothing was accumulated for this step")
        rates = self._learning_rates(progress)
        facts = StepFacts(int(statistics.count), rates, self._config.max_grad_norm)
        norms = self._moved(facts, before_step)
        if norms is None:
            return self._skipped(facts.num_decisions)
        self._guard.passed()
        lag = torch.cat(self._lags) if self._lags else torch.zeros(0)
        metrics = merged(self._metrics) | lag_diagnostics(lag)
        self._last_moments = statistics
        self._forget_parts()
        self.version += 1
        self.updates += 1
        self._renew_proximal()
        if self._micro_decisions < self._config.micro_batch_decisions:
            metrics["micro_batch_decisions"] = float(self._micro_decisions)
        return metrics | {
            "batch_decisions": float(len(lag)),
            "grad_norm": norms[0],
            "value_grad_norm": norms[1],
            "policy_lr": rates[0],
        }

    def _moved(self, facts: StepFacts, before_step: Callable[[], None] | None) -> tuple[float, ...] | None:
        """The gradient norms; None: something is not finite, on this rank or another one, and nothing has moved."""
        if self._engine.all_reduce(torch.tensor(float(len(self._broken)))).item():
            self._engine.forget()
            return None
        with self._changing:
            try:
                norms = self._engine.step(facts, before_step)
            except NonFiniteGradient:
                self._broken = [Broken(batch, ["gradient"]) for batch, counts in self._taken if counts]
                return None
            require_finite((*self.policy.policy_parameters(), *self.policy.value_parameters()))
        return norms

    def _skipped(self, num_decisions: int) -> dict[str, float]:
        """Forget the global batch: only its version is the same as the one before."""
        known = [part for part in self._broken if part.what != ["loss"]]  # others caught it through the statistics
        version, broken = self.version, known or self._broken
        self._forget_parts()
        self.version += 1
        self._guard.skipped(version, broken, self._config.max_skipped_updates)
        return {"batch_decisions": 0.0, "skipped_updates": 1.0, "skipped_decisions": float(num_decisions)}

    def _take(self, batch: Batch, counts: bool) -> None:
        """Train on the batch at once, in parts for which there is room, or keep them until `_train_waiting`."""
        waits = self._config.recompute != "fused" or (
            self._objective.normalization == "global" and self._last_moments is None
        )
        for part in split(batch, self._micro_decisions):
            self._under_way = part
            with self._tracer.span("recompute" if waits else "train", size=part.num_decisions):
                lag = self.version - part.policy_version
                if counts:
                    self._lags.append(lag)
                if waits:
                    found = self._recompute(part)
                    self._parts.append(_Waiting(part, lag, found, counts))
                else:
                    evaluation = self._evaluate(part)
                    found = self._estimate(part, evaluation.value.detach(), evaluation.log_prob)
                    self._backward(_Waiting(part, lag, found, counts), evaluation, self._last_moments)
                if counts:
                    self._seen.append(moments(found.advantage))

    def _train_waiting(self) -> None:
        """Train on the parts that have waited for the statistics of all."""
        self._statistics = self._total_moments()
        for part in self._parts:
            self._under_way = part.batch
            self._backward(part, self._evaluate(part.batch), self._statistics)

    def _with_room(self, work: Callable[[], None]) -> None:
        """Do the work; where the device has no room for it, all that was accumulated is forgotten and begun again in
        smaller parts, until it fits.
        """

        def again() -> None:
            for batch, counts in self._taken:
                self._take(batch, counts)
            if work == self._train_waiting:
                work()

        has_room = self._has_room(work)
        while not has_room:
            tried = self._under_way.num_decisions
            self._micro_decisions = smaller(self._under_way, self._micro_decisions, self._engine.can_repeat)
            self._guard.halved(tried, self._micro_decisions)
            taken = self._taken
            self._forget_parts()
            self._engine.forget()
            self._taken = taken
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            has_room = self._has_room(again)

    @staticmethod
    def _has_room(work: Callable[[], None]) -> bool:
        try:
            work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False  # and what the traceback held is let go
        return True

    def _total_moments(self) -> Moments:
        """Of the advantages, over all parts and ranks; their count is that of the decisions."""
        own = torch.stack([torch.stack(each) for each in self._seen] or [torch.zeros(3, dtype=torch.float64)]).sum(0)
        return Moments(*self._engine.all_reduce(own))

    def _forget_parts(self) -> None:
        """Nothing of a global batch is accumulated."""
        self._taken: list[tuple[Batch, bool]] = []
        self._broken: list[Broken] = []
        self._lags: list[Tensor] = []
        self._seen: list[Moments] = []
        self._parts: list[_Waiting] = []
        self._metrics: list[tuple[int, dict[str, float]]] = []

    def _backward(self, waiting: _Waiting, evaluation: Evaluation, statistics: Moments | None) -> None:
        """Add the part's gradients: sums over its decisions, the mean over the tokens of each."""
        batch, advantage = waiting.batch, waiting.estimate.advantage
        if self._objective.normalization != "off":
            advantage = normalize(
                advantage, statistics=statistics if self._objective.normalization == "global" else None
            )
        part = Part(
            batch=batch,
            evaluation=evaluation,
            target=waiting.estimate.target,
            advantage=advantage,
            policy_lag=waiting.policy_lag,
            reference_log_prob=self._log_prob(self._reference, batch) if self._objective.reference_kl else None,
            proximal_log_prob=self._log_prob(self._proximal, batch),
        )
        loss, metrics = torch.stack([each.sum() for each in evaluation]).sum(), {}  # ranks reduce the same gradients
        what = not_finite(value=evaluation.value, target=part.target, advantage=waiting.estimate.advantage)
        if not what:
            loss, metrics = total_loss(part, self._objective)
            if not math.isfinite(loss.item()):
                what = not_finite(log_prob=evaluation.log_prob, entropy=evaluation.entropy) or ["loss"]
        self._engine.backward(0.0 * loss if what or not waiting.counts else loss)  # ranks have as many backwards
        if waiting.counts:
            self._broken += [Broken(batch, what)] if what else []
            self._metrics.append((batch.num_decisions, metrics))

    def _log_prob(self, policy: Policy | None, batch: Batch) -> Tensor | None:
        """Of the stored decisions, under a policy that does not train."""
        if policy is None:
            return None
        with torch.no_grad():
            return policy.evaluate(batch.observations[: batch.num_decisions], batch.blob).log_prob

    def _renew_proximal(self) -> None:
        """What decoupled PPO clips around becomes the policy as it is now, if it is time."""
        config = self._objective
        if config.kind != "decoupled_ppo" or config.proximal != "snapshot":
            self._proximal = None
        elif self._proximal is None or self.updates % config.proximal_every == 0:
            self._proximal = copy.deepcopy(self.policy).train(False)

    def _evaluate(self, batch: Batch) -> Evaluation:
        return self.policy.evaluate(batch.observations[: batch.num_decisions], batch.blob)

    def _recompute(self, batch: Batch) -> Estimate:
        """From values, and log-probs where the advantages want them, of a pass before the one that trains."""
        if batch.values is not None:
            return estimate(batch, batch.values.decision, batch.values.bootstrap, None, self._objective)
        rows = batch.observations[: batch.num_decisions]
        stored = batch.behaviour_value.to(self._config.device) if self._config.recompute == "off" else None
        with torch.no_grad():
            if self._objective.advantages == "vtrace":
                evaluation = self.policy.evaluate(rows, batch.blob)
                return self._estimate(batch, evaluation.value if stored is None else stored, evaluation.log_prob)
            return self._estimate(batch, self.policy.value(rows) if stored is None else stored, None)

    def _estimate(self, batch: Batch, value: Tensor, log_prob: Tensor | None) -> Estimate:
        """With the newest critic beyond the last decision of a segment, whose value nobody stored."""
        bootstrap = torch.zeros(len(batch.lengths))
        rows = batch.observations[batch.num_decisions :]
        if len(rows):
            with torch.no_grad():
                bootstrap[~batch.terminal] = self.policy.value(rows).float().cpu()
        return estimate(batch, value, bootstrap, log_prob, self._objective)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A part of the global batch that waits for the statistics of all parts."""

    batch: Batch
    policy_lag: Tensor
    estimate: Estimate
    counts: bool


def copied(policy: Policy) -> dict[str, Tensor]:
    """Its parameters, copied to the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in policy.state_dict().items()}


def merged(parts: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Of the metrics of parts or ranks, with their decisions: means over these, maxima where a name ends in `_max`."""
    names = {name for _, metrics in parts for name in metrics}
    total = sum(size for size, _ in parts)
    return {
        name: max(metrics.get(name, 0.0) for _, metrics in parts)
        if name.endswith("_max")
        else sum(size * metrics.get(name, 0.0) for size, metrics in parts) / total
        for name in names
    }
