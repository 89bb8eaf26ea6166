"""How many real decisions does imagination save? Real decisions to the same success, without it and with it.

    python -m benchmarks.sample_efficiency --processes 2 --world-model worlds/first

The quickstart's job (four Meta-World tasks from pixels) in one process and in lockstep, from one cloned policy. Three
arms: `real` trains on what it collects; `oracle` also imagines, with the simulator itself in the models' place, which
is what a perfect world model could give; `model` imagines with a world model that learned from offline demonstrations
alone. All train on batches of the same size, as often and with the same settings; those that imagine need fewer real
decisions a batch. What the evaluations play is not counted: nothing is learned from it.

`decisions_to_target` is where the success of the sampled policy, between two evaluations linearly, first reaches
`--target` and is there at the next evaluation too; the start counts 0. `ratio_oracle` and `ratio_model` are quotients
of the arms' geometric means over the seeds, intervals from a bootstrap over seeds (95 %). An arm that did not get there
in every seed has no ratio, and says how often it did.

A run is a row of results/sample_efficiency.csv as soon as it is done, and is not run again. About eight minutes of one
core a run. Prints a table and, last, one line of JSON; draws results/sample_efficiency.png.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
from benchmarks.results_file import RESULTS, print_json, show
from benchmarks.sweep import sweep

NAME = "sample_efficiency"
ARMS = ("real", "oracle", "model")
KEY = ("arm", "seed", "share", "horizon", "threshold", "learns", "updates", "real_per_update", "world_model")
"""What makes two runs the same."""
FIRST_DECISIONS = {"real": 512, "oracle": 128, "model": 128}
"""Real ones before the first update."""
EVALUATED_PER_TASK = 50
START = Path("runs/sample-efficiency")
"""Demonstrations and the policy cloned from them, made once."""


class Point(NamedTuple):
    """An evaluation of the sampled policy."""

    updates: int
    decisions: int
    """Real ones collected until then."""
    success: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.95, help="of a batch that is imagined")
    parser.add_argument("--horizon", type=int, default=8, help="decisions of an imagined episode")
    parser.add_argument("--learns", type=float, default=0.5, help="updates of either model for a real decision")
    parser.add_argument("--threshold", type=float, default=0.8, help="probability that is success, for `model`")
    parser.add_argument(
        "--real-per-update", type=int, default=256, help="decisions collected for one, without imagining"
    )
    parser.add_argument("--imagined-real-per-update", type=int, default=13, help="the same with it")
    parser.add_argument("--world-model", type=Path, help="folder; of the arm `model`")
    parser.add_argument("--target", type=float, default=0.75, help="success")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if "model" in options.arms and options.world_model is None:
        parser.error("--world-model: make one with `accerl wm train`, or leave out `model` of --arms")
    prepare(START)
    wanted = [wanted_run(arm, seed, options) for seed in options.seeds for arm in options.arms]
    report(sweep(NAME, KEY, wanted, play, options.processes), options.target)
    return 0


def wanted_run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    imagines = arm != "real"
    return {
        "arm": arm,
        "seed": seed,
        "share": options.share if imagines else 0.0,
        "horizon": options.horizon if imagines else 0,
        "threshold": options.threshold if arm == "model" else 0.0,
        "learns": options.learns if arm == "model" else 0.0,
        "updates": options.updates,
        "real_per_update": options.imagined_real_per_update if imagines else options.real_per_update,
        "world_model": str(options.world_model) if arm == "model" else "",
    }


def prepare(folder: Path) -> None:
    """The quickstart's demonstrations and clone, by its own commands."""
    for name, command in (("demos", ["demos"]), ("policy", ["clone", "--data", str(folder / "demos")])):
        if not (folder / name).exists() and accerl_command(
            [*command, "--config", "quickstart", "--out", str(folder / name)]
        ):
            raise RuntimeError(f"{command[0]} failed")


def play(run: dict[str, Any]) -> dict[str, Any]:
    """One run, as a row of the results."""
    torch.set_num_threads(1)
    config = configure(run)
    policy = load_policy(START / "policy")
    judge = Judge(config.env, policy, run["seed"])
    points = [judge.point(0, 0)]
    every = max(1, run["updates"] // 10)
    started = time.perf_counter()

    def on_update(metrics: dict[str, float]) -> None:
        updates = inline.learner.version
        if updates % every == 0:
            points.append(judge.point(updates, inline.replay.pushed_decisions))
            print(f"{run['arm']} {run['seed']}: {points[-1]}", file=sys.stderr, flush=True)

    source = None if run["arm"] == "real" else imagining(run, config)
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
        "wall_s": time.perf_counter() - started,
    }


def configure(run: dict[str, Any]) -> RunConfig:
    """The quickstart's, with as many updates as asked for."""
    recipe = {
        name: part for name, part in read_file(RECIPES / "quickstart.toml").items() if name in RunConfig.model_fields
    }
    changes = {
        "seed": run["seed"],
        "replay.min_decisions": FIRST_DECISIONS[run["arm"]],
        "replay.max_reuse": 8,
        "rollout.keep_state": run["arm"] == "oracle",
        "limits": {"max_updates": run["updates"]},
    }
    return RunConfig(**merge(recipe, changes))


def imagining(run: dict[str, Any], config: RunConfig) -> InlineImagination:
    """Imagined episodes that start from offline demonstrations and from what is collected; with the oracle, which needs
    the simulator's state, from the latter alone.
    """
    threshold = run["threshold"] or 0.5
    settings = ImaginationConfig(share=run["share"], horizon=run["horizon"], threshold=threshold)
    frames = FrameBuffer(config.env.chunk_length, held_out=0.0)
    spec = make_env(config.env).spec
    if run["arm"] == "oracle":
        world = WorldModel(Oracle(lambda: cast(StatefulEnv, make_env(config.env))), OracleReward())
    else:
        world = store.load(Path(run["world_model"]))
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
    return InlineImagination(imagination, frames, settings, run["seed"], training)


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


def decisions_to(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Real decisions until the success reaches `target`, to stay for an evaluation more; None: it never does."""
    for before, point, after in zip([None, *curve[:-1]], curve, [*curve[1:], curve[-1]], strict=True):
        if point[2] >= target and after[2] >= target:
            if before is None or before[2] >= target:
                return float(point[1])
            share = (target - before[2]) / (point[2] - before[2])
            return float(before[1] + share * (point[1] - before[1]))
    return None


def report(rows: Sequence[dict[str, str]], target: float) -> None:
    """Table, picture and JSON of the runs that are there."""
    found: dict[str, list[float | None]] = {}
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        curves = [json.loads(row["curve"]) for row in rows if row["arm"] == arm]
        found[arm] = [decisions_to(curve, target) for curve in curves]
        table.append(
            {
                "arm": arm,
                "runs": len(curves),
                "start": float(np.mean([curve[0][2] for curve in curves])),
                "end": float(np.mean([curve[-1][2] for curve in curves])),
                "best": float(np.mean([max(point[2] for point in curve) for curve in curves])),
                "decisions": float(np.mean([curve[-1][1] for curve in curves])),
                "reached": sum(each is not None for each in found[arm]),
                "decisions_to_target": geometric_mean(found[arm]),
            }
        )
    show(f"real decisions to a success of {target}", list(table[0]), table)
    draw(rows, target)
    ratios = {f"ratio_{arm}": ratio(found, arm) for arm in ("oracle", "model")}
    intervals = {f"{name}_interval": interval(found, name.removeprefix("ratio_")) for name in ratios}
    print_json(
        NAME, {"target": target, **ratios, **intervals, "met": (ratios["ratio_model"] or 0) >= 10, "rows": table}
    )


def geometric_mean(values: Sequence[float | None]) -> float | None:
    if not values or any(value is None for value in values):
        return None
    return float(np.exp(np.mean(np.log([max(1.0, value) for value in values if value is not None]))))


def ratio(found: dict[str, list[float | None]], arm: str) -> float | None:
    real, imagined = geometric_mean(found.get("real", [])), geometric_mean(found.get(arm, []))
    return None if real is None or imagined is None else real / imagined


def interval(found: dict[str, list[float | None]], arm: str, draws: int = 2000) -> tuple[float, float] | None:
    if ratio(found, arm) is None:
        return None
    random = np.random.default_rng(0)

    def drawn(values: list[Any]) -> float:
        return float(np.log(np.maximum(1.0, random.choice(values, len(values)))).mean())

    logs = [drawn(found["real"]) - drawn(found[arm]) for _ in range(draws)]
    low, high = np.exp(np.percentile(logs, [2.5, 97.5]))
    return float(low), float(high)


def draw(rows: Sequence[dict[str, str]], target: float) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colours = dict(zip(ARMS, ("#0072B2", "#009E73", "#D55E00"), strict=True))
    for row in rows:
        curve = np.array(json.loads(row["curve"]))
        first = row["arm"] not in axes.get_legend_handles_labels()[1]
        label = row["arm"] if first else None
        axes.plot(np.maximum(curve[:, 1], 50), curve[:, 2], color=colours[row["arm"]], label=label, marker=".")
    axes.axhline(target, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="real decisions", ylabel="success, sampled", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(RESULTS / f"{NAME}.png", dpi=120)
    plt.close(figure)


Played = Callable[[dict[str, Any]], dict[str, Any]]


if __name__ == "__main__":
    sys.exit(main())
