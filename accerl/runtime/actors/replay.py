"""The replay role as an actor: one shard."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from accerl.config import RunConfig
from accerl.groups import groups_of
from accerl.recent import Recent
from accerl.replay import Replay
from accerl.replay.journal import Snapshots
from accerl.replay.snapshot import Checkpoint
from accerl.replay.spill import SegmentFiles
from accerl.rollout import derive_seed
from accerl.runtime.actors.role import Role, Wiring
from accerl.trajectories import TrajectorySample, owned
from accerl.trajectory_check import TrajectoryCheck
from accerl.types import BatchRule, Trajectory, TrajectoryRefused

AGAIN_AFTER_S = 2.0
"""Where a full disk has made a snapshot useless, another one is tried."""


class ReplayActor(Role):
    """It copies what it takes, so that it owns it and pins nothing in shared memory."""

    kind = "replay"

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"{self.kind}-{index}", wiring.controller)
        self._folder = config.folder / self.kind / f"shard-{index}"
        self._files, self._snapshots = self._open_folder(config, wiring)
        self._check = TrajectoryCheck(config.env, wiring.policy)
        self._num_refused = 0
        self._is_bounded = config.max_policy_lag is not None
        seed = derive_seed(config.seed, index, 7)
        self._replay = Replay(config.replay, seed, groups_of(config), self._files, self._snapshots)
        self._restored: set[tuple[str, int, int]] = set()
        self._saving = asyncio.Lock()
        self._restore(wiring.checkpoint)
        self._changed = asyncio.Condition()
        self._recent = Recent()
        self._sample = TrajectorySample(config.folder / "trajectories")
        self._left = asyncio.Event()

    async def work(self, incarnation: int) -> None:
        """Until it was closed."""
        while not self._left.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), AGAIN_AFTER_S)
            if self._snapshots is not None and not self._snapshots.is_whole:
                await self.snapshot()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def push(self, trajectory: Trajectory) -> bool | TrajectoryRefused:
        """Take ownership, waiting for room; False if the shard was closed. What cannot be trained on is not taken."""
        try:
            self._check.admit(trajectory)
        except TrajectoryRefused as refused:
            self._num_refused += 1
            return refused
        if _name(trajectory) in self._restored:  # the process before this one died before it could answer
            return True
        own = owned(trajectory)
        async with self._changed:
            await self._changed.wait_for(lambda: self._left.is_set() or self._replay.push(own))
            if self._left.is_set():
                return False
            self._changed.notify_all()
        self._recent.add(own)
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

    async def recent(self, num: int, after: int = 0) -> tuple[int, Sequence[Trajectory]]:
        """As `Recent.newest`; they stay here for a while when the replay has let them go."""
        return self._recent.newest(num, after)

    async def episodes(self) -> list[int]:
        """Numbers of the episodes of which it holds segments that were not trained on yet."""
        return self._replay.episodes

    async def snapshot(self) -> None:
        """Write what it holds, if the run keeps that, and unless it is still at it."""
        if self._snapshots is None or self._saving.locked():
            return
        async with self._saving:
            content = self._replay.content()
            self._snapshots.begin()
            try:
                await asyncio.to_thread(self._snapshots.write, content)
                self._snapshots.finish()
            except OSError as error:
                self._give_up_snapshot(error)
            await asyncio.to_thread(self._snapshots.tidy)

    async def flush(self) -> None:
        """Finish the snapshot too."""
        async with self._saving:
            await super().flush()

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
            "refused": self._num_refused,
        }

    def _open_folder(self, config: RunConfig, wiring: Wiring) -> tuple[SegmentFiles | None, Snapshots | None]:
        """Empty but for snapshots."""
        keeps = config.replay.snapshots
        if not keeps:
            shutil.rmtree(self._folder, ignore_errors=True)
        if not (keeps or config.replay.memory_mb):
            return None, None
        files = SegmentFiles(self._folder / "segments", config.replay.memory_mb, config.replay.order)
        return files, Snapshots(self._folder, files, wiring.started) if keeps else None

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on with the newest snapshot, and write what it has become as one of its own, to add to it what comes."""
        if self._snapshots is None:
            return
        is_restart = self._snapshots.is_of_this_start
        if self._snapshots.newest is not None and (is_restart or not self._is_bounded):
            try:
                self._replay.load(self._snapshots.newest, None if is_restart else checkpoint)
            except (OSError, ValueError, KeyError, TypeError) as error:
                if self._files is not None:
                    self._files.clear()
                print(f"{self.name}: begins empty, its snapshot is not readable ({error})", file=sys.stderr)
        content = self._replay.content()
        if is_restart:
            self._restored = {_name(trajectory) for _, _, trajectory in content.segments}
        self._snapshots.begin()
        try:
            self._snapshots.write(content)
            self._snapshots.finish()
        except OSError as error:
            self._give_up_snapshot(error)
            self._snapshots.forget()
        self._snapshots.tidy()

    def _give_up_snapshot(self, error: OSError) -> None:
        """A full disk must not end the role."""
        assert self._snapshots is not None
        self._snapshots.abandon()
        print(f"{self.name}: the snapshot was not written ({error})", file=sys.stderr)

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


def _name(trajectory: Trajectory) -> tuple[str, int, int]:
    """No other segment of the run has it."""
    return trajectory.origin, trajectory.episode, int(trajectory.episode_step[0])
