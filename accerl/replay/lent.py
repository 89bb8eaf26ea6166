"""What a learner has in hand and has not trained on yet, as far as is known."""

from __future__ import annotations

from collections.abc import Iterator

from accerl.replay.order import Entry


class Lent:
    """Segments that were first used in batches which were not confirmed."""

    def __init__(self) -> None:
        self._batches: dict[int, list[Entry]] = {}
        self.num_decisions = 0

    def __iter__(self) -> Iterator[Entry]:
        for entries in self._batches.values():
            yield from entries

    def add(self, entry: Entry, batch: int) -> None:
        entry.batch = batch
        self._batches.setdefault(batch, []).append(entry)
        self.num_decisions += entry.num_decisions

    def confirm(self, batch: int) -> list[Entry]:
        """Every batch up to this one was trained on; returns what is not lent any more."""
        return self._return([number for number in self._batches if number <= batch])

    def take_back(self) -> list[Entry]:
        """All of it."""
        return self._return(list(self._batches))

    def _return(self, batches: list[int]) -> list[Entry]:
        returned = [entry for number in batches for entry in self._batches.pop(number)]
        for entry in returned:
            entry.batch = None
            self.num_decisions -= entry.num_decisions
        return returned
