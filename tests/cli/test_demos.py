"""`accerl demos` with worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from accerl.cli import main
from accerl.cli.demos import DemosOptions
from accerl.demos import load

SETTINGS: dict[str, Any] = {
    "env": {"suite": "dots", "tasks": ["red", "blue"], "image_size": 16, "max_decisions": 20, "chunk_length": 2},
    "demos": {"speed": 1.0, "noise": 0.1, "episodes_per_shard": 3},
    "policy": {"width": 16, "num_layers": 1, "num_heads": 2},
    "clone": {"updates": 2, "batch_size": 8, "num_threads": 1},
}


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """Records three episodes of each task in `data`."""
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    options = ["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "data")]
    return ["demos", *options, "--num-workers", "2", "--episodes", "5"]


def test_what_workers_record_can_be_cloned(line, tmp_path, capsys):
    assert main(line) == 0
    assert "6 of 6 episodes kept" in capsys.readouterr().out
    demonstrations, env = load(tmp_path / "data")
    assert [demonstration.task for demonstration in demonstrations] == ["red"] * 3 + ["blue"] * 3
    assert env.chunk_length == 2
    assert main(["clone", *line[1:3], "--data", str(tmp_path / "data"), "--out", str(tmp_path / "policy")]) == 0


def test_a_recording_that_was_cut_off_goes_on(line, tmp_path):
    assert main(line) == 0
    data = tmp_path / "data"
    complete = {path: path.read_bytes() for path in data.glob("*.*")}
    first = (data / "episodes" / "000-00000.safetensors").stat()
    for name in ("dataset.json", "shard-00001.json", "episodes/001-00002.safetensors"):
        (data / name).unlink()
    assert main(line) == 0
    assert {path: path.read_bytes() for path in data.glob("*.*")} == complete
    assert (data / "episodes" / "000-00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns


def test_a_part_of_another_recording_is_replaced_only_if_asked(line, tmp_path, capsys):
    assert main(line) == 0
    (tmp_path / "data" / "dataset.json").unlink()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    assert main([*line, "--noise", "0.05"]) == 2
    assert "holds a recording with other settings; add --overwrite" in capsys.readouterr().err
    assert main([*line, "--noise", "0.05", "--overwrite"]) == 0
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["demos"]["noise"] == 0.05
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine"


def test_the_number_of_all_episodes_is_rounded_up_by_task():
    options: dict[str, Any] = {"out": "d", "env": {"suite": "dots", "tasks": ["red", "blue"]}}
    assert DemosOptions(**options, episodes=5).recorded.episodes_per_task == 3
    assert DemosOptions(**options, episodes=4).recorded.episodes_per_task == 2
    assert DemosOptions(**options, noise=0.0).recorded.noise == 0.0
    assert DemosOptions(**options).recorded == DemosOptions(**options).demos


def test_libero_is_recorded_in_workers_and_with_defaults_of_its_own():
    env = {"suite": "libero_goal", "tasks": ["open_the_drawer"]}
    options: dict[str, Any] = {"out": "d", "env": env, "demos": {"noise": 0.0}}
    found = DemosOptions(**options)
    assert (found.demos.speed, found.demos.noise, found.demos.patience) == (1.0, 0.0, 1.0)
    assert found.workers >= 1
    assert DemosOptions(out=Path("d"), env=found.env, demos=found.demos).demos == found.demos
    assert DemosOptions(out=Path("d")).workers == 0
