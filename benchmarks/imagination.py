"""Imagined decisions per second: all in one batch, against one at a time over RPC, as published systems have it.

    python -m benchmarks.imagination --seconds 20

The quickstart's world model and a policy of its size, the same weights in both. `batched`: `--slots` imagined episodes
in a process, one forward of policy, observation model and reward model for all that wait; `--processes` of them, as
`imagination.num_workers` has them, which share the cores. `rpc`: policy, observation model and reward model are Ray
actors, which answer one request at a time, whole frames sent both ways; each of `--workers` processes imagines one
episode after the other and waits for each answer. Both play the same `RolloutWorker` over `ImaginedEnv`.

Of each way the best arrangement counts: `batched_over_rpc` compares with the best number of workers, all of which keep
the three actors busy beside each other, `batched_over_one_worker` with a single worker, which waits for every answer.

Prints a table and, last, one line of JSON; appends to results/imagination.csv.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from accerl.config import EnvConfig, ImaginationConfig, InferenceConfig, RolloutConfig
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import PolicyServer
from accerl.rollout import RolloutWorker
from accerl.types import Decision, DecisionRequest, EnvSpec, Episode, EpisodePlan, Trajectory
from accerl_wm import store
from accerl_wm.carriers import Frames
from accerl_wm.frames import FrameBuffer, RealEpisode
from accerl_wm.imagination import Imagination, ImaginedEnv
from accerl_wm.world import Dtype, Imagined, Question, computing
from benchmarks.results_file import append, print_json, show

NAME = "imagination"
BAR = 8.0
INSTRUCTION = "press the handle down"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world-model", type=Path, default=Path("quickstart"))
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models, in all ways"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of all processes of `batched`")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="accerl-") as folder:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            for processes in sorted(set(options.processes)):
                for slots in options.slots:
                    found = batched_per_s(processes, slots, options)
                    rows.append(measured("batched", processes, processes * slots, found, options))
            for workers in options.workers:
                rows.append(measured("rpc", workers + 3, workers, rpc_per_s(workers, options), options))
        finally:
            ray.shutdown()
    best = {way: max(row["decisions_per_s"] for row in rows if row["way"] == way) for way in ("batched", "rpc")}
    ratio = best["batched"] / best["rpc"]
    alone = max(
        (row["decisions_per_s"] for row in rows if row["way"] == "rpc" and row["episodes_at_once"] == 1), default=None
    )
    over_one = best["batched"] / alone if alone else None
    show("imagined decisions", ["way", "processes", "episodes_at_once", "decisions_per_s"], rows)
    append(NAME, rows)
    outcome = {"batched_over_rpc": ratio, "batched_over_one_worker": over_one, "met": ratio >= BAR}
    print_json(NAME, {**best, **outcome, "rows": rows})
    return 0


def measured(
    way: str, processes: int, episodes: int, decisions_per_s: float, options: argparse.Namespace
) -> dict[str, Any]:
    at_once = {"way": way, "processes": processes, "episodes_at_once": episodes}
    return {**at_once, "decisions_per_s": decisions_per_s, "dtype": options.dtype, "seed": options.seed}


def batched_per_s(processes: int, slots: int, options: argparse.Namespace) -> float:
    """So many processes, each with everything in it."""
    imagining = [remote(Together).remote(options, number, slots, processes) for number in range(processes)]
    ray.get([each.imagine.remote(1.0) for each in imagining])  # warm
    rates = ray.get([each.imagine.remote(options.seconds) for each in imagining])
    for actor in imagining:
        ray.kill(actor)
    return sum(rates)


class Together:
    """Policy and models in one process, which answer all imagined episodes in one batch each."""

    def __init__(self, options: argparse.Namespace, number: int, slots: int, processes: int):
        torch.set_num_threads(max(1, options.threads // processes))
        world = store.load(options.world_model, dtype=options.dtype)
        settings = ImaginationConfig(slots=slots, horizon=options.horizon)
        spec = spec_of(options.world_model)
        moments = starts(spec, options.seed)
        self._imagination = Imagination(world, moments, spec, settings, 0.97, options.seed + number)
        self._server = new_server(spec)
        self._num = 2 * slots * options.horizon

    def imagine(self, seconds: float) -> float:
        """Decisions per second."""
        began, imagined = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            found = self._imagination.imagine(self._num, self._server)
            imagined += sum(each.num_decisions for each in found)
        return imagined / spent


def remote(kind: Any) -> Any:
    """The class as an actor."""
    return ray.remote(num_cpus=0)(kind)


def rpc_per_s(workers: int, options: argparse.Namespace) -> float:
    """Three servers and so many workers, each a process."""
    models = [remote(kind).remote(options.world_model, options.dtype) for kind in (Watching, Judging)]
    servers = [remote(Policy).remote(options.world_model), *models]
    imagining = [remote(Worker).remote(options, number, servers) for number in range(workers)]
    ray.get([worker.imagine.remote(1.0) for worker in imagining])  # warm
    began = time.perf_counter()
    decisions = sum(ray.get([worker.imagine.remote(options.seconds) for worker in imagining]))
    seconds = time.perf_counter() - began
    for actor in (*servers, *imagining):
        ray.kill(actor)
    return decisions / seconds


class Policy:
    """Answers one request at a time."""

    def __init__(self, world_model: Path):
        torch.set_num_threads(1)
        self._server = new_server(spec_of(world_model))

    def act(self, request: DecisionRequest) -> Any:
        return self._server.answer([request])[0]


class Watching:
    """The observation model, one question at a time."""

    def __init__(self, world_model: Path, dtype: Dtype):
        torch.set_num_threads(1)
        self._model = store.load_model(world_model, "observation")
        self._dtype: Dtype = dtype

    def predict(self, question: Question) -> tuple[np.ndarray, np.ndarray]:
        assert question.action is not None
        past = Frames(images=torch.tensor(question.images)[None], proprio=torch.tensor(question.proprio)[None])
        with torch.inference_mode(), computing("cpu", self._dtype):
            seen = self._model.predict(past, torch.tensor(question.action)[None])
        return seen.images[0].numpy(), seen.proprio[0].float().numpy()


class Judging:
    """The reward model, one frame at a time."""

    def __init__(self, world_model: Path, dtype: Dtype):
        torch.set_num_threads(1)
        self._model = store.load_model(world_model, "reward")
        self._dtype: Dtype = dtype

    def predict(self, images: np.ndarray, proprio: np.ndarray, instruction: str) -> float:
        seen = Frames(images=torch.tensor(images)[None], proprio=torch.tensor(proprio)[None])
        with torch.inference_mode(), computing("cpu", self._dtype):
            return float(self._model.predict(seen, [instruction])[0])


class Worker:
    """Imagines one episode after the other; also policy client, models, sink and tasks of its `RolloutWorker`."""

    def __init__(self, options: argparse.Namespace, number: int, servers: Sequence[Any]):
        torch.set_num_threads(1)
        self._policy, self._watching, self._judging = servers
        self._spec = spec_of(options.world_model)
        self._settings = ImaginationConfig(slots=1, horizon=options.horizon)
        self._starts = starts(self._spec, options.seed)
        self._history = store.load_model(options.world_model, "observation").history
        self._number = number
        self._until = 0.0
        self._decisions = self._episodes = 0

    async def imagine(self, seconds: float) -> int:
        self._until, self._decisions = time.perf_counter() + seconds, 0
        worker = RolloutWorker(
            name=f"rpc-{self._number}",
            make_env=lambda: ImaginedEnv(self._spec, self._starts, self, self._history, self._settings, 0.97),
            config=RolloutConfig(slots_per_worker=1),
            client=self,
            sink=self,
            tasks=self,
            seed=self._number,
        )
        await worker.run()
        return self._decisions

    async def act(self, request: DecisionRequest) -> Decision:
        return await self._policy.act.remote(request)

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    async def ask(self, request: Question) -> Imagined:
        images, proprio = await self._watching.predict.remote(request)
        success = await self._judging.predict.remote(images, proprio, request.instruction)
        return Imagined(images, proprio, success, None)

    async def put(self, trajectory: Trajectory) -> None:
        self._decisions += trajectory.num_decisions

    async def next_episode(self) -> EpisodePlan | None:
        self._episodes += 1
        over = time.perf_counter() > self._until
        return None if over else EpisodePlan(task="task", seed=self._episodes, is_imagined=True)

    async def report(self, episode: Episode) -> None: ...

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        raise error


def spec_of(world_model: Path) -> EnvSpec:
    """Of what the world model shows, without its simulator."""
    env, scene = EnvConfig(**store.read_facts(world_model)["env"]), store.load_model(world_model, "observation").config
    return EnvSpec(
        tasks=("task",),
        num_cameras=scene.num_cameras,
        image_size=scene.image_size,
        proprio_dim=scene.proprio_dim,
        action_dim=scene.action_dim,
        chunk_length=scene.chunk_length,
        steps_per_action=env.steps_per_action,
        max_decisions=32,  # so that the horizon ends each
    )


def new_server(spec: EnvSpec) -> PolicyServer:
    """A policy of the quickstart's size, with random weights."""
    torch.manual_seed(0)
    config = TinyVLAConfig.for_env(spec, {INSTRUCTION}, width=192, num_layers=2)
    return PolicyServer(TinyVLA(config), InferenceConfig())


def starts(spec: EnvSpec, seed: int) -> FrameBuffer:
    """Moments at random: what is seen does not matter here."""
    random = np.random.default_rng(seed)
    frames = FrameBuffer(spec.chunk_length, held_out=0.0)
    shape = (12, spec.num_cameras, spec.image_size, spec.image_size, 3)
    frames.add(
        RealEpisode(
            task="task",
            instruction=INSTRUCTION,
            images=random.integers(0, 256, shape, dtype=np.uint8),
            proprio=random.normal(size=(12, spec.proprio_dim)).astype(np.float32),
            action=random.uniform(-1, 1, (11 * spec.chunk_length, spec.action_dim)).astype(np.float32),
            every=spec.chunk_length,
            success=False,
        )
        for _ in range(4)
    )
    return frames


if __name__ == "__main__":
    sys.exit(main())
