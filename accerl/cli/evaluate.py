"""`accerl eval`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from accerl.cli.command import Command
from accerl.cli.options import from_file
from accerl.config import ConfigError, EnvConfig, InferenceConfig, NonNegative, Positive, Section, read_file
from accerl.console import progress, say
from accerl.files import write_file

if TYPE_CHECKING:
    from accerl.evaluation import EvaluationReport
    from accerl.protocols import Policy
    from accerl.types import Episode, EpisodePlan

ORIGIN = "origin.json"
"""File beside a cloned policy that says how it was made, and so in which environment it acts."""


class EvalOptions(Section):
    """What is played, and how."""

    policy: Path
    """Folder of the policy: made by `accerl clone`, or RUN/checkpoints/step-N, or RUN for its newest checkpoint."""
    config: Path | None = None
    """Recipe (`quickstart`) or TOML or JSON file whose `env` section is used; default: what the policy was made for."""
    episodes_per_task: Positive = 25
    """Episodes of each task."""
    greedy: bool = False
    """Take the most probable action each time; default: sample, as training does."""
    shuffle_instructions: bool = False
    """Give each episode the instruction of another task, which shows how much the policy heeds language."""
    seed: NonNegative = 0
    """Of the episodes; training never uses the same ones."""
    num_slots: Positive = 16
    """Environments at once; the result does not depend on it."""
    num_threads: Positive = 1
    """Torch threads."""
    out: Path | None = None
    """JSON file for the result."""
    env: EnvConfig = EnvConfig()


def evaluate(options: EvalOptions) -> int:
    import torch

    from accerl.checkpoint import load_policy
    from accerl.envs import make_env
    from accerl.evaluation import evaluate as play
    from accerl.inference import PolicyServer

    torch.set_num_threads(options.num_threads)
    policy = load_policy(find_policy(options.policy))
    plans = plan(options, policy)
    how = "greedy" if options.greedy else "sampled"
    played: list[bool] = []
    with progress(len(plans), f"{how} episodes") as advance:

        def count(episode: Episode) -> None:
            played.append(episode.success)
            advance(f"success {sum(played) / len(played):.2f}")

        server = PolicyServer(policy, InferenceConfig())
        report = play(server, lambda: make_env(options.env), plans, options.num_slots, on_episode=count)
    Console(highlight=False).print(table(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = options.model_dump(mode="json", exclude={"out", "config", "num_slots", "num_threads"})
        write_file(options.out, json.dumps({**to_dict(report), **settings}, indent=1))
        say(f"written to {options.out}")
    return 0


def plan(options: EvalOptions, policy: Policy) -> list[EpisodePlan]:
    """The episodes, once it is sure that the policy fits the environment.

    Raises:
        ConfigError: it does not, or there are no instructions to shuffle.
    """
    from accerl.envs import make_env
    from accerl.evaluation import plan_episodes, shuffle_instructions

    tasks = options.env.tasks
    plans = plan_episodes(tasks, options.episodes_per_task, options.seed, options.greedy)
    env = make_env(options.env)
    try:
        policy.check_env(env.spec)
        if options.shuffle_instructions:
            instructions = {task: env.reset(seed=0, options={"task": task})[0]["instruction"] for task in tasks}
            return shuffle_instructions(plans, instructions)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    finally:
        env.close()
    return plans


def table(report: EvaluationReport) -> Table:
    rows = Table("task", "success", "95 % interval", "episodes", box=None, padding=(0, 2), header_style="bold")
    for task, rate in (*report.by_task.items(), ("all", report.success)):
        low, high = rate.interval
        rows.add_row(task, f"{rate.rate:.2f}", f"[{low:.2f}, {high:.2f}]", str(rate.episodes), end_section=True)
    return rows


def to_dict(report: EvaluationReport) -> dict[str, Any]:
    """JSON-compatible."""
    by_task = {task: rate.to_dict() for task, rate in report.by_task.items()}
    return {**report.success.to_dict(), "by_task": by_task}


def find_policy(path: Path) -> Path:
    """`path`, or the newest checkpoint if it is a run.

    Raises:
        ConfigError: it is neither a policy nor a run that has a checkpoint.
    """
    from accerl.checkpoint import list_checkpoints

    if (path / "policy.json").exists():
        return path
    if not (path / "checkpoints").is_dir():
        raise ConfigError(f"policy: {path} holds none; give a folder made by `accerl clone`, or a run")
    written = list_checkpoints(path / "checkpoints")
    if not written:
        raise ConfigError(f"policy: {path} has no checkpoint yet; wait for one")
    return written[-1]


def env_of_policy(model: type[EvalOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment in the configuration file, or else the one that the policy was made for.

    Raises:
        ConfigError: there is neither, nor any `--env` option.
    """
    if values.get("config"):
        return from_file(model, values)
    if "policy" not in values:
        return {}  # which the model will complain about
    policy = find_policy(Path(values["policy"]))
    if (policy / ORIGIN).exists():
        return {"env": json.loads((policy / ORIGIN).read_text())["env"]}
    config = policy.parent.parent / "config.json"  # policy is RUN/checkpoints/step-N
    if config.exists():
        return {"env": read_file(config)["env"]}
    if not any(name.startswith("env.") for name in values):
        raise ConfigError(f"env: {policy} does not say which environment it is for; give --config FILE or --env.tasks")
    return {}


COMMAND = Command(
    name="eval",
    summary="Play episodes with fresh seeds and report success by task, with Wilson's 95 % intervals.",
    options=EvalOptions,
    run=evaluate,
    base=env_of_policy,
    examples=(
        ("the newest checkpoint of a run", "accerl eval --policy runs/run"),
        (
            "greedily, 100 episodes a task, kept",
            "accerl eval --policy runs/run --greedy --episodes-per-task 100 --out e.json",
        ),
        ("does it listen?", "accerl eval --policy runs/run --shuffle-instructions"),
    ),
)
