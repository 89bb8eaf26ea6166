"""A node is left out after failures soon after the start, one after the other, and not for what else goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from accerl.runtime import nodes
from accerl.runtime.nodes import Nodes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its only number is the time."""
    now = [1000.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    return now


def failing(watch: Nodes, clock: list[float], node: str, every_s: float, lived_s: float = 1.0) -> list[bool]:
    answers = []
    for _ in range(nodes.MAX_FAILURES):
        clock[0] += every_s
        answers.append(watch.failed(node, lived_s))
    return answers


def three(**options: Any) -> Nodes:
    return Nodes("here", (), lambda: {"here", "a", "b"}, **options)


def test_three_failures_in_a_row_leave_a_node_out(clock: list[float]) -> None:
    watch = three()
    assert failing(watch, clock, "a", every_s=10.0) == [False, False, True]
    assert watch.left_out == {"a"}
    assert failing(watch, clock, "a", every_s=10.0) == [False, False, False], "it is said once"


@pytest.mark.parametrize(
    ("node", "every_s", "lived_s"),
    [
        ("here", 10.0, 1.0),  # without the controller's node there is no run
        ("a", 70.0, 1.0),  # now and then
        ("a", 1.0, 1.0),  # one thing has ended all of them
        ("a", 10.0, 60.0),  # they had worked
        ("gone", 10.0, 1.0),  # nothing is put there anyway
        ("", 10.0, 1.0),
    ],
)
def test_other_failures_do_not(node: str, every_s: float, lived_s: float, clock: list[float]) -> None:
    watch = three()
    assert not any(failing(watch, clock, node, every_s, lived_s))
    assert watch.left_out == set()


def test_failures_are_counted_by_node(clock: list[float]) -> None:
    watch = three()
    for node in ("a", "b", "a", "b"):
        clock[0] += 10.0
        assert not watch.failed(node, 1.0)
    clock[0] += 10.0
    assert watch.failed("b", 1.0)


def test_another_controller_leaves_out_the_same(clock: list[float]) -> None:
    assert Nodes("here", ["b"], set).left_out == {"b"}
