"""Does training on several ranks give the parameters of one? And what does a rank still hold?

    python -m benchmarks.zero_ranks

The same ragged global batches, in ragged micro-batches, dealt out over 1, 2 and 3 ranks of ZeRO-1 and ZeRO-2
(processes, gloo), against the plain learner in one process. `relative_difference` is the distance of all parameters
from those of the plain learner over their norm, `moved` the norm of what training has changed over theirs;
`max_relative_difference` is the largest of the rows in float32. `optimizer_mib` is what a rank holds of the optimizer's
states and float32 copies, the most of any rank.

The learning rates are the paper's. Larger ones tell less: AdamW divides a gradient by its own size, so where one is
nothing but rounding, as of units that are hardly ever active, the step is as large as any, and its sign a matter of
chance (with 3e-4 the same comparison gives up to 1e-4).

Prints a table and, last, one line of JSON; appends to results/zero_ranks.csv. About three minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing

from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.learner import Learner
from accerl.packing import first_part, pack
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.types import Batch, Trajectory
from benchmarks.results_file import append, print_json, show

RANKS = (1, 2, 3)
BAR = 1e-5
CHUNK, ACTION_DIM, IMAGE, PROPRIO = 4, 4, 32, 4
INSTRUCTION = "press the button"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--decisions", type=int, default=96, help="of a global batch, about")
    parser.add_argument("--micro-batch-decisions", type=int, default=24)
    parser.add_argument("--width", type=int, default=128, help="of the policy")
    parser.add_argument("--policy-lr", type=float, default=1e-5)
    parser.add_argument("--value-lr", type=float, default=1e-4)
    parser.add_argument("--recompute", choices=("prefetch", "fused"), default="fused")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = parameters_of(make_policy(options))
    plain, _ = train(0, 1, options)
    rows = []
    for stage, dtype in ((1, "float32"), (2, "float32"), (2, "bfloat16")):
        for num_ranks in RANKS:
            found, optimizer_mib = train(stage, num_ranks, options, dtype)
            rows.append(
                {
                    "stage": stage,
                    "dtype": dtype,
                    "ranks": num_ranks,
                    "relative_difference": (torch.dist(found, plain) / plain.norm()).item(),
                    "moved": (torch.dist(plain, start) / plain.norm()).item(),
                    "optimizer_mib": optimizer_mib,
                }
            )
    largest = max(row["relative_difference"] for row in rows if row["dtype"] == "float32")
    summary = {
        "max_relative_difference": largest,
        "met": largest <= BAR,
        "updates": options.updates,
        "recompute": options.recompute,
        "seed": options.seed,
    }
    show(f"{options.updates} updates, {len(plain) / 1e6:.2f} M parameters", list(rows[0]), rows)
    append("zero_ranks", [{**row, **summary} for row in rows])
    print_json("zero_ranks", {**summary, "rows": rows})
    return 0


def train(
    stage: int, num_ranks: int, options: argparse.Namespace, dtype: str = "float32"
) -> tuple[torch.Tensor, float]:
    """The parameters, end to end, and the optimizer's memory, MiB, the most of any rank. Stage 0: the plain learner."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (stage, num_ranks, options, dtype, folder)
        multiprocessing.start_processes(_rank, arguments, nprocs=num_ranks, start_method="spawn")
        held = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        return torch.load(Path(folder) / "parameters.pt", weights_only=True), max(held)


def _rank(rank: int, stage: int, num_ranks: int, options: argparse.Namespace, dtype: Any, folder: str) -> None:
    torch.set_num_threads(1)
    config = LearnerConfig(
        recompute=options.recompute,
        policy_lr=options.policy_lr,
        value_lr=options.value_lr,
        value_warmup_updates=2,
        warmup_updates=4,
    )
    policy = make_policy(options)
    engine = None
    if stage:
        from accerl.zero import ZeroEngine, join_ranks

        store = torch.distributed.FileStore(str(Path(folder) / "store"), num_ranks)
        join_ranks(rank, num_ranks, store, "cpu", timeout_s=120)
        engine = ZeroEngine(policy, config, 1 if stage == 1 else 2, dtype)
    learner = Learner(policy, config, ObjectiveConfig(behaviour_kl=0.1), engine=engine)
    for update in range(options.updates):
        parts = list(micro_batches(options, update))
        for first in range(0, len(parts), num_ranks):
            counts = first + rank < len(parts)
            learner.accumulate(parts[first + rank if counts else first], counts)
        learner.step(update / options.updates)
    held = optimizer_bytes(engine) / 2**20 if engine is not None else 0.0
    (Path(folder) / f"{rank}.json").write_text(json.dumps(held))
    if rank == 0:
        torch.save(parameters_of(policy), Path(folder) / "parameters.pt")


def optimizer_bytes(engine: Any) -> int:
    """Of this rank's part of the states and of the float32 copies."""
    optimizer = engine._optimizer
    states = [tensor for state in optimizer.optimizer.state.values() for tensor in state.values()]
    return sum(
        tensor.numel() * tensor.element_size() for tensor in [*states, *optimizer.single_partition_of_fp32_groups]
    )


def micro_batches(options: argparse.Namespace, update: int) -> Iterator[Batch]:
    """A global batch of segments of 1 to 12 decisions, in parts of whole segments."""
    generator = np.random.default_rng([options.seed, update])
    segments: list[Trajectory] = []
    while sum(segment.num_decisions for segment in segments) < options.decisions:
        segments.append(segment_of(generator, int(generator.integers(1, 13))))
    while segments:
        part = first_part(segments, options.micro_batch_decisions)
        segments = segments[len(part) :]
        yield pack(part, CHUNK)


def segment_of(generator: np.random.Generator, size: int) -> Trajectory:
    terminal = bool(generator.integers(2))
    reward = np.zeros(size, np.float32)
    reward[-1] = terminal and generator.random() < 0.6
    return Trajectory(
        task="press",
        instruction=INSTRUCTION,
        images=generator.integers(0, 256, (size + 1, 1, IMAGE, IMAGE, 3), dtype=np.uint8),
        proprio=generator.normal(size=(size + 1, PROPRIO)).astype(np.float32),
        episode_step=np.arange(size + 1, dtype=np.int32),
        blob={"tokens": generator.integers(0, 256, (size, CHUNK * ACTION_DIM)).astype(np.int16)},
        log_prob=generator.normal(-5.5, 0.1, (size, CHUNK * ACTION_DIM)).astype(np.float32),
        value=generator.uniform(size=size).astype(np.float32),
        reward=reward,
        num_actions=np.full(size, CHUNK, np.int32),
        num_env_steps=np.full(size, CHUNK, np.int32),
        policy_version=np.zeros(size, np.int32),
        terminal=terminal,
        truncated=False,
        success=bool(reward[-1]),
        origin="benchmark",
    )


def make_policy(options: argparse.Namespace) -> TinyVLA:
    torch.manual_seed(options.seed)
    return TinyVLA(
        TinyVLAConfig(
            image_size=IMAGE,
            num_cameras=1,
            proprio_dim=PROPRIO,
            action_dim=ACTION_DIM,
            chunk_length=CHUNK,
            max_decisions=12,
            vocabulary=tuple(sorted(set(INSTRUCTION.split()))),
            width=options.width,
        )
    )


def parameters_of(policy: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().float() for parameter in policy.parameters()])


if __name__ == "__main__":
    raise SystemExit(main())
