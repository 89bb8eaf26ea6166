"""A small OpenVLA-OFT and observations for it, made from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from accerl.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig, tiny_config
from accerl.types import ObservationBatch
from tests.roles.fakes import SPEC

SEEDS = np.array([3, 1, 4, 15, 9])
INSTRUCTIONS = ("go to the red dot", "go to the blue dot over there")


def tiny_policy(seed: int = 0, **fields: Any) -> OpenVLAOFT:
    """One of 4 tokens, with logits that differ."""
    torch.manual_seed(seed)
    config = tiny_config(SPEC, INSTRUCTIONS, width=32, num_layers=2, num_heads=2)
    policy = OpenVLAOFT(OpenVLAOFTConfig(**{**config.model_dump(), **fields})).eval()
    torch.nn.init.normal_(policy.model.language_model.lm_head.weight, std=0.3)
    return policy


def observations(num: int, seed: int = 0) -> ObservationBatch:
    generator = torch.Generator().manual_seed(seed)
    return ObservationBatch(
        images=torch.randint(256, (num, 1, 16, 16, 3), generator=generator, dtype=torch.uint8),
        proprio=torch.rand(num, 2, generator=generator) * 2 - 1,
        instructions=[INSTRUCTIONS[row % 2] for row in range(num)],
        episode_step=torch.randint(9, (num,), generator=generator),
    )
