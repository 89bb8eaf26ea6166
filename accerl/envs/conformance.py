"""Does an environment keep the promises of `accerl.protocols.Env`? Run `check_env` on your own."""

from __future__ import annotations

from typing import Any

import numpy as np

from accerl.protocols import Env, StatefulEnv
from accerl.types import ChunkResult, EnvSpec, Observation

FILM_SIZE = 48


def check_env(env: Env, seed: int = 0) -> None:
    """Play some episodes of every task of `env`, which is left open, inside an episode or after one.

    Raises:
        AssertionError: a broken promise, in a sentence.
    """
    assert isinstance(env, Env), f"{type(env).__name__} lacks one of: spec, reset, step_chunk, render, close"
    check_spec(env.spec)
    check_unknown_task(env)
    for task in env.spec.tasks:
        check_observations(env, task, seed)
        check_determinism(env, task, seed)
        check_clipping(env, task, seed)
        check_end(env, task, seed)
        if isinstance(env, StatefulEnv):
            check_state(env, task, seed)


def check_spec(spec: EnvSpec) -> None:
    assert spec.tasks, "spec.tasks is empty"
    assert len(set(spec.tasks)) == len(spec.tasks), "spec.tasks names a task twice"
    counts = ("num_cameras", "image_size", "action_dim", "chunk_length", "steps_per_action", "max_decisions")
    for name in counts:
        assert getattr(spec, name) > 0, f"spec.{name} must be positive, not {getattr(spec, name)}"


def check_unknown_task(env: Env) -> None:
    try:
        env.reset(options={"task": "a task that does not exist"})
    except ValueError:
        return
    raise AssertionError("reset() must raise ValueError for a task that is not in spec.tasks")


def check_observations(env: Env, task: str, seed: int) -> None:
    """Of the first observation and of one decision; and that the first one stays as it was."""
    observation, info = env.reset(seed=seed, options={"task": task})
    assert isinstance(info, dict), "reset() must return (observation, info) with a dict as info"
    check_observation(observation, env.spec)
    before = observation["images"].copy(), observation["proprio"].copy()
    calls: list[int] = []
    result = env.step_chunk(_random_chunk(env.spec, seed), on_step=lambda: calls.append(1))
    check_result(result, env.spec, len(calls))
    assert np.array_equal(before[0], observation["images"]) and np.array_equal(before[1], observation["proprio"]), (
        "an observation changed after it had been returned; return copies"
    )
    film = env.render(FILM_SIZE)
    _check_array("render(size)", film, np.uint8, (FILM_SIZE, FILM_SIZE, 3))


def check_observation(observation: Observation, spec: EnvSpec) -> None:
    size = spec.image_size
    _check_array("observation['images']", observation["images"], np.uint8, (spec.num_cameras, size, size, 3))
    _check_array("observation['proprio']", observation["proprio"], np.float32, (spec.proprio_dim,))
    assert np.isfinite(observation["proprio"]).all(), "observation['proprio'] must be finite"
    assert isinstance(observation["instruction"], str) and observation["instruction"], (
        "observation['instruction'] must be a sentence"
    )


def check_result(result: ChunkResult, spec: EnvSpec, num_calls: int) -> None:
    """`num_calls` is how often `on_step` was called."""
    check_observation(result.observation, spec)
    assert np.isfinite(result.reward), f"the reward must be finite, not {result.reward}"
    assert not (result.terminal and result.truncated), "a decision cannot be both terminal and truncated"
    assert result.terminal or not result.success, "success must end the episode: terminal has to be True"
    most = result.num_actions * spec.steps_per_action
    least = (result.num_actions - 1) * spec.steps_per_action
    assert least < result.num_env_steps <= most, (
        f"{result.num_env_steps} environment steps do not fit {result.num_actions} actions of {spec.steps_per_action}"
    )
    assert result.num_actions <= spec.chunk_length, f"{result.num_actions} actions of a chunk of {spec.chunk_length}"
    assert result.terminal or result.truncated or result.num_env_steps == spec.chunk_length * spec.steps_per_action, (
        "a chunk was cut short although the episode goes on"
    )
    assert num_calls == result.num_env_steps, (
        f"on_step was called {num_calls} times in {result.num_env_steps} environment steps"
    )


def check_determinism(env: Env, task: str, seed: int) -> None:
    """The same seed and actions, twice, with another episode between."""
    chunks = [_random_chunk(env.spec, seed + index) for index in range(3)]
    first = _play(env, task, seed, chunks)
    _play(env, task, seed + 1, chunks[:1])
    _check_same(first, _play(env, task, seed, chunks), "the same seed and actions gave another episode")


def check_clipping(env: Env, task: str, seed: int) -> None:
    chunk = np.sign(_random_chunk(env.spec, seed))
    inside = _play(env, task, seed, [chunk])
    _check_same(inside, _play(env, task, seed, [5 * chunk]), "actions outside [-1, 1] must be clipped")


def check_end(env: Env, task: str, seed: int) -> None:
    """Standing still ends in a terminal state or at the limit, and nothing comes after."""
    env.reset(seed=seed, options={"task": task})
    still = np.zeros((env.spec.chunk_length, env.spec.action_dim), np.float32)
    limit = env.spec.max_decisions
    for decision in range(1, limit + 1):
        result = env.step_chunk(still)
        assert not result.truncated or decision == limit, (
            f"truncated at decision {decision}, but spec.max_decisions is {limit}"
        )
        if result.terminal or result.truncated:
            break
    else:
        raise AssertionError(f"the episode went on after spec.max_decisions = {limit} decisions")
    try:
        env.step_chunk(still)
    except RuntimeError:
        return
    raise AssertionError("step_chunk() must raise RuntimeError after the end of the episode")


def check_state(env: StatefulEnv, task: str, seed: int) -> None:
    """Go on into the next episode, go back, go on again."""
    chunks = [_random_chunk(env.spec, seed + index) for index in range(3)]
    before = _play(env, task, seed, chunks[:1])[-1]
    if before.terminal or before.truncated:
        return
    state = env.save_state()
    assert all(isinstance(value, np.ndarray) for value in state.values()), "save_state() must return arrays"
    results = _continue(env, chunks[1:])
    next_episode = _begin(env, task)
    env.reset(seed=seed + 1, options={"task": env.spec.tasks[-1]})
    loaded = before._replace(observation=env.load_state(state))
    _check_same([before], [loaded], "load_state() did not return the observation of the saved state")
    _check_same(results, _continue(env, chunks[1:]), "the same actions gave other results after load_state()")
    _check_same(
        [next_episode], [_begin(env, task)], "load_state() did not restore the random numbers: the next episode differs"
    )


def _play(env: Env, task: str, seed: int, chunks: list[np.ndarray]) -> list[ChunkResult]:
    return [_begin(env, task, seed), *_continue(env, chunks)]


def _begin(env: Env, task: str, seed: int | None = None) -> ChunkResult:
    """The first observation, as if a decision that does nothing had led to it."""
    observation, _ = env.reset(seed=seed, options={"task": task})
    return ChunkResult(observation, 0.0, False, False, False, 0, 0)


def _continue(env: Env, chunks: list[np.ndarray]) -> list[ChunkResult]:
    results = []
    for chunk in chunks:
        results.append(env.step_chunk(chunk))
        if results[-1].terminal or results[-1].truncated:
            break
    return results


def _random_chunk(spec: EnvSpec, seed: int) -> np.ndarray:
    shape = (spec.chunk_length, spec.action_dim)
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def _check_array(name: str, value: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    assert isinstance(value, np.ndarray), f"{name} must be a numpy array, not {type(value).__name__}"
    assert value.dtype == dtype, f"{name} must be {np.dtype(dtype)}, not {value.dtype}"
    assert value.shape == shape, f"{name} must have the shape {list(shape)}, not {list(value.shape)}"


def _check_same(one: list[ChunkResult], other: list[ChunkResult], complaint: str) -> None:
    assert len(one) == len(other), f"{complaint}: one ended after {len(one)} decisions, the other after {len(other)}"
    for decision, (a, b) in enumerate(zip(one, other, strict=True)):
        for field in ("images", "proprio", "instruction"):
            same = np.array_equal(a.observation[field], b.observation[field])
            assert same, f"{complaint}: the {field} of decision {decision} differ"
        for field, left, right in zip(a._fields[1:], a[1:], b[1:], strict=True):
            assert left == right, f"{complaint}: {field} of decision {decision} is {left} and {right}"
