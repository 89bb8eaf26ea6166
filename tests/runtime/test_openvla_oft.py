"""A small OpenVLA-OFT goes the way of every policy: demonstrated, cloned, trained in processes, resumed, evaluated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from accerl.checkpoint import list_checkpoints, load_checkpoint, load_policy
from accerl.cli import main
from accerl.policies.openvla_oft import OpenVLAOFT
from accerl.runtime.run import attach

RECIPE = """
[env]
suite = "dots"
tasks = ["red"]
image_size = 32
chunk_length = 4
steps_per_action = 2
max_decisions = 5

[demos]
episodes_per_task = 60
speed = 0.8
noise = 0.1

[clone]
updates = 120
batch_size = 32
lr = 1e-3
shift_pixels = 0

[policy]
width = 32
num_heads = 2

[rollout]
slots_per_worker = 8

[replay]
capacity_decisions = 512
min_decisions = 64

[learner]
batch_decisions = 64
value_warmup_updates = 1
checkpoint_every_s = 3600

[limits]
max_updates = 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds recipe.toml, demos, and a cloned policy."""
    folder = tmp_path_factory.mktemp("openvla")
    (folder / "recipe.toml").write_text(RECIPE)
    assert main(["demos", *config(folder), "--out", str(folder / "demos")]) == 0
    line = ["clone", *config(folder), "--policy", "openvla-oft-tiny", "--data", str(folder / "demos")]
    assert main([*line, "--out", str(folder / "policy")]) == 0
    return folder


def config(folder: Path) -> list[str]:
    return ["--config", str(folder / "recipe.toml")]


def test_imitation_learns_what_the_demonstrations_say(folder: Path) -> None:
    loss = json.loads((folder / "policy" / "origin.json").read_text())["loss"]
    assert loss < math.log(256) - 0.3, "a uniform guess among 256 tokens costs ln 256 nats"


def test_it_trains_asynchronously_and_a_finished_run_goes_on(folder: Path, tmp_path: Path) -> None:
    line = ["--name", "small", "--root", str(tmp_path)]
    start = ["--policy", "openvla-oft-tiny", "--policy.checkpoint", str(folder / "policy")]
    assert main(["train", *config(folder), *line, *start]) == 0
    run = attach("small", tmp_path)
    (saved,) = run.checkpoints()
    before, after = (load_policy(each).state_dict() for each in (folder / "policy", saved))
    moved = {name.split(".")[0] for name, tensor in after.items() if not tensor.equal(before[name])}
    assert moved == {"model", "value_head"}
    learner, _ = load_checkpoint(saved)
    assert learner["updates"] == 4
    assert run.metrics()[-1]["discarded_decisions"] == 0

    assert main(["train", "--resume", str(run.folder), "--limits.max-updates", "6"]) == 0
    learner, _ = load_checkpoint(list_checkpoints(run.folder / "checkpoints")[-1])
    assert learner["updates"] == 6
    assert {float(entry["step"]) for entry in learner["optimizer"]["state"].values()} == {6.0}, "it went on from 4"
    assert isinstance(load_policy(run.checkpoints()[-1]), OpenVLAOFT)
    result = tmp_path / "result.json"
    assert main(["eval", "--policy", str(run.folder), "--episodes-per-task", "4", "--out", str(result)]) == 0
    assert json.loads(result.read_text())["episodes"] == 4
