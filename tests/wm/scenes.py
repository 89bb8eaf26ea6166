"""A small scene on `dots`, and a policy for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from accerl.config import EnvConfig, InferenceConfig
from accerl.envs import make_env
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import PolicyServer
from accerl.types import Episode, EpisodePlan, Trajectory

DOTS = EnvConfig(
    suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, steps_per_action=2, max_decisions=8
)
SPEC = make_env(DOTS).spec


def policy() -> TinyVLA:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 32, "num_layers": 1, "vocabulary": ("blue", "dot", "go", "red", "the", "to")}
    return TinyVLA(
        TinyVLAConfig(
            image_size=16, num_cameras=1, proprio_dim=2, action_dim=2, chunk_length=2, max_decisions=8, **sizes
        )
    )


def server() -> PolicyServer:
    return PolicyServer(policy(), InferenceConfig())


class Gathered:
    """Sink and tasks of a worker."""

    def __init__(self, plans: Sequence[EpisodePlan]):
        self.plans = list(plans)
        self.trajectories: list[Trajectory] = []

    async def put(self, trajectory: Trajectory) -> None:
        self.trajectories.append(trajectory)

    async def next_episode(self) -> EpisodePlan | None:
        return self.plans.pop(0) if self.plans else None

    async def report(self, episode: Episode) -> None: ...

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        raise error
