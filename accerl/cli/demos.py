"""`accerl demos`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import ConfigError, DemosConfig, EnvConfig, Section
from accerl.console import progress, say


class DemosOptions(Section):
    """What is recorded, and where it goes."""

    out: Path
    """Folder for the data set."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    config: Path | None = None
    """Recipe (`quickstart`) or TOML or JSON file whose `env` and `demos` sections are used."""
    env: EnvConfig = EnvConfig()
    demos: DemosConfig = DemosConfig()


def record(options: DemosOptions) -> int:
    from accerl import demos
    from accerl.envs import make_env, make_expert

    if (options.out / "dataset.json").exists() and not options.overwrite:
        raise ConfigError(f"out: {options.out} holds a data set; add --overwrite or give another folder")
    config = options.demos
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
    actions = sum(len(demonstration.action) for demonstration in recorded)
    say(f"{kept} successful episodes of {tried} tried, {actions} actions: {options.out}")
    return 0


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
        ("a better expert", "accerl demos --out data/good --demos.speed 1 --demos.noise 0.1"),
    ),
)
