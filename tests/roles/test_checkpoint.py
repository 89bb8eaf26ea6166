"""Checkpoints: all or nothing, the newest few, and everything that an update depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from accerl import checkpoint
from accerl.checkpoint import (
    Content,
    best_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_policy,
    newest_whole,
    recover,
    save_checkpoint,
    save_policy,
)
from accerl.config import ConfigError, LearnerConfig, ObjectiveConfig
from accerl.files import append_line, read_lines, replaced, sweep, within, write_file
from accerl.learner import Learner
from accerl.packing import pack
from accerl.policies.tiny_vla import TinyVLA
from tests.roles.fakes import tiny_policy, trajectory

BATCH = pack([trajectory(3, seed=1), trajectory(2, seed=2, terminal=True)], chunk_length=2)


def learner_of(policy: TinyVLA, **objective: Any) -> Learner:
    return Learner(policy, LearnerConfig(value_warmup_updates=0), ObjectiveConfig(**objective))


def content_of(learner: Learner, score: float | None = None) -> Content:
    return Content(
        policy_config=learner.policy.config_dict(),
        policy=learner.weights().tensors,
        learner=learner.state_dict(),
        run={"decisions": 7, "score": score},
    )


def saved(folder: Path, learner: Learner, keep: int = 2, score: float | None = None) -> Path:
    return save_checkpoint(folder, content_of(learner, score), keep)


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


def test_sweeping_removes_what_killed_writers_left_and_puts_back_what_was_being_replaced(tmp_path: Path):
    folder = tmp_path / "step-00000003"
    with replaced(folder) as temporary:
        (temporary / "a").write_text("whole")
    folder.rename(tmp_path / ".step-00000003.77.old")  # killed between its two renamings
    (tmp_path / ".step-00000003.77.tmp").mkdir()
    (tmp_path / ".step-00000001.77.gone").mkdir()
    (tmp_path / ".best.77.tmp").symlink_to("step-00000003")
    (tmp_path / ".keep").write_text("somebody else's")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keep", "step-00000003"]
    assert (folder / "a").read_text() == "whole"


def test_lines_go_on_after_one_that_was_cut_off(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    assert append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')
    assert append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


@pytest.mark.parametrize("name", ["", ".", "..", "../token", "/etc/passwd", "a/b", "a\0"])
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, name: str):
    assert within(tmp_path, "shard-0.safetensors") == tmp_path / "shard-0.safetensors"
    with pytest.raises(ConfigError, match="which is no file in it"):
        within(tmp_path, name)


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
    assert run == {"decisions": 7, "score": None}
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
    (path / "checkpoint.json").unlink()
    content = json.loads((path / "learner.json").read_text())
    (path / "learner.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ConfigError, match="written in another format; this version reads format 1"):
        load_checkpoint(path)


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    """One bit, counted from the end where negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def cut(path: Path, place: int) -> None:
    path.write_bytes(path.read_bytes()[:place])


FILES = ["policy.json", "policy.safetensors", "learner.json", "learner.safetensors", "run.json"]


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    learner = learner_of(tiny_policy())
    for updates in (1, 2, 3):
        learner.updates = updates
        saved(tmp_path, learner, keep=3)
    return list_checkpoints(tmp_path)


@pytest.mark.parametrize("name", [*FILES, "checkpoint.json"])
@pytest.mark.parametrize(("damage", "place"), [(flip, 3), (flip, -2), (cut, -3), (cut, 0)])
def test_a_damaged_checkpoint_is_passed_over_and_said(three: list[Path], name: str, damage: Any, place: int):
    damage(three[2] / name, place)
    newest = newest_whole(three[0].parent)
    assert newest.folder == three[1]
    (said,) = newest.report()
    assert said.startswith(f"step-00000003 is damaged ({name}: ")
    assert said.endswith("; going on from step-00000002")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_damage_too(three: list[Path], name: str):
    (three[2] / name).unlink()
    assert newest_whole(three[0].parent).report() == [
        f"step-00000003 is damaged ({name}: missing); going on from step-00000002"
    ]


def test_a_damaged_file_is_refused_by_whoever_reads_it(three: list[Path]):
    flip(three[2] / "learner.safetensors", -2)
    load_policy(three[2])
    with pytest.raises(ConfigError, match=r"resume: .*step-00000003 is damaged \(learner\.safetensors: checksum\)"):
        load_checkpoint(three[2])
    flip(three[1] / "policy.safetensors", -2)
    load_checkpoint(three[1])
    with pytest.raises(ConfigError, match=r"policy\.checkpoint: .*00002 is damaged \(policy\.safetensors: checksum\)"):
        load_policy(three[1])


def test_of_damaged_ones_only_nothing_is_begun_again_unasked(three: list[Path]):
    for path in three:
        cut(path / "run.json", 1)
    with pytest.raises(ConfigError, match=r"no checkpoint in .* is whole \(step-00000003 is damaged \(run\.json: 1 by"):
        newest_whole(three[0].parent)


def test_what_is_resumed_sets_the_damaged_ones_aside(three: list[Path]):
    flip(three[2] / "policy.safetensors", -2)
    assert recover(three[0].parent).folder == three[1]
    assert names(three[0].parent) == ["step-00000001", "step-00000002"]
    assert (three[0].parent / "damaged-step-00000003" / "policy.safetensors").exists()
    assert recover(three[0].parent).damaged == {}


@pytest.mark.parametrize(("name", "place"), [("learner.safetensors", -3), ("policy.safetensors", 5), ("run.json", 1)])
def test_a_checkpoint_of_an_older_version_is_checked_as_far_as_can_be(three: list[Path], name: str, place: int):
    for path in three:
        (path / "checkpoint.json").unlink()
    assert newest_whole(three[0].parent).folder == three[2]
    cut(three[2] / name, place)
    assert newest_whole(three[0].parent).folder == three[1]


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '{"format": 1}', '{"format": 1, "optimizer": 3}', "\xff"])
@pytest.mark.parametrize("name", ["learner.json", "policy.json", "run.json"])
def test_whatever_stands_in_a_json_file_is_refused_as_a_setting_is(three: list[Path], name: str, text: str):
    (three[2] / "checkpoint.json").unlink()
    (three[2] / name).write_bytes(text.encode("latin-1"))
    if name == "run.json" and text.startswith("{"):
        return
    with pytest.raises(ConfigError):
        load_policy(three[2]) if name == "policy.json" else load_checkpoint(three[2])


# --- the best ---------------------------------------------------------------------------------------------------------


def test_the_best_is_kept_beside_the_newest_and_has_a_name(tmp_path: Path):
    learner = learner_of(tiny_policy())
    for updates, score in enumerate([None, 0.5, 0.9, 0.7, 0.8, 0.6], start=1):
        learner.updates = updates
        saved(tmp_path, learner, keep=2, score=score)
    assert names(tmp_path) == ["step-00000003", "step-00000005", "step-00000006"]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert (tmp_path / "best").resolve() == tmp_path / "step-00000003"
    load_policy(tmp_path / "best")
    learner.updates = 7
    saved(tmp_path, learner, keep=2, score=0.9)
    assert names(tmp_path) == ["step-00000006", "step-00000007"]
    assert (tmp_path / "best").resolve() == tmp_path / "step-00000007"


def test_without_a_score_there_is_no_best(tmp_path: Path):
    saved(tmp_path, learner_of(tiny_policy()))
    assert best_checkpoint(tmp_path) is None
    assert not (tmp_path / "best").exists()


def test_the_weights_of_the_newest_whole_checkpoint_are_those_that_were_trained(tmp_path: Path):
    assert checkpoint.newest_weights(tmp_path) is None
    learner = learner_of(tiny_policy())
    versions = {}
    for _ in range(2):
        learner.accumulate(BATCH)
        learner.step()
        versions[saved(tmp_path, learner)] = learner.version, learner.weights().tensors
    whole, newest = versions
    (newest / "learner.safetensors").write_bytes(b"")
    found = checkpoint.newest_weights(tmp_path)
    version, tensors = versions[whole]
    assert found is not None and found.version == version
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
