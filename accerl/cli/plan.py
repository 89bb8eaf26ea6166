"""`accerl plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table
from rich.text import Text

from accerl.cli.command import Command
from accerl.cli.options import RunOptions, from_file
from accerl.config import NonNegative, Positive, PositiveFloat, RunConfig, merge
from accerl.console import output

if TYPE_CHECKING:
    from accerl.plan import Machine, Plan
    from accerl.plan_training import Way


LARGE_RECIPE = "libero-openvla"


class PlanOptions(RunOptions):
    """A run, and the machine that it is planned for. `--policy openvla-oft` without a configuration is the recipe
    `libero-openvla`, with the learner on all GPUs but one.
    """

    gpus: NonNegative | None = None
    """GPUs; none: those of this machine."""
    memory: PositiveFloat | None = None
    """Of each GPU, GiB; none: that of this machine's, or 80."""
    tflops: PositiveFloat = 790.0
    """Matrix peak of each GPU in bfloat16, TFLOP/s."""
    efficiency: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of that peak that is reached."""
    cores: Positive | None = None
    """Processor cores; none: those of this machine."""
    host_memory: PositiveFloat | None = None
    """GiB; none: that of this machine."""

    @field_validator("memory", "host_memory", mode="before")
    @classmethod
    def _without_unit(cls, value: Any) -> Any:
        """`80GiB` is 80."""
        return value.removesuffix("GiB").strip() if isinstance(value, str) else value


def plan(options: PlanOptions) -> int:
    from accerl.envs import read_spec
    from accerl.plan import make_plan, quantity
    from accerl.plan_training import training_ways
    from accerl.policies.costs import OPENVLA, costs_of

    config = options.run_config()
    spec = read_spec(config.env)
    machine = _machine(options)
    costs = costs_of(config, spec)
    made = make_plan(config, costs, machine)
    console = output()
    about = (
        f"{quantity(costs.parameters)} parameters, {quantity(costs.flop)}FLOP a decision of {spec.chunk_length} actions"
    )
    console.print(f"{config.policy.kind}: {about}")
    if config.policy.kind == OPENVLA and machine.gpus:
        _print_ways(console, training_ways(config, spec, machine), machine)
    _print_loads(console, made, machine)
    _print_speeds(console, made, machine, config)
    for refusal in made.refusals:
        console.print(Text(f"does not fit: {refusal}"), soft_wrap=True)
    return 1 if made.refusals else 0


def _machine(options: PlanOptions) -> Machine:
    import os

    import psutil
    import torch

    from accerl.plan import Machine
    from accerl.plan_memory import GIB

    own = torch.cuda.device_count()
    gpu_gib = torch.cuda.get_device_properties(0).total_memory / GIB if own else 80.0
    return Machine(
        gpus=own if options.gpus is None else options.gpus,
        gpu_gib=options.memory or gpu_gib,
        gpu_tflops=options.tflops,
        efficiency=options.efficiency,
        cores=options.cores or len(os.sched_getaffinity(0)),
        memory_gib=options.host_memory or psutil.virtual_memory().total / GIB,
    )


def large_recipe(model: type[PlanOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration file; without one, and for OpenVLA-OFT, its recipe spread over the GPUs that are asked for."""
    if values.get("config") or values.get("policy.kind") != "openvla_oft":
        return from_file(model, values)
    num_ranks = max(1, int(values.get("gpus") or 2) - 1)
    spread = {"num_ranks": num_ranks, "zero_stage": 2, "dtype": "bfloat16", "gradient_checkpointing": True}
    return merge(
        from_file(model, {**values, "config": LARGE_RECIPE}), {f"learner.{key}": value for key, value in spread.items()}
    )


def _print_ways(console: Console, ways: Sequence[Way], machine: Machine) -> None:
    """What each way to train needs of a GPU, and how fast it could be."""
    from accerl.plan_training import LORA_RANK

    console.print(
        f"training alone on {machine.gpus} GPUs of {machine.gpu_gib:.4g} GiB "
        f"(ZeRO-2, bfloat16, LoRA of rank {LORA_RANK})"
    )
    console.print("  with / without gradient checkpointing; decisions trained a second at most")
    table = Table.grid(padding=(0, 2))
    table.add_row("", "static", "a decision", "micro-batch", "decisions/s")
    for way in ways:
        sizes = [f"{way.kept.mib:.0f} MiB", f"{way.kept.micro_batch}", f"{way.kept.per_s:.1f}"]
        fewer = [f"{way.recomputed.mib:.0f}", f"{way.recomputed.micro_batch}", f"{way.recomputed.per_s:.1f}"]
        both = [f"{less} / {all_}" for less, all_ in zip(fewer, sizes, strict=True)]
        table.add_row(f"  {way.name}", f"{way.static_gib:.1f} GiB", *both)
    console.print(table)
    for way in ways:
        if way.refusal:
            console.print(Text(f"  {way.refusal}"), soft_wrap=True)


def _print_loads(console: Console, made: Plan, machine: Machine) -> None:
    table = Table.grid(padding=(0, 2))
    for load in made.loads:
        table.add_row(f"  {load.role}", load.place, Text(f"{load.gib:.2f} GiB", justify="right"), Text(load.parts))
    console.print(f"memory: {machine.gpus} GPUs of {machine.gpu_gib:.4g} GiB, host {machine.memory_gib:.4g} GiB")
    console.print(table)
    if made.largest_micro_batch:
        console.print(f"  learner.micro_batch_decisions may be up to {made.largest_micro_batch}")


def _print_speeds(console: Console, made: Plan, machine: Machine, config: RunConfig) -> None:
    speed = f"{machine.gpu_tflops:g} TFLOP/s x {machine.efficiency:g}, {machine.cores} cores"
    console.print(f"collected decisions/s at most ({speed}, each trained on {config.replay.max_reuse} times)")
    table = Table.grid(padding=(0, 2))
    for part, value in made.ceilings.items():
        table.add_row(f"  {part}", "not predicted: measure it" if value is None else f"{value:.1f}")
    console.print(table)
    if made.collected_per_s is not None:
        slowest = min((v, part) for part, v in made.ceilings.items() if v is not None)[1]
        steps = made.collected_per_s * config.env.chunk_length * config.env.steps_per_action
        console.print(f"  {slowest} decides: {made.collected_per_s:.1f} decisions/s, {steps:.0f} environment steps/s")


COMMAND = Command(
    name="plan",
    summary="Predict memory, devices and the limits of speed of a run; exit code 1 if it cannot fit.",
    options=PlanOptions,
    run=plan,
    base=large_recipe,
    examples=(
        ("ways to train the 7B policy on eight GPUs", "accerl plan --policy openvla-oft --gpus 8 --memory 80GiB"),
        (
            "the 7B policy on LIBERO, on two GPUs",
            "accerl plan --config libero-openvla --gpus 2 --memory 141 --cores 64",
        ),
        ("what this machine would do with a recipe", "accerl plan --config quickstart"),
    ),
)
