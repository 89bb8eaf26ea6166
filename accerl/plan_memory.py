"""What training and inference take of a device: bytes that stay, bytes of a micro-batch, operations of a decision.

weights, gradients, optimizer ─► static_bytes ─┐
activations of a decision ─────────────────────┴─► learner_bytes ◄─► largest_micro_batch
weights, and the next version of them ─► inference_bytes
"""

from __future__ import annotations

import math

from accerl.config import LearnerConfig
from accerl.policies.costs import Costs

GIB = 2**30

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}
"""Of a parameter where it trains, and of its gradient."""
OPTIMIZER_BYTES = {"float32": 8, "bfloat16": 12}
"""Of AdamW's two moments, and of the float32 copy that goes with bfloat16."""


def trained_bytes(learner: LearnerConfig) -> float:
    """Of gradient and optimizer on each rank, for a parameter that trains."""
    ranks = learner.num_ranks
    gradients = WEIGHT_BYTES[learner.dtype] / (ranks if learner.zero_stage == 2 else 1)
    return gradients + OPTIMIZER_BYTES[learner.dtype] / ranks


def static_bytes(costs: Costs, learner: LearnerConfig) -> float:
    """On each rank: all weights, and its part of what ZeRO spreads out."""
    return costs.parameters * WEIGHT_BYTES[learner.dtype] + costs.trained * trained_bytes(learner)


def learner_bytes(costs: Costs, learner: LearnerConfig, micro_batch: int) -> float:
    """On each rank, with so many decisions in a forward and backward."""
    return static_bytes(costs, learner) + micro_batch * costs.activation_bytes


def largest_micro_batch(costs: Costs, learner: LearnerConfig, gib: float) -> int:
    """Most decisions in a forward and backward on a device with so much memory; 0: not one."""
    room = gib * GIB - static_bytes(costs, learner)
    return max(0, math.floor(room / costs.activation_bytes))


def inference_bytes(costs: Costs) -> float:
    """Of a service, which holds the newest weights and those that are arriving."""
    return 2 * costs.parameters * costs.weight_bytes


def training_flop(learner: LearnerConfig, costs: Costs) -> float:
    """Operations that a decision costs in training: its forward, the backward to activations and to the weights that
    train, and the forwards that are made to recompute something.
    """
    through = costs.flop - costs.frozen_flop
    backward = (2 if costs.trained + costs.frozen == costs.parameters else 1) * through
    repeated = through if costs.recomputed_flop is None else costs.recomputed_flop
    forwards = 1 + (learner.recompute == "prefetch")
    return forwards * costs.flop + backward + learner.gradient_checkpointing * repeated
