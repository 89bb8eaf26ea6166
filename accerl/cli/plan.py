"""`accerl plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from accerl.cli.command import Command
from accerl.cli.options import RunOptions
from accerl.config import NonNegative, Positive, PositiveFloat, RunConfig
from accerl.console import output

if TYPE_CHECKING:
    from accerl.plan import Machine, Plan


class PlanOptions(RunOptions):
    """A run, and the machine that it is planned for."""

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


def plan(options: PlanOptions) -> int:
    from accerl.envs import read_spec
    from accerl.plan import make_plan, quantity
    from accerl.policies.costs import costs_of

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
    _print_loads(console, made, machine)
    _print_speeds(console, made, machine, config)
    for refusal in made.refusals:
        console.print(Text(f"does not fit: {refusal}"), soft_wrap=True)
    return 1 if made.refusals else 0


def _machine(options: PlanOptions) -> Machine:
    import os

    import psutil
    import torch

    from accerl.plan import GIB, Machine

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
    examples=(
        (
            "the 7B policy on LIBERO, on two GPUs",
            "accerl plan --config libero-openvla --gpus 2 --memory 141 --cores 64",
        ),
        ("what this machine would do with a recipe", "accerl plan --config quickstart"),
    ),
)
