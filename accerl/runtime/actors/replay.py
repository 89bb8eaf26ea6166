"""The replay role as an actor: one shard."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from accerl.config import RunConfig
from accerl.groups import groups_of
from accerl.replay import Replay
from accerl.rollout import derive_seed
from accerl.runtime.actors.role import Role, Wiring
from accerl.trajectories import TrajectorySample
from accerl.types import BatchRule, Trajectory


class ReplayActor(Role):
    """It copies what it takes, so that it owns it and pins nothing in shared memory."""

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"replay-{index}")
        self._replay = Replay(config.replay, derive_seed(config.seed, index, 7), groups_of(config))
        self._changed = asyncio.Condition()
        self._recent: deque[Trajectory] = deque(maxlen=32)
        self._sample = TrajectorySample(config.folder / "trajectories")
        self._left = asyncio.Event()

    async def run(self, incarnation: int) -> None:
        """Until it was closed."""
        await self._left.wait()

    async def push(self, trajectory: Trajectory) -> bool:
        """Take ownership, waiting for room; False if the shard was closed."""
        own = replace(
            trajectory,
            **{
                name: np.array(value)
                for name in Trajectory.__dataclass_fields__
                if isinstance(value := getattr(trajectory, name), np.ndarray)
            },
            blob={name: np.array(value) for name, value in trajectory.blob.items()},
        )
        async with self._changed:
            await self._changed.wait_for(lambda: self._left.is_set() or self._replay.push(own))
            if self._left.is_set():
                return False
            self._changed.notify_all()
        self._recent.append(own)
        await asyncio.to_thread(self._sample.offer, own)
        return True

    async def sample(self, num_decisions: int, batch: int, timeout_s: float) -> list[Trajectory]:
        """As `Replay.sample`, waiting until there is enough."""
        return await self._when_there(lambda: self._replay.sample(num_decisions, batch), timeout_s)

    async def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> list[Trajectory]:
        """As `Replay.take`, waiting until there is something."""
        return await self._when_there(lambda: self._replay.take(num_decisions, rule, batch), timeout_s)

    async def confirm(self, batch: int) -> None:
        async with self._changed:
            self._replay.confirm(batch)
            self._changed.notify_all()

    async def reclaim(self) -> int:
        """Decisions that a learner had taken and not trained on before it ended; they are unused again."""
        async with self._changed:
            returned = self._replay.reclaim()
            self._changed.notify_all()
        return returned

    async def close(self) -> bool:
        """End if the learner needs nothing more from here, and take nothing more; False if it does need something."""
        if not self._replay.episodes:
            async with self._changed:
                self._left.set()
                self._changed.notify_all()
        return self._left.is_set()

    async def recent(self, num: int) -> list[Trajectory]:
        """The newest trajectories, oldest first."""
        return list(self._recent)[-num:]

    async def episodes(self) -> list[int]:
        """Numbers of the episodes of which it holds segments that were not trained on yet."""
        return self._replay.episodes

    async def health(self) -> dict[str, float]:
        replay = self._replay
        return {
            **await super().health(),
            "progress": replay.pushed_decisions,
            "decisions": replay.num_decisions,
            "unused": replay.unused_decisions,
            "lent": replay.lent_decisions,
            "discarded": replay.discarded_decisions,
            "aged": replay.aged_decisions,
        }

    async def _when_there(self, take: Callable[[], Sequence[Trajectory]], timeout_s: float) -> list[Trajectory]:
        deadline = time.monotonic() + timeout_s
        async with self._changed:
            while not (trajectories := self._timed(take)) and (remaining := deadline - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), remaining)
            self._changed.notify_all()  # there is room where something was taken, or had become too old
        return list(trajectories)

    def _timed(self, take: Callable[[], Sequence[Trajectory]]) -> Sequence[Trajectory]:
        with self.tracer.span("sample"):
            return take()
