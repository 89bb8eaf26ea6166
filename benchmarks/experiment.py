"""One run of the comparison: a mode on so many emulated GPUs, as a configuration that is run or simulated.

Every mode plays the same episodes, makes global batches of the same size and has the same number of GPUs; how these are
divided is chosen for each mode (`benchmarks.pipeline` says by what).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from accerl.config import (
    ClusterConfig,
    EnvConfig,
    InferenceConfig,
    LearnerConfig,
    Mode,
    NonNegative,
    PolicyConfig,
    Positive,
    PositiveFloat,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
    Section,
    TaskConfig,
)
from benchmarks.devices import STEP_LIMITS, Emulation, script, task_names

CHUNK = 8
MAX_DECISIONS = 65
IMAGE_SIZE, CAMERAS = 224, ("third-person", "wrist")
SLOTS_PER_WORKER = 8
MICRO_BATCHES = 6
"""Micro-batches of a global batch, about, where training starts before the batch is whole."""


class Bound(NamedTuple):
    """The most decisions a second that each part can do alone; a pipeline does at most the least of them."""

    env: float
    """N / (environment time of a decision, its share of the reset, t_inf of a full and undelayed forward of one)."""
    inference: float
    """G_inf B / t_fwd(B)"""
    train: float
    """G_train b / t_fb(b), each decision used once"""

    @property
    def total(self) -> float:
        return min(self)

    @property
    def binds(self) -> str:
        return self._fields[int(np.argmin(self))]


class Experiment(Section):
    """A mode, the GPUs it has and what they are used for."""

    mode: Mode
    num_gpus: PositiveFloat = 8
    inference_gpus: PositiveFloat | None = None
    """Kept for inference, the others train; none: all do both, by turns (colocated), which needs a mode with turns."""
    num_services: Positive = 1
    """Inference processes; they share the inference GPUs."""
    num_shards: Positive = 1
    """Replay processes."""
    max_workers: Positive = 8
    """Rollout processes at most, as each takes 350 MB; more environments than 8 in each get more slots."""
    streams: bool = True
    """Train on trajectories as they come, with one optimizer step for the whole batch; no: when all are there."""
    num_envs: Positive = 48
    max_policy_lag: NonNegative = 3
    """K, of mode "async"."""
    emulation: Emulation = Emulation()
    """Times of one device each; the numbers of GPUs are set from the fields above."""
    seed: NonNegative = 0

    @property
    def learner_gpus(self) -> float:
        return self.num_gpus if self.inference_gpus is None else self.num_gpus - self.inference_gpus

    @property
    def config_lag(self) -> int:
        """The bound on staleness of its mode."""
        return {"sync": 0, "barrier": 0, "one_step_off": 1}.get(self.mode, self.max_policy_lag)

    @property
    def batch_decisions(self) -> int:
        """Of a global batch, where rounds do not decide: as many as one episode of every environment has on average."""
        return round(self.num_envs * mean_episode(self.emulation).num_decisions)

    def devices(self, meters: Path | None = None) -> Emulation:
        """The times, with every service's and the learner's number of GPUs."""
        inference_gpus = (self.inference_gpus or self.num_gpus) / self.num_services
        fields = {"inference_gpus": inference_gpus, "learner_gpus": self.learner_gpus, "meters": meters}
        return Emulation(**{**self.emulation.model_dump(), **fields})

    def config(self, folder: Path) -> RunConfig:
        """The run in `folder`, which must hold what `devices` gives as `emulation.json`."""
        lockstep = self.mode in ("sync", "one_step_off")
        rounds = 2 + (self.max_policy_lag if self.mode == "async" else 1)
        whole = self.num_envs * MAX_DECISIONS
        workers = num_workers(self.num_envs, self.max_workers)
        return RunConfig(
            name=folder.name,
            root=folder.parent,
            mode=self.mode,
            seed=self.seed,
            env=EnvConfig(
                suite="benchmarks.emulation:emulated_env",
                tasks=task_names(folder / "emulation.json"),
                image_size=IMAGE_SIZE,
                cameras=CAMERAS,
                chunk_length=CHUNK,
                steps_per_action=1,
                max_decisions=MAX_DECISIONS,
            ),
            policy=PolicyConfig(kind="benchmarks.emulation:EmulatedPolicy"),
            rollout=RolloutConfig(
                num_workers=workers,
                slots_per_worker=self.num_envs // workers,
                threads_per_worker=self.num_envs // workers,
                segment_decisions=MAX_DECISIONS,
                max_policy_lag=self.max_policy_lag if self.mode == "async" else None,
            ),
            inference=InferenceConfig(
                num_services=self.num_services,
                batch_size=self.num_envs if lockstep else min(8, self.num_envs),
            ),
            replay=ReplayConfig(
                num_shards=self.num_shards, capacity_decisions=rounds * whole, max_reuse=1, min_decisions=1
            ),
            tasks=TaskConfig(epsilon=1e12),  # uniform: the order of the tasks does not depend on what was played
            learner=LearnerConfig(
                batch_decisions=self.batch_decisions,
                micro_batch_decisions=(
                    max(MAX_DECISIONS, self.batch_decisions // MICRO_BATCHES) if self.streams else whole
                ),
                checkpoint_every_s=1e6,
            ),
            cluster=ClusterConfig(object_store_mb=max(200, 2 * self.batch_decisions * image_bytes() // 2**20)),
        )

    def bound(self) -> Bound:
        """min(X_env, X_inf, X_train) with the constants of the devices."""
        devices, episode = self.devices(), mean_episode(self.emulation)
        scale = devices.time_scale
        decision_s = scale * (episode.env_s / episode.num_decisions) + devices.act_s(1)
        rows = max(1, round(devices.inference_gpus)) * 64
        return Bound(
            env=self.num_envs / decision_s,
            inference=self.num_services * rows / devices.act_s(rows),
            train=1 / devices.evaluate_s(1),
        )


def num_workers(num_envs: int, most: int) -> int:
    """Processes among which the environments are dealt out evenly, with at least as many each as is usual."""
    wanted = min(most, -(-num_envs // SLOTS_PER_WORKER))
    return next(number for number in range(wanted, 0, -1) if num_envs % number == 0)


class MeanEpisode(NamedTuple):
    num_decisions: float
    num_env_steps: float
    env_s: float
    """In the environment, its reset included."""


def mean_episode(emulation: Emulation) -> MeanEpisode:
    """Over many episodes, the suites alike."""
    return _mean_episode(emulation.model_dump_json())


@lru_cache
def _mean_episode(emulation_json: str, num: int = 4000) -> MeanEpisode:
    emulation = Emulation.model_validate_json(emulation_json)
    scripts = [script(emulation, suite, seed) for seed in range(num // len(STEP_LIMITS)) for suite in STEP_LIMITS]
    rows = [(len(s.chunk_s), s.num_env_steps, s.reset_s + env_s(s.num_env_steps, s.chunk_s)) for s in scripts]
    return MeanEpisode(*np.mean(rows, axis=0).tolist())


def env_s(num_env_steps: int, chunk_s: np.ndarray) -> float:
    """Time of all decisions of an episode; the last one may be shorter."""
    return float(chunk_s.sum() - chunk_s[-1] * (1 - last_share(num_env_steps)))


def last_share(num_env_steps: int) -> float:
    """Part of its last decision that an episode executes."""
    return ((num_env_steps - 1) % CHUNK + 1) / CHUNK


def image_bytes() -> int:
    """Of the images of one decision."""
    return len(CAMERAS) * IMAGE_SIZE * IMAGE_SIZE * 3
