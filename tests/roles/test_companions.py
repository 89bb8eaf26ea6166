"""Models that learn beside the policy: whole or not there, and kept for as long as a checkpoint names them."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from accerl.companions import CompanionWriter, list_companions, newest_whole, recover, write
from accerl.tensor_files import Digest, write_tensors


class Kept:
    """The folders of a run, and what its controller would know."""

    def __init__(self, folder: Path):
        self.world, self.checkpoints = folder / "world", folder / "checkpoints"
        self.newest: dict[str, str] = {}
        self.under_way: list[str] = []
        self.failures: list[str] = []

    def writer(self, name: str) -> CompanionWriter:
        def accompany(written: str) -> list[str]:
            self.newest[name] = written
            return self.under_way

        return CompanionWriter(self.world, self.checkpoints, name, accompany, self.failures.append)

    def checkpoint(self, updates: int, named: Mapping[str, str]) -> Path:
        folder = self.checkpoints / f"step-{updates:08d}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"companions": dict(named)}))
        return folder

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.world.iterdir())


def fill(folder: Path) -> Mapping[str, Digest]:
    (folder / "model.json").write_text("{}")
    return {"model.safetensors": write_tensors(folder / "model.safetensors", {"weight": torch.arange(8.0)})}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_no_checkpoint_names_goes_but_for_the_newest_two(kept: Kept):
    writer = kept.writer("observation")
    for updates in (20, 40, 60, 80, 100):
        writer.save(updates, fill)
        if updates == 40:
            kept.checkpoint(1, kept.newest)
    assert kept.names == [f"observation-{updates:08d}" for updates in (40, 80, 100)]
    assert kept.newest == {"observation": "observation-00000100"}


def test_what_a_checkpoint_names_that_is_being_written_stays(kept: Kept):
    writer = kept.writer("observation")
    writer.save(20, fill)
    kept.under_way = ["observation-00000020"]
    for updates in (40, 60, 80):
        writer.save(updates, fill)
    assert kept.names == [f"observation-{updates:08d}" for updates in (20, 60, 80)]


def test_trainers_do_not_remove_what_is_anothers(kept: Kept):
    for updates in (20, 40, 60):
        kept.writer("reward").save(updates, fill)
        kept.writer("reward-of-mine").save(updates, fill)
    assert [path.name for path in list_companions(kept.world, "reward")] == ["reward-00000040", "reward-00000060"]
    assert len(list_companions(kept.world, "reward-of-mine")) == 2


def test_a_run_goes_on_from_the_models_that_its_newest_checkpoint_names(kept: Kept):
    for updates in (20, 40):
        write(kept.world, "observation", updates, fill)
        kept.checkpoint(updates, {"observation": f"observation-{updates:08d}"})
    for name, updates in (("observation", 60), ("reward", 10)):  # the policy has not seen what these have
        write(kept.world, name, updates, fill)
    (kept.world / ".observation-00000080.77.tmp").mkdir()
    assert recover(kept.world, kept.checkpoints) == []
    assert kept.names == ["observation-00000020", "observation-00000040"]


def test_without_a_checkpoint_nothing_that_was_learned_is_left(kept: Kept):
    write(kept.world, "observation", 20, fill)
    assert recover(kept.world, kept.checkpoints) == []
    assert kept.names == []


def test_one_without_a_manifest_is_damaged(kept: Kept):
    write(kept.world, "observation", 20, fill)
    (kept.world / "observation-00000020" / "checkpoint.json").unlink()
    newest = newest_whole(kept.world, "observation")
    assert newest.folder is None and list(newest.damaged.values()) == ["checkpoint.json: missing"]


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_instead_of_a_damaged_one_the_one_before_is_taken_and_that_is_said(kept: Kept, file: str):
    for updates in (20, 40):
        write(kept.world, "observation", updates, fill)
        kept.checkpoint(updates, {"observation": f"observation-{updates:08d}"})
    flip(kept.world / "observation-00000040" / file)
    (sentence,) = recover(kept.world, kept.checkpoints)
    assert sentence == (
        f"observation-00000040, which step-00000040 names, is damaged ({file}: checksum); "
        "going on from observation-00000020"
    )
    assert kept.names == ["damaged-observation-00000040", "observation-00000020"]
    assert newest_whole(kept.world, "observation").folder == kept.world / "observation-00000020"


def test_where_none_is_left_the_run_begins_with_what_it_was_given_and_that_is_said(kept: Kept):
    kept.checkpoint(40, {"observation": "observation-00000040"})
    (sentence,) = recover(kept.world, kept.checkpoints)
    assert sentence.endswith("names, is missing; going on from what the run was given")


def test_a_full_disk_is_said_once_and_the_next_one_is_tried(kept: Kept):
    def full(folder: Path) -> Mapping[str, Digest]:
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = kept.writer("observation")
    writer.save(20, fill)
    for updates in (40, 60):
        writer.save(updates, full)
    assert kept.failures == ["observation-00000040 was not written (No space left on device)"]
    assert kept.names == ["observation-00000020"] and kept.newest == {"observation": "observation-00000020"}
    writer.save(80, fill)
    writer.save(100, full)
    assert kept.newest == {"observation": "observation-00000080"} and len(kept.failures) == 2
