"""One run of the quickstart's job in one process, with imagination or without: what the studies of it have in common.

Every run begins with the same cloned policy, made once by the quickstart's own commands, and is evaluated ten times.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from accerl import demos
from accerl.checkpoint import load_policy
from accerl.cli import main as accerl_command
from accerl.cli.options import RECIPES
from accerl.config import EnvConfig, ImaginationConfig, InferenceConfig, RunConfig, merge, read_file
from accerl.envs import make_env
from accerl.evaluation import EvaluationReport, evaluate, plan_episodes
from accerl.policy_server import PolicyServer
from accerl.protocols import Policy, StatefulEnv
from accerl.runtime.inline import InlineRun
from accerl_wm import store
from accerl_wm.config import ObservationTraining, RewardTraining
from accerl_wm.frames import FrameBuffer, of_demonstration
from accerl_wm.imagination import Imagination
from accerl_wm.inline import InlineImagination
from accerl_wm.online import OnlineTraining
from accerl_wm.oracle import Oracle, OracleReward
from accerl_wm.training import ObservationTrainer, RewardTrainer
from accerl_wm.world import WorldModel

MODEL_FREE = ("real", "reused")
FIRST_DECISIONS, FIRST_WITH_IMAGINATION = 512, 64
"""Real ones before the first update."""
SLOTS, SLOTS_WITH_IMAGINATION = 16, 4
"""Real episodes side by side; where few are wanted, few are under way."""
REAL_PER_UPDATE = {"real": 256, "reused": 64, "oracle": 3, "model": 3}
"""Decisions collected for an update on 512."""
EVALUATED_PER_TASK = 50
START = Path("runs/sample-efficiency")
"""Demonstrations and the policy cloned from them, made once."""


class Point(NamedTuple):
    """An evaluation of the sampled policy."""

    updates: int
    decisions: int
    """Real ones collected until then."""
    success: float


def prepare(folder: Path) -> None:
    """The quickstart's demonstrations and clone, by its own commands."""
    for name, command in (("demos", ["demos"]), ("policy", ["clone", "--data", str(folder / "demos")])):
        if not (folder / name).exists() and accerl_command(
            [*command, "--config", "quickstart", "--out", str(folder / name)]
        ):
            raise RuntimeError(f"{command[0]} failed")


def play(
    run: dict[str, Any], make_world: Callable[[dict[str, Any], RunConfig], WorldModel] | None = None
) -> dict[str, Any]:
    """One run, as a row of the results.

    Args:
        run: `arm`, `seed`, `share`, `horizon`, `threshold`, `learns`, `updates`, `real_per_update`, `world_model`.
        make_world: in the place of the one that the arm has.
    """
    torch.set_num_threads(1)
    config = configure(run)
    policy = load_policy(START / "policy")
    judge = Judge(config.env, policy, run["seed"])
    points = [judge.point(0, 0)]
    every = max(1, run["updates"] // 10)
    started = time.perf_counter()
    shares: list[tuple[int, float]] = []

    def on_update(metrics: dict[str, float]) -> None:
        updates = inline.learner.version
        if source is not None and (not shares or shares[-1][1] != source.share):
            shares.append((updates, source.share))
        if updates % every == 0:
            points.append(judge.point(updates, inline.replay.pushed_decisions))
            print(f"{run['arm']} {run['seed']}: {points[-1]}", file=sys.stderr, flush=True)

    source = None if run["arm"] in MODEL_FREE else imagining(run, config, (make_world or world_of)(run, config))
    inline = InlineRun(
        config, policy, lambda: make_env(config.env), run["real_per_update"], on_update=on_update, imagination=source
    )
    inline.run()
    imagined = [] if source is None else source.imagination.episodes
    return {
        **run,
        "success": points[-1].success,
        "curve": json.dumps([(point.updates, point.decisions, round(point.success, 4)) for point in points]),
        "by_task": json.dumps(judge.by_task),
        "decisions": inline.replay.pushed_decisions,
        "imagined_decisions": sum(episode.num_decisions for episode in imagined),
        "imagined_success": json.dumps([round(rate, 3) for rate in rates(imagined, 8)]),
        "shares": json.dumps(shares),
        "wall_s": time.perf_counter() - started,
    }


def configure(run: dict[str, Any]) -> RunConfig:
    """The quickstart's, with as many updates as asked for."""
    recipe = {
        name: part for name, part in read_file(RECIPES / "quickstart.toml").items() if name in RunConfig.model_fields
    }
    imagines = run["arm"] not in MODEL_FREE
    changes = {
        "seed": run["seed"],
        "replay.min_decisions": FIRST_WITH_IMAGINATION if imagines else FIRST_DECISIONS,
        "rollout.slots_per_worker": SLOTS_WITH_IMAGINATION if imagines else SLOTS,
        "inference.batch_size": min(8, SLOTS_WITH_IMAGINATION if imagines else SLOTS),
        "replay.max_reuse": 8,
        "rollout.keep_state": run["arm"] == "oracle",
        "limits": {"max_updates": run["updates"]},
    }
    return RunConfig(**merge(recipe, changes))


def world_of(run: dict[str, Any], config: RunConfig) -> WorldModel:
    """The simulator, or the models in the folder of that name."""
    if run["arm"] == "oracle":
        return WorldModel(Oracle(lambda: cast(StatefulEnv, make_env(config.env))), OracleReward())
    return store.load(Path(run["world_model"]))


def imagining(run: dict[str, Any], config: RunConfig, world: WorldModel) -> InlineImagination:
    """Imagined episodes that start from offline demonstrations and from what is collected; with the oracle, which needs
    the simulator's state, from the latter alone. Models are audited by each real episode.
    """
    threshold = run["threshold"] or 0.5
    settings = ImaginationConfig(share=run["share"], horizon=run["horizon"], threshold=threshold)
    frames = FrameBuffer(config.env.chunk_length, held_out=0.0, max_decisions=config.env.max_decisions)
    spec = make_env(config.env).spec
    is_oracle = run["arm"] == "oracle"
    if not is_oracle:
        frames.add(map(of_demonstration, demos.load(START / "demos")[0]))
    imagination = Imagination(world, frames, spec, settings, config.objective.discount, run["seed"])
    training: list[OnlineTraining] = []
    if run["learns"]:
        watching: Any = world.observation
        judging: Any = world.reward
        observing = ObservationTraining(steps=(2,), lr=3e-4, batch_size=32, seed=run["seed"])
        rewarding = RewardTraining(lr=3e-4, seed=run["seed"])
        training = [
            OnlineTraining(ObservationTrainer(watching, frames, observing), run["learns"]),
            OnlineTraining(RewardTrainer(judging, frames, rewarding, watching), run["learns"]),
        ]
    return InlineImagination(imagination, frames, settings, run["seed"], training, None if is_oracle else world)


class Judge:
    """Evaluates the policy as it is, in a thread of its own: the run's loop is busy in the other."""

    def __init__(self, env: EnvConfig, policy: Policy, seed: int):
        self.by_task: list[dict[str, float]] = []
        self._env = env
        self._policy = policy
        self._seed = seed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")

    def point(self, updates: int, decisions: int) -> Point:
        report = self._thread.submit(self._evaluate).result()
        self.by_task.append({task: rate.rate for task, rate in report.by_task.items()})
        return Point(updates, decisions, report.success.rate)

    def _evaluate(self) -> EvaluationReport:
        server = PolicyServer(copy.deepcopy(self._policy), InferenceConfig())
        plans = plan_episodes(self._env.tasks, EVALUATED_PER_TASK, 1000 + self._seed, greedy=False)
        return evaluate(server, lambda: make_env(self._env), plans)


def rates(episodes: Sequence[Any], parts: int) -> list[float]:
    """Success of the episodes, over equal parts of them."""
    success = np.array([episode.success for episode in episodes], float)
    return [float(part.mean()) for part in np.array_split(success, parts) if len(part)]
