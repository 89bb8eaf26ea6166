"""LIBERO's tasks as environments, against LIBERO itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.envs.conformance import check_env
from accerl.envs.libero.environment import Libero
from accerl.envs.libero.simulation import KINEMATICS
from accerl.envs.libero.suites import CAMERAS, EVALUATION_STATES, TRAIN_STATES, tasks_of
from tests.envs.libero.upstream import Upstream

SIZE = 64
TASK_OF_SUITE = {"libero_spatial": 0, "libero_object": 3, "libero_goal": 7, "libero_10": 2, "libero_90": 20}


def config_of(suite: str = "libero_goal", tasks: tuple[str, ...] = ("1",), **fields) -> EnvConfig:
    return EnvConfig(**{"suite": suite, "tasks": tasks, "image_size": SIZE, **fields})


def actions_of(num: int, seed: int = 0) -> np.ndarray:
    """Random ones that go down, where there is something to meet."""
    actions = np.random.default_rng(seed).uniform(-1.0, 1.0, (num, 7))
    actions[:, 2] -= 0.3
    return np.clip(actions, -1.0, 1.0)


@pytest.fixture(scope="module")
def env() -> Iterator[Libero]:
    env = make_env(config_of())
    assert isinstance(env, Libero)
    yield env
    env.close()


def test_keeps_the_promises_of_environments():
    env = make_env(config_of(tasks=("1", "7"), max_env_steps=28))
    check_env(env)
    env.close()


@pytest.mark.parametrize("suite", TASK_OF_SUITE)
def test_a_soft_reset_is_a_hard_reset_and_lean_steps_are_robosuites(suite: str):
    task = list(tasks_of(suite).values())[TASK_OF_SUITE[suite]]
    actions = actions_of(24)
    upstream = Upstream(task, SIZE, images=False)
    theirs = []
    for _ in range(2):
        upstream.reset(3, settle_steps=10)
        theirs.append([])
        for action in actions:
            upstream.control.step(action)
            data = upstream.control.env.sim.data
            theirs[-1].append(np.concatenate([data.qpos, data.qvel]))
    upstream.close()
    env = make_env(config_of(suite, (task.name,), cameras=CAMERAS).model_copy(update={"cameras": ()}))
    assert isinstance(env, Libero)
    env.reset(seed=1)
    env.step_chunk(actions[:8])  # an episode before, of another state
    env.reset(seed=0, options={"init_state": 3})
    data = env.simulation.data
    ours = []
    for action in actions:
        env.simulation.step(action)
        ours.append(np.concatenate([data.qpos, data.qvel]))
    env.close()
    assert np.array_equal(theirs[0], theirs[1])
    assert np.array_equal(ours, theirs[0])


def test_frames_are_those_of_the_simulators_own_renderer():
    env = make_env(config_of(libero={"reflections": True}))
    assert isinstance(env, Libero)
    upstream = Upstream(tasks_of("libero_goal")[env.spec.tasks[0]], SIZE)
    upstream.reset(3, settle_steps=0)
    env.reset(seed=0, options={"init_state": 3})
    observation = env.step_chunk(actions_of(8)).observation
    sim = upstream.control.env.sim
    for name in KINEMATICS:
        getattr(sim.data._data, name)[:] = getattr(env.simulation.data, name)
    for index, camera in enumerate(CAMERAS):
        plain = sim.render(camera_name=camera, width=SIZE, height=SIZE)
        assert plain.std() > 10
        assert np.array_equal(observation["images"][index], plain[::-1, ::-1])
    upstream.close()
    env.close()


def test_without_multisampling_only_edges_differ_and_films_stay_smooth():
    smooth = make_env(config_of(libero={"multisampling": True}))
    jagged = make_env(config_of(libero={"multisampling": False}))
    first, _ = jagged.reset(seed=0, options={"init_state": 3})
    film = jagged.render(SIZE)
    second, _ = smooth.reset(seed=0, options={"init_state": 3})
    changed = (first["images"] != second["images"]).any(-1).mean((1, 2))
    assert np.all(changed > 0.02) and np.all(changed < 0.6)
    assert np.array_equal(film, second["images"][0][:, ::-1])
    smooth.close()
    jagged.close()


def test_robosuites_own_observations_can_be_had():
    """Up to 1e-7 m: robosuite computes once more before it draws, which its solver then starts from."""
    env = make_env(config_of(libero={"reflections": True, "lag": True}))
    fresh = make_env(config_of(libero={"reflections": True}))
    upstream = Upstream(tasks_of("libero_goal")[env.spec.tasks[0]], SIZE)
    first = upstream.reset(3, settle_steps=10)
    seen, _ = env.reset(seed=0, options={"init_state": 3})
    fresh.reset(seed=0, options={"init_state": 3})
    chunks = actions_of(16).reshape(2, 8, 7)
    for theirs, ours in [(first, seen), *steps_of_both(upstream, env, chunks)]:
        for index, camera in enumerate(CAMERAS):
            assert difference(ours["images"][index], theirs[f"{camera}_image"][::-1, ::-1]) < 0.02
        assert np.allclose(ours["proprio"][:3], theirs["robot0_eef_pos"], atol=2e-7)
        assert np.allclose(ours["proprio"][6:], theirs["robot0_gripper_qpos"], atol=2e-7)
    for chunk in chunks:
        now = fresh.step_chunk(chunk).observation
    assert np.abs(now["proprio"][:3] - ours["proprio"][:3]).max() > 1e-5
    assert not np.array_equal(now["images"], ours["images"])
    for each in (upstream, env, fresh):
        each.close()


def steps_of_both(upstream, env, chunks):
    for chunk in chunks:
        for action in chunk:
            observation = upstream.control.step(action)[0]
        yield observation, env.step_chunk(chunk).observation


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the pixels, of 255."""
    return float(np.abs(one.astype(int) - other).mean())


def test_environments_take_turns_on_a_task(env: Libero):
    other = make_env(config_of())
    chunks = actions_of(32).reshape(4, 8, 7)

    def play(between) -> list[np.ndarray]:
        seen = [env.reset(seed=5)[0]]
        for chunk in chunks:
            between()
            seen.append(env.step_chunk(chunk).observation)
        return [part for observation in seen for part in (observation["images"], observation["proprio"])]

    alone = play(lambda: None)
    other.reset(seed=9)
    interrupted = play(lambda: other.step_chunk(chunks[0]))
    other.close()
    assert all(np.array_equal(a, b) for a, b in zip(alone, interrupted, strict=True))


def test_a_task_that_is_not_kept_comes_back_as_it_was():
    chunks = actions_of(16).reshape(2, 8, 7)
    config = config_of(tasks=("1", "7"), libero={"max_simulations": 1})
    one, other = make_env(config), make_env(config)
    tasks = one.spec.tasks

    def play(between) -> np.ndarray:
        one.reset(seed=5, options={"task": tasks[0]})
        one.step_chunk(chunks[0])
        between()
        return one.step_chunk(chunks[1]).observation["proprio"]

    alone = play(lambda: None)
    assert np.array_equal(alone, play(lambda: other.reset(seed=1, options={"task": tasks[1]})))
    one.close()
    other.close()


def test_training_and_evaluation_start_from_different_states():
    assert not set(TRAIN_STATES) & set(EVALUATION_STATES)
    for split, states in (("train", TRAIN_STATES), ("evaluation", EVALUATION_STATES)):
        env = make_env(config_of(libero={"init_states": split, "settle_steps": 0}))
        drawn = [env.reset(seed=seed)[1]["init_state"] for seed in range(8)]
        assert set(drawn) <= set(states) and len(set(drawn)) > 2
        turns = [env.reset(options={"init_state": turn})[1]["init_state"] for turn in (0, 1, len(states))]
        assert turns == [states[0], states[1], states[0]]
        env.close()


def test_an_episode_ends_at_the_limit_inside_a_chunk(env: Libero):
    limited = make_env(config_of(max_env_steps=11))
    assert limited.spec.max_decisions == 2
    limited.reset(seed=0)
    still = np.zeros((8, 7), np.float32)
    assert not limited.step_chunk(still).truncated
    last = limited.step_chunk(still)
    assert last.truncated and last.num_env_steps == 3 and last.num_actions == 3
    limited.close()


def test_the_film_is_not_mirrored(env: Libero):
    observation, _ = env.reset(seed=0)
    film = env.render(SIZE)
    assert np.array_equal(film, observation["images"][0][:, ::-1])


def test_nothing_is_written_or_said(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    import os
    import subprocess
    import sys

    program = (
        "from accerl.config import EnvConfig\nfrom accerl.envs import make_env\n"
        "env = make_env(EnvConfig(suite='libero_goal', tasks=('1',), image_size=32))\n"
        "env.reset(seed=0)\nenv.close()\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "LIBERO_CONFIG_PATH": str(tmp_path)}
    environment["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))  # LIBERO imports it, and it writes
    (tmp_path / "config.yaml").write_text("assets: /of/another/installation\n")
    log = Path("/tmp/robosuite.log")
    before = log.stat().st_mtime_ns if log.exists() else None
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert (log.stat().st_mtime_ns if log.exists() else None) == before
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}
