"""The learning problem of the studies, and what is computed from many runs of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from accerl.config import PolicyConfig
from accerl.envs import conformance
from accerl.envs.metaworld_tasks import INSTRUCTIONS
from accerl.types import ObservationBatch
from benchmarks import objectives_under_staleness, recompute_ablation, results_file, state_study, sweep
from benchmarks.interquartile import bootstrap_interval, interquartile_mean
from benchmarks.state_observations import StatePolicy


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert interquartile_mean(np.array([[0.0, 1.0], [2.0, 9.0]])) == pytest.approx(1.5)
    # of six scores the quartiles cut the second and the fifth in half: (0.5 * 1 + 2 + 3 + 0.5 * 4) / 3
    assert interquartile_mean(np.array([[5.0, 0.0, 1.0], [2.0, 3.0, 4.0]])) == pytest.approx(2.5)


def test_the_bootstrap_interval_holds_the_mean_and_vanishes_where_nothing_varies() -> None:
    scores = np.random.default_rng(0).uniform(size=(5, 2))
    low, high = bootstrap_interval(scores)
    assert scores.min() < low < interquartile_mean(scores) < high < scores.max()
    assert bootstrap_interval(np.full((5, 2), 0.25)) == (0.25, 0.25)


def test_an_environment_without_cameras_keeps_the_other_promises() -> None:
    env = state_study.make_env()
    for task in env.spec.tasks:
        conformance.check_observations(env, task, seed=0)
        conformance.check_determinism(env, task, seed=0)
        conformance.check_end(env, task, seed=0)
    env.close()


def test_a_state_policy_scores_the_tokens_that_it_chose() -> None:
    env = state_study.make_env()
    observation, _ = env.reset(seed=0)
    policy = StatePolicy.for_env(env.spec, [INSTRUCTIONS[task] for task in state_study.TASKS], PolicyConfig(width=32))
    batch = ObservationBatch(
        images=torch.zeros(2, 0, 16, 16, 3, dtype=torch.uint8),
        proprio=torch.from_numpy(np.stack([observation["proprio"]] * 2)),
        instructions=[observation["instruction"]] * 2,
        episode_step=torch.tensor([0, 3]),
    )
    chosen = policy.act(batch, np.array([1, 2]))
    again = policy.evaluate(batch, chosen.blob)
    torch.testing.assert_close(again.log_prob, chosen.log_prob)
    torch.testing.assert_close(again.value, chosen.value)
    assert chosen.action.shape == (2, env.spec.chunk_length, env.spec.action_dim)
    env.close()


def test_a_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    wanted: list[dict[str, Any]] = [{"kind": "a", "seed": 0}, {"kind": "b", "seed": 0}]
    first = sweep.sweep("runs", ("kind", "seed"), wanted[:1], play, processes=1)
    assert [row["success"] for row in first] == ["0.5"]
    both = sweep.sweep("runs", ("kind", "seed"), wanted, play, processes=1)
    assert [row["kind"] for row in both] == ["a", "b"]
    assert capsys.readouterr().out.count("of 1:") == 2, "one new run at each call"


def test_runs_become_a_row_for_each_objective_and_lag() -> None:
    rows = [
        {
            **dict.fromkeys(("start", "abs_log_ratio_p95", "effective_sample_size", "dead_fraction"), "0.5"),
            "objective": objective,
            "lag": str(lag),
            "rates": json.dumps([rate, rate]),
        }
        for objective, rate in (("gipo", 0.8), ("ppo", 0.4))
        for lag in (0, 16)
        for _ in range(5)
    ]
    table = objectives_under_staleness.summarize(rows)
    assert [(row["objective"], row["lag"], row["runs"]) for row in table] == [
        *(("gipo", 0, 5), ("gipo", 16, 5), ("ppo", 0, 5), ("ppo", 16, 5)),
    ]
    assert [row["success"] for row in table] == pytest.approx([0.8, 0.8, 0.4, 0.4])


def test_the_speed_of_every_way_of_recomputing_is_measured() -> None:
    rows = recompute_ablation.measure_speed(rounds=1, updates=1, image_size=16)
    assert [row["recompute"] for row in rows] == ["prefetch", "fused", "off"]
    assert all(row["decisions_per_s"] > 0 for row in rows)


def play(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "success": 0.5}
