"""Advantages and value targets of a part of a batch, as the configuration wants them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from accerl.config import ObjectiveConfig
from accerl.rl.gae import gae
from accerl.rl.vtrace import vtrace
from accerl.types import Batch


class Estimate(NamedTuple):
    """On the device of the values."""

    advantage: Float[Tensor, " decision"]
    """Not normalised."""
    target: Float[Tensor, " decision"]
    """Of the values."""


def estimate(
    batch: Batch,
    value: Float[Tensor, " decision"],
    bootstrap_value: Float[Tensor, " segment"],
    log_prob: Float[Tensor, "decision token"] | None,
    config: ObjectiveConfig,
) -> Estimate:
    """GAE with the target A + V (paper eq. 4), V-trace, or those against the group, which leave the critic to GAE.

    Args:
        value: of the newest critic, or of the one that acted.
        bootstrap_value: of the observation after each segment, on the CPU.
        log_prob: under the newest policy; only V-trace wants it.
    """
    facts = batch.reward, value.detach().float().cpu(), bootstrap_value, batch.lengths, batch.terminal
    if config.advantages != "vtrace":
        advantage = gae(*facts, config.discount, config.trace)
        target = advantage + facts[1]
        if config.advantages == "group":
            assert batch.group_advantage is not None, "the replay compares groups before they are trained on"
            advantage = batch.group_advantage
        return Estimate(advantage.to(value.device), target.to(value.device))
    assert log_prob is not None, "V-trace wants log-probs"
    log_ratio = torch.where(batch.mask, log_prob.detach().float().cpu() - batch.log_prob, 0.0).sum(1)
    found = vtrace(*facts, log_ratio, config.discount, config.trace, config.rho_bar, config.c_bar)
    return Estimate(found.advantage.to(value.device), found.target.to(value.device))
