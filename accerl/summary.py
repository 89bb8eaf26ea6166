"""What a finished quickstart amounts to, in numbers."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from accerl.console import duration, output, say
from accerl.doctor import machine

EVALUATIONS = {
    "success_start": "start, sampled",
    "success_final": "final, sampled",
    "greedy_start": "start, greedy",
    "greedy_final": "final, greedy",
    "success_shuffled_instruction": "final, sampled, wrong instructions",
}
"""Key of the summary to what it says."""


def summarize(
    evaluations: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    incidents: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, Any]:
    """JSON-compatible. Throughput and lag are those of the whole training, busy shares means over its reports.

    Args:
        evaluations: key of `EVALUATIONS` to the content of the file that `accerl eval` wrote.
        metrics: lines of `metrics.jsonl`.
    """
    kept = ("rate", "interval", "episodes", "by_task")
    last = metrics[-1]
    return {
        **{key: {name: evaluations[key][name] for name in kept} for key in EVALUATIONS},
        "seed": seed,
        "decisions": last["decisions"],
        "env_steps": last["env_steps"],
        "updates": last["updates"],
        "train_wall_s": last["wall_s"],
        "decisions_per_s": last["decisions"] / last["wall_s"],
        "env_steps_per_s": last["env_steps"] / last["wall_s"],
        "policy_lag_mean": last["run_policy_lag_mean"],
        "policy_lag_max": last["run_policy_lag_max"],
        "discarded_decisions": last["discarded_decisions"],
        **{f"{role}_busy": _mean(metrics, f"{role}_busy") for role in ("learner", "inference", "rollout")},
        "cores_busy": _mean(metrics, "cores_busy"),
        "incidents": list(incidents),
        "commit": commit(),
        "machine": machine(),
    }


def show(figures: Mapping[str, Any]) -> None:
    """Print a summary for a reader."""
    tasks = list(figures["success_start"]["by_task"])
    table = Table("", "success", *tasks, box=None, padding=(0, 2), header_style="bold")
    for key, meaning in EVALUATIONS.items():
        by_task = figures[key]["by_task"]
        table.add_row(meaning, rate(figures[key]), *(f"{by_task[task]['rate']:.2f}" for task in tasks))
    output().print(table)
    cores = ", ".join(f"{share:.0%}" for share in figures["cores_busy"])
    say(
        f"\n{figures['decisions']} decisions ({figures['decisions_per_s']:.0f}/s), "
        f"{figures['env_steps']} environment steps ({figures['env_steps_per_s']:.0f}/s), "
        f"{figures['updates']} updates in {duration(figures['train_wall_s'])}\n"
        f"trained on decisions {figures['policy_lag_mean']:.1f} policy versions old (at most "
        f"{figures['policy_lag_max']:.0f}), {figures['discarded_decisions']:.0f} discarded; "
        f"{len(figures['incidents'])} incidents\n"
        f"busy: learner {figures['learner_busy']:.0%}, inference {figures['inference_busy']:.0%}, "
        f"rollout {figures['rollout_busy']:.0%} of a core; cores {cores}"
    )


def rate(result: Mapping[str, Any]) -> str:
    """A success rate with its interval."""
    low, high = result["interval"]
    return f"{result['rate']:.2f} [{low:.2f}, {high:.2f}]"


def commit() -> str | None:
    """Of the checkout that this package is in, marked if it was changed since; None if it is in none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        found = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _mean(metrics: Sequence[Mapping[str, Any]], name: str) -> Any:
    """Over the lines that have it; a list is averaged element by element."""
    return np.mean([line[name] for line in metrics if line.get(name) is not None], axis=0).tolist()
