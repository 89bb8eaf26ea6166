"""What does a step of LIBERO cost: LIBERO's own way, which draws both cameras at every step, against AcceRL's?

    python -m benchmarks.libero_step

The scripted demonstrator plays episodes of a task. Its actions are then played in LIBERO's `ControlEnv` and in
AcceRL's environment, a chunk of 8 here, the same chunk there, and so on: same process, task, resolution, cameras and
OpenGL. Each episode gives a ratio, of which the median counts. CPU time of the process, because the wall time of a
shared machine is noise. Checked on the way: frames at the ends of chunks against robosuite's `sim.render` of the same
state, and states after the same actions against LIBERO's own without images. Prints a table and, last, one line of
JSON; appends to results/libero_step.csv. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import mujoco
import numpy as np
import psutil

from accerl.config import EnvConfig, LiberoConfig
from accerl.envs import make_env, make_expert
from accerl.envs.libero.environment import Libero
from accerl.envs.libero.simulation import KINEMATICS
from accerl.envs.libero.suites import CAMERAS, STEP_LIMITS, tasks_of
from benchmarks.results_file import append, print_json, show
from tests.envs.libero.upstream import Upstream

CHUNK = 8
SETTLE_STEPS = 10
BARS = {"libero_spatial": 6.0, "libero_10": 4.0}
"""Least ratio, by suite."""
COLUMNS = (
    *("suite", "image_size", "upstream_ms", "accerl_ms", "ratio", "reflections_ms"),
    *("upstream_physics_ms", "physics_ms", "hard_reset_ms", "soft_reset_ms"),
    *("upstream_mb", "accerl_mb", "frame_max_diff", "state_max_diff"),
)


class Setting(NamedTuple):
    """What is measured: one task of a suite at one resolution."""

    suite: str
    image_size: int
    task: int = 0

    def config(self, **libero: Any) -> EnvConfig:
        settings = LiberoConfig(**{"settle_steps": SETTLE_STEPS, **libero})
        return EnvConfig(suite=self.suite, tasks=(str(self.task),), image_size=self.image_size, libero=settings)

    def make(self, config: EnvConfig | None = None) -> Libero:
        env = make_env(config or self.config())
        assert isinstance(env, Libero)
        return env

    def make_upstream(self, images: bool = True) -> Upstream:
        return Upstream(list(tasks_of(self.suite).values())[self.task], self.image_size, images)


class Actions(NamedTuple):
    """What the demonstrator did in an episode, without the end, where it reaches the goal."""

    start: int
    """The initial state."""
    chunks: np.ndarray
    """float32 [number, CHUNK, 7]."""


SETTINGS = (Setting("libero_spatial", 128), Setting("libero_10", 224), Setting("libero_object", 128))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=96, help="most environment steps of each episode")
    options = parser.parse_args()
    rows = [measure(setting, options.episodes, options.steps) for setting in SETTINGS]
    show(f"CPU ms an environment step, two cameras, chunks of {CHUNK}", COLUMNS, rows)
    append("libero_step", rows)
    print_json("libero_step", summary(rows))
    return 0


def measure(setting: Setting, num_episodes: int, num_steps: int) -> dict[str, Any]:
    """One row; costs are medians of the episodes."""
    episodes = [demonstrate(setting, start, num_steps) for start in range(num_episodes)]
    drawn = play_in_turn(setting, episodes)
    ratios = [theirs / ours for theirs, ours in drawn]
    reflections_ms, frame_diff = play_with_reflections(setting, episodes)
    not_drawn, state_diff = play_without_images(setting, episodes)
    upstream_ms, accerl_ms = zip(*drawn, strict=True)
    upstream_physics_ms, physics_ms = zip(*not_drawn, strict=True)
    hard_ms, soft_ms = reset(setting, [episode.start for episode in episodes])
    return {
        **setting._asdict(),
        "upstream_ms": statistics.median(upstream_ms),
        "accerl_ms": statistics.median(accerl_ms),
        "ratio": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "reflections_ms": statistics.median(reflections_ms),
        "upstream_physics_ms": statistics.median(upstream_physics_ms),
        "physics_ms": statistics.median(physics_ms),
        "hard_reset_ms": statistics.median(hard_ms),
        "soft_reset_ms": statistics.median(soft_ms),
        "upstream_mb": in_process(resident_mb, setting, True),
        "accerl_mb": in_process(resident_mb, setting, False),
        "frame_max_diff": frame_diff,
        "state_max_diff": state_diff,
        "episodes": num_episodes,
        "env_steps": CHUNK * sum(len(episode.chunks) for episode in episodes),
        "backend": os.environ["MUJOCO_GL"],
        "mujoco": mujoco.__version__,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_suite = {row["suite"]: row for row in rows}
    frame_diff = max(row["frame_max_diff"] for row in rows)
    state_diff = max(row["state_max_diff"] for row in rows)
    fast_enough = all(by_suite[suite]["ratio"] >= bar for suite, bar in BARS.items())
    return {
        "spatial_ratio": by_suite["libero_spatial"]["ratio"],
        "libero_10_ratio": by_suite["libero_10"]["ratio"],
        "object_ratio": by_suite["libero_object"]["ratio"],
        "frame_max_diff": frame_diff,
        "state_max_diff": state_diff,
        "met": fast_enough and frame_diff == 0 and state_diff == 0.0,
    }


def demonstrate(setting: Setting, start: int, num_steps: int) -> Actions:
    """At most `num_steps` actions of the scripted expert, in whole chunks."""
    limit = STEP_LIMITS[setting.suite]
    config = setting.config().model_copy(update={"chunk_length": 1, "max_decisions": limit, "cameras": ()})
    env = setting.make(config)
    expert = make_expert(config, env)
    _, info = env.reset(seed=0, options={"init_state": start})
    actions = []
    while len(actions) < num_steps:
        action = expert(env)
        result = env.step_chunk(action[None])
        if result.terminal or result.truncated:
            break
        actions.append(action)
    env.close()
    num_chunks = len(actions) // CHUNK
    return Actions(info["init_state"], np.reshape(actions[: num_chunks * CHUNK], (num_chunks, CHUNK, -1)))


def play_in_turn(setting: Setting, episodes: Sequence[Actions]) -> list[tuple[float, float]]:
    """CPU ms a step of each episode, LIBERO's way and AcceRL's."""
    upstream, env = setting.make_upstream(), setting.make()
    costs = []
    for episode in episodes:
        upstream.reset(episode.start, SETTLE_STEPS)
        env.reset(options={"init_state": episode.start})
        costs.append(mean([(step_upstream(upstream, chunk), step(env, chunk)) for chunk in episode.chunks]))
    upstream.close()
    env.close()
    return costs


def play_with_reflections(setting: Setting, episodes: Sequence[Actions]) -> tuple[list[float], int]:
    """CPU ms a step of each episode with reflections, which LIBERO draws; and by how much a pixel differs at the most
    from what robosuite's own renderer makes of the same state.
    """
    upstream, env = setting.make_upstream(), setting.make(setting.config(reflections=True))
    costs, difference = [], 0
    for episode in episodes:
        upstream.reset(episode.start, 0)
        env.reset(options={"init_state": episode.start})
        of_chunks = []
        for chunk in episode.chunks:
            before = time.process_time()
            images = env.step_chunk(chunk).observation["images"]
            of_chunks.append(1e3 * (time.process_time() - before) / CHUNK)
            for image, plain in zip(images, plain_renders(upstream, env), strict=True):
                difference = max(difference, int(np.abs(image.astype(int) - plain).max()))
        costs.append(statistics.mean(of_chunks))
    upstream.close()
    env.close()
    return costs, difference


def plain_renders(upstream: Upstream, env: Libero) -> list[np.ndarray]:
    """`env`'s present state drawn by robosuite, and turned by 180 degrees."""
    sim, size = upstream.control.env.sim, env.spec.image_size
    for name in KINEMATICS:
        getattr(sim.data._data, name)[:] = getattr(env.simulation.data, name)
    return [sim.render(camera_name=camera, width=size, height=size)[::-1, ::-1] for camera in CAMERAS]


def play_without_images(setting: Setting, episodes: Sequence[Actions]) -> tuple[list[tuple[float, float]], float]:
    """CPU ms a step of each episode, LIBERO's and AcceRL's; and by how much a position or velocity differs."""
    upstream = setting.make_upstream(images=False)
    env = setting.make(setting.config().model_copy(update={"cameras": ()}))
    costs, difference = [], 0.0
    for episode in episodes:
        upstream.reset(episode.start, SETTLE_STEPS)
        env.reset(options={"init_state": episode.start})
        of_chunks = []
        for chunk in episode.chunks:
            of_chunks.append((step_upstream(upstream, chunk), step(env, chunk)))
            theirs, ours = upstream.control.env.sim.data, env.simulation.data
            difference = max(difference, np.abs(ours.qpos - theirs.qpos).max(), np.abs(ours.qvel - theirs.qvel).max())
        costs.append(mean(of_chunks))
    upstream.close()
    env.close()
    return costs, float(difference)


def mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.mean(pair[0] for pair in pairs), statistics.mean(pair[1] for pair in pairs)


def reset(setting: Setting, starts: Sequence[int]) -> tuple[list[float], list[float]]:
    """CPU ms to each initial state and its observation, without steps to settle: LIBERO's hard reset, AcceRL's soft."""
    upstream, env = setting.make_upstream(), setting.make(setting.config(settle_steps=0))
    env.reset(options={"init_state": len(starts)})  # the first one compiles the task
    hard = [cpu_ms(lambda start=start: upstream.reset(start, 0)) for start in starts]
    soft = [cpu_ms(lambda start=start: env.reset(options={"init_state": start})) for start in starts]
    upstream.close()
    env.close()
    return hard, soft


def step_upstream(upstream: Upstream, chunk: np.ndarray) -> float:
    """CPU ms a step."""
    return cpu_ms(lambda: [upstream.control.step(action) for action in chunk]) / len(chunk)


def step(env: Libero, chunk: np.ndarray) -> float:
    """CPU ms a step."""
    return cpu_ms(lambda: env.step_chunk(chunk)) / len(chunk)


def cpu_ms(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return 1e3 * (time.process_time() - before)


def resident_mb(setting: Setting, upstream: bool) -> float:
    """Of this process with one environment that has drawn."""
    still = np.zeros((CHUNK, 7), np.float32)
    if upstream:
        theirs = setting.make_upstream()
        theirs.reset(0, 0)
        step_upstream(theirs, still)
    else:
        env = setting.make()
        env.reset(seed=0)
        step(env, still)
    return psutil.Process().memory_info().rss / 2**20


def in_process(function: Callable[..., float], *arguments: Any) -> float:
    """What `function` gives in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, *arguments))
    process.start()
    value = receiver.recv()
    process.join()
    return value


def _send(pipe: Connection, function: Callable[..., float], *arguments: Any) -> None:
    pipe.send(function(*arguments))
    pipe.close()
    os._exit(0)  # without the destructors of graphics drivers, which complain


if __name__ == "__main__":
    sys.exit(main())
