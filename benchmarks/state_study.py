"""A learning problem of half a minute: two Meta-World faucets from their state, with 256-bin action tokens.

    slow expert ─► 20 demonstrations a task ─► cloned policy, too late in five episodes of six ─► RL, which adds speed

Everything runs in one process and thread and depends on nothing but the configuration and the seed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from accerl import demos
from accerl.config import (
    CloneConfig,
    DemosConfig,
    EnvConfig,
    InferenceConfig,
    LearnerConfig,
    LimitsConfig,
    ObjectiveConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    TaskConfig,
)
from accerl.envs.experts import ScriptedExpert, metaworld_controller
from accerl.envs.metaworld_tasks import INSTRUCTIONS
from accerl.evaluation import evaluate, plan_episodes
from accerl.imitation import clone
from accerl.policy_server import PolicyServer
from accerl.runtime.inline import InlineRun
from benchmarks.state_observations import StateMetaWorld, StatePolicy

TASKS = ("faucet-open-v3", "faucet-close-v3")
ENV = EnvConfig(suite="benchmarks.state_observations:StateMetaWorld", tasks=TASKS, chunk_length=4, steps_per_action=2)
DEMOS = DemosConfig(episodes_per_task=20, speed=0.5, noise=0.15)
CLONE = CloneConfig(updates=1000, lr=1e-3, shift_pixels=0)
WIDTH = 256
EPISODES_PER_TASK = 50
"""Of an evaluation."""


class Setting(NamedTuple):
    """What a study varies, and how long it trains."""

    objective: dict[str, Any]
    """Fields of `ObjectiveConfig` that differ from those of the study."""
    learner: dict[str, Any]
    """The same of `LearnerConfig`."""
    lag: int = 0
    """Versions that the policy that acts stays behind."""
    seed: int = 0
    num_decisions: int = 8000
    batch_decisions: int = 128
    decisions_per_update: int = 64


class Outcome(NamedTuple):
    """What became of the policy."""

    rates: tuple[float, ...]
    """Success of the sampled policy at the end, of each task."""
    curve: tuple[float, ...]
    """Success of the episodes while training, over eighths of them."""
    updates: Sequence[dict[str, float]]
    """The metrics of each."""
    wall_s: float
    """Of training, simulation included."""


def make_env() -> StateMetaWorld:
    return StateMetaWorld(ENV, TASKS)


@cache
def start(seed: int) -> StatePolicy:
    """The cloned policy of this seed; not to be changed."""
    config = DEMOS.model_copy(update={"seed": seed})
    expert = ScriptedExpert(metaworld_controller, speed=config.speed, noise=config.noise, seed=seed)
    recorded = demos.record(StateMetaWorld(demos.single_action(ENV, config), TASKS), expert, config)
    torch.manual_seed(seed)
    policy = StatePolicy(sorted(INSTRUCTIONS[task] for task in TASKS), ENV.chunk_length, ENV.max_decisions, width=WIDTH)
    policy.scale_to(torch.from_numpy(np.concatenate([demonstration.proprio for demonstration in recorded])))
    clone(policy, recorded, ENV.chunk_length, CLONE.model_copy(update={"seed": seed}))
    return policy


def configure(setting: Setting) -> RunConfig:
    """The run of a setting. No KL and no decay of the learning rate: what holds the policy is the objective alone."""
    batch = setting.batch_decisions
    common = {"discount": 0.97, "trace": 0.8, "time_limit": "failure", "value_loss": "bce"}
    rates = {"policy_lr": 3e-4, "value_lr": 1e-3, "warmup_updates": 5, "value_warmup_updates": 10}
    return RunConfig(
        name="study",
        env=ENV,
        seed=setting.seed,
        rollout=RolloutConfig(slots_per_worker=16),
        replay=ReplayConfig(
            capacity_decisions=4096, max_reuse=max(1, batch // setting.decisions_per_update), min_decisions=batch
        ),
        tasks=TaskConfig(epsilon=30),
        objective=ObjectiveConfig(**{**common, **setting.objective}),
        learner=LearnerConfig(**{"batch_decisions": batch, "final_lr_fraction": 1.0, **rates, **setting.learner}),
        limits=LimitsConfig(max_decisions=setting.num_decisions),
    )


def train(setting: Setting, episodes_per_task: int = EPISODES_PER_TASK) -> Outcome:
    """Reinforcement learning from the start of its seed, then an evaluation."""
    torch.set_num_threads(1)
    updates: list[dict[str, float]] = []
    policy = copy.deepcopy(start(setting.seed))
    run = InlineRun(
        configure(setting), policy, make_env, setting.decisions_per_update, setting.lag, on_update=updates.append
    )
    started = time.perf_counter()
    run.run()
    wall_s = time.perf_counter() - started
    success = np.array([episode.success for episode in run.episodes], float)
    curve = tuple(float(part.mean()) for part in np.array_split(success, 8))
    return Outcome(success_of(policy, episodes_per_task), curve, updates, wall_s)


@cache
def start_success(seed: int) -> float:
    """Of the cloned policy of this seed, over the tasks."""
    return float(np.mean(success_of(start(seed), EPISODES_PER_TASK)))


def success_of(policy: StatePolicy, episodes_per_task: int) -> tuple[float, ...]:
    """Of the sampled policy, of each task, in episodes that no training saw."""
    server = PolicyServer(copy.deepcopy(policy), InferenceConfig())
    report = evaluate(server, make_env, plan_episodes(TASKS, episodes_per_task, 0, greedy=False))
    return tuple(float(np.mean([each.success for each in report.episodes if each.task == task])) for task in TASKS)


def late_mean(updates: Sequence[dict[str, float]], name: str, read: Callable[..., Any] = np.mean) -> float:
    """Of a metric over the last quarter of the updates."""
    return float(read([update[name] for update in updates[-max(1, len(updates) // 4) :]]))
