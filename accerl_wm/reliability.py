"""May what is imagined be learned from? Judged by the newest real episodes, before any model has learned from them.

real episode ─► its actions, imagined from its first frame ─► Audited ─► Reliability ─► Verdict: share, horizon

A policy that exploits a model's errors meets them in reality too: its next real episodes fail where the model, given
the same actions, says that they succeed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from accerl.config import ImaginationConfig
from accerl_wm.carriers import Frames
from accerl_wm.fidelity import psnr, roll_out
from accerl_wm.frames import RealEpisode, cut_window, num_decisions
from accerl_wm.world import WorldModel

LEAST = 8
"""Episodes before anything is judged by how they end."""
LEAST_FAILURES = 6
"""Failures before anything is judged by what they look like to the models."""
ALARM, CLEAR = 0.5, 0.4
"""Shares of the failures imagined as successes: from the first one on the policy exploits the models, below the second
one no more."""


class Audited(NamedTuple):
    """A real episode, and what the models make of its actions."""

    success: bool
    imagined_success: bool
    psnr: Sequence[float]
    """Decibels, by decisions ahead."""


class Verdict(NamedTuple):
    """How much of what is imagined may be learned from."""

    share: float
    """Of each batch."""
    horizon: int
    """Decisions."""
    reason: str


class Reliability:
    """Of the models, over the newest audited episodes."""

    def __init__(self, config: ImaginationConfig):
        self._config = config
        self._audited: deque[Audited] = deque(maxlen=config.audited_episodes)
        self._is_closed = False
        """Stays so until the models are half-way from `distrusted` to `trusted`, so that the gate does not flutter."""

    def add(self, audited: Audited) -> Verdict:
        self._audited.append(audited)
        config = self._config
        bound = (config.trusted + config.distrusted) / 2 if self._is_closed else config.distrusted
        exploited = self._exploits(CLEAR if self._is_closed else ALARM)
        self._is_closed = exploited or (len(self._audited) >= LEAST and self.same_outcome < bound)
        return self.verdict

    def set_horizon(self, horizon: int) -> None:
        """Of which less is left where the models are not trusted."""
        self._config = self._config.model_copy(update={"horizon": horizon})

    @property
    def verdict(self) -> Verdict:
        config, same = self._config, self.same_outcome
        short = max(1, config.horizon // 2)
        if self._is_closed and self._exploits(CLEAR):
            said = f"{self.false_success:.0%} of the last failures look like successes to the models"
            return Verdict(0.0, short, f"{said}: nothing is imagined until they are better")
        if len(self._audited) < LEAST:
            return Verdict(config.share, config.horizon, "")
        said = f"the models agree with {same:.0%} of the last {len(self._audited)} real episodes"
        if self._is_closed:
            return Verdict(0.0, short, f"{said}: nothing is imagined until they are better")
        if same < config.trusted:
            return Verdict(config.share, short, f"{said}: half of the horizon")
        return Verdict(config.share, config.horizon, said)

    @property
    def same_outcome(self) -> float:
        """Share of the episodes that end alike; NaN without any."""
        return _mean([each.success == each.imagined_success for each in self._audited])

    @property
    def false_success(self) -> float:
        """Share of the failures that are imagined as successes."""
        return _mean([each.imagined_success for each in self._audited if not each.success])

    @property
    def missed_success(self) -> float:
        """Share of the successes that are imagined as failures."""
        return _mean([not each.imagined_success for each in self._audited if each.success])

    @property
    def is_exploited(self) -> bool:
        """Most failures look like successes to the models: what the policy gains there it does not gain in reality."""
        return self._exploits(ALARM)

    def _exploits(self, bound: float) -> bool:
        failures = sum(not each.success for each in self._audited)
        return failures >= LEAST_FAILURES and self.false_success > bound

    def report(self) -> dict[str, float]:
        """For the metrics: what is known of it by now."""
        reach = max((len(each.psnr) for each in self._audited), default=0)
        ahead = {
            f"audit_psnr_{steps}": _mean([each.psnr[steps - 1] for each in self._audited if len(each.psnr) >= steps])
            for steps in (1, self._config.horizon)
            if steps <= reach
        }
        found = {
            "audited": float(len(self._audited)),
            "audit_same_outcome": self.same_outcome,
            "audit_false_success": self.false_success,
            "audit_missed_success": self.missed_success,
            "audit_exploited": float(self.is_exploited),
            **ahead,
        }
        return {name: value for name, value in found.items() if not np.isnan(value)}


def audit_episode(world: WorldModel, episode: RealEpisode, chunk_length: int, threshold: float) -> Audited:
    """A whole episode, from its first frame on the models' own outputs."""
    history, steps = world.history, num_decisions(episode, chunk_length)
    first = (1 - history) * chunk_length
    windows = cut_window(episode, first, steps + history - 1, chunk_length, np.random.default_rng(0))
    windows = windows.to(world.device)
    imagined = roll_out(world.observation, windows, steps)[0]
    with torch.inference_mode():
        likely = world.reward.predict(imagined, [episode.instruction] * steps)
        truth: Frames = windows.frames[0, history:]
        fidelity = psnr(imagined.images, truth.images)
    return Audited(
        success=episode.success,
        imagined_success=bool((likely >= threshold).any()),
        psnr=fidelity.tolist(),
    )


def _mean(values: Sequence[float | bool]) -> float:
    return float(np.mean(values)) if values else float("nan")
