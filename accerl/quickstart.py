"""The whole path in one command: `make quickstart`, or `python -m accerl.quickstart`.

    scripted expert ─► demonstrations ─► cloned policy ─► asynchronous training ─► evaluation ─► summary, curve, film

Every stage is an `accerl` command, which is printed first, so that each can be repeated by hand. What was made from
the same settings before is used again, and an interrupted training goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from accerl.cli import guarded
from accerl.cli.command import Command
from accerl.cli.options import from_file
from accerl.cli.policies import ORIGIN
from accerl.cli.processes import run_commands
from accerl.cli.train import TrainOptions, train
from accerl.config import ConfigError, Positive, PositiveFloat, RunConfig
from accerl.console import ENDED, say, spent
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.files import write_file


class QuickstartOptions(RunConfig):
    """The recipe, and how much of it."""

    config: Path = Path("quickstart")
    """Recipe, or TOML or JSON file."""
    out: Path = Path("runs/quickstart")
    """Folder of the run; what it starts from goes beside it, into OUT-start."""
    train_seconds: PositiveFloat | None = None
    """Length of the training; default: that of the recipe."""
    episodes_per_task: Positive = 50
    """Episodes of each task in each of the five evaluations."""


class Places:
    """Where everything goes."""

    def __init__(self, out: Path):
        self.run = out
        self.start = out.with_name(f"{out.name}-start")
        self.config = self.start / "config.json"
        self.demos = self.start / "demos"
        self.policy = self.start / "policy"
        self.evaluations = out / "evaluation"


def quickstart(options: QuickstartOptions) -> int:

    places = Places(options.out)
    recipe = recipe_of(options)
    places.start.mkdir(parents=True, exist_ok=True)
    write_file(places.config, recipe.model_dump_json(indent=1))

    stage(1, "Demonstrations", "a scripted expert, slowed down and disturbed, shows each task a few times")
    if have_demos(places, recipe):
        say(f"kept {places.demos}, recorded with the same settings before")
    else:
        run_commands([["demos", "--config", str(places.config), "--out", str(places.demos), "--overwrite"]])

    stage(2, "Cloning", "a small vision-language-action policy imitates them, on purpose not to perfection")
    if have_clone(places, recipe):
        say(f"kept {places.policy}, cloned with the same settings before")
    else:
        data = ["--data", str(places.demos), "--out", str(places.policy), "--overwrite"]
        run_commands([["clone", "--config", str(places.config), *data]])

    stage(3, "Reinforcement learning", "simulation, inference and training run side by side and never wait for another")
    run_config = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"checkpoint": places.policy})})
    found = make_room(run_config)
    if found == "trained":
        say(f"kept {places.run}, trained with the same settings before")
    else:
        resume = found == "interrupted"
        say(f"$ accerl train --config {places.config} --policy.checkpoint {places.policy}" + " --resume" * resume)
        if code := train(TrainOptions(**run_config.model_dump(), resume=resume)):
            return code

    stage(4, "Evaluation", "both policies play the same fresh episodes; wrong instructions show whether it listens")
    results = evaluate(places, options)

    stage(5, "Results", "a summary, a plot and a film")
    report(places, options, results)
    return 0


def recipe_of(options: QuickstartOptions) -> RunConfig:
    """The run that the options describe; `seed` is that of the cloning too.

    Raises:
        ConfigError: a name, which `out` gives.
    """
    for field in ("name", "root"):
        if field in options.model_fields_set:
            raise ConfigError(f"{field}: the quickstart takes it from --out; use that")
    fields = {name: getattr(options, name) for name in RunConfig.model_fields}
    fields["name"], fields["root"] = options.out.name, options.out.parent
    fields["clone"] = options.clone.model_copy(update={"seed": options.seed})
    if options.train_seconds is not None:
        fields["limits"] = options.limits.model_copy(update={"max_wall_s": options.train_seconds})
    return RunConfig(**fields)


def have_demos(places: Places, recipe: RunConfig) -> bool:
    """There are demonstrations, recorded with these settings."""
    return _made_from(places.demos / "dataset.json", recipe, ("env", "demos"))


def have_clone(places: Places, recipe: RunConfig) -> bool:
    """There is a cloned policy, made with these settings from demonstrations made with these settings."""
    return _made_from(places.policy / ORIGIN, recipe, ("env", "demos", "policy", "clone"))


def make_room(config: RunConfig) -> Literal["nothing", "interrupted", "trained"]:
    """What the run's folder holds of this very training, as long as its results are missing.

    Any other run there is kept under the next free number.

    Raises:
        ConfigError: it is still running.
    """
    from accerl.runtime.run import attach

    folder = config.folder
    if not (folder / "config.json").exists():
        return "nothing"
    run = attach(folder)
    status = run.status()
    if status["state"] not in ENDED:
        raise ConfigError(f"out: {folder} is {status['state']}; wait, or end it with `accerl stop {folder}`")
    if run.config == config and run.checkpoints() and not (folder / "summary.json").exists():
        complete = status["state"] == "finished" and spent(config.limits, status) == 1.0
        return "trained" if complete else "interrupted"
    numbers = (folder.with_name(f"{folder.name}-{number}") for number in range(1, 10_000))
    aside = next(path for path in numbers if not path.exists())
    folder.rename(aside)
    say(f"kept the earlier run as {aside}")
    return "nothing"


def evaluate(places: Places, options: QuickstartOptions) -> dict[str, dict[str, Any]]:
    """Key of the summary to what `accerl eval` wrote; one evaluation a core at a time, but on LIBERO each takes all."""
    chosen: dict[str, tuple[Path, list[str]]] = {
        "success_start": (places.policy, []),
        "success_final": (places.run, []),
        "greedy_start": (places.policy, ["--greedy"]),
        "greedy_final": (places.run, ["--greedy"]),
        "success_shuffled_instruction": (places.run, ["--shuffle-instructions"]),
    }
    common = ["--episodes-per-task", str(options.episodes_per_task), "--seed", str(options.seed)]
    files = {key: places.evaluations / f"{key}.json" for key in chosen}
    places.evaluations.mkdir(exist_ok=True)
    run_commands(
        [
            ["eval", "--config", str(places.config), "--policy", str(policy), *how, *common, "--out", str(files[key])]
            for key, (policy, how) in chosen.items()
        ],
        at_once=1 if options.env.suite in LIBERO else len(os.sched_getaffinity(0)),
        log=places.evaluations / "log.txt",
    )
    return {key: json.loads(file.read_text()) for key, file in files.items()}


def report(places: Places, options: QuickstartOptions, results: dict[str, dict[str, Any]]) -> None:
    """Write and print what came out."""
    from accerl import summary
    from accerl.plots import curve
    from accerl.runtime.run import attach

    run = attach(places.run)
    figures = summary.summarize(results, run.metrics(), run.incidents(), options.seed)
    curve(
        run.metrics(),
        places.run / "curve.png",
        start={"sampled": results["success_start"], "greedy": results["greedy_start"]},
        final={"sampled": results["success_final"], "greedy": results["greedy_final"]},
        title=f"{places.run.name}, seed {options.seed}",
    )
    film(places, options)
    write_file(places.run / "summary.json", json.dumps(figures, indent=1))  # last: it says that all is there
    summary.show(figures)
    for name in ("summary.json", "curve.png", "rollouts.mp4"):
        say(f"  {places.run / name}")
    say("\nWhat to try next:")
    for purpose, command in (
        (
            "another seed",
            f"python -m accerl.quickstart --seed {options.seed + 1} --out {places.run}-seed{options.seed + 1}",
        ),
        ("train on", f"accerl train --resume {places.run} {twice(figures)}"),
        (
            "another objective",
            f"accerl train --config {places.run / 'config.json'} --name ppo --objective.kind ppo",
        ),
        ("all curves", f"tensorboard --logdir {places.run.parent}"),
    ):
        say(f"  # {purpose}\n  {command}")


def twice(figures: Mapping[str, Any]) -> str:
    """The option that lets a run go on for as long as it has taken so far."""
    return (
        f"--limits.max-wall-s {2 * figures['train_wall_s']:.0f} --limits.max-decisions none --limits.max-updates none"
    )


def film(places: Places, options: QuickstartOptions) -> None:
    """The cloned policy beside the trained one, each task once, in the first episodes of the evaluation."""
    from accerl.checkpoint import load_policy
    from accerl.cli.policies import find_policy
    from accerl.console import progress
    from accerl.evaluation import plan_episodes
    from accerl.films import rollout_film

    policies = {"cloned": load_policy(places.policy), "after RL": load_policy(find_policy(places.run))}
    plans = plan_episodes(options.env.tasks, 1, options.seed, greedy=False)
    held_out = options.env.libero.model_copy(update={"init_states": "evaluation"})
    env = options.env.model_copy(update={"libero": held_out})
    with progress(2 * len(plans), "filmed episodes") as advance:
        rollout_film(policies, env, plans, places.run / "rollouts.mp4", on_episode=advance)


def stage(number: int, title: str, why: str) -> None:
    say(f"\n{number}/5 {title}: {why}")


def _made_from(record: Path, recipe: RunConfig, sections: Sequence[str]) -> bool:
    if not record.exists():
        return False
    made, wanted = json.loads(record.read_text()), json.loads(recipe.model_dump_json())
    return all(made.get(section) == wanted[section] for section in sections)


def from_recipe(model: type[QuickstartOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    return from_file(model, {"config": QuickstartOptions().config, **values})


COMMAND = Command(
    name="quickstart",
    start="python -m accerl.quickstart",
    summary="Show the whole path: demonstrations, cloning, asynchronous reinforcement learning, evaluation, film.",
    options=QuickstartOptions,
    run=quickstart,
    base=from_recipe,
    examples=(
        ("all of it, in twenty minutes on two cores", "python -m accerl.quickstart"),
        ("a first look", "python -m accerl.quickstart --train-seconds 60 --episodes-per-task 10"),
        ("with another objective", "python -m accerl.quickstart --objective.kind ppo --out runs/ppo"),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    return guarded(COMMAND, list(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
