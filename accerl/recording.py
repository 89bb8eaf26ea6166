"""Demonstrations recorded by worker processes: first what happened in every episode, then the images.

    plan -> record: one file an episode, states and actions, without drawing  -> render: the actions played again,
                    the states compared, images drawn: one shard -> dataset.json with statistics

What exists is not made again, so that a recording that was cut off goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from accerl.config import ConfigError, DemosConfig, EnvConfig
from accerl.demos import (
    Demonstration,
    last_observations,
    num_frames,
    single_action,
    without_images,
    write_index,
    write_shard_index,
)
from accerl.episode_pool import Channel, EpisodePool, Incident, Outcome, PoolConfig
from accerl.files import sync, write_file
from accerl.protocols import StatefulEnv
from accerl.rollout import derive_seed

ATTEMPTS = 20
"""Times that an episode is tried, with other noise and initial states, until the expert succeeds."""
TOLERANCE = 1e-9
"""Most that a state may differ when the actions are played again; on one kind of machine it does not at all."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An episode that is to be recorded."""

    task: str
    number: int
    """Of the task's."""
    path: Path


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode that has been: everything that plays it again."""

    task: str
    instruction: str
    seed: int
    start: int
    """Initial state, where the environment has some; else without effect."""
    length: int
    tried: int
    path: Path
    success: bool = True


def play_episodes(
    folder: Path,
    env: EnvConfig,
    config: DemosConfig,
    pool: PoolConfig,
    on_episode: Callable[[str], None] = lambda task: None,
    on_incident: Callable[[Incident], None] = lambda incident: None,
) -> list[Recorded]:
    """Every episode's states and actions, in files below `folder`; task by task.

    Args:
        on_episode: called with the task of each that is there.

    Raises:
        ConfigError: the folder holds a recording with other settings.
        RuntimeError: the expert failed `ATTEMPTS` times in a row, or an environment kept failing.
    """
    episodes = folder / "episodes"
    episodes.mkdir(parents=True, exist_ok=True)
    _claim(folder, env, config)
    wanted = [
        Wanted(task, number, episodes / f"{index:03d}-{number:05d}.safetensors")
        for number in range(config.episodes_per_task)
        for index, task in enumerate(env.tasks)
    ]
    missing = []
    for item in wanted:
        if item.path.exists():
            on_episode(item.task)
        else:
            missing.append(item)
    workers: EpisodePool[Wanted, Recorded] = EpisodePool(pool, partial(_Recorder, env, config), _task_of)
    _refuse_gaps(workers.run(missing, lambda item, _: on_episode(item.task), on_incident))
    return [read_recorded(path) for path in sorted(item.path for item in wanted)]


def draw_images(
    folder: Path,
    env: EnvConfig,
    config: DemosConfig,
    recorded: Sequence[Recorded],
    pool: PoolConfig,
    on_shard: Callable[[str], None] = lambda name: None,
    on_incident: Callable[[Incident], None] = lambda incident: None,
) -> None:
    """Play the recorded actions again, with images, and make `folder` a data set.

    Raises:
        RuntimeError: a state is not the recorded one, or an environment kept failing.
    """
    size = config.episodes_per_shard
    shards = [
        _Shard(folder / f"shard-{number:05d}.safetensors", tuple(recorded[first : first + size]))
        for number, first in enumerate(range(0, len(recorded), size))
    ]
    missing = []
    for shard in shards:
        if shard.path.with_suffix(".json").exists():
            on_shard(shard.path.name)
        else:
            missing.append(shard)
    workers: EpisodePool[_Shard, None] = EpisodePool(pool, partial(_Renderer, env, config), _first_task_of)
    _refuse_gaps(workers.run(missing, lambda shard, _: on_shard(shard.path.name), on_incident))
    write_index(folder, env, config, [shard.path for shard in shards])


def clear(folder: Path) -> None:
    """Remove a data set or a part of one; other files stay."""
    for pattern in ("dataset.json", "shard-*.json", "shard-*.safetensors", "episodes/*.safetensors", "recording.json"):
        for path in folder.glob(pattern):
            path.unlink()


def read_recorded(path: Path) -> Recorded:
    """Without its arrays."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        fields = json.loads(file.metadata()["episode"])
    return Recorded(**fields, path=path)


class _Recorder:
    """Plays the expert until it succeeds, or once where failures count, and writes what it did."""

    def __init__(self, env: EnvConfig, config: DemosConfig):
        from accerl.envs import make_env, make_expert

        self._config = config
        self._tasks = env.tasks
        self._env: Any = make_env(without_images(single_action(env, config)))
        self._expert = partial(make_expert, env, self._env, speed=config.speed, noise=config.noise)

    def play(self, wanted: Wanted, channel: Channel) -> Recorded:
        index = self._tasks.index(wanted.task)
        for attempt in range(ATTEMPTS):
            seed = derive_seed(self._config.seed, index, wanted.number, attempt) % 2**31
            start = wanted.number + attempt
            played = self._play(wanted.task, seed, start, channel)
            if played.success or self._config.keep_failures:
                break
        else:
            remedy = "raise demos.speed or demos.patience, or lower demos.noise"
            raise RuntimeError(f"the expert failed {ATTEMPTS} times in a row; {remedy}")
        recorded = Recorded(
            task=wanted.task,
            instruction=played.instruction,
            seed=seed,
            start=start,
            length=len(played.actions),
            tried=attempt + 1,
            path=wanted.path,
            success=played.success,
        )
        fields = {name: value for name, value in asdict(recorded).items() if name != "path"}
        arrays = {"states": np.stack(played.states), "action": np.stack(played.actions)}
        _write(wanted.path, arrays, {"episode": json.dumps(fields)})
        return recorded

    def close(self) -> None:
        self._env.close()

    def _play(self, task: str, seed: int, start: int, channel: Channel) -> _Attempt:
        expert = self._expert(seed=seed)
        observation, _ = self._env.reset(seed=seed, options={"task": task, "init_state": start})
        attempt = _Attempt(observation["instruction"])
        while True:
            attempt.states.append(physics_of(self._env))
            attempt.actions.append(expert(self._env).astype(np.float32))
            result = self._env.step_chunk(attempt.actions[-1][None], on_step=channel.beat)
            if result.terminal or result.truncated:
                attempt.success = result.success
                return attempt


@dataclass(slots=True)
class _Attempt:
    """An episode of the expert."""

    instruction: str
    states: list[np.ndarray] = field(default_factory=list)
    """Before each action."""
    actions: list[np.ndarray] = field(default_factory=list)
    success: bool = False


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    episodes: tuple[Recorded, ...]


class _Renderer:
    """Plays recorded actions again, with images, and writes a shard."""

    def __init__(self, env: EnvConfig, config: DemosConfig):
        from accerl.envs import make_env

        self._every = config.draw_every
        single = single_action(env, config)
        limit = num_frames(single.max_decisions, self._every)
        self._env: Any = make_env(single.model_copy(update={"chunk_length": self._every, "max_decisions": limit}))

    def play(self, shard: _Shard, channel: Channel) -> None:
        demonstrations = [self._draw(episode, channel) for episode in shard.episodes]
        arrays = {
            "images": np.concatenate([demonstration.images for demonstration in demonstrations]),
            "proprio": np.concatenate([demonstration.proprio for demonstration in demonstrations]),
            "action": np.concatenate([demonstration.action for demonstration in demonstrations]),
            "state": np.concatenate([load_file(episode.path)["states"] for episode in shard.episodes]),
            **last_observations(demonstrations),
        }
        _write(shard.path, arrays)
        fields = ("task", "instruction", "length", "seed", "start", "success")
        index = [{name: getattr(episode, name) for name in fields} for episode in shard.episodes]
        write_shard_index(shard.path, index)

    def close(self) -> None:
        self._env.close()

    def _draw(self, episode: Recorded, channel: Channel) -> Demonstration:
        arrays = load_file(episode.path)
        options = {"task": episode.task, "init_state": episode.start}
        observation, _ = self._env.reset(seed=episode.seed, options=options)
        images, proprio = [], []
        actions = arrays["action"]
        for step in range(0, len(actions), self._every):
            difference = np.abs(physics_of(self._env) - arrays["states"][step]).max()
            if difference > TOLERANCE:
                raise RuntimeError(
                    f"{episode.path}: at step {step} the state differs by {difference:.1e} from the recorded"
                )
            images.append(observation["images"])
            proprio.append(observation["proprio"])
            chunk = actions[step : step + self._every]
            missing = np.repeat(chunk[-1:], self._every - len(chunk), axis=0)  # after the success, so never executed
            observation = self._env.step_chunk(np.concatenate([chunk, missing]), on_step=channel.beat).observation
        return Demonstration(
            task=episode.task,
            instruction=episode.instruction,
            images=np.stack(images),
            proprio=np.stack(proprio),
            action=actions,
            every=self._every,
            success=episode.success,
            last_images=observation["images"],
            last_proprio=observation["proprio"],
        )


def physics_of(env: StatefulEnv) -> np.ndarray:
    """MuJoCo's state of an environment, flat, float64; of another simulator, all of its numbers but the count of
    decisions, which another chunk length changes.
    """
    state = env.save_state()
    if "physics" in state:
        return state["physics"]
    numbers = [value for name, value in state.items() if value.dtype.kind in "bif" and name != "num_decisions"]
    return np.concatenate([np.ravel(value).astype(float) for value in numbers])


def _write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """All of it or nothing."""
    temporary = path.with_suffix(".part")
    save_file(arrays, temporary, metadata=metadata)
    sync(temporary)
    temporary.rename(path)


def _claim(folder: Path, env: EnvConfig, config: DemosConfig) -> None:
    """Mark the folder with the settings, or find the same ones there."""
    settings = {"env": env.model_dump(mode="json"), "demos": config.model_dump(mode="json")}
    remedy = "add --overwrite or give another folder"
    path = folder / "recording.json"
    if path.exists():
        if json.loads(path.read_text()) != json.loads(json.dumps(settings)):
            raise ConfigError(f"out: {folder} holds a recording with other settings; {remedy}")
    elif (folder / "dataset.json").exists():
        raise ConfigError(f"out: {folder} holds a data set; {remedy}")
    else:
        clear(folder)  # left by a recording of another kind
        write_file(path, json.dumps(settings, indent=1))


def _refuse_gaps(outcome: Outcome[Any]) -> None:
    for task, reason in outcome.given_up.items():
        others = len(outcome.given_up) - 1
        raise RuntimeError(f"{task}: {reason}" + (f" (and {others} more tasks)" if others else ""))


def _task_of(wanted: Wanted) -> str:
    return wanted.task


def _first_task_of(shard: _Shard) -> str:
    return shard.episodes[0].task
