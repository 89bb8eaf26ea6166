"""Which part of a run holds up the others, and what one more of it would bring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from accerl.bounds import (
    Readings,
    Stage,
    busy_of,
    forward_s,
    inference_bound,
    readings_from,
    readings_over,
    reuses_freely,
    stage_bounds,
)

__all__ = ["Advice", "Readings", "advise", "readings_from", "readings_over"]

Bottleneck = Literal["environment", "inference", "learner", "staleness", "cores", "balanced", "waiting", "unknown"]

SATURATED = 0.95
"""Share of the machine's cores from which on nothing that needs one can be added."""
BUSY = 0.9
"""Share of its time from which on a stage is at its limit."""
ADMISSION_WAIT = 0.1
"""Share of the slots' time from which on waiting for credits matters."""
GAIN = 1.1
"""Room between the lowest bound and the next below which the stages are balanced."""
REACHED = 0.7
"""Share of the lowest bound below which something that is in no bound holds the run up."""

ROLES: dict[Stage, str] = {"environment": "rollout", "inference": "inference", "learner": "learner"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What holds a run up, and what to do."""

    bottleneck: Bottleneck
    sentence: str
    """For a reader: the figure, the remedy, the prediction."""
    predicted: float | None = None
    """Decisions/s after the remedy over those before; None where none can be given."""
    bounds: Mapping[Stage, float] = field(default_factory=dict)
    """Decisions/s that each stage alone would allow."""


def advise(readings: Readings) -> Advice:
    """The stage with the lowest bound, or what keeps the run below all of them, and the remedy."""
    bounds = stage_bounds(readings)
    if not bounds:
        return Advice(bottleneck="unknown", sentence=f"cannot tell what limits the run: {_missing(readings, bounds)}")
    stage: Stage = min(bounds, key=lambda name: bounds[name])
    reached = readings.decisions_per_s / bounds[stage] if readings.decisions_per_s else None
    is_held = _is_held_by_staleness(readings, reached)
    if (readings.cores_busy or 0.0) >= SATURATED and (is_held or _needs_cores(stage, readings)):
        return _cores(readings, bounds)
    if is_held:
        return _staleness(readings, bounds, reached)
    if reached is not None and reached < REACHED and (busy_of(stage, readings) or 0.0) < BUSY:
        return _waiting(readings, bounds, stage, reached)
    return _limited(readings, bounds, stage)


def _needs_cores(stage: Stage, readings: Readings) -> bool:
    return {"environment": True, "inference": readings.inference_on_cpu, "learner": readings.learner_on_cpu}[stage]


def _is_held_by_staleness(readings: Readings, reached: float | None) -> bool:
    """Slots wait for credits although the learner, which gives them, has time left."""
    waits = (readings.admission_wait_share or 0.0) >= ADMISSION_WAIT
    learner = busy_of("learner", readings)
    return waits and learner is not None and learner < BUSY and (reached is None or 1 / reached >= GAIN)


def _limited(readings: Readings, bounds: dict[Stage, float], stage: Stage) -> Advice:
    """The advice where a stage is at its limit, or several at once."""
    room = min((bounds[name] / bounds[stage] for name in bounds if name != stage), default=math.inf)
    if room < GAIN:
        equals: list[Stage] = [name for name in bounds if bounds[name] < GAIN * bounds[stage]]
        figures = " and ".join(_figure(name, readings, bounds) for name in equals)
        sentence = f"balanced, {figures}: more of one alone brings at most {_times(room)}; add to both or all"
        return Advice(bottleneck="balanced", sentence=sentence, predicted=room, bounds=bounds)
    predicted, prediction = _prediction(readings, bounds, stage, room)
    sentence = f"{_figure(stage, readings, bounds)}: {_remedy(stage, readings)}{prediction}"
    return Advice(bottleneck=stage, sentence=sentence, predicted=predicted, bounds=bounds)


def _prediction(readings: Readings, bounds: dict[Stage, float], stage: Stage, room: float) -> tuple[float | None, str]:
    """The speed-up by one more of the stage's processes, and how to say it."""
    counts: dict[Stage, float | None] = {
        "environment": readings.num_workers,
        "inference": readings.num_services,
        "learner": readings.num_learners,
    }
    count = counts[stage]
    if not count:
        return None, ""
    grown = bounds[stage] * (count + 1) / count
    if stage == "inference":
        grown = inference_bound(readings, count + 1) or grown
    predicted = min(grown / bounds[stage], room)
    text = f"; predicted {_times(predicted)}"
    if predicted == room:
        after: Stage = min((name for name in bounds if name != stage), key=lambda name: bounds[name])
        text += f" (next limit: {ROLES[after]})"
    elif math.isfinite(room) and stage != "inference":
        text += f", and up to {_times(room)} with {math.ceil(count * room) - count:.0f} more"
    return predicted, text


def _remedy(stage: Stage, readings: Readings) -> str:
    if stage == "inference":
        return "add an inference service"
    if stage == "learner":
        return "train on one more device, or make training cheaper"
    environment_s, slots = readings.env_s_per_decision, readings.num_slots
    if environment_s and slots and readings.num_workers:
        waits_for_forwards = slots / (environment_s + (forward_s(readings) or 0.0))
        if waits_for_forwards < readings.num_workers * readings.threads_per_worker / environment_s:
            return "every slot steps or waits for its forward: add a rollout worker or slots (rollout.slots_per_worker)"
    return "add a rollout worker"


def _staleness(readings: Readings, bounds: dict[Stage, float], reached: float | None) -> Advice:
    bound = "" if readings.max_policy_lag is None else f" K = {readings.max_policy_lag:.0f}"
    sentence = (
        f"workers wait {_percent(readings.admission_wait_share)} of their time for the staleness bound{bound}, "
        f"learner busy {_percent(busy_of('learner', readings))}: raise rollout.max_policy_lag, or use mode='async'"
    )
    predicted = None if reached is None else 1 / reached
    if predicted is not None:
        sentence += f"; predicted up to {_times(predicted)}"
    return Advice(bottleneck="staleness", sentence=sentence, predicted=predicted, bounds=bounds)


def _cores(readings: Readings, bounds: dict[Stage, float]) -> Advice:
    sentence = (
        f"cores busy {_percent(readings.cores_busy)}: the machine is full, more workers or services will not help; "
        "use more cores, or a cheaper simulator or policy"
    )
    return Advice(bottleneck="cores", sentence=sentence, predicted=1.0, bounds=bounds)


def _waiting(readings: Readings, bounds: dict[Stage, float], stage: Stage, reached: float) -> Advice:
    """Nothing is at its limit, as far as is known."""
    if len(bounds) < (2 if reuses_freely(readings) else 3):
        missing = _missing(readings, bounds)
        sentence = f"{_figure(stage, readings, bounds)}: this is not what limits the run, and for the rest {missing}"
        return Advice(bottleneck="unknown", sentence=sentence, bounds=bounds)
    busy = ", ".join(_figure(name, readings, bounds) for name in bounds)
    sentence = (
        f"nothing is at its limit ({busy}), the run reaches {_percent(reached)} of its bound: its parts wait for one "
        "another; more slots a worker (rollout.slots_per_worker) keep them at work; "
        f"predicted up to {_times(1 / reached)}"
    )
    return Advice(bottleneck="waiting", sentence=sentence, predicted=1 / reached, bounds=bounds)


def _missing(readings: Readings, bounds: Mapping[Stage, float]) -> str:
    """The fields for want of which a stage has no bound."""
    needed: dict[Stage, tuple[str, ...]] = {
        "environment": ("num_slots", "num_workers", "env_s_per_decision"),
        "inference": ("num_services", "forward_s_per_decision"),
        "learner": () if reuses_freely(readings) else ("train_s_per_decision",),
    }
    absent = [
        name
        for stage, names in needed.items()
        if stage not in bounds
        for name in names
        if getattr(readings, name) is None
    ]
    return f"the metrics lack {', '.join(absent)}" if absent else "nothing was measured yet"


def _figure(stage: Stage, readings: Readings, bounds: Mapping[Stage, float]) -> str:
    busy = busy_of(stage, readings)
    return (
        f"{ROLES[stage]} at most {bounds[stage]:.3g} decisions/s"
        if busy is None
        else f"{ROLES[stage]} busy {_percent(busy)}"
    )


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"


def _times(factor: float) -> str:
    return f"{factor:.1f}x" if factor >= GAIN else f"{factor:.2f}x"
