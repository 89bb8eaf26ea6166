"""A run in a terminal: a live picture, or a line every ten seconds where the output is not a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from accerl.config import LimitsConfig

if TYPE_CHECKING:
    from accerl.runtime.run import Run

ENDED = ("finished", "failed", "dead")
POLL_S = 1.0
LINE_EVERY_S = 10.0
BAR = 50
"""Characters."""
BLOCKS = "▁▂▃▄▅▆▇█"


class Advance(Protocol):
    """Tells a progress display that a piece of the work is done."""

    def __call__(self, note: str = "", by: int = 1) -> None: ...


def output() -> Console:
    """Stdout. A file or a pipe has lines of 120 characters, if the environment's COLUMNS does not say otherwise."""
    console = Console(highlight=False)
    if not (console.is_terminal or "COLUMNS" in os.environ):
        console.width = 120
    return console


def say(text: str) -> None:
    """One unstyled message on stdout, not cut at the width of the terminal."""
    print(text, flush=True)


def follow(run: Run, console: Console | None = None) -> str:
    """Show the run until it ends; returns its last state. Interrupting this leaves the run as it is."""
    console = console or output()
    return _follow_live(run, console) if console.is_terminal else _follow_in_lines(run, console)


def _follow_live(run: Run, console: Console) -> str:
    history: list[dict[str, Any]] = []
    limits = run.config.limits
    with Live(console=console, auto_refresh=False) as live:
        while True:
            history += run.metrics(after=len(history))
            status = run.status()
            live.update(picture(run.folder, limits, status, history, run.incidents()), refresh=True)
            if status["state"] in ENDED:
                return status["state"]
            time.sleep(POLL_S)


def _follow_in_lines(run: Run, console: Console) -> str:
    told = 0
    next_line = 0.0
    last = ""
    while True:
        status = run.status()
        incidents = run.incidents()
        for incident in incidents[told:]:
            console.print(Text(f"incident: {describe(incident)}"), soft_wrap=True)
        told = len(incidents)
        ended = status["state"] in ENDED
        if ended or time.monotonic() >= next_line:
            if (text := line(status)) != last:
                console.print(Text(text), soft_wrap=True)
            last, next_line = text, time.monotonic() + LINE_EVERY_S
        if ended:
            return status["state"]
        time.sleep(POLL_S)


def ending(run: Run) -> str:
    """How a run that was stopped ended, and how to go on with it."""
    written = run.checkpoints()
    if not written:
        return f"{run.folder} ended before its first checkpoint; start it again under another name"
    status = run.status()
    how = "stopped" if status["state"] == "finished" else f"{status['state']}, {status['reason']}"
    return f"{how}; `accerl train --resume {run.folder}` goes on from {written[-1].name}"


def line(status: Mapping[str, Any]) -> str:
    """The state of a run in one line of plain text."""
    if status.get("decisions") is None:
        return f"{status['state']} ..."
    return "  ".join(
        (
            f"{status['state']} {duration(status.get('wall_s'))}",
            f"success {interval(status)}",
            f"decisions {status['decisions']}",
            throughput(status),
            f"lag {lag(status)}",
            f"busy {busy(status)}",
        )
    )


def picture(
    folder: Path,
    limits: LimitsConfig,
    status: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    incidents: Sequence[Mapping[str, Any]],
) -> RenderableType:
    """All about a run that fits on a screen. `history` are the lines of its metrics so far."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    if status.get("success") is not None:
        bar = interval_bar(status["success_low"], status["success_high"])
        table.add_row("success", Text.assemble(bar, "  ", (interval(status), "bold")))
        table.add_row("so far", Text(sparkline([line.get("success") for line in history], BAR), style="cyan"))
        for task, rate in status["success_by_task"].items():
            table.add_row("", task_bar(task, rate, (status.get("task_probability") or {}).get(task)))
    if status.get("decisions") is not None:
        table.add_row("speed", throughput(status))
        table.add_row("lag", lag(status))
        if (update := newest_update(history)) is not None:
            table.add_row("learning", learning(update))
        table.add_row("queue", queue(status))
        table.add_row("busy", busy(status))
    for incident in incidents[-3:]:
        table.add_row("incident", Text(describe(incident), style="yellow"))
    return Group(heading(folder, limits, status), table)


def heading(folder: Path, limits: LimitsConfig, status: Mapping[str, Any]) -> Text:
    text = Text.assemble((str(folder), "bold"), "  ", status["state"], "  ", duration(status.get("wall_s")))
    share = spent(limits, status)
    if share is not None:
        done = round(20 * share)
        text.append("  ").append("━" * done, style="green").append("━" * (20 - done), style="dim")
        text.append(f" {share:.0%} of the budget")
    if status.get("reason"):
        text.append(f"  ({status['reason']})")
    return text


def spent(limits: LimitsConfig, status: Mapping[str, Any]) -> float | None:
    """Share of the budget that is used up; None without one."""
    counters = {"decisions": limits.max_decisions, "updates": limits.max_updates, "wall_s": limits.max_wall_s}
    shares = [(status.get(name) or 0) / limit for name, limit in counters.items() if limit]
    return min(1.0, max(shares)) if shares else None


def interval(status: Mapping[str, Any]) -> str:
    """Rate and Wilson interval, as `SuccessRate` prints them."""
    if status.get("success") is None:
        return "-"
    return f"{status['success']:.2f} [{status['success_low']:.2f}, {status['success_high']:.2f}]"


def interval_bar(low: float, high: float) -> Text:
    """A bar from 0 to 1: solid up to the lower end of the interval, shaded within it."""
    solid, shaded = round(BAR * low), round(BAR * high)
    return Text.assemble(("█" * solid, "green"), ("▒" * (shaded - solid), "green"), ("░" * (BAR - shaded), "dim"))


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Values in [0, 1] as blocks, the mean of equal stretches of time; where there are none, a blank."""
    stretch = max(1, -(-len(values) // width))
    parts = [[v for v in values[i : i + stretch] if v is not None] for i in range(0, len(values), stretch)]
    return "".join(BLOCKS[min(7, int(8 * sum(part) / len(part)))] if part else " " for part in parts)


def task_bar(task: str, rate: float, probability: float | None) -> Text:
    done = round(BAR / 2 * rate)
    bar = Text.assemble(("█" * done, "green"), ("░" * (BAR // 2 - done), "dim"), f"  {rate:.2f}  {task}")
    return bar if probability is None else bar.append(f"  {probability:.0%} of the episodes", style="dim")


def throughput(status: Mapping[str, Any]) -> str:
    return (
        f"{number(status.get('decisions_per_s'))} decisions/s = "
        f"{number(status.get('env_steps_per_s'))} environment steps/s, "
        f"{number(status.get('trained_decisions_per_s'))} trained on"
    )


def lag(status: Mapping[str, Any]) -> str:
    return (
        f"{number(status.get('policy_lag_mean'), 1)} versions, at most {number(status.get('policy_lag_max'))}; "
        f"{number(status.get('discarded_decisions'))} decisions discarded"
        + (f", {number(status['aged_decisions'])} aged" if status.get("aged_decisions") else "")
    )


def newest_update(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last line of metrics in which the learner has trained."""
    return next((line for line in reversed(history) if "effective_sample_size" in line), None)


def learning(update: Mapping[str, Any]) -> str:
    """The diagnostics of an objective: how far the data are from the policy, and how much of them counts."""
    return (
        f"|log ratio| p95 {number(update['abs_log_ratio_p95'], 3)}, KL {number(update['behaviour_kl'], 4)}, "
        f"effective sample {percent(update['effective_sample_size'])}, without gradient "
        f"{percent(update['dead_fraction'])}\n"
        f"entropy {number(update['entropy'], 2)}, explained variance {number(update['explained_variance'], 2)}, "
        f"gradient norm {number(update['grad_norm'], 2)}"
    )


def queue(status: Mapping[str, Any]) -> str:
    return (
        f"{number(status.get('replay_unused'))} decisions unused of {number(status.get('replay_decisions'))}; "
        f"{number(status.get('batch_size_mean'), 1)} requests a forward, "
        f"which waited {number(status.get('window_wait_ms'), 1)} ms"
    )


def busy(status: Mapping[str, Any]) -> str:
    roles = [f"{role} {percent(status.get(f'{role}_busy'))}" for role in ("learner", "inference", "rollout")]
    cores = " ".join(percent(share) for share in status.get("cores_busy") or ())
    return ", ".join(roles) + (f"; cores {cores}" if cores else "")


def describe(incident: Mapping[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(incident["time"]))
    return f"{clock} {incident['role']}: {incident['what']}; {incident['action']}"


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def progress(total: int, what: str) -> Iterator[Advance]:
    """A bar on a terminal, a line for every fifth of the work elsewhere; gives what is called after each piece."""
    console = output()
    started = time.monotonic()
    done = 0

    def in_lines(note: str = "", by: int = 1) -> None:
        nonlocal done
        before, done = done, done + by
        if 5 * done // total > 5 * before // total:
            say(f"{done} of {total} {what}, {duration(time.monotonic() - started)}{f', {note}' if note else ''}")

    if not console.is_terminal:
        yield in_lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda note="", by=1: bar.update(task, advance=by, note=note)
