"""What is computed from measured and simulated runs of several sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import calibration, figures, scaling
from benchmarks.calibration import fit_costs, num_processes, seconds_per_decision, wake_s
from benchmarks.costs import Costs
from benchmarks.experiment import Experiment, mean_episode
from benchmarks.measurement import Measurement, simulate

PATTERN = Experiment(mode="async", num_gpus=8, inference_gpus=2, num_services=2, num_envs=48)
ROLES = ("rollout", "inference", "replay", "learner", "controller")


def measurement(gpus: int, decisions_per_s: float, mode: str = "async", **fields) -> Measurement:
    defaults = {
        "source": "measured",
        "seconds": 60.0,
        "updates": 5,
        "collected_per_s": decisions_per_s,
        "env_steps_per_s": 8 * decisions_per_s,
        "env_idle": 0.5,
        "inference_idle": 0.5,
        "learner_idle": 0.0,
        "lag_mean": 1.0,
        "lag_max": 2,
        "discarded_decisions": 0,
        "work_s": dict.fromkeys(ROLES, 0.001),
    }
    experiment = scaling.sized(Experiment(**{**dict(PATTERN), "mode": mode}), gpus, scaling.time_scale(gpus))
    return Measurement(experiment=experiment, decisions_per_s=decisions_per_s, **{**defaults, **fields})


def test_sizes_keep_the_division_and_the_work_of_a_gpu() -> None:
    for gpus in (1, 2, 16, 256):
        experiment = scaling.sized(PATTERN, gpus)
        assert experiment.inference_gpus == gpus / 4
        assert experiment.num_envs == 6 * gpus
        assert experiment.batch_decisions == pytest.approx(PATTERN.batch_decisions * gpus / 8, rel=2e-3)
        assert experiment.bound().train == pytest.approx(PATTERN.bound().train * gpus / 8)
    assert [scaling.sized(PATTERN, gpus).num_services for gpus in (1, 4, 8, 64)] == [1, 1, 2, 2]
    nodes = scaling.spread(scaling.sized(PATTERN, 64))
    config = nodes.config(Path("/nowhere/run"))
    assert (config.inference.num_services, config.replay.num_shards, config.rollout.num_workers) == (16, 8, 48)


def test_the_error_compares_rates_of_the_emulated_time() -> None:
    (row,) = scaling.comparison([measurement(2, 100.0)], [measurement(2, 110.0, source="simulated")])
    assert (row["measured"], row["simulated"], row["time_scale"]) == (25.0, 27.5, 0.25)
    assert row["error"] == pytest.approx(0.1)
    assert row["cores"] == pytest.approx(0.5)


def test_speedup_and_efficiency_are_those_over_the_smallest_size_of_the_mode() -> None:
    stations = {"controller": 0.2, "sample path": 0.97}
    grown = [
        measurement(1, 10.0, work_s={"controller": 0.1, "sample path": 0.0}),
        measurement(64, 600.0, work_s=stations | {"sample path": 0.5}),
        measurement(128, 1200.0, work_s=stations),
        measurement(256, 1280.0, work_s=stations | {"controller": 0.99}),
        measurement(256, 640.0, mode="barrier", work_s=stations),
    ]
    rows = scaling.projection(grown)
    assert [row["speedup"] for row in rows] == [1, 60, 120, 128, 1]
    assert [row["efficiency"] for row in rows] == pytest.approx([1, 0.9375, 0.9375, 0.5, 1])
    assert rows[3]["busiest"] == "controller"
    line = scaling.summary([], rows, Costs())
    assert (line["saturates_first"], line["saturates_at_gpus"]) == ("sample path", 128)
    assert (line["speedup_64"], line["efficiency_256"]) == (60, 0.5)
    json.dumps(line)


def test_rows_of_both_tables_have_the_same_columns() -> None:
    compared = scaling.comparison([measurement(2, 100.0)], [measurement(2, 110.0)])
    projected = scaling.projection([measurement(1, 10.0)])
    assert list(compared[0]) == list(projected[0])


def test_weights_take_longer_to_more_nodes_but_not_in_proportion() -> None:
    one, two, many = (scaling.cluster_costs(Costs(), gpus).weights_s for gpus in (8, 16, 256))
    hop = 13.8 * 2**30 / 50e9
    assert one == pytest.approx(13.8 * 0.26)
    assert two == pytest.approx(one + 2 * hop)
    assert many == pytest.approx(one + 6 * hop)


def test_what_a_process_does_anyway_does_not_count_as_work() -> None:
    runs = [measurement(gpus, rate) for gpus, rate in ((1, 50.0), (4, 80.0), (8, 130.0), (16, 110.0))]
    shares = [0.01 * num_processes(run.experiment, "rollout") + 0.002 * run.collected_per_s for run in runs]
    runs = [
        run.model_copy(update={"work_s": run.work_s | {"rollout": share / run.collected_per_s}})
        for run, share in zip(runs, shares, strict=True)
    ]
    assert seconds_per_decision(runs, "rollout") == pytest.approx(0.002)
    assert seconds_per_decision(runs[:1], "rollout") == pytest.approx(shares[0] / 50)


def test_costs_come_from_all_kinds_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "wake_s", lambda: 2e-5)
    costs = fit_costs([measurement(8, 100.0)])
    assert costs.worker_s == costs.service_s == costs.replay_s == costs.sample_s == pytest.approx(0.001)
    assert costs.controller_s == pytest.approx(0.001 * mean_episode(PATTERN.emulation).num_decisions)
    assert costs.wake_s == 2e-5


def test_waking_is_measured_on_slots_that_wait() -> None:
    assert wake_s(num_waiting=50, num_events=5) >= 0


def test_slots_that_wait_load_the_controller(tmp_path: Path) -> None:
    experiment = scaling.sized(PATTERN, 4)
    busy = [
        simulate(experiment, tmp_path, Costs(wake_s=wake), 60).work_s["controller"] for wake in (0.0, 0.0005, 0.001)
    ]
    assert busy[0] == 0 and busy[2] == pytest.approx(2 * busy[1], rel=0.1)


def test_the_picture_shows_measured_and_simulated_sizes(tmp_path: Path) -> None:
    stations = dict.fromkeys(scaling.SHARED, 0.5)
    grown = [measurement(gpus, 10.0 * gpus, work_s=stations) for gpus in (1, 8, 64)]
    figures.scaling([measurement(8, 75.0)], grown, scaling.SHARED, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 20_000
