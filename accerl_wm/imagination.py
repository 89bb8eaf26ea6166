"""Imagined episodes: the rollout worker plays them as it plays real ones, with models in the simulator's place.

 frames ─► Start ─► ImaginedEnv ◄─ action ─ policy            many of them wait at once
                        │    ▲
        past, actions   ▼    │  frames, probability of success
                     WorldModel: one batch of predictions for all that wait

An imagined episode begins in a real moment and is cut after a horizon, where the newest critic's value takes over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from accerl.config import ImaginationConfig, RolloutConfig
from accerl.event_loop import run_to_end
from accerl.policy_server import LocalBatches, LocalClient, PolicyServer
from accerl.rollout import RolloutWorker, derive_seed
from accerl.types import ChunkResult, EnvSpec, Episode, EpisodePlan, Observation, Trajectory
from accerl_wm.frames import Start
from accerl_wm.world import Imagined, Past, Question, WorldModel


class Starts(Protocol):
    """frames -> imagination."""

    @property
    def tasks(self) -> Sequence[str]:
        """Of which there are real moments to start from."""
        ...

    def start(self, task: str, history: int, generator: np.random.Generator, near_success: float = 0.0) -> Start: ...


class Models(Protocol):
    """imagination -> world model: many may ask at once."""

    async def ask(self, request: Question) -> Imagined: ...


class ImaginedEnv:
    """An `AsyncEnv` in which a world model says what happens.

    Args:
        spec: of the real environment; observations look exactly as there.
        history: that the models look back on.
        discount: the objective's, for `reward = "potential"`.
        horizon: at present, in the place of the configured one.
    """

    def __init__(
        self,
        spec: EnvSpec,
        starts: Starts,
        models: Models,
        history: int,
        config: ImaginationConfig,
        discount: float,
        horizon: Callable[[], int] | None = None,
    ):
        self.spec = spec
        self._horizon = horizon or (lambda: config.horizon)
        self._starts = starts
        self._models = models
        self._history = history
        self._config = config
        self._discount = discount
        self._generator = np.random.default_rng()
        self._start: Start
        self._past: Past
        self._success = 0.0
        self._num_decisions = 0

    async def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Go to a real moment of the task, drawn with `seed`; `info["episode_step"]` says how far its episode is."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        task = (options or {}).get("task", self.spec.tasks[0])
        start = self._starts.start(task, self._history, self._generator, self._config.near_success)
        self._start, self._past, self._num_decisions = start, Past(start, self._history), 0
        if self._config.reward != "success":
            self._success = (await self._models.ask(self._past.question(None))).success
        return self._observe(), {"task": task, "episode_step": start.episode_step}

    async def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        """Ask for what these actions lead to."""
        imagined = await self._models.ask(self._past.question(np.clip(np.asarray(actions, np.float32), -1.0, 1.0)))
        self._past.take(imagined)
        before, self._success = self._success, imagined.success
        self._num_decisions += 1
        spec = self.spec
        success = imagined.success >= self._config.threshold
        truncated = not success and self._start.episode_step + self._num_decisions >= spec.max_decisions
        return ChunkResult(
            observation=self._observe(),
            reward=self._reward(before, success),
            terminal=success,
            truncated=truncated,
            success=success,
            num_actions=spec.chunk_length,
            num_env_steps=spec.chunk_length * spec.steps_per_action,
            cut=not (success or truncated) and self._num_decisions >= self._horizon(),
            success_probability=imagined.success,
        )

    def close(self) -> None:
        """Nothing is held."""

    def _reward(self, before: float, success: bool) -> float:
        match self._config.reward:
            case "success":
                return float(success)
            case "potential":
                return self._discount * self._success - before
            case "difference":
                return self._success - before

    def _observe(self) -> Observation:
        past = self._past
        return Observation(images=past.images[-1], proprio=past.proprio[-1], instruction=self._start.instruction)


class Imagination:
    """Many imaginations side by side in one process: the policy and the models answer all that wait in one batch.

    Args:
        spec: of the real environment.
    """

    def __init__(
        self,
        world: WorldModel,
        starts: Starts,
        spec: EnvSpec,
        config: ImaginationConfig,
        discount: float,
        seed: int = 0,
    ):
        self.episodes: list[Episode] = []
        """All that were imagined."""
        self.horizon = config.horizon
        """Of the episodes that are imagined from now on."""
        self._world = world
        self._starts = starts
        self._spec = spec
        self._config = config
        self._discount = discount
        self._seed = seed
        self._number = 0
        self._wanted = 0
        self._trajectories: list[Trajectory] = []

    def imagine(self, num_decisions: int, server: PolicyServer) -> Sequence[Trajectory]:
        """Trajectories with at least so many decisions in all, by the newest weights that `server` has."""
        self._trajectories, self._wanted = [], num_decisions
        models: LocalBatches[Question, Imagined] = LocalBatches(self._world.answer)
        worker = RolloutWorker(
            name="imagination",
            make_env=lambda: ImaginedEnv(
                self._spec,
                self._starts,
                models,
                self._world.history,
                self._config,
                self._discount,
                horizon=lambda: self.horizon,
            ),
            config=RolloutConfig(slots_per_worker=self._config.slots),
            client=LocalClient(server),
            sink=self,
            tasks=self,
            seed=self._seed,
        )
        run_to_end(worker.run())
        return self._trajectories

    async def put(self, trajectory: Trajectory) -> None:
        self._trajectories.append(trajectory)

    async def next_episode(self) -> EpisodePlan | None:
        """Tasks by turns, while what has been started may still be too little."""
        if self._wanted <= 0:
            return None
        self._wanted -= 1  # an episode has a decision at least; the others are subtracted when they are known
        tasks = self._starts.tasks
        number, self._number = self._number, self._number + 1
        return EpisodePlan(
            task=tasks[number % len(tasks)], seed=derive_seed(self._seed, number), number=number, is_imagined=True
        )

    async def report(self, episode: Episode) -> None:
        self._wanted -= episode.num_decisions - 1
        self.episodes.append(episode)

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        raise error
