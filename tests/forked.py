"""Processes forked from one that has imported what training with DeepSpeed takes, which is seconds, and no more."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing.spawn import start_processes

PRELOADED = [
    "torch._dynamo",  # imported by the first optimizer
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # by its first engine
    "accerl.learner",
    "accerl.policies.tiny_vla",
    "accerl.zero",
]


def run_forked(function: Callable[..., None], arguments: tuple[Any, ...], num_processes: int) -> None:
    """Call `function(number, *arguments)` in each and wait for all. Raises what one of them raised."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(function, arguments, nprocs=num_processes, start_method="forkserver")
