"""Ways to train OpenVLA-OFT on some GPUs: all weights or additions, vision trained or frozen, recomputed or kept."""

from __future__ import annotations

from typing import NamedTuple

from accerl.config import RunConfig, merge
from accerl.plan import Machine
from accerl.plan_memory import GIB, largest_micro_batch, learner_bytes, static_bytes, training_flop
from accerl.policies.costs import Costs, costs_of
from accerl.types import EnvSpec

LORA_RANK = 32
WAYS = {
    "full": {"policy.lora_rank": 0, "policy.freeze_vision": False},
    "full, frozen vision": {"policy.lora_rank": 0, "policy.freeze_vision": True},
    "LoRA": {"policy.lora_rank": LORA_RANK, "policy.freeze_vision": False},
    "LoRA, frozen vision": {"policy.lora_rank": LORA_RANK, "policy.freeze_vision": True},
}
MOST_GPUS = 64
"""Beyond which no number of GPUs is proposed."""


class Fit(NamedTuple):
    """With or without gradient checkpointing."""

    mib: float
    """Activations of a decision."""
    micro_batch: int
    """Most decisions in a forward and backward that fit beside what is static."""
    per_s: float
    """Decisions trained a second on all GPUs, at the machine's efficiency."""


class Way(NamedTuple):
    """One way to train."""

    name: str
    static_gib: float
    """On each GPU: weights, gradients, optimizer."""
    kept: Fit
    recomputed: Fit
    refusal: str | None
    """Not a single decision fits: the reason, and the remedy."""


def training_ways(config: RunConfig, spec: EnvSpec, machine: Machine) -> list[Way]:
    """Each way with ZeRO-2 in bfloat16 on all GPUs of a machine, which do nothing else."""
    return [_way(name, config, fields, spec, machine) for name, fields in WAYS.items()]


def _way(name: str, config: RunConfig, fields: dict[str, object], spec: EnvSpec, machine: Machine) -> Way:
    static, fits = 0.0, {}
    for recomputes in (False, True):
        own = _spread(config, fields, machine.gpus, recomputes)
        costs = costs_of(own, spec)
        static = static_bytes(costs, own.learner) / GIB
        fits[recomputes] = _fit(own, costs, machine)
    refusal = None
    if not fits[True].micro_batch:
        refusal = (
            f"{name}: {static:.1f} GiB, and {fits[True].mib:.0f} MiB a decision, do not fit into {machine.gpu_gib:g}; "
            f"{_remedy(config, fields, spec, machine)}"
        )
    return Way(name, static, fits[False], fits[True], refusal)


def _fit(config: RunConfig, costs: Costs, machine: Machine) -> Fit:
    flop_per_s = machine.gpus * machine.gpu_tflops * 1e12 * machine.efficiency
    return Fit(
        mib=costs.activation_bytes / 2**20,
        micro_batch=largest_micro_batch(costs, config.learner, machine.gpu_gib),
        per_s=flop_per_s / training_flop(config.learner, costs),
    )


def _remedy(config: RunConfig, fields: dict[str, object], spec: EnvSpec, machine: Machine) -> str:
    gpus = 2 * machine.gpus
    while gpus <= MOST_GPUS:
        own = _spread(config, fields, gpus, recomputes=True)
        costs = costs_of(own, spec)
        if learner_bytes(costs, own.learner, 1) <= machine.gpu_gib * GIB:
            return f"use {gpus} GPUs, or policy.lora_rank = {LORA_RANK}"
        gpus *= 2
    return "take GPUs with more memory"


def _spread(config: RunConfig, fields: dict[str, object], gpus: int, recomputes: bool) -> RunConfig:
    learner = {"num_ranks": gpus, "zero_stage": 2, "dtype": "bfloat16", "gradient_checkpointing": recomputes}
    own = {**fields, **{f"learner.{name}": value for name, value in learner.items()}}
    return RunConfig(**merge(config.model_dump(), own))
