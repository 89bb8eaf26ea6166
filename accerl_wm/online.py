"""Models that go on learning while a run goes on: so many updates for each real decision that comes in.

real trajectories ─► frames ─► OnlineTraining ─► newest weights ─► imagination
"""

from __future__ import annotations

from typing import Any, Protocol


class Trainer(Protocol):
    """`ObservationTrainer` or `RewardTrainer`."""

    model: Any

    def update(self, progress: float = 0.0) -> dict[str, float]: ...


class OnlineTraining:
    """Paces a trainer by what is collected, so that it neither falls behind nor learns a few episodes by heart.

    Args:
        updates_per_decision: of the real ones.
    """

    def __init__(self, trainer: Trainer, updates_per_decision: float):
        self.trainer = trainer
        self.updates = 0
        self._updates_per_decision = updates_per_decision
        self._owed = 0.0

    @property
    def is_due(self) -> bool:
        return self._owed >= 1

    def collected(self, num_decisions: int) -> None:
        self._owed += self._updates_per_decision * num_decisions

    def update(self) -> dict[str, float]:
        """One that is due. Returns what to log."""
        self._owed -= 1
        self.updates += 1
        return self.trainer.update()

    def catch_up(self) -> int:
        """All that are due; the model is ready to predict afterwards. Returns their number."""
        before = self.updates
        while self.is_due:
            self.update()
        if self.updates > before:
            self.trainer.model.train(False)
        return self.updates - before
