"""Training the two models: offline from demonstrations, or beside a run from what its workers see.

frames ─► windows ─► ObservationTrainer ─► observation model ─┐ what it predicts, with the labels of what happened
    └───► windows ─► RewardTrainer ◄──────────────────────────┘
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accerl_wm.carriers import Frames
from accerl_wm.config import ObservationTraining, RewardTraining
from accerl_wm.fidelity import fitted_temperature
from accerl_wm.frames import FrameBuffer
from accerl_wm.protocols import ObservationModel, TrainableObservationModel, TrainableRewardModel

OnUpdate = Callable[[dict[str, float]], None]


class ObservationTrainer:
    """One optimizer step at a time on windows of a buffer; the windows get longer with the progress."""

    def __init__(self, model: TrainableObservationModel, frames: FrameBuffer, config: ObservationTraining):
        self.model = model
        self.updates = 0
        self._frames = frames
        self._config = config
        self._generator = np.random.default_rng(config.seed)
        self._optimizer = _optimizer(model, config)

    def update(self, progress: float = 0.0) -> dict[str, float]:
        """One step; returns what to log.

        Args:
            progress: share of the training that is done; the learning rate falls, and windows grow, with it.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        config = self._config
        steps = config.steps[min(int(progress * len(config.steps)), len(config.steps) - 1)]
        windows = self._frames.windows(
            max(1, round(config.batch_size * config.steps[0] / steps)),
            self.model.history - 1 + steps,
            self.model.history,
            self._generator,
            ending=config.ending,
        )
        self.model.train()
        loss, metrics = self.model.loss(windows.to(config.device))
        self.updates += 1
        norm = _step(self._optimizer, loss, self.model, rate(config.lr, progress, self.updates, config.warmup_updates))
        return {**metrics, "loss": loss.item(), "grad_norm": norm, "steps": float(steps)}


class RewardTrainer:
    """One optimizer step at a time: successes and failures alike, of real frames and of predicted ones.

    Args:
        observation: whose predictions are learned from as well, so that they are judged as what they stand for.
    """

    def __init__(
        self,
        model: TrainableRewardModel,
        frames: FrameBuffer,
        config: RewardTraining,
        observation: ObservationModel | None = None,
    ):
        self.model = model
        self.updates = 0
        self._frames = frames
        self._config = config
        self._observation = observation
        self._generator = np.random.default_rng(config.seed)
        self._optimizer = _optimizer(model, config)

    def update(self, progress: float = 0.0) -> dict[str, float]:
        """One step; returns what to log. `progress` as for the other trainer.

        Raises:
            RuntimeError: a gradient is not finite.
        """
        config = self._config
        seen, labels, instructions = self._examples(config.batch_size, config.success_share)
        self.model.train()
        logits = self.model.logits(seen, instructions)
        smooth = labels.float() * (1 - 2 * config.label_noise) + config.label_noise
        loss = focal_cross_entropy(logits, smooth, config.focus)
        self.updates += 1
        norm = _step(self._optimizer, loss, self.model, rate(config.lr, progress, self.updates, config.warmup_updates))
        right = ((logits > 0) == labels).float().mean().item()
        return {"loss": loss.item(), "accuracy": right, "grad_norm": norm}

    def calibrate(self, num_frames: int = 1024) -> float:
        """Set the model's temperature by frames that are held out, as often successful as they are; returns it."""
        logits, labels = self.judge(num_frames)
        temperature = fitted_temperature(logits, labels)
        module: Any = self.model
        module.temperature.fill_(temperature)
        return temperature

    def judge(self, num_frames: int) -> tuple[Tensor, Tensor]:
        """Log-odds before calibration, and labels, of held-out frames; predicted ones too where there is a model."""
        self.model.train(False)
        logits, labels = [], []
        with torch.no_grad():
            for _ in range(-(-num_frames // self._config.batch_size)):
                seen, success, instructions = self._examples(self._config.batch_size, None, held_out=True)
                logits.append(self.model.logits(seen, instructions).float().cpu())
                labels.append(success.cpu())
        return torch.cat(logits), torch.cat(labels)

    def _examples(
        self, num: int, success_share: float | None, held_out: bool = False
    ) -> tuple[Frames, Tensor, list[str]]:
        """Frames, whether they show success, and instructions; the last half are predictions, if there is a model."""
        history = 1 if self._observation is None else self._observation.history
        windows = self._frames.windows(
            num, history, history, self._generator, held_out=held_out, ending=success_share or 0.0
        )
        windows = windows.to(self._config.device)
        real, success, instructions = windows.frames[:, -1], windows.success[:, -1], list(windows.instructions)
        if self._observation is None:
            return real, success, instructions
        half = slice(num // 2, num)
        with torch.inference_mode():
            predicted = self._observation.predict(windows.frames[half, :-1], windows.actions[half])
        seen = Frames(
            images=torch.cat([real.images[: num // 2], predicted.images]),
            proprio=torch.cat([real.proprio[: num // 2], predicted.proprio]),
        )
        return seen, success, instructions


def fit(
    update: Callable[[float], dict[str, float]],
    num_updates: int,
    max_s: float | None = None,
    on_update: OnUpdate = lambda metrics: None,
) -> None:
    """All updates of a trainer, or as many as there is time for."""
    began = time.monotonic()
    for number in range(num_updates):
        progress = number / num_updates
        if max_s is not None:
            progress = max(progress, (time.monotonic() - began) / max_s)
        if progress >= 1:
            return
        on_update(update(progress))


def focal_cross_entropy(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    r"""Cross-entropy in which what is told apart already counts little: $(1 - p_t)^\gamma$ (Lin et al. 2017).

    Both classes count alike; how often they occur is for whoever draws the examples. Targets in [0, 1].
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = (torch.sigmoid(logits) - target).abs().detach()
    return (missed.pow(gamma) * cross_entropy).mean()


def rate(lr: float, progress: float, updates: int, warmup_updates: int) -> float:
    """Cosine to a twentieth, after a linear rise."""
    decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
    return lr * decay * min(1.0, updates / max(1, warmup_updates))


def _optimizer(model: Any, config: ObservationTraining | RewardTraining) -> torch.optim.AdamW:
    model.to(config.device)
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, model: Any, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    optimizer.step()
    return float(norm)
