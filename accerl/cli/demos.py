"""`accerl demos`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from accerl.cli.command import Command
from accerl.cli.processes import num_processes
from accerl.config import ConfigError, DemosConfig, EnvConfig, Positive, PositiveFloat, Section
from accerl.console import progress, say
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.episode_pool import Incident, PoolConfig

LIBERO_DEMOS = {"speed": 1.0, "noise": 0.1, "patience": 1.0}
"""Defaults there: its demonstrations are slow enough, and its time limits generous."""


class DemosOptions(Section):
    """What is recorded, and where it goes."""

    out: Path
    """Folder for the data set; a recording that was cut off goes on there."""
    overwrite: bool = False
    """Replace a data set, or a recording that was cut off, that is there already."""
    config: Path | None = None
    """Recipe (`quickstart`) or TOML or JSON file whose `env` and `demos` sections are used."""
    episodes: Positive | None = None
    """Successful episodes of all tasks together, in the place of `demos.episodes_per_task`; rounded up by task."""
    noise: Annotated[float, Field(ge=0)] | None = None
    """The same as `demos.noise`."""
    num_workers: Positive | None = None
    """Processes with an environment each, replaced if one dies or hangs; none: one a core for LIBERO, else everything
    in this process."""
    hang_s: PositiveFloat = 300.0
    """Seconds without a sign of life after which a worker is replaced."""
    env: EnvConfig = EnvConfig()
    demos: DemosConfig = DemosConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_libero(cls, fields: dict[str, Any]) -> dict[str, Any]:
        env, demos = fields.get("env"), fields.get("demos", {})
        if isinstance(env, Mapping) and env.get("suite") in LIBERO and isinstance(demos, Mapping):
            return {**fields, "demos": {**LIBERO_DEMOS, **demos}}
        return fields

    @property
    def recorded(self) -> DemosConfig:
        """`demos` with what the short options say."""
        changes: dict[str, Any] = {}
        if self.episodes is not None:
            changes["episodes_per_task"] = -(-self.episodes // len(self.env.tasks))
        if self.noise is not None:
            changes["noise"] = self.noise
        return self.demos.model_copy(update=changes)

    @property
    def workers(self) -> int:
        """0: everything in this process."""
        return num_processes(self.num_workers, self.env.suite in LIBERO)


def record(options: DemosOptions) -> int:
    from accerl import recording
    from accerl.envs import check_expert

    check_expert(options.env)
    if options.overwrite:
        recording.clear(options.out)
    elif (options.out / "dataset.json").exists():
        raise ConfigError(f"out: {options.out} holds a data set; add --overwrite or give another folder")
    record_here = _record_in_pool if options.workers else _record_in_process
    kept, tried = record_here(options)
    actions = json.loads((options.out / "dataset.json").read_text())["statistics"]["num_transitions"]
    say(f"{kept} of {tried} episodes kept, {actions} actions: {options.out}")
    return 0


def _record_in_process(options: DemosOptions) -> tuple[int, int]:
    from accerl import demos
    from accerl.envs import make_env, make_expert

    config = options.recorded
    env = make_env(demos.single_action(options.env, config))
    try:
        expert = make_expert(options.env, env, speed=config.speed, noise=config.noise, seed=config.seed)
        kept = tried = 0
        with progress(len(env.spec.tasks) * config.episodes_per_task, "demonstrations") as advance:

            def count(task: str, success: bool) -> None:
                nonlocal kept, tried
                tried += 1
                kept += success
                advance(task, by=int(success))

            recorded = demos.record(env, expert, config, on_episode=count)
    finally:
        env.close()
    demos.save(options.out, recorded, options.env, config)
    return kept, tried


def _record_in_pool(options: DemosOptions) -> tuple[int, int]:
    from accerl import recording

    env, config = options.env, options.recorded
    pool = PoolConfig(num_workers=options.workers, hang_s=options.hang_s)

    def tell(incident: Incident) -> None:
        say(str(incident))

    with progress(len(env.tasks) * config.episodes_per_task, "demonstrations") as advance:
        recorded = recording.play_episodes(options.out, env, config, pool, advance, tell)
    with progress(-(-len(recorded) // config.episodes_per_shard), "shards of images") as advance:
        recording.draw_images(options.out, env, config, recorded, pool, advance, tell)
    return len(recorded), sum(episode.tried for episode in recorded)


COMMAND = Command(
    name="demos",
    summary="Record a scripted expert, slowed down and disturbed, as demonstrations to clone.",
    options=DemosOptions,
    run=record,
    examples=(
        (
            "two Meta-World tasks in one scene",
            "accerl demos --out data/faucets --env.tasks faucet-open-v3,faucet-close-v3",
        ),
        ("a thousand on LIBERO, in parallel", "accerl demos --out data/spatial --env libero_spatial --episodes 1000"),
        ("a better expert", "accerl demos --out data/good --demos.speed 1 --demos.noise 0.1"),
    ),
)
