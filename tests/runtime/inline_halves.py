"""Runs in one process that are cut off and gone on with: by `test_inline_resume`, and as a process of its own.

python -m tests.runtime.inline_halves ROOT    goes on with every variant that has a folder in ROOT, to its end
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from accerl.config import EnvConfig, RunConfig, merge
from accerl.envs import make_env
from accerl.policies.lora import adapted
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.protocols import Policy
from accerl.runtime.inline import InlineRun

DOTS = EnvConfig(
    suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, steps_per_action=2, max_decisions=5
)
BASE: dict[str, Any] = {
    "env": DOTS.model_dump(),
    "rollout.slots_per_worker": 8,
    "rollout.segment_decisions": 3,
    "replay.min_decisions": 32,
    "replay.capacity_decisions": 256,
    "replay.max_reuse": 4,
    "learner.batch_decisions": 48,
    "learner.value_warmup_updates": 1,
    "learner.warmup_updates": 3,
    "learner.policy_lr": 1e-3,
    "learner.weight_decay": 0.01,
    "tasks.window": 10,
    "limits.max_updates": 14,
}
GROUPS = {
    "objective.advantages": "group",
    "rollout.group_size": 4,
    "rollout.segment_decisions": 5,
    "rollout.slots_per_worker": 6,
    "inference.batch_size": 6,
}
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "fused, values and statistics of the update before": ({"learner.recompute": "fused"}, 0),
    "values of a pass of their own": ({"learner.recompute": "prefetch"}, 0),
    "a proximal snapshot": ({"objective.kind": "decoupled_ppo", "objective.proximal": "snapshot"}, 0),
    "low-rank additions": ({"policy.lora_rank": 2}, 0),
    "bfloat16": ({"learner.dtype": "bfloat16"}, 0),
    "held by the start": ({"objective.reference_kl": 0.1}, 0),
    "weights that come late": ({}, 2),
    "few publications": ({"learner.publish_every": 3}, 1),
    "groups": (GROUPS, 0),
    "a ring": ({"replay.order": "ring", "replay.max_age_versions": 6}, 0),
    "a share of successes": ({"replay.success_share": 0.5}, 0),
    "bounded staleness": ({"rollout.max_policy_lag": 2, "inference.batch_size": 3}, 0),
    "lockstep": ({"mode": "sync", "rollout.episodes_per_round": 12}, 0),
    "one step off": ({"mode": "one_step_off"}, 0),
}
EVERY = 4
"""Updates from one checkpoint to the next."""


class Killed(Exception):  # noqa: N818 - it is what happens
    """In place of the end of a process."""


def made(name: str, on_update: Callable[[dict[str, float]], None] | None = None) -> InlineRun:
    """A variant at its start."""
    overrides, lag = VARIANTS[name]
    config = RunConfig(**merge({}, BASE | {"seed": 5} | overrides))
    return InlineRun(config, start(config), lambda: make_env(config.env), lag=lag, on_update=on_update)


def start(config: RunConfig) -> Policy:
    torch.manual_seed(1)
    instructions = [f"go to the {task} dot" for task in config.env.tasks]
    policy = TinyVLA(TinyVLAConfig.for_env(make_env(config.env).spec, instructions, width=32, num_layers=1))
    return adapted(policy, config.policy)


def go_on(root: Path) -> None:
    torch.set_num_threads(1)
    for folder in root.iterdir():
        run = made(folder.name)
        run.save_into(folder, EVERY)
        run.run()
        save_file(run.learner.weights().tensors, root / f"{folder.name}.safetensors")


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
