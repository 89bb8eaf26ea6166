"""The scripts for GPUs, on a processor and at a size at which they mean nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import policy_server, world_model


def test_the_policy_server_is_measured_and_every_version_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sizes = ["--width", "64", "--layers", "1", "--image-size", "64", "--batches", "1", "2", "3", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["policy_server", *sizes, "--versions", "3", "--no-files"])
    assert policy_server.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["batch"] for row in line["batches"]] == [1, 2, 3]
    assert all(row["observations_per_s"] == pytest.approx(1000 * row["batch"] / row["ms"]) for row in line["batches"])
    assert line["load_gb_per_s"] > 0 and line["device"] == "cpu"


def test_both_families_of_world_models_are_measured_with_one_camera_and_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    sizes = ["--image-size", "16", "--episodes", "10", "--batch-size", "4", "--batches", "2", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["world_model", *sizes, "--out", str(tmp_path)])
    assert world_model.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["variants"]
    wanted = [(kind, cameras) for cameras in (1, 2) for kind in ("deterministic", "diffusion")]
    assert [(row["variant"], row["cameras"]) for row in rows] == wanted
    for row in rows:
        assert row["status"] == "measured" and row["updates"] == 1
        assert row["trained_frames_per_s"] > 0 and row["imagined_frames_per_s"] > 0
        assert row["copy_8"] < row["copy_1"] < 100 and row["psnr_1"] > 5
    assert len((tmp_path / "gpu_world_model.csv").read_text().splitlines()) == 5
