"""Training OpenVLA-OFT on one GPU: decisions/s, share of the matrix peak, memory against `accerl plan`.

    python -m benchmarks.gpu.openvla_train --device cuda
    python -m benchmarks.gpu.openvla_train --device cuda --images 1 --variants 'lora*' --micro-batch 32 --seconds 20
    python -m benchmarks.gpu.openvla_train --size tiny --device cpu

Random weights of the 7B network are made on the device; nothing is downloaded. Each variant is the learner as it is in
a run: recomputed values, GIPO, the value head, AdamW on a float32 copy, in bfloat16 (`accerl.mixed`). Variants are WAY,
WAY/checkpointing, WAY/compile and WAY/checkpointing/compile, where WAY is lora, lora-frozen (the vision backbone does
not train), full-frozen or full. Episodes end in a terminal state, so that nothing is spent on values beyond them.

What does not fit, by `accerl plan`, is left out with the numbers (`--ignore-plan` tries it); what runs out of memory
says so, and the next goes on. Each row is printed and added to DIR/gpu_openvla_train.csv when it is there, so that what
ends the program early takes only the variant at hand. Compiling takes minutes a variant, not counted in `--seconds`. On
a processor it only traces.

    update_s, step_s          of a whole update, and of it the step of the optimizer
    tflop_per_s, peak_share   all operations, those that checkpointing repeats included, against the matrix product
                              that was measured first
    mfu                       the same without those that are repeated
    predicted_gib, peak_gib   of `accerl.plan_memory`, and torch's max_memory_allocated, without the CUDA context
    against_paper             times the 14.13 decisions/s of one H200 in the paper

Needs torch, transformers, peft, safetensors, numpy, pydantic, jaxtyping, psutil, rich. Where there is no network, carry
what is missing, such as pydantic, as wheels: here `pip download --no-deps pydantic pydantic-core annotated-types
typing-inspection` for the other machine's Python, there `pip install --no-index --no-deps *.whl`.

Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from accerl.config import LearnerConfig, PolicyConfig
from accerl.learner import Learner
from accerl.packing import split
from accerl.plan_memory import GIB, largest_micro_batch, learner_bytes, static_bytes, training_flop
from accerl.policies.costs import Costs
from accerl.policies.lora import adapted
from accerl.types import EnvSpec
from benchmarks.gpu import openvla, trials
from benchmarks.results_file import RESULTS, print_json, show

NAME = "gpu_openvla_train"
PAPER_PER_S = 14.13
WAYS = {"lora": (True, False), "lora-frozen": (True, True), "full-frozen": (False, True), "full": (False, False)}
"""Whether additions train, whether the vision backbone is frozen."""
LORA_RANK = 32
KEPT_FREE = 0.05
"""Share of the memory that no micro-batch is planned into."""
FACTS = ("variant", "images", "micro_batch", "status", "trained_parameters")
FIGURES = ("decisions_per_s", "against_paper", "update_s", "spread", "tflop_per_s", "peak_share", "mfu")
MEMORY = ("predicted_gib", "peak_gib", "peak_over_predicted")
OTHERS = ("env_steps_per_s", "step_s", "warm_up_s", "updates", "grad_norm", "batch_decisions", "size", "seed")
COLUMNS = (*FACTS, *FIGURES, *MEMORY, *OTHERS, "matrix_tflop_per_s")


class Variant(NamedTuple):
    """One way to train."""

    way: str
    images: int
    recomputes: bool
    compiles: bool

    @property
    def name(self) -> str:
        return self.way + "/checkpointing" * self.recomputes + "/compile" * self.compiles


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--variants", nargs="+", default=["*"], help="patterns of their names, such as 'lora*'")
    parser.add_argument("--micro-batch", type=int, default=16, help="decisions in a forward and backward, at most")
    parser.add_argument("--batch-decisions", type=int, default=64, help="in an update, rounded to whole micro-batches")
    parser.add_argument("--lora-rank", type=int, help="none: 32, or 2 where the network is tiny")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each variant, after it is warm")
    parser.add_argument("--memory", type=float, help="GiB that the plan may use; none: what is free on the GPU")
    parser.add_argument("--ignore-plan", action="store_true", help="also try what does not fit by the plan")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV file")
    parser.add_argument("--no-files", action="store_true", help="write none")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    peak = trials.matrix_peak(options.device)
    print(f"matrix product, bfloat16: {peak:.4g} TFLOP/s", flush=True)
    told = ("images", "micro_batch", "status", "decisions_per_s", "tflop_per_s", "peak_share", *MEMORY)
    rows = trials.Rows(NAME, COLUMNS, told, None if options.no_files else options.out)
    with trials.tracing_only(options.device):
        for variant in chosen(options.images, options.variants):
            rows.add(tried(variant, options, peak))
    show(f"training OpenVLA-OFT ({options.size}) on {options.device}", [*FACTS, *FIGURES, *MEMORY], rows.all)
    print_json(NAME, {"device": options.device, "matrix_tflop_per_s": peak, "variants": rows.all})
    return int(rows.failed)


def chosen(images: Sequence[int], patterns: Sequence[str]) -> Iterator[Variant]:
    """Those whose name fits one of the patterns, the quickest to begin first."""
    for num_images in images:
        for compiles in (False, True):
            for way in WAYS:
                for recomputes in (False, True):
                    variant = Variant(way, num_images, recomputes, compiles)
                    if any(fnmatch(variant.name, pattern) for pattern in patterns):
                        yield variant


def tried(variant: Variant, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """The row of a variant."""
    spec = openvla.spec_of(options.size, variant.images)
    lora, frozen = WAYS[variant.way]
    rank = options.lora_rank or (2 if options.size == "tiny" else LORA_RANK)
    policy = PolicyConfig(lora_rank=rank if lora else 0, freeze_vision=frozen)
    config = openvla.config_of(options.size, spec)
    learner = learner_config(variant, options, options.micro_batch)
    costs = openvla.planned_costs(config, spec, policy, learner)
    micro_batch, refusal = fitted(costs, learner, options)
    learner = learner_config(variant, options, micro_batch)
    facts = {
        "variant": variant.name,
        "images": variant.images,
        "micro_batch": micro_batch,
        "batch_decisions": learner.batch_decisions,
        "predicted_gib": learner_bytes(costs, learner, micro_batch) / GIB,
        "matrix_tflop_per_s": peak,
        "size": options.size,
        "seed": options.seed,
    }
    if refusal:
        return {**facts, "status": refusal}

    def measure() -> dict[str, Any]:
        return measured(variant, options, spec, policy, learner, costs)

    row = {**facts, **trials.attempt(measure, options.device)}
    if (found := row.get("peak_gib")) is not None:
        row["peak_over_predicted"] = found / row["predicted_gib"]
    if (per_s := row.get("decisions_per_s")) is not None:
        row |= rates(per_s, costs, learner, spec, peak, options.size)
    return row


def learner_config(variant: Variant, options: argparse.Namespace, micro_batch: int) -> LearnerConfig:
    """Whole micro-batches of one size, so that one shape is compiled."""
    policy_lr, value_lr = openvla.recipe_rates()
    return LearnerConfig(
        policy_lr=policy_lr,
        value_lr=value_lr,
        batch_decisions=max(1, round(options.batch_decisions / micro_batch)) * micro_batch,
        micro_batch_decisions=micro_batch,
        warmup_updates=0,
        value_warmup_updates=0,
        gradient_checkpointing=variant.recomputes,
        dtype="bfloat16",
        device=options.device,
    )


def fitted(costs: Costs, learner: LearnerConfig, options: argparse.Namespace) -> tuple[int, str]:
    """The micro-batch that is taken, and why none is, if not one decision fits."""
    wanted = options.micro_batch
    memory = options.memory or trials.free_gib(options.device)
    if memory is None or options.ignore_plan:
        return wanted, ""
    if largest := largest_micro_batch(costs, learner, (1 - KEPT_FREE) * memory):
        return min(wanted, largest), ""
    need = f"{static_bytes(costs, learner) / GIB:.1f} GiB and {costs.activation_bytes / 2**20:.0f} MiB a decision"
    return 1, f"{trials.LEFT_OUT}: the plan is {need}, and {memory:.1f} GiB are free"


def measured(
    variant: Variant,
    options: argparse.Namespace,
    spec: EnvSpec,
    config: PolicyConfig,
    learner_config: LearnerConfig,
    costs: Costs,
) -> dict[str, Any]:
    """Figures of updates that are all alike."""
    device = options.device
    plain = openvla.random_policy(openvla.config_of(options.size, spec), device, options.seed)
    with torch.device(device):  # where additions are made
        policy: Any = adapted(plain, config)
    learner = Learner(policy, learner_config, openvla.recipe_objective())
    size = learner_config.micro_batch_decisions
    batch = openvla.make_batch(policy, spec, [size] * (learner_config.batch_decisions // size), options.seed)
    step_s: list[float] = []
    metrics: dict[str, float] = {}

    def update() -> float:
        began = time.perf_counter()
        for micro in split(batch, size):
            learner.accumulate(micro)
        trials.wait(device)
        reached = time.perf_counter()
        metrics.update(learner.step())
        trials.wait(device)
        step_s.append(time.perf_counter() - reached)
        return time.perf_counter() - began

    warm_up_s = update()  # without statistics of an update before it, it takes another path than those that follow
    if variant.compiles:
        policy.compile_network()
    warm_up_s += update()
    trials.begin_peak(device)
    seconds = trials.repeated(update, options.seconds)
    median = float(np.median(seconds))
    return {
        "trained_parameters": sum(each.numel() for each in policy.parameters() if each.requires_grad),
        "decisions_per_s": learner_config.batch_decisions / median,
        "update_s": median,
        "spread": trials.spread(seconds),
        "step_s": float(np.median(step_s[-len(seconds) :])),
        "warm_up_s": warm_up_s,
        "updates": len(seconds),
        "peak_gib": trials.peak_gib(device),
        "grad_norm": metrics["grad_norm"],
    }


def rates(
    per_s: float, costs: Costs, learner: LearnerConfig, spec: EnvSpec, peak: float, size: openvla.Size
) -> dict[str, float | None]:
    """Operations a second, and against what is possible and what was published."""
    once = learner.model_copy(update={"gradient_checkpointing": False})
    done = per_s * training_flop(learner, costs) / 1e12
    return {
        "env_steps_per_s": per_s * spec.chunk_length * spec.steps_per_action,
        "against_paper": per_s / PAPER_PER_S if size == "7b" else None,
        "tflop_per_s": done,
        "peak_share": done / peak,
        "mfu": per_s * training_flop(once, costs) / 1e12 / peak,
    }


if __name__ == "__main__":
    sys.exit(main())
