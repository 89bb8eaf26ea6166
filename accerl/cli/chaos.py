"""`accerl chaos`."""

from __future__ import annotations

from pathlib import Path

from accerl.cli.command import Command
from accerl.config import NonNegative, PositiveFloat, Section
from accerl.console import say


class ChaosOptions(Section):
    """Which run, and how hard it is tried."""

    run: str
    """Its name below `root`, or its folder; it is live, and on this machine."""
    root: Path = Path("runs")
    """Folder that holds the runs."""
    minutes: PositiveFloat = 5.0
    """In which faults happen."""
    every_s: PositiveFloat = 10.0
    """Seconds between two faults, on average."""
    kinds: tuple[str, ...] = ()
    """Such as kill-rollout, stop-learner, kill-node or fill-disk; none: all that fit the run, by turns. A disk is
    filled up only if it is a small one of the run's own."""
    seed: NonNegative = 0
    """Of their order and times."""


def chaos(options: ChaosOptions) -> int:
    from accerl.runtime import chaos
    from accerl.runtime.run import attach

    run = attach(options.run, options.root)
    kinds = chaos.kinds_of(run, options.kinds)
    faults = chaos.plan(60 * options.minutes, options.every_s, options.seed, kinds)
    say(f"{len(faults)} faults in {options.minutes:g} minutes")
    failed = 0
    for outcome in chaos.unleash(run, faults):
        failed += outcome.recovered_s is None
        after = "never" if outcome.recovered_s is None else f"after {outcome.recovered_s:.1f} s"
        say(f"{outcome.fault.at_s:6.1f} s  {outcome.fault.kind:16}  {outcome.role:14}  at work again {after}")
    lost = run.counters()["lost_episodes"]
    say(f"{lost} episodes lost, {failed} faults without recovery")
    return 1 if lost or failed else 0


COMMAND = Command(
    name="chaos",
    summary="Kill, stop and slow processes of a live run, and see that it goes on and loses nothing.",
    options=ChaosOptions,
    run=chaos,
    positional="run",
    examples=(
        ("five minutes of everything", "accerl chaos quickstart"),
        ("only the learner", "accerl chaos quickstart --kinds kill-learner,stop-learner --every-s 60"),
    ),
)
