"""What a run will need, before there is a machine for it: memory of each role, devices, how fast it can become.

configuration ─► policy's costs ─┬─► loads: bytes of each role ─► devices ─► what does not fit, and the remedy
                                 └─► ceilings: decisions a second of simulation, inference, learner
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from accerl.config import RunConfig
from accerl.envs.libero.doctor import PROCESS_GB, TASK_GB
from accerl.envs.libero.suites import SUITES as LIBERO
from accerl.plan_memory import GIB, WEIGHT_BYTES, inference_bytes, learner_bytes, trained_bytes, training_flop
from accerl.policies.costs import Costs
from accerl.runtime.placement import is_shared, resources, shared_gpus, total_gpus

STEP_MS, PICTURE_MS = 12.0, 60.0
"""Of a core, for a step of LIBERO and for a camera's picture drawn without a GPU: `benchmarks/libero_step.py`."""

SETTINGS = {
    "learner": "learner.micro_batch_decisions, or take a smaller policy",
    "inference": "inference.num_services",
    "replay": "replay.capacity_decisions",
    "rollout": "rollout.num_workers",
}
"""What makes a role's part of the host's memory smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is, or would be."""

    gpus: int = 0
    gpu_gib: float = 80.0
    """Memory of each."""
    gpu_tflops: float = 790.0
    """Dense matrix peak of each in bfloat16, as measured."""
    efficiency: float = 0.45
    """Share of it that is reached."""
    cores: int = 1
    memory_gib: float = 16.0


class Load(NamedTuple):
    """Memory that all processes of a role need, or one, on one device."""

    role: str
    place: str
    """`GPU 0`, or `host`."""
    gib: float
    parts: str
    """How it adds up."""


class Plan(NamedTuple):
    """The answer."""

    loads: list[Load]
    ceilings: dict[str, float | None]
    """Decisions a second that each part could do alone; None: not predicted here."""
    collected_per_s: float | None
    """Decisions a second that the slowest part lets through, as far as predicted."""
    largest_micro_batch: int | None
    """That fits beside the learner's weights; None: on a CPU it is not the limit."""
    refusals: list[str]
    """What does not fit, each with its remedy; empty: it fits."""


def make_plan(config: RunConfig, costs: Costs, machine: Machine) -> Plan:
    """Predicts; nothing is started or built."""
    loads = [*_loads(config, costs)]
    largest = _largest_micro_batch(config, costs, loads, machine)
    ceilings = _ceilings(config, costs, machine)
    known = [value for value in ceilings.values() if value is not None]
    return Plan(
        loads=loads,
        ceilings=ceilings,
        collected_per_s=min(known) if known else None,
        largest_micro_batch=largest,
        refusals=_refusals(config, machine, loads, largest),
    )


def _loads(config: RunConfig, costs: Costs) -> list[Load]:
    num_ranks = config.learner.num_ranks
    all_places = _places(config)
    loads = [_rank(config, costs, number, place) for number, place in enumerate(all_places[:num_ranks])]
    service = inference_bytes(costs) / GIB
    for number, place in enumerate(all_places[num_ranks:]):
        loads.append(Load(f"inference-{number}", place, service, "weights, and the next version of them"))
    return [*loads, *_imagination(config, service, all_places), _replay(config, costs), *_simulation(config)]


def _imagination(config: RunConfig, policy_gib: float, others: Sequence[str]) -> list[Load]:
    """The policy in each process that imagines, on GPUs of their own; the models' sizes are not known here."""
    section = config.imagination
    first = 1 + max((int(place.removeprefix("GPU ")) for place in others if place != "host"), default=-1)
    places = [f"GPU {first + int(number * section.gpus)}" for number in range(section.num_workers)]
    parts = "the policy's weights, and the next version of them; the world model comes on top"
    return [
        Load(f"imagination-{number}", place if section.gpus else "host", policy_gib, parts)
        for number, place in enumerate(places if section.enabled else [])
    ]


def _replay(config: RunConfig, costs: Costs) -> Load:
    capacity, shards, limit = config.replay.capacity_decisions, config.replay.num_shards, config.replay.memory_mb
    gib = capacity * costs.observation_bytes / GIB
    if limit is not None and shards * limit / 1024 < gib:
        return Load("replay", "host", shards * limit / 1024, f"{shards} shards x {limit} MiB, {gib:.1f} GiB on disk")
    return Load("replay", "host", gib, f"{capacity} decisions x {_size(costs.observation_bytes)}")


def _rank(config: RunConfig, costs: Costs, number: int, place: str) -> Load:
    """One rank of the learner."""
    learner = config.learner
    size, training = WEIGHT_BYTES[learner.dtype], trained_bytes(learner)
    copies = (learner.average_decay > 0) + (config.objective.reference_kl > 0)
    micro_batch = min(learner.micro_batch_decisions, learner.batch_decisions)
    total = learner_bytes(costs, learner, micro_batch)
    total += copies * costs.parameters * costs.weight_bytes
    if costs.trained == costs.parameters:
        parts = f"{quantity(costs.parameters)} parameters x {size + training:.3g} bytes"
    else:
        parts = f"{quantity(costs.parameters)} parameters x {size} bytes"
        parts += f" + {quantity(costs.trained)} that train x {training:.3g}"
    parts += f" + {copies} copies" if copies else ""
    parts += f" + {micro_batch} decisions x {_size(costs.activation_bytes)}"
    return Load(f"rank-{number - 1}" if number else "learner", place, total / GIB, parts)


def _simulation(config: RunConfig) -> list[Load]:
    if config.env.suite not in LIBERO:
        return []
    workers, tasks = config.rollout.num_workers, len(config.env.tasks)
    kept = min(tasks, config.env.libero.max_simulations)
    gib = workers * (PROCESS_GB + TASK_GB * kept)
    return [Load("rollout", "host", gib, f"{workers} workers x ({PROCESS_GB} + {kept} tasks x {TASK_GB}) GiB")]


def _places(config: RunConfig) -> list[str]:
    """Of each rank of the learner, then of each service; the shares of a GPU decide how many services stand on one."""
    shared, service = shared_gpus(config), resources(config, "inference")["num_gpus"]
    learner = resources(config, "learner")["num_gpus"]
    whole, ranks = math.ceil(learner), config.learner.num_ranks
    places = [f"GPU {number * whole}" if learner else "host" for number in range(ranks)]
    next_gpu, room = ranks * whole, 0.0
    for number in range(config.inference.num_services):
        if not service:
            places.append("host")
        elif shared and is_shared(config, "inference", number):
            places.append("GPU 0")
        else:
            if room < service:
                place, room = f"GPU {next_gpu}", math.ceil(service)
                next_gpu += math.ceil(service)
            room -= service
            places.append(place)
    return places


def _largest_micro_batch(config: RunConfig, costs: Costs, loads: Sequence[Load], machine: Machine) -> int | None:
    learner = loads[0]
    if learner.place == "host":
        return None
    now = min(config.learner.micro_batch_decisions, config.learner.batch_decisions)
    free = machine.gpu_gib - sum(load.gib for load in loads if load.place == learner.place)
    return max(0, now + math.floor(free * GIB / costs.activation_bytes))


def _ceilings(config: RunConfig, costs: Costs, machine: Machine) -> dict[str, float | None]:
    """Collected decisions a second; the learner trains on each `replay.max_reuse` times."""
    flop_per_s = machine.gpu_tflops * 1e12 * machine.efficiency
    section = config.learner
    learner = section.num_ranks * flop_per_s / (training_flop(section, costs) * config.replay.max_reuse)
    inference = config.inference.num_services * min(1.0, config.placement.inference_gpus) * flop_per_s / costs.flop
    return {
        "simulation": _simulated(config, machine),
        "inference": inference if config.inference.device.startswith("cuda") else None,
        "learner": learner if config.learner.device.startswith("cuda") else None,
    }


def _simulated(config: RunConfig, machine: Machine) -> float | None:
    env = config.env
    if env.suite not in LIBERO:
        return None
    steps = env.chunk_length * env.steps_per_action
    core_s = (steps * STEP_MS + len(env.cameras) * PICTURE_MS) / 1000
    return min(config.rollout.num_workers, machine.cores) / core_s


def _refusals(config: RunConfig, machine: Machine, loads: Sequence[Load], largest: int | None) -> list[str]:
    refusals = []
    wanted = math.ceil(total_gpus(config))
    if wanted > machine.gpus:
        refusals.append(
            f"gpus: the run needs {wanted}, and there are {machine.gpus}; lower inference.num_services, or use "
            f"placement.layout = 'colocated' with shares of a GPU"
        )
    by_place: dict[str, float] = {}
    for load in loads:
        by_place[load.place] = by_place.get(load.place, 0.0) + load.gib
    for place, gib in by_place.items():
        limit = machine.memory_gib if place == "host" else machine.gpu_gib
        if gib > limit:
            refusals.append(f"{place}: {gib:.1f} GiB do not fit into {limit:g}; {_remedy(place, loads, largest)}")
    return refusals


def _remedy(place: str, loads: Sequence[Load], largest: int | None) -> str:
    if place == "host":
        greatest = max((load for load in loads if load.place == place), key=lambda load: load.gib)
        return f"most of it is {greatest.role}'s: lower {SETTINGS[greatest.role.split('-')[0]]}"
    if loads[0].place == place and largest:
        return f"use learner.micro_batch_decisions of at most {largest}"
    if place == loads[0].place and any(load.place == place for load in loads[1:]):
        return "use placement.layout = 'disaggregated', which gives inference GPUs of its own"
    return "take GPUs with more memory, or a smaller policy"


def quantity(number: float) -> str:
    """With a prefix of a thousand: `7.37 G`."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


def _size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes > GIB / 10 else f"{num_bytes / 2**20:.3g} MiB"
