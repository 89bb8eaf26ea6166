"""Checkpoints: all or nothing, the newest few, and everything that an update depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accerl import checkpoint
from accerl.checkpoint import list_checkpoints, load_checkpoint, load_policy, save_checkpoint, save_policy
from accerl.config import ConfigError, LearnerConfig, ObjectiveConfig
from accerl.files import replaced, write_file
from accerl.learner import Learner
from accerl.packing import pack
from accerl.policies.tiny_vla import TinyVLA
from tests.roles.fakes import tiny_policy, trajectory

BATCH = pack([trajectory(3, seed=1), trajectory(2, seed=2, terminal=True)], chunk_length=2)


def learner_of(policy: TinyVLA, **objective: Any) -> Learner:
    return Learner(policy, LearnerConfig(value_warmup_updates=0), ObjectiveConfig(**objective))


def saved(folder: Path, learner: Learner, keep: int = 2) -> Path:
    policy = learner.policy
    return save_checkpoint(
        folder, policy.config_dict(), learner.weights().tensors, learner.state_dict(), {"decisions": 7}, keep
    )


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


# --- replaced ---------------------------------------------------------------------------------------------------------


def test_an_exception_inside_leaves_the_old_folder_and_nothing_else(tmp_path: Path):
    folder = tmp_path / "policy"
    with replaced(folder) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced(folder) as temporary:
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path):
    folder = tmp_path / "policy"
    for content in ("a", "b"):
        with replaced(folder) as temporary:
            assert not list(temporary.iterdir())
            (temporary / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_what_a_killed_writer_left_behind_is_not_a_checkpoint(tmp_path: Path):
    saved(tmp_path, learner_of(tiny_policy()))
    writer = replaced(tmp_path / "step-00000009")
    (writer.__enter__() / "policy.json").write_text("{")
    assert len(list(tmp_path.iterdir())) == 2
    assert names(tmp_path) == ["step-00000000"]


def test_a_file_is_written_with_its_mode_and_leaves_no_temporary_name(tmp_path: Path):
    path = tmp_path / "connection.json"
    path.write_text("old")
    write_file(path, "new", mode=0o600)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_policy_comes_back_as_it_was(tmp_path: Path):
    policy = tiny_policy()
    save_policy(tmp_path / "policy", policy.config_dict(), policy.state_dict())
    restored = load_policy(tmp_path / "policy")
    assert restored.config_dict() == policy.config_dict()
    assert all(torch.equal(restored.state_dict()[name], value) for name, value in policy.state_dict().items())


def test_a_folder_without_a_policy_is_refused_with_what_to_give(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"policy\.checkpoint: .* has no policy\.json; give a folder written by"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(tiny_policy().config_dict()))
    with pytest.raises(ConfigError, match=r"policy\.checkpoint: .*; give a folder written by"):
        load_policy(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused_with_what_to_give(tmp_path: Path):
    policy = tiny_policy()
    save_policy(tmp_path / "policy", policy.config_dict(), policy.state_dict())
    with pytest.raises(ConfigError, match=r"policy\.checkpoint: .*; give a folder written by"):
        load_policy(tmp_path / "policy" / "policy.safetensors")


def test_weights_of_another_shape_are_refused(tmp_path: Path):
    save_policy(tmp_path / "policy", tiny_policy().config_dict(), tiny_policy(width=64).state_dict())
    with pytest.raises(ConfigError, match=r"the weights in .* do not fit its policy\.json \(.*size mismatch"):
        load_policy(tmp_path / "policy")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_only_the_newest_few_are_kept(tmp_path: Path):
    learner = learner_of(tiny_policy())
    for updates in (1, 2, 9, 10, 11):
        learner.updates = updates
        assert saved(tmp_path, learner, keep=3) == tmp_path / f"step-{updates:08d}"
    assert names(tmp_path) == ["step-00000009", "step-00000010", "step-00000011"]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path):
    learner = learner_of(tiny_policy())
    saved(tmp_path, learner)
    learner.version = 5
    saved(tmp_path, learner)
    assert names(tmp_path) == ["step-00000000"]
    assert load_checkpoint(tmp_path / "step-00000000")[0]["version"] == 5


@pytest.mark.parametrize("objective", [{}, {"kind": "decoupled_ppo", "proximal": "snapshot", "proximal_every": 2}])
def test_a_learner_goes_on_from_its_files_bit_for_bit(tmp_path: Path, objective: dict[str, Any]):
    learner = learner_of(tiny_policy(), **objective)
    for progress in (0.0, 0.1, 0.2):
        learner.update(BATCH, progress)
    path = saved(tmp_path, learner)
    restored = learner_of(tiny_policy(3), **objective)
    restored.policy.load_state_dict(load_policy(path).state_dict())
    state, run = load_checkpoint(path)
    restored.load_state_dict(state)
    assert run == {"decisions": 7}
    assert restored.update(BATCH, 0.3) == learner.update(BATCH, 0.3)
    ours, theirs = learner.weights(), restored.weights()
    assert ours.version == theirs.version == 4
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_a_learner_can_be_saved_before_its_first_update(tmp_path: Path):
    learner = learner_of(tiny_policy())
    state, _ = load_checkpoint(saved(tmp_path, learner))
    restored = learner_of(tiny_policy())
    restored.load_state_dict(state)
    assert restored.update(BATCH) == learner.update(BATCH)


def test_the_optimizer_survives_being_flattened():
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(()))]
    optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:]}])
    sum(parameter.square().sum() for parameter in parameters).backward()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    numbers, tensors = checkpoint.flatten_optimizer(optimizer.state_dict())
    restored = checkpoint.unflatten_optimizer(json.loads(json.dumps(numbers)), tensors)
    state = optimizer.state_dict()
    assert restored["state"].keys() == state["state"].keys() == {0, 1}
    for index, entries in state["state"].items():
        assert entries.keys() == restored["state"][index].keys()
        assert all(torch.equal(restored["state"][index][name], value) for name, value in entries.items())
    assert [group["lr"] for group in restored["param_groups"]] == [0.1, 1e-3]


@pytest.mark.parametrize("missing", ["learner.json", "learner.safetensors", "run.json"])
def test_an_incomplete_checkpoint_is_refused(tmp_path: Path, missing: str):
    path = saved(tmp_path, learner_of(tiny_policy()))
    (path / missing).unlink()
    with pytest.raises(ConfigError, match=r"resume: .* is not a complete checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path):
    path = saved(tmp_path, learner_of(tiny_policy()))
    content = json.loads((path / "learner.json").read_text())
    (path / "learner.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ConfigError, match="written in another format; this version reads format 1"):
        load_checkpoint(path)
