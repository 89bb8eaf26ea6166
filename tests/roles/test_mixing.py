"""Batches that are imagined in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from accerl.mixing import MixedSource
from accerl.types import BatchRule


class Source:
    """Has so many decisions, and remembers what was asked of it."""

    def __init__(self, name: str, has: int):
        self.name, self.has = name, has
        self.asked: list[int] = []
        self.confirmed: list[int] = []

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Any]:
        self.asked.append(num_decisions)
        return [f"{self.name} {num_decisions}"] if self.has >= num_decisions else ()

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        return BatchRule()

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Any]:
        return ()

    def confirm(self, batch: int) -> None:
        self.confirmed.append(batch)


def test_a_batch_has_its_share_of_both_and_each_part_is_drawn_once_however_long_the_other_takes():
    real, imagined = Source("real", 100), Source("imagined", 0)
    mixed = MixedSource(real, imagined, lambda: 0.75)
    assert mixed.sample(40, 0, 0.0) == () and mixed.sample(40, 0, 0.0) == ()
    imagined.has = 100
    assert mixed.sample(40, 0, 0.0) == ["real 10", "imagined 30"]
    assert (real.asked, imagined.asked) == ([10], [30, 30, 30])
    mixed.confirm(0)
    assert real.confirmed == imagined.confirmed == [0]


def test_the_share_may_change_from_batch_to_batch_and_without_any_nothing_imagined_is_waited_for():
    shares = iter([0.5, 0.0])
    real, imagined = Source("real", 100), Source("imagined", 100)
    mixed = MixedSource(real, imagined, lambda: next(shares))
    assert mixed.sample(40, 0, 0.0) == ["real 20", "imagined 20"]
    imagined.has = 0
    assert mixed.sample(40, 1, 0.0) == ["real 40"]


def test_a_batch_that_waits_for_imagined_decisions_is_filled_with_real_ones_when_nothing_is_imagined_any_more():
    shares = [0.75]
    real, imagined = Source("real", 100), Source("imagined", 0)
    mixed = MixedSource(real, imagined, lambda: shares[-1])
    assert mixed.sample(40, 0, 0.0) == ()
    shares.append(0.0)
    real.has = 20
    assert mixed.sample(40, 0, 0.0) == (), "it waits for real ones now"
    real.has = 100
    assert mixed.sample(40, 0, 0.0) == ["real 10", "real 30"]


def test_decisions_one_by_one_cannot_be_mixed():
    with pytest.raises(NotImplementedError, match="whole batches"):
        MixedSource(Source("real", 1), Source("imagined", 1), lambda: 0.5).take(1, BatchRule(), 0, 0.0)
