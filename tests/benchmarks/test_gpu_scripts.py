"""The scripts for GPUs, on a processor and at a size at which they mean nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from accerl.config import ConfigError
from benchmarks.gpu import kernels, policy_server, world_model


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


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_is_measured_against_eager_and_compiled_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr(sys, "argv", ["kernels", "--size", "tiny", "--device", "cpu", "--out", str(tmp_path)])
    assert kernels.main() == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = line["variants"]
    variants = {row["variant"] for row in rows}
    assert len(variants) == 6 and {row["status"] for row in rows} == {"measured"}
    assert all({"kernel", "eager"} <= {row["way"] for row in rows if row["variant"] == each} for each in variants)
    for task in ("slim_logprob", "gipo_loss"):
        assert line[f"{task}_over_compile"] > 0 and line[f"{task}_over_eager"] > 0
    assert len((tmp_path / "gpu_kernels.csv").read_text().splitlines()) == 1 + len(rows)


def test_without_triton_the_benchmark_of_kernels_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for module in [name for name in sys.modules if name.startswith("accerl_ext.gpu.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", ["kernels", "--size", "tiny", "--kernels", "gae", "--no-files"])
    with pytest.raises(ConfigError, match=r"kernels: .*triton"):
        kernels.main()
