"""A cloned policy of middling success on `dots`, and runs that are ended whatever a test does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from accerl import checkpoint, demos, imitation
from accerl.config import CloneConfig, DemosConfig, EnvConfig, RunConfig, merge
from accerl.envs import make_env, make_expert
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.runtime.run import Run, launch

DOTS = EnvConfig(suite="dots", tasks=("red",), image_size=32, steps_per_action=1, max_decisions=5)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a policy that solves about half of the episodes and is too slow for the others."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = DemosConfig(episodes_per_task=200, speed=0.6, noise=0.2, patience=3)
    env = make_env(demos.single_action(DOTS, config))
    expert = make_expert(DOTS, env, speed=config.speed, noise=config.noise, seed=0)
    demonstrations = demos.record(env, expert, config)
    policy = TinyVLA(
        TinyVLAConfig.for_env(make_env(DOTS).spec, {d.instruction for d in demonstrations}, width=64, num_layers=2)
    )
    imitation.clone(policy, demonstrations, DOTS.chunk_length, CloneConfig(updates=500, lr=1e-3, shift_pixels=0))
    folder = tmp_path_factory.mktemp("start") / "policy"
    checkpoint.save_policy(folder, policy.config_dict(), policy.state_dict())
    return folder


@pytest.fixture
def start_run(start: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Launches runs on `dots` with overrides; what is still alive after the test is stopped."""
    with launching(start, tmp_path) as launch_one:
        yield launch_one


@contextmanager
def launching(start: Path, root: Path) -> Iterator[Callable[..., Run]]:
    """As `start_run`, for as long as is wanted."""
    launched: list[Run] = []

    def launch_one(overrides: dict | None = None, resume: bool = False, **options) -> Run:
        fields = {
            "name": "run",
            "root": root,
            "env": DOTS.model_dump(),
            "policy.checkpoint": start,
            "objective.time_limit": "failure",
            "objective.value_loss": "bce",
            "objective.behaviour_kl": 0.1,
            "objective.trace": 0.8,
            "learner.batch_decisions": 256,
            "learner.policy_lr": 5e-4,
            "learner.value_warmup_updates": 10,
            "replay.capacity_decisions": 2048,
            "replay.min_decisions": 256,
            "tasks.epsilon": 30,
        }
        run = launch(RunConfig(**merge({}, fields | (overrides or {}))), resume=resume, **options)
        launched.append(run)
        return run

    try:
        yield launch_one
    finally:
        for run in launched:
            run.stop()


def broken_env(config: EnvConfig, tasks: tuple[str, ...]) -> None:
    raise RuntimeError("no camera")
