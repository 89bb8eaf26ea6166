"""`accerl eval`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator
from rich.table import Column, Table
from rich.text import Text

from accerl.cli.command import Command
from accerl.cli.policies import DEMONSTRATOR, env_of_policy, find_policy, trained_states
from accerl.cli.processes import num_processes
from accerl.config import (
    ConfigError,
    DemosConfig,
    EnvConfig,
    InferenceConfig,
    NonNegative,
    Positive,
    PositiveFloat,
    Section,
)
from accerl.console import output, progress, say
from accerl.envs.libero.protocols import PROTOCOLS, describe, leakage
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.episode_pool import PoolConfig
from accerl.files import write_file

if TYPE_CHECKING:
    from accerl.evaluation import EvaluationReport
    from accerl.protocols import Policy
    from accerl.types import Episode, EpisodePlan


class EvalOptions(Section):
    """What is played, and how."""

    policy: Path
    """Folder of the policy: made by `accerl clone`, or RUN/checkpoints/step-N, or RUN for its newest checkpoint; or
    `demonstrator`, the scripted expert of the suite."""
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
    protocol: Literal["openvla-oft", "simplevla-rl", "rlinf"] | None = None
    """Evaluate on LIBERO as others do: their step limits, settling and initial states; none: those of `env`, on
    initial states that training does not use."""
    num_workers: Positive | None = None
    """Processes with an environment each, replaced if one dies or hangs; none: one a core for LIBERO and for the
    demonstrator, else everything in this process."""
    hang_s: PositiveFloat = 120.0
    """Seconds without a sign of life after which a worker is replaced."""
    films: Path | None = None
    """Folder for films of the episodes that failed; with workers."""
    num_slots: Positive = 16
    """Environments at once without workers; the result does not depend on it."""
    num_threads: Positive = 1
    """Torch threads."""
    out: Path | None = None
    """JSON file for the result."""
    env: EnvConfig = EnvConfig()

    @model_validator(mode="after")
    def _suite_fits(self) -> Self:
        if self.protocol is not None:
            PROTOCOLS[self.protocol].apply(self.env)
        if self.is_demonstrator and self.shuffle_instructions:
            raise ValueError("shuffle_instructions: the demonstrator does not listen; give a policy")
        if self.films is not None and self.workers == 0:
            raise ValueError("films: are made by workers; add --num-workers N")
        return self

    @model_validator(mode="before")
    @classmethod
    def _held_out_states(cls, fields: dict[str, Any]) -> dict[str, Any]:
        env = fields.get("env")
        if isinstance(env, Mapping) and env.get("suite") in LIBERO:
            libero = {"init_states": "evaluation", **env.get("libero", {})}
            return {**fields, "env": {**env, "libero": libero}}
        return fields

    @property
    def is_demonstrator(self) -> bool:
        return str(self.policy) == DEMONSTRATOR

    @property
    def played_env(self) -> EnvConfig:
        """`env` under the protocol; of single actions and without images for the demonstrator."""
        env = self.env if self.protocol is None else PROTOCOLS[self.protocol].apply(self.env)
        if not self.is_demonstrator:
            return env
        from accerl.demos import single_action, without_images

        return without_images(single_action(env, DemosConfig(patience=1)))

    @property
    def workers(self) -> int:
        """0: everything in this process."""
        return num_processes(self.num_workers, self.env.suite in LIBERO or self.is_demonstrator)


def evaluate(options: EvalOptions) -> int:
    policy = None if options.is_demonstrator else _load(options)
    plans = plan(options, policy)
    how = "demonstrated" if policy is None else "greedy" if options.greedy else "sampled"
    conditions = describe(options.played_env, options.protocol) if options.env.suite in LIBERO else {}
    trained = None if policy is None else trained_states(find_policy(options.policy), options.env.suite)
    if conditions and (warning := leakage(options.played_env.libero.init_states, trained)):
        say(warning)
    succeeded: list[bool] = []
    with progress(len(plans), f"{how} episodes") as advance:

        def count(episode: Episode) -> None:
            succeeded.append(episode.success)
            advance(f"success {sum(succeeded) / len(succeeded):.2f}")

        report = _play(options, policy, plans, count)
    console = output()
    console.print(table(report))
    for task, reason in report.given_up.items():
        console.print(Text(f"{task}: given up, its environment kept failing ({reason})", style="red"), soft_wrap=True)
    if conditions:
        console.print(Text("  ".join(f"{key} {value}" for key, value in conditions.items())), soft_wrap=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        settings = options.model_dump(mode="json", exclude={"out", "config", "num_slots", "num_threads"})
        write_file(options.out, json.dumps({**to_dict(report), **settings, "conditions": conditions}, indent=1))
        say(f"written to {options.out}")
    return 1 if report.given_up else 0


def _load(options: EvalOptions) -> Policy:
    import torch

    from accerl.checkpoint import is_public, load_policy

    torch.set_num_threads(options.num_threads)
    folder = find_policy(options.policy)
    if not is_public(folder):
        return load_policy(folder)
    from accerl.envs import read_spec
    from accerl.policies.openvla_oft.checkpoint import open_fields

    return load_policy(folder, open_fields(folder, options.env, read_spec(options.env)))


def _play(
    options: EvalOptions, policy: Policy | None, plans: list[EpisodePlan], on_episode: Callable[[Episode], None]
) -> EvaluationReport:
    from accerl.envs import make_env
    from accerl.evaluation import evaluate, evaluate_in_pool

    server = None
    if policy is not None:
        from accerl.inference import PolicyServer

        server = PolicyServer(policy, InferenceConfig())
    if options.workers == 0:
        assert server is not None
        make = partial(make_env, options.played_env)
        return evaluate(server, make, plans, options.num_slots, on_episode=on_episode)
    return evaluate_in_pool(
        server,
        options.played_env,
        plans,
        PoolConfig(num_workers=options.workers, hang_s=options.hang_s),
        films=options.films,
        on_episode=on_episode,
        on_incident=lambda incident: say(str(incident)),
    )


def plan(options: EvalOptions, policy: Policy | None) -> list[EpisodePlan]:
    """The episodes, once it is sure that the policy fits the environment.

    Raises:
        ConfigError: it does not, there are no instructions to shuffle, or the suite has no demonstrator.
    """
    from accerl.envs import check_expert, make_env
    from accerl.evaluation import plan_episodes, shuffle_instructions

    tasks = options.env.tasks
    plans = plan_episodes(tasks, options.episodes_per_task, options.seed, options.greedy)
    if policy is None:
        check_expert(options.env)
        return plans
    env = make_env(options.played_env)
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
    task_column = Column("task", overflow="fold")  # names may differ at their ends only
    rows = Table(task_column, "success", "95 % interval", "episodes", box=None, padding=(0, 2), header_style="bold")
    for task, rate in (*report.by_task.items(), ("all", report.success)):
        low, high = rate.interval
        rows.add_row(task, f"{rate.rate:.2f}", f"[{low:.2f}, {high:.2f}]", str(rate.episodes), end_section=True)
    return rows


def to_dict(report: EvaluationReport) -> dict[str, Any]:
    """JSON-compatible."""
    by_task = {task: rate.to_dict() for task, rate in report.by_task.items()}
    incidents = [asdict(incident) for incident in report.incidents]
    played = [asdict(item) for item in report.played]
    own = {"given_up": report.given_up, "incidents": incidents, "played": played}
    return {**report.success.to_dict(), "by_task": by_task, **own}


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
        (
            "the scripted expert on LIBERO, as OpenVLA-OFT is evaluated",
            "accerl eval --env libero_spatial --policy demonstrator --protocol openvla-oft --episodes-per-task 5",
        ),
    ),
)
