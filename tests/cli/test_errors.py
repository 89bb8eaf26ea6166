"""Wrong configurations and commands: each is refused before anything starts, in one line that names the field."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accerl.cli import main
from accerl.config import ConfigError, RunConfig

WRONG = [
    # command line, field that the error names, and a part of the reason or of the remedy
    ("trian", "command", "did you mean 'train'?"),
    ("train now", "now", "belongs to no option"),
    ("train --learner.polcy-lr 1e-4", "learner.polcy_lr", "did you mean 'policy_lr'?"),
    ("train --lerner.policy-lr 1e-4", "lerner", "did you mean 'learner'?"),
    ("train --learner.policy-lr fast", "learner.policy_lr", "should be a valid number"),
    ("train --learner.policy-lr=-1", "learner.policy_lr", "greater than 0"),
    ("train --learner.policy-lr nan", "learner.policy_lr", "greater than 0"),
    ("train --learner.betas 0.9", "learner.betas", "is required"),
    ("train --rollout.num-workers 0", "rollout.num_workers", "greater than 0"),
    ("train --rollout.num-workers 1.5", "rollout.num_workers", "integer"),
    ("train --seed", "seed", "write --seed VALUE"),
    ("train --seed --detach", "seed", "has no value"),
    ("train --env", "env", "such as --env.suite"),
    ("train --learner fast", "learner", "such as --learner.batch-decisions"),
    ("train --env.libero old", "env.libero", "such as --env.libero.init-states"),
    ("train --env metaword", "env.suite", "did you mean 'metaworld'?"),
    ("train --env dots", "env.tasks", "known: blue, red"),
    ("train --env libero_spatal", "env.suite", "did you mean 'libero_spatial'?"),
    ("train --env.suite metaword", "env.suite", "did you mean 'metaworld'?"),
    ("train --env.tasks faucet-opne-v3", "env.tasks", "did you mean 'faucet-open-v3'?"),
    ("train --env.tasks=", "env.tasks", "at least 1"),
    ("train --env.cameras workspac", "env.cameras", "did you mean 'workspace'?"),
    ("train --env.reward sparse", "env.reward", "'success' or 'dense'"),
    ("train --policy.width 190", "policy.width", "not a multiple of num_heads=4"),
    ("train --policy.checkpoint nowhere", "policy.checkpoint", "accerl clone"),
    ("train --objective.kind trpo", "objective.kind", "'gipo', 'ppo'"),
    ("train --objective.discount 1.5", "objective.discount", "less than or equal to 1"),
    ("train --objective.value-loss bce --env.reward dense", "objective.value_loss", "use 'mse'"),
    ("train --objective.group-scale maybe", "maybe", "belongs to no option"),
    ("train --inference.batch-size 64", "inference.batch_size", "16 slots; use at most that"),
    ("train --replay.min-decisions 9999", "replay.min_decisions", "training would never start"),
    ("train --limits.max-updates 5", "limits.max_updates", "learner.value_warmup_updates=20"),
    ("train --limits.max-wall-s soon", "limits.max_wall_s", "should be a valid number"),
    ("train --learner.device cuda:x", "learner.device", "device"),
    ("train --name a/b", "name", "should match pattern"),
    ("train --config nowhere.toml", "config", "cannot read nowhere.toml"),
    ("train --config recipe.yaml", "config", "neither .toml nor .json"),
    ("train --config broken.toml", "config", "not valid TOML"),
    ("train --config typo.toml", "replay.capacity", "did you mean 'capacity_decisions'?"),
    ("train --config conflict.toml", "learner.batch_decisions", "raise the capacity"),
    ("train --resume nothing", "resume", "there is no run 'nothing'"),
    ("eval", "policy", "is required"),
    ("eval --policy nowhere", "policy", "accerl clone"),
    ("eval --config typo.toml --policy nowhere", "replay.capacity", "did you mean"),
    ("eval --config quickstart --policy nowhere --episodes-per-task 0", "episodes_per_task", "greater than 0"),
    ("eval --policy demonstrator", "env", "give --env SUITE"),
    ("eval --policy demonstrator --env dots --env.tasks rde", "env.tasks", "did you mean 'red'?"),
    ("eval --policy demonstrator --env dots --env.tasks red --protocol rlinf", "protocol", "is for LIBERO"),
    ("eval --policy demonstrator --env gymnasium --env.tasks CartPole-v1", "env.suite", "no scripted expert"),
    ("eval --policy demonstrator --env dots --env.tasks red --num-workers 0", "num_workers", "greater than 0"),
    ("eval --policy demonstrator --env dots --env.tasks red --hang-s 0", "hang_s", "greater than 0"),
    ("demos", "out", "is required"),
    ("demos --out d --episodes 0", "episodes", "greater than 0"),
    ("demos --out d --num-workers 2 --env.suite gymnasium --env.tasks CartPole-v1", "env.suite", "no scripted expert"),
    ("demos --out d --demos.speed -1", "demos.speed", "greater than 0"),
    ("demos --out d --clone.updates 5", "clone", "unknown key"),
    ("demos --out d --env.suite gymnasium --env.tasks CartPole-v1", "env.suite", "no scripted expert"),
    ("clone --out p", "data", "is required"),
    ("clone --out p --data nowhere", "data", "accerl demos --out nowhere"),
    ("status nothing", "run", "there is no run 'nothing'"),
    ("stop", "run", "is required"),
    ("attach nothing", "run", "there is no run 'nothing'"),
    ("attach one two", "two", "belongs to no option"),
    ("doctor --fast", "fast", "unknown key"),
]


@pytest.fixture(autouse=True)
def in_a_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("[learner\npolicy_lr = 1e-4")
    (tmp_path / "typo.toml").write_text("[replay]\ncapacity = 5")
    (tmp_path / "conflict.toml").write_text("[learner]\nbatch_decisions = 9999")


@pytest.mark.parametrize(("line", "field", "part"), WRONG, ids=[line for line, _, _ in WRONG])
def test_it_is_refused_in_one_line_that_names_the_field(line, field, part, capsys, tmp_path):
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (message,) = printed.err.splitlines()
    assert message.startswith(f"accerl: error: {field}")
    assert message.removeprefix(f"accerl: error: {field}")[0] in ":."
    assert part in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.toml", "conflict.toml", "typo.toml"]


def test_a_process_ends_with_code_2_and_prints_no_traceback():
    command = [sys.executable, "-m", "accerl.cli", "train", "--seed", "x"]
    ended = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert ended.returncode == 2
    assert ended.stdout == ""
    (message,) = ended.stderr.splitlines()
    assert message.startswith("accerl: error: seed: ")


def test_debug_shows_where_an_error_came_from():
    with pytest.raises(ConfigError, match=r"^seed: "):
        main(["train", "--seed", "x", "--debug"])


def test_python_a_file_and_the_command_line_refuse_in_the_same_words(capsys, tmp_path):
    wrong: dict[str, Any] = {"learner": {"polcy_lr": "1e-4"}}
    with pytest.raises(ConfigError) as in_python:
        RunConfig(**wrong)
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    for line in ("train --config wrong.json", "train --learner.polcy-lr 1e-4"):
        assert main(line.split()) == 2
        assert capsys.readouterr().err == f"accerl: error: {in_python.value}\n"


def test_a_failure_that_is_not_the_users_has_code_1_and_one_line_too(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = "demos --out file/below --env.suite dots --env.tasks red --demos.episodes-per-task 1 --demos.speed 1"
    assert main(line.split()) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("accerl: error: ")
    assert "file/below" in message
