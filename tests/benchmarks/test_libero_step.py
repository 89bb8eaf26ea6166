"""The comparison of steps with LIBERO's: one real measurement, very small, and what is made of rows."""

from __future__ import annotations

import pytest

pytest.importorskip("libero", reason="needs accerl[libero]")

from benchmarks import libero_step
from benchmarks.libero_step import COLUMNS, Setting, measure, summary


def row(suite: str, ratio: float, **fields) -> dict:
    return {"suite": suite, "ratio": ratio, "frame_max_diff": 0, "state_max_diff": 0.0, **fields}


def test_the_bars_are_on_speed_and_on_sameness() -> None:
    rows = [row("libero_spatial", 6.0), row("libero_10", 4.0), row("libero_object", 1.0)]
    line = summary(rows)
    assert (line["spatial_ratio"], line["libero_10_ratio"], line["object_ratio"]) == (6.0, 4.0, 1.0)
    assert line["frame_max_diff"] == 0 and line["met"]
    assert not summary([row("libero_spatial", 5.9), *rows[1:]])["met"]
    assert not summary([rows[0], row("libero_10", 3.9), rows[2]])["met"]
    assert not summary([*rows[:2], row("libero_object", 9.0, frame_max_diff=1)])["met"]
    assert not summary([*rows[:2], row("libero_object", 9.0, state_max_diff=1e-12)])["met"]


def test_a_task_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_step, "in_process", lambda function, setting, upstream: 1000.0)
    measured = measure(Setting("libero_goal", 32, task=1), num_episodes=1, num_steps=8)
    assert set(COLUMNS) <= set(measured)
    assert measured["env_steps"] == 8
    assert measured["ratio"] == measured["upstream_ms"] / measured["accerl_ms"]
    assert (measured["frame_max_diff"], measured["state_max_diff"]) == (0, 0.0)


def test_a_fresh_process_answers() -> None:
    assert libero_step.in_process(len, "four") == 4
