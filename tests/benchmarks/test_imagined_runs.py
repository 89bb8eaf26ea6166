"""What the studies of imagination compute from their runs."""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pytest
import torch

from accerl_wm.carriers import Frames
from benchmarks import broken_world_model, sample_efficiency
from benchmarks.imagined_runs import configure
from benchmarks.sample_efficiency import decisions_to


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(0, 0, 0.5), (6, 100, 0.7), (12, 200, 0.9), (18, 300, 0.9)], 150.0),
        ([(0, 0, 0.5), (6, 100, 0.9), (12, 200, 0.7), (18, 300, 0.9)], 250.0),  # the first time it does not stay
        ([(0, 0, 0.5), (6, 100, 0.6)], None),
        ([(0, 40, 0.9), (6, 100, 0.9)], 40.0),
    ],
)
def test_decisions_to_a_target_are_those_where_it_is_reached_to_stay(curve: Any, expected: float | None):
    assert decisions_to(curve, 0.8) == (None if expected is None else pytest.approx(expected))


def row(arm: str, seed: int, decisions: int) -> dict[str, str]:
    curve = [(0, 0, 0.5), (6, decisions, 0.75), (12, 2 * decisions, 0.8)]
    return {"arm": arm, "seed": str(seed), "curve": json.dumps(curve), "success": "0.8", "decisions": "1"}


def test_ratios_are_against_the_better_of_the_model_free_arms(monkeypatch: Any, tmp_path: Any, capsys: Any):
    monkeypatch.setattr(sample_efficiency, "RESULTS", tmp_path)
    arms = {"real": 8000, "reused": 2000, "model": 100}
    sample_efficiency.report([row(arm, seed, n + seed) for arm, n in arms.items() for seed in range(3)], 0.75)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["against"] == "reused" and found["ratio_model"] == pytest.approx(20, rel=0.02) and found["met"]
    low, high = found["ratio_model_interval"]
    assert low <= found["ratio_model"] <= high and found["ratio_oracle"] is None
    assert (tmp_path / "sample_efficiency.png").stat().st_size > 5000


def test_an_arm_that_does_not_always_get_there_has_no_ratio(monkeypatch: Any, tmp_path: Any, capsys: Any):
    monkeypatch.setattr(sample_efficiency, "RESULTS", tmp_path)
    never = {**row("model", 1, 100), "curve": json.dumps([(0, 0, 0.5), (6, 100, 0.6)])}
    sample_efficiency.report([row("reused", 0, 2000), row("model", 0, 100), never], 0.75)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ratio_model"] is None and not found["met"]
    assert [each["reached"] for each in found["rows"]] == [1, 1]


def test_runs_with_imagination_differ_from_those_without_only_in_what_is_collected():
    options = argparse.Namespace(
        updates=60, share=0.98, horizon=8, threshold=0.7, learns=2.0, world_model="quickstart", seeds=[0]
    )
    configs = {arm: configure(sample_efficiency.wanted_run(arm, 0, options)) for arm in sample_efficiency.ARMS}
    for config in configs.values():
        for section in ("objective", "learner", "env", "tasks", "limits"):
            assert getattr(config, section) == getattr(configs["real"], section)
    assert configs["oracle"].rollout.keep_state and not configs["model"].rollout.keep_state


def test_what_is_broken_is_broken():
    seen = Frames(images=torch.zeros(3, 1, 8, 8, 3, dtype=torch.uint8), proprio=torch.zeros(3, 2))
    assert (broken_world_model.Always().predict(seen, ["a"] * 3) > 0.7).all()

    class Told:
        history = 1

        def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
            return Frames(images=past.images[:, -1], proprio=actions[:, -1, 0])

    actions = torch.arange(6.0).view(3, 1, 1, 2)
    past = Frames(images=seen.images[:, None], proprio=seen.proprio[:, None])
    swapped = broken_world_model.Shuffled(Told()).predict(past, actions).proprio
    assert np.array_equal(swapped.numpy(), [[4, 5], [0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("shares", "closed"), [([(1, 0.9), (20, 0.0)], 20), ([(1, 0.9), (20, 0.0), (30, 0.9)], None), ([], None)]
)
def test_the_gate_closed_where_the_share_became_nothing_for_good(shares: Any, closed: int | None):
    assert broken_world_model.closed_after(shares) == closed
