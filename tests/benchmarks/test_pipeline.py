"""The comparison of the modes: equal work, best settings, what is computed from measurements, and one real run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from accerl.config import Mode
from accerl.runtime.preflight import check
from benchmarks import figures, results_file
from benchmarks.devices import Emulation
from benchmarks.experiment import Experiment, mean_episode, num_workers
from benchmarks.measurement import Measurement, measure
from benchmarks.pipeline import best_setting, settings, summary

MODES: tuple[Mode, ...] = ("async", "barrier", "one_step_off", "sync")


def measurement(mode: Mode, decisions_per_s: float, **fields) -> Measurement:
    own = {"inference_gpus": 2.0, **{key: fields.pop(key) for key in list(fields) if key in Experiment.model_fields}}
    defaults = {
        "source": "measured",
        "seconds": 100.0,
        "updates": 5,
        "collected_per_s": 2.0,
        "env_steps_per_s": 8 * decisions_per_s,
        "env_idle": 0.25,
        "inference_idle": 0.5,
        "learner_idle": 0.75,
        "lag_mean": 1.5,
        "lag_max": 2,
        "discarded_decisions": 0,
        "work_s": {"learner": 0.001},
    }
    experiment = Experiment(mode=mode, **own)
    return Measurement(experiment=experiment, decisions_per_s=decisions_per_s, **{**defaults, **fields})


def test_the_summary_compares_with_async() -> None:
    line = summary([measurement("async", 120.0), measurement("sync", 40.0), measurement("barrier", 80.0, lag_max=0)])
    assert line["async_over_sync"] == 3.0
    assert line["async_over_barrier"] == 1.5
    assert "async_over_one_step_off" not in line
    assert line["fraction_of_bound"] == pytest.approx(120.0 * 0.0447 / 6)
    assert (line["max_policy_lag"], line["K"], line["binds"]) == (2, 3, "train")
    assert line["discarded_decisions"] == 0
    assert summary([measurement("sync", 1.0, discarded_decisions=3)])["discarded_decisions"] == 3


def test_idle_gpus_are_weighted_by_their_number_and_added_up_where_they_take_turns() -> None:
    assert measurement("async", 1.0).gpu_idle == pytest.approx((0.5 * 2 + 0.75 * 6) / 8)
    turns = measurement("sync", 1.0, inference_gpus=None, inference_idle=0.9, learner_idle=0.7)
    assert turns.gpu_idle == pytest.approx(1 - 0.1 - 0.3)


def test_every_mode_has_the_same_gpus_work_and_batches() -> None:
    for mode in MODES:
        candidates = list(settings(Experiment(mode=mode, num_envs=24)))
        shared = [candidate.inference_gpus is None for candidate in candidates]
        assert any(shared) == (mode in ("sync", "barrier"))
        for candidate in candidates:
            config = candidate.config(Path("/nowhere/run"))
            used = candidate.devices()
            total = candidate.num_services * used.inference_gpus + used.learner_gpus
            assert total == (16 if candidate.inference_gpus is None else 8)
            assert not (candidate.streams and candidate.inference_gpus is None), "GPUs that take turns would work twice"
            assert config.num_slots == config.episodes_per_round == 24
            assert config.learner.batch_decisions == round(24 * mean_episode(Emulation()).num_decisions)
            assert config.replay.max_reuse == 1
            assert (config.inference.num_services == 1) or not config.is_lockstep


def test_sync_collects_everything_before_it_trains() -> None:
    for candidate in settings(Experiment(mode="sync", num_envs=8)):
        longest = 8 * candidate.config(Path("/nowhere/run")).env.max_decisions
        assert candidate.config(Path("/nowhere/run")).learner.micro_batch_decisions >= longest


def test_the_best_setting_is_found_by_simulation() -> None:
    """With 24 environments: as few GPUs for inference as keep up with slow training, more where training is fast."""
    best = {
        train_s: best_setting(
            Experiment(mode="async", num_envs=24, emulation=Emulation(train_s=train_s)), seconds=20
        ).experiment.inference_gpus
        for train_s in (0.1, 0.004)
    }
    assert best[0.1] == 1
    assert (best[0.004] or 0) > 2


def test_configurations_pass_the_checks_of_the_runtime(tmp_path: Path) -> None:
    for mode in MODES:
        check(Experiment(mode=mode, num_gpus=1, num_envs=6, inference_gpus=0.25).config(tmp_path / mode))


def test_environments_are_dealt_out_evenly() -> None:
    assert [num_workers(envs, 8) for envs in (1, 6, 12, 48, 96, 7, 26)] == [1, 1, 2, 6, 8, 1, 2]


def test_rows_are_appended_and_other_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    for rate in (1.0, 2.0):
        path = results_file.append("speed", [measurement("async", rate).row()])
    rows = list(csv.DictReader(path.open()))
    assert [row["decisions_per_s"] for row in rows] == ["1.0", "2.0"]
    assert rows[0]["machine"].startswith("{") and "commit" in rows[0]
    with pytest.raises(ValueError, match="columns"):
        results_file.append("speed", [{"other": 1}])


def test_the_picture_shows_every_mode(tmp_path: Path) -> None:
    figures.pipeline([measurement(mode, 50.0) for mode in MODES], tmp_path / "pipeline.png")
    assert (tmp_path / "pipeline.png").stat().st_size > 20_000


def test_a_real_run_is_measured(tmp_path: Path) -> None:
    experiment = Experiment(
        mode="barrier", num_gpus=1, inference_gpus=0.25, num_envs=4, emulation=Emulation(time_scale=0.1)
    )
    measured = measure(experiment, tmp_path / "run", seconds=1)
    assert measured.updates >= 3
    assert 0 < measured.decisions_per_s <= 1.02 * experiment.bound().total
    assert 0 < measured.learner_idle < 1 and 0 < measured.env_idle < 1
    assert measured.lag_max == measured.discarded_decisions == 0
    assert measured.work_s["rollout"] > 0 and measured.work_s["learner"] > 0
