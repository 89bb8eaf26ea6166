"""What a run could do at most, from the times of its parts.

    decisions/s <= min(environment, inference, learner)                  (RL-VLA3, arXiv 2602.05765)
      environment = min(slots / (environment time + forward time), stepping threads / environment time)
      inference   = services * B / (a + b B)
      learner     = learners / (uses of a decision * training time)

All times are those of one decision. Waiting in a queue is in no term: it is a consequence. Where the age of decisions
is not bounded and each is used as often as there is time for, the learner holds nobody up and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Stage = Literal["environment", "inference", "learner"]
REUSED = 1.05
"""Uses of a decision from which on it is used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What is known of a run, None where nothing is. Shares are 0 to 1, means over the processes of a role."""

    decisions_per_s: float | None = None
    """Collected."""
    rollout_busy: float | None = None
    """Of the stepping threads: stepping environments."""
    inference_busy: float | None = None
    """Of the services: in the forward, or taking new weights."""
    learner_busy: float | None = None
    """Of the learner: in training and recomputation."""
    cores_busy: float | None = None
    """Mean over the cores of the machine that the controller is on."""
    num_workers: float | None = None
    num_slots: float | None = None
    """Environments over all workers."""
    threads_per_worker: float = 1
    """Environments that one worker can step at once."""
    num_services: float | None = None
    num_learners: float = 1
    env_s_per_decision: float | None = None
    """Stepping one environment for one decision, its share of resets included."""
    forward_s_per_decision: float | None = None
    """Of a service's device: forward time over decisions answered."""
    forward_base_s: float | None = None
    """a of a forward of B decisions, a + b B."""
    forward_slope_s: float | None = None
    """b."""
    batch_size_mean: float | None = None
    """Of the forwards that were made."""
    batch_size: float | None = None
    """B, the most that a forward takes."""
    train_s_per_decision: float | None = None
    """Of one learner, with recomputation, for each decision trained on."""
    uses_per_decision: float = 1
    """Times that a decision is trained on."""
    data_wait_share: float | None = None
    """Of the learner's time: waiting for a batch."""
    admission_wait_share: float | None = None
    """Of the slots' time: waiting for a credit, because the age of decisions is bounded."""
    max_policy_lag: float | None = None
    """K, the bound on that age, in versions."""
    inference_on_cpu: bool = True
    learner_on_cpu: bool = True


def readings_from(line: Mapping[str, Any]) -> Readings:
    """The readings in a line of `metrics.jsonl`: each field of `Readings` under its own name.

    `cores_busy` may be the mean or a list with each core. Where `uses_per_decision` is missing, it is
    `trained_decisions / decisions`. What is missing or null otherwise takes its default.
    """
    known = {name: line[name] for name in _NAMES if line.get(name) is not None}
    cores = known.get("cores_busy")
    if isinstance(cores, Sequence):
        known["cores_busy"] = sum(cores) / len(cores)
    if "uses_per_decision" not in known and line.get("trained_decisions") and line.get("decisions"):
        known["uses_per_decision"] = line["trained_decisions"] / line["decisions"]
    return Readings(**known)


def readings_over(lines: Sequence[Mapping[str, Any]]) -> Readings:
    """The means over several lines, which are steadier than one; counts and settings are those of the last one.

    Raises:
        ValueError: there is no line.
    """
    if not lines:
        raise ValueError("lines: there is none")
    readings = [readings_from(line) for line in lines]
    means: dict[str, Any] = {}
    for name in _MEASURED:
        values = [value for reading in readings if (value := getattr(reading, name)) is not None]
        means[name] = sum(values) / len(values) if values else None
    return replace(readings[-1], **means)


def stage_bounds(readings: Readings) -> dict[Stage, float]:
    """Decisions/s that each stage alone would allow; from its times, or else from how busy it is now.

    A stage of which neither is known is left out.
    """
    found: dict[Stage, float | None] = {
        "environment": _environment_bound(readings),
        "inference": inference_bound(readings, readings.num_services),
        "learner": _learner_bound(readings),
    }
    bounds: dict[Stage, float] = {}
    for stage, by_times in found.items():
        bound = by_times or _bound_by_busy(stage, readings)
        if bound and not (stage == "learner" and reuses_freely(readings)):
            bounds[stage] = bound
    return bounds


def _environment_bound(readings: Readings) -> float | None:
    environment_s = readings.env_s_per_decision
    if not environment_s:
        return None
    limits: list[float] = []
    if readings.num_slots:
        limits.append(readings.num_slots / (environment_s + (forward_s(readings) or 0.0)))
    if readings.num_workers:
        limits.append(readings.num_workers * readings.threads_per_worker / environment_s)
    return min(limits, default=None)


def forward_s(readings: Readings) -> float | None:
    """Of one batch as they are now."""
    size = readings.batch_size_mean or readings.batch_size
    if readings.forward_base_s is not None and readings.forward_slope_s is not None and size:
        return readings.forward_base_s + readings.forward_slope_s * size
    return readings.forward_s_per_decision * size if readings.forward_s_per_decision and size else None


def inference_bound(readings: Readings, num_services: float | None) -> float | None:
    """With the largest batches there are slots for, where a and b are known, or else with the present ones."""
    size = readings.batch_size or readings.batch_size_mean
    if not num_services:
        return None
    if readings.forward_base_s is not None and readings.forward_slope_s is not None and size:
        size = min(size, max(1.0, (readings.num_slots or math.inf) / num_services))
        return num_services * size / (readings.forward_base_s + readings.forward_slope_s * size)
    return num_services / readings.forward_s_per_decision if readings.forward_s_per_decision else None


def _learner_bound(readings: Readings) -> float | None:
    train_s = readings.train_s_per_decision
    return readings.num_learners / (readings.uses_per_decision * train_s) if train_s else None


def _bound_by_busy(stage: Stage, readings: Readings) -> float | None:
    """What it would do if it were busy all the time."""
    busy = busy_of(stage, readings)
    return readings.decisions_per_s / busy if busy and readings.decisions_per_s else None


def busy_of(stage: Stage, readings: Readings) -> float | None:
    """Share of its time for which a stage works."""
    if stage == "environment":
        return readings.rollout_busy
    if stage == "inference":
        return readings.inference_busy
    if readings.learner_busy is None and readings.data_wait_share is not None:
        return 1 - readings.data_wait_share
    return readings.learner_busy


def reuses_freely(readings: Readings) -> bool:
    """The learner uses decisions again for want of new ones, and nobody waits for it."""
    return readings.max_policy_lag is None and readings.uses_per_decision > REUSED


_SETTINGS = {
    "num_workers",
    "num_slots",
    "threads_per_worker",
    "num_services",
    "num_learners",
    "batch_size",
    "uses_per_decision",
    "max_policy_lag",
    "inference_on_cpu",
    "learner_on_cpu",
}
_NAMES = tuple(entry.name for entry in fields(Readings))
_MEASURED = tuple(name for name in _NAMES if name not in _SETTINGS)
