"""Batches of which a share is imagined, the rest real.

replay ──────────┐
                 ├─► MixedSource ─► prefetch
imagined replay ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accerl.protocols import TrajectorySource
from accerl.types import BatchRule, Trajectory


class MixedSource:
    """A `TrajectorySource` over two. A part that is there waits for the other one; imagined decisions that are waited
    for when the share falls to 0 are replaced by real ones.

    Args:
        share: of the imagined decisions, asked for each batch and while they are waited for; from 0, nothing imagined,
            to below 1.
    """

    def __init__(self, real: TrajectorySource, imagined: TrajectorySource, share: Callable[[], float]):
        self._real = real
        self._imagined = imagined
        self._share = share
        self._batch: int | None = None
        self._wanted: list[tuple[TrajectorySource, int]] = []
        self._drawn: list[Trajectory] = []

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        """All of a batch at once: real decisions first."""
        if batch != self._batch:
            self._batch, self._drawn = batch, []
            num_imagined = round(self._share() * num_decisions)
            parts = ((self._real, num_decisions - num_imagined), (self._imagined, num_imagined))
            self._wanted = [(source, num) for source, num in parts if num > 0]
        while self._wanted:
            source, num = self._wanted[0]
            drawn = source.sample(num, batch, timeout_s)
            if not drawn and source is self._imagined and self._share() == 0:  # none comes any more
                self._wanted[0] = (self._real, num)
                continue
            if not drawn:
                return ()
            self._drawn += drawn
            self._wanted.pop(0)
        drawn, self._drawn = self._drawn, []
        return drawn

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        return self._real.rule(batch, timeout_s)

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        """Raises NotImplementedError: a share can be kept only of batches that are drawn as a whole."""
        raise NotImplementedError("imagination draws whole batches")

    def confirm(self, batch: int) -> None:
        self._real.confirm(batch)
        self._imagined.confirm(batch)
