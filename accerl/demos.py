"""Demonstrations: recorded from a scripted expert, kept as safetensors shards beside a `dataset.json`.

An episode is recorded action by action, so that a chunk can start at any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from accerl.config import ConfigError, DemosConfig, EnvConfig, Positive, Section
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.files import write_file
from accerl.protocols import Env, Expert
from accerl.reading import read_object
from accerl.rollout import derive_seed
from accerl.statistics import summarize
from accerl.types import Array

FORMAT = 1
COLUMNS = (("images", 5, "U8"), ("proprio", 2, "F32"), ("action", 2, "F32"))
"""Name, number of dimensions and type of what a shard holds."""
LAST_COLUMNS = (("last_images", 5, "U8"), ("last_proprio", 2, "F32"))
LAST = tuple(name for name, _, _ in LAST_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """An episode of an expert."""

    task: str
    instruction: str
    images: UInt8[Array, "frame camera height width 3"]
    proprio: Float32[Array, "frame proprio"]
    action: Float32[Array, "time action"]
    """In [-1, 1]; the first of them, and every `every`-th, was taken at an observation that is kept."""
    every: int = 1
    last_images: UInt8[Array, "camera height width 3"] | None = None
    """After the last action: what success looks like. None: the data set has none."""
    last_proprio: Float32[Array, " proprio"] | None = None
    success: bool = True


def single_action(env: EnvConfig, config: DemosConfig) -> EnvConfig:
    """The same environment with one action a decision, and `config.patience` times as long an episode."""
    num_actions = round(env.max_decisions * env.chunk_length * config.patience)
    limit = None if env.max_env_steps is None else round(env.max_env_steps * config.patience)
    return env.model_copy(update={"chunk_length": 1, "max_decisions": num_actions, "max_env_steps": limit})


def num_frames(num_actions: int, every: int) -> int:
    """Observations that are kept of an episode."""
    return -(-num_actions // every)


def without_images(env: EnvConfig) -> EnvConfig:
    """LIBERO's without cameras; drawing costs more than stepping there."""
    return env.model_copy(update={"cameras": ()}) if env.suite in LIBERO else env


def record(
    env: Env, expert: Expert, config: DemosConfig, on_episode: Callable[[str, bool], None] | None = None
) -> list[Demonstration]:
    """`episodes_per_task` episodes of each task of `env`, which takes single actions: successes, unless failures count.

    Raises:
        RuntimeError: the expert failed five times as often as it had to succeed.
    """
    demonstrations = []
    for index, task in enumerate(env.spec.tasks):
        kept = tried = 0
        while kept < config.episodes_per_task:
            if tried == 6 * config.episodes_per_task:
                raise RuntimeError(
                    f"demos.speed, demos.noise: the expert solved {task} in {kept} of {tried} episodes; "
                    f"raise the speed or the patience, or lower the noise"
                )
            demonstration = _play(env, expert, task, derive_seed(config.seed, index, tried), config.draw_every)
            tried += 1
            is_kept = demonstration.success or config.keep_failures
            kept += is_kept
            if is_kept:
                demonstrations.append(demonstration)
            if on_episode is not None:
                on_episode(task, is_kept)
    return demonstrations


def save(folder: Path, demonstrations: Sequence[Demonstration], env: EnvConfig, config: DemosConfig) -> None:
    """Write shards and, last, `dataset.json`, which makes the folder a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    shards = []
    for first in range(0, len(demonstrations), config.episodes_per_shard):
        part = demonstrations[first : first + config.episodes_per_shard]
        shards.append(folder / f"shard-{len(shards):05d}.safetensors")
        write_shard(shards[-1], part)
    write_index(folder, env, config, shards)


def write_shard(
    shard: Path, demonstrations: Sequence[Demonstration], known: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Some episodes end to end, and the JSON file beside them.

    Args:
        known: of each, what that file keeps beside its task, instruction and length.
    """
    arrays = {
        name: np.concatenate([getattr(d, name) for d in demonstrations]) for name in ("images", "proprio", "action")
    }
    save_file(arrays | last_observations(demonstrations), shard)
    episodes = [
        {**facts, "task": d.task, "instruction": d.instruction, "length": len(d.action), "success": d.success}
        for d, facts in zip(demonstrations, known or [{}] * len(demonstrations), strict=True)
    ]
    write_shard_index(shard, episodes)


def last_observations(demonstrations: Sequence[Demonstration]) -> dict[str, Array]:
    """A row an episode; nothing unless every one has its last observation."""
    if any(d.last_images is None or d.last_proprio is None for d in demonstrations):
        return {}
    return {name: np.stack([getattr(d, name) for d in demonstrations]) for name in LAST}


def write_shard_index(shard: Path, episodes: Sequence[Mapping[str, Any]]) -> None:
    """The JSON file beside a shard: its episodes in order, each with task, instruction and length."""
    write_file(shard.with_suffix(".json"), json.dumps({"format": FORMAT, "episodes": list(episodes)}, indent=1))


def write_index(folder: Path, env: EnvConfig, config: DemosConfig, shards: Sequence[Path]) -> None:
    """`dataset.json`: settings, shards and statistics of actions and proprioception."""
    index, action, proprio = [], [], []
    for shard in shards:
        index.append({"file": shard.name, "episodes": json.loads(shard.with_suffix(".json").read_text())["episodes"]})
        with safe_open(shard, framework="numpy") as arrays:
            action.append(arrays.get_tensor("action"))
            proprio.append(arrays.get_tensor("proprio"))
    actions = np.concatenate(action)
    scaled = [*[True] * (actions.shape[1] - 1), env.suite == "dots"]  # elsewhere the last one is the gripper
    content = {
        "format": FORMAT,
        "env": env.model_dump(mode="json"),
        "demos": config.model_dump(mode="json"),
        "statistics": {
            "action": summarize(actions, mask=scaled),
            "proprio": summarize(np.concatenate(proprio)),
            "num_transitions": len(actions),
            "num_trajectories": sum(len(shard["episodes"]) for shard in index),
        },
        "shards": index,
    }
    write_file(folder / "dataset.json", json.dumps(content, indent=1))


class _EpisodeFacts(Section):
    model_config = ConfigDict(extra="allow")

    task: str
    instruction: str
    length: Positive
    success: bool = True


class _ShardFacts(Section):
    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.safetensors$")]
    episodes: Annotated[tuple[_EpisodeFacts, ...], Field(min_length=1)]


class _Recording(Section):
    model_config = ConfigDict(extra="allow")

    draw_every: Positive = 1


class _Index(Section):
    """What a `dataset.json` must hold to be read; other things may stand beside."""

    model_config = ConfigDict(extra="allow")

    env: EnvConfig
    demos: _Recording
    shards: Annotated[tuple[_ShardFacts, ...], Field(min_length=1)]


def load(folder: Path, failures: bool = False) -> tuple[list[Demonstration], EnvConfig]:
    """The demonstrations of a folder and the environment they were recorded in.

    Args:
        failures: failed episodes too, if the folder has some.

    Raises:
        ConfigError: the folder holds no complete data set of a known format, or a damaged one.
    """
    index = read_index(folder)
    every = every_of(index)
    shards = (read_shard(folder, shard, every, failures) for shard in index["shards"])
    demonstrations = list(chain.from_iterable(shards))
    kinds = {_shape_of(demonstration) for demonstration in demonstrations}
    if len(kinds) > 1:
        raise ConfigError(f"data: {folder} mixes episodes of {' and '.join(sorted(kinds))}; record it again")
    return demonstrations, EnvConfig(**index["env"])


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `dataset.json`.

    Raises:
        ConfigError: there is none, it is damaged, or it is of another format.
    """
    path = folder / "dataset.json"
    if not path.exists():
        raise ConfigError(f"data: {folder} holds no dataset.json; record one with `accerl demos --out {folder}`")
    try:
        content = read_object(path)
        if content.get("format") != FORMAT:
            raise ConfigError(f"data: {folder} has format {content.get('format')}, this version reads {FORMAT}")
        _Index(**content)
    except (OSError, ValueError) as error:
        if str(error).startswith("data: "):
            raise
        raise ConfigError(f"data: {path} is damaged ({error}); record it again") from None
    return content


def every_of(index: Mapping[str, Any]) -> int:
    """`demos.draw_every` of a data set."""
    return index["demos"].get("draw_every", 1)


def read_shard(folder: Path, shard: Mapping[str, Any], every: int, failures: bool = False) -> Iterator[Demonstration]:
    """The episodes of one shard of the index, one by one; failed ones if they are asked for.

    Raises:
        ConfigError: its file is missing, damaged, or not what the index says.
    """
    path = folder / shard["file"]
    try:
        with safe_open(path, framework="numpy") as arrays:
            columns = {name: arrays.get_slice(name) for name in arrays.keys()}  # noqa: SIM118 - no mapping
            _check_columns(columns, shard["episodes"], every)
            yield from _episodes(columns, shard["episodes"], every, failures)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"data: {path} is damaged ({error}); record it again") from None


def _check_columns(columns: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], every: int) -> None:
    frames = sum(num_frames(episode["length"], every) for episode in episodes)
    rows = {"images": frames, "proprio": frames, "action": sum(episode["length"] for episode in episodes)}
    wanted = {name: (rows[name], dims, kind) for name, dims, kind in COLUMNS}
    wanted |= {name: (len(episodes), dims, kind) for name, dims, kind in LAST_COLUMNS if name in columns}
    for name, (number, dims, kind) in wanted.items():
        if name not in columns:
            raise ValueError(f"{name} is missing")
        shape, found = columns[name].get_shape(), columns[name].get_dtype()
        if len(shape) != dims or found != kind or shape[0] != number:
            raise ValueError(f"{name} is {found} {shape}, not {kind} of {dims} dimensions and {number} rows")


def _episodes(
    columns: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], every: int, failures: bool
) -> Iterator[Demonstration]:
    first_action = first_frame = 0
    for row, episode in enumerate(episodes):
        actions = slice(first_action, first_action + episode["length"])
        frames = slice(first_frame, first_frame + num_frames(episode["length"], every))
        first_action, first_frame = actions.stop, frames.stop
        success = episode.get("success", True)
        if not success and not failures:
            continue
        demonstration = Demonstration(
            task=episode["task"],
            instruction=episode["instruction"],
            images=columns["images"][frames],
            proprio=columns["proprio"][frames],
            action=columns["action"][actions],
            every=every,
            success=success,
            **{name: columns[name][row] for name in LAST if name in columns},
        )
        for name in ("action", "proprio"):
            if not np.isfinite(getattr(demonstration, name)).all():
                raise ValueError(f"{name} of episode {row} is not finite")
        yield demonstration


def _shape_of(demonstration: Demonstration) -> str:
    cameras, height, width = demonstration.images.shape[1:4]
    sizes = f"{demonstration.proprio.shape[1]} values of proprioception, {demonstration.action.shape[1]} of an action"
    return f"{cameras} pictures of {height}x{width}, {sizes}"


def _play(env: Env, expert: Expert, task: str, seed: int, every: int) -> Demonstration:
    observation, _ = env.reset(seed=seed % 2**31, options={"task": task})
    instruction = observation["instruction"]
    images, proprio, actions = [], [], []
    while True:
        action = expert(env).astype(np.float32)
        if len(actions) % every == 0:
            images.append(observation["images"])
            proprio.append(observation["proprio"])
        actions.append(action)
        result = env.step_chunk(action[None])
        observation = result.observation
        if result.terminal or result.truncated:
            break
    return Demonstration(
        task=task,
        instruction=instruction,
        images=np.stack(images),
        proprio=np.stack(proprio),
        action=np.stack(actions),
        every=every,
        success=result.success,
        last_images=observation["images"],
        last_proprio=observation["proprio"],
    )
