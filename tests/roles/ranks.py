"""Learners on several ranks, in processes of their own, over gloo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from accerl.checkpoint import flatten_optimizer, unflatten_optimizer
from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.engine import TorchEngine
from accerl.learner import Learner
from accerl.mixed import MixedEngine
from accerl.packing import pack
from accerl.types import Batch
from tests.forked import run_forked
from tests.roles.fakes import tiny_policy, trajectory

LEARNER: dict[str, Any] = {"policy_lr": 1e-4, "value_lr": 3e-4, "value_warmup_updates": 1, "warmup_updates": 2}


def micro_batches(seed: int) -> list[Batch]:
    """A ragged global batch: one to five parts of one or two segments, of one to four decisions each."""
    generator = np.random.default_rng(seed)
    return [
        pack(
            [
                trajectory(
                    int(generator.integers(1, 5)),
                    seed=int(generator.integers(1 << 30)),
                    terminal=bool(generator.integers(2)),
                )
                for _ in range(int(generator.integers(1, 3)))
            ],
            chunk_length=2,
        )
        for _ in range(1 + seed % 5)
    ]


def train(
    learner: Learner, rank: int, num_ranks: int, seeds: Sequence[int], spoiled: int | None
) -> list[dict[str, float]]:
    """Updates on the global batches of `seeds`, dealt out over the ranks; in the last part of `spoiled` is a NaN."""
    logged = []
    for seed in seeds:
        parts = micro_batches(seed)
        if seed == spoiled:
            parts[-1].reward[0] = torch.nan
        for first in range(0, len(parts), num_ranks):
            place = first + rank
            if place < len(parts):
                learner.accumulate(parts[place])
            else:
                learner.accumulate(parts[first], counts=False)
        logged.append(learner.step())
    return logged


def run_ranks(
    num_ranks: int, folder: Path, updates: int, learner: dict[str, Any], objective: dict[str, Any], start: int = 0
) -> None:
    """Train from the state in `folder`, if there is one, and leave what came out there."""
    (folder / "store").unlink(missing_ok=True)
    arguments = (num_ranks, str(folder), updates, learner, objective, start)
    run_forked(_rank, arguments, num_ranks)


def _rank(
    rank: int,
    num_ranks: int,
    folder: str,
    updates: int,
    learner: dict[str, Any],
    objective: dict[str, Any],
    start: int,
) -> None:
    torch.set_num_threads(1)
    stage, dtype, spoiled = learner.pop("stage"), learner.pop("dtype", "float32"), learner.pop("spoiled", None)
    config = LearnerConfig(**LEARNER, **learner)
    policy = tiny_policy()
    path = Path(folder)
    if (path / "policy.pt").exists():
        policy.load_state_dict(torch.load(path / "policy.pt", weights_only=True))
    if stage:
        from accerl.zero import ZeroEngine, join_ranks

        store = torch.distributed.FileStore(str(path / "store"), num_ranks)
        join_ranks(rank, num_ranks, store, "cpu", timeout_s=60)
        engine: Any = ZeroEngine(policy, config, stage, dtype)
    else:
        engine = (MixedEngine if dtype == "bfloat16" else TorchEngine)(policy, config)
    trained = Learner(policy, config, ObjectiveConfig(**objective), engine=engine)
    if (path / "learner.json").exists():
        trained.load_state_dict(_load(path))
    logged = train(trained, rank, num_ranks, range(start, start + updates), spoiled)
    if stage:
        (path / f"optimizer-bytes-{rank}").write_text(str(engine.optimizer_bytes))
    state = trained.state_dict()
    if rank == 0:
        torch.save(policy.state_dict(), path / "policy.pt")
        numbers, tensors = flatten_optimizer(state["optimizer"])
        save_file(tensors, path / "learner.safetensors")
        (path / "learner.json").write_text(json.dumps({**state, "optimizer": numbers}))
    (path / f"metrics-{rank}.json").write_text(json.dumps(logged))


def _load(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    state = json.loads((path / "learner.json").read_text())
    state["optimizer"] = unflatten_optimizer(state["optimizer"], load_file(path / "learner.safetensors"))
    return state
