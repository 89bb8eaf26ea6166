"""Small policies, observations and trajectories, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.types import EnvSpec, Observation, ObservationBatch, Trajectory

INSTRUCTIONS = ("go to the red dot", "go to the blue dot")
SPEC = EnvSpec(
    tasks=("red",),
    num_cameras=1,
    image_size=16,
    proprio_dim=2,
    action_dim=2,
    chunk_length=2,
    steps_per_action=1,
    max_decisions=8,
)
VOCABULARY = ("blue", "dot", "go", "red", "the", "to")


def tiny_policy(seed: int = 0, **fields: Any) -> TinyVLA:
    """A TinyVLA of 4 tokens for images of 16 pixels, with logits that differ."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "image_size": 16,
        "num_cameras": 1,
        "proprio_dim": 2,
        "action_dim": 2,
        "chunk_length": 2,
        "max_decisions": 8,
        "vocabulary": VOCABULARY,
        "width": 32,
        "num_layers": 1,
    }
    policy = TinyVLA(TinyVLAConfig(**sizes | fields))
    torch.nn.init.normal_(policy.action_head.weight, std=0.5)
    return policy


def observation(seed: int = 0, instruction: str = INSTRUCTIONS[0], num_cameras: int = 1) -> Observation:
    generator = np.random.default_rng(seed)
    return Observation(
        images=generator.integers(0, 256, (num_cameras, 16, 16, 3), dtype=np.uint8),
        proprio=generator.normal(size=2).astype(np.float32),
        instruction=instruction,
    )


def observations(num: int, seed: int = 0, num_cameras: int = 1, proprio_dim: int = 2) -> ObservationBatch:
    """Different rows, with both instructions in turn."""
    generator = torch.Generator().manual_seed(seed)
    return ObservationBatch(
        images=torch.randint(256, (num, num_cameras, 16, 16, 3), generator=generator, dtype=torch.uint8),
        proprio=torch.randn(num, proprio_dim, generator=generator),
        instructions=[INSTRUCTIONS[row % 2] for row in range(num)],
        episode_step=torch.randint(9, (num,), generator=generator),
    )


def rows(batch: ObservationBatch, order: Sequence[int]) -> ObservationBatch:
    """The rows that `order` names, in that order."""
    index = torch.tensor(order)
    return ObservationBatch(
        images=batch.images[index],
        proprio=batch.proprio[index],
        instructions=[batch.instructions[row] for row in order],
        episode_step=batch.episode_step[index],
    )


def trajectory(num_decisions: int = 3, *, seed: int = 0, first_step: int = 0, **fields: Any) -> Trajectory:
    """A segment of a `tiny_policy`, going on after its end unless `fields` say otherwise."""
    generator = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "task": "red",
        "instruction": INSTRUCTIONS[0],
        "images": generator.integers(0, 256, (num_decisions + 1, 1, 16, 16, 3), dtype=np.uint8),
        "proprio": generator.normal(size=(num_decisions + 1, 2)).astype(np.float32),
        "episode_step": np.arange(first_step, first_step + num_decisions + 1, dtype=np.int32),
        "blob": {"tokens": generator.integers(0, 256, (num_decisions, 4)).astype(np.int16)},
        "log_prob": generator.normal(-5.5, 0.1, (num_decisions, 4)).astype(np.float32),
        "value": generator.uniform(size=num_decisions).astype(np.float32),
        "reward": generator.normal(size=num_decisions).astype(np.float32),
        "num_actions": np.full(num_decisions, 2, np.int32),
        "num_env_steps": np.full(num_decisions, 4, np.int32),
        "policy_version": np.zeros(num_decisions, np.int32),
        "terminal": False,
        "truncated": False,
        "success": False,
        "origin": f"worker/0/{seed}",
    }
    return Trajectory(**made | fields)
