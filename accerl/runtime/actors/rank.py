"""A training process beside the learner's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from accerl import checkpoint, kernels
from accerl.anomalies import Anomalies
from accerl.config import ConfigError, LearnerConfig, ObjectiveConfig, RunConfig
from accerl.engine import placed
from accerl.generators import restore_generators
from accerl.guards import Guard
from accerl.learner import Learner
from accerl.protocols import Policy
from accerl.runtime.actors.role import Role, Wiring
from accerl.types import Batch

Result = TypeVar("Result")


class Place(NamedTuple):
    """Where a rank stands, and what it starts from."""

    rank: int
    address: str
    """Of rank 0, whose store listens at `port`."""
    port: int
    checkpoint: Path | None
    """None: the run's start."""


def ranked_learner(
    config: RunConfig, start: Path, place: Place, store: dist.Store, tracer: Any, guard: Guard
) -> tuple[Policy, Learner]:
    """The learner of one rank. Returns when all ranks have come to `store`."""
    from accerl.zero import ZeroEngine, join_ranks

    section = config.learner
    join_ranks(place.rank, section.num_ranks, store, section.device, section.rank_timeout_s)
    policy = placed(checkpoint.load_policy(place.checkpoint or start), section)
    reference = checkpoint.load_policy(start) if config.objective.reference_kl else None
    stage = 1 if section.zero_stage == 1 else 2
    engine = ZeroEngine(policy, section, stage, section.dtype)
    learner = Learner(policy, section, config.objective, reference, tracer, engine, guard)
    if place.checkpoint is not None:
        go_on(learner, place.checkpoint, place.rank)
    return policy, learner


def go_on(learner: Learner, folder: Path, rank: int = 0) -> None:
    """Continue from a checkpoint of any number of ranks; only the first one has its random numbers from there.

    Raises:
        ConfigError: it is damaged, or of another policy.
    """
    state, _ = checkpoint.load_checkpoint(folder)
    try:
        learner.load_state_dict(state)
        if rank == 0 and "generators" in state:  # older ones have none
            restore_generators(state["generators"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"resume: {folder} does not fit the policy and the learner ({reason})") from None


class RankActor(Role):
    """Does what the learner's process asks for, one thing after the other, in a thread."""

    learner: Learner

    def __init__(self, config: RunConfig, number: int, wiring: Wiring):
        super().__init__(config, f"rank-{number}", wiring.controller)
        torch.set_num_threads(config.learner.num_threads)
        kernels.use(config.kernels)
        self._config = config
        self._start = wiring.start
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rank")
        self._num_calls = 0
        self._is_called = False

    async def work(self, incarnation: int) -> None:
        """Until the run ends."""
        await asyncio.Event().wait()

    async def join(self, place: Place) -> None:
        """Load the policy and take part in the group; once in the life of a process."""
        if hasattr(self, "learner"):
            raise RuntimeError("this process has been in a group before; it must be started anew")
        self.learner = await self._call(lambda: self._join(place))

    def pulse(self) -> int | None:
        return self._num_calls if self._is_called else None

    async def health(self) -> dict[str, float]:
        return {**await super().health(), "progress": max(0, self._num_calls - 1)}  # without that of joining

    async def has_joined(self) -> bool:
        return hasattr(self, "learner")

    async def begin(self, version: int) -> None:
        self.learner.begin(version)

    async def accumulate(self, batch: Batch, counts: bool) -> None:
        await self._call(lambda: self.learner.accumulate(batch, counts))

    async def step(self, progress: float) -> dict[str, float]:
        return await self._call(lambda: self.learner.step(progress))

    async def skip(self) -> None:
        await self._call(self.learner.skip)

    async def configure(self, learner: LearnerConfig, objective: ObjectiveConfig) -> None:
        await self._call(lambda: self.learner.configure(learner, objective))

    async def state(self) -> None:
        """Take part in gathering the optimizer's state."""
        await self._call(self.learner.state_dict)

    def _join(self, place: Place) -> Learner:
        store = dist.TCPStore(place.address, place.port, is_master=False)
        anomalies = Anomalies(self._config.folder / "anomalies", suffix=f"-rank-{place.rank}")
        guard = Guard(anomalies, tell=lambda what, action: None)  # the first rank says it for all
        return ranked_learner(self._config, self._start, place, store, self.tracer, guard)[1]

    async def _call(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._counted, function)

    def _counted(self, function: Callable[[], Result]) -> Result:
        self._num_calls += 1
        self._is_called = True
        try:
            return function()
        finally:
            self._is_called = False
