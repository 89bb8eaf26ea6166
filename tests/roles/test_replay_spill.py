"""Images that do not fit in memory: read back to the last bit, gone when their segments are."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accerl import trajectories
from accerl.config import ConfigError, ReplayConfig
from accerl.replay import Replay
from accerl.replay.spill import MIB, SegmentFiles
from accerl.types import BatchRule, Trajectory
from tests.roles.fakes import trajectory
from tests.roles.test_replay_snapshot import equal

IMAGE = 104  # of 3 frames with a camera of 104 pixels a side, 10 segments are 0.93 MiB


def pictured(number: int, **fields: Any) -> Trajectory:
    images = np.random.default_rng(number).integers(0, 256, (3, 1, IMAGE, IMAGE, 3), dtype=np.uint8)
    return trajectory(2, seed=number, images=images, episode=number, **fields)


def spilling(folder: Path, order: Any = "least_used", **fields: Any) -> tuple[Replay, SegmentFiles]:
    config = ReplayConfig(**{"order": order, "capacity_decisions": 60, "min_decisions": 1, "memory_mb": 1} | fields)
    files = SegmentFiles(folder, config.memory_mb, config.order)
    return Replay(config, files=files), files


def on_disk(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.iterdir()}


def test_what_comes_back_from_the_disk_is_what_was_pushed(tmp_path: Path) -> None:
    replay, files = spilling(tmp_path)
    pushed = {number: pictured(number, success=number % 2 == 0, terminal=True) for number in range(30)}
    for each in pushed.values():
        replay.push(each)
    assert len(on_disk(tmp_path)) == 20
    assert files.memory_bytes <= MIB
    given = replay.sample(60, batch=0)
    assert sorted(each.episode for each in given) == sorted(pushed)
    assert all(equal(each, pushed[each.episode]) for each in given)
    assert files.memory_bytes <= MIB, "what is read is not kept"


@pytest.mark.parametrize(
    ("order", "fields", "expected"),
    [("fifo", {"max_reuse": 1}, {10, 11}), ("ring", {}, {0, 1}), ("least_used", {}, {0, 1})],
)
def test_what_is_needed_last_goes_first(order: str, fields: dict[str, int], expected: set[int], tmp_path: Path) -> None:
    replay, _ = spilling(tmp_path, order, **fields)
    for number in range(12):
        replay.push(pictured(number))
    assert len(on_disk(tmp_path)) == 2
    assert on_disk(tmp_path) == expected


def test_used_ones_go_before_unused_ones(tmp_path: Path) -> None:
    replay, _ = spilling(tmp_path)
    for number in range(10):
        replay.push(pictured(number))
    used = {each.episode for each in replay.sample(4)}
    replay.push(pictured(10))
    replay.push(pictured(11))
    assert on_disk(tmp_path) == used


def test_a_file_goes_when_nobody_needs_its_segment(tmp_path: Path) -> None:
    replay, _ = spilling(tmp_path, max_reuse=1)
    for number in range(30):
        replay.push(pictured(number))
    replay.take(60, BatchRule(), batch=3)
    assert len(on_disk(tmp_path)) >= 20, "the learner may die with them"
    assert replay.reclaim() == 60
    again = replay.take(60, BatchRule(), batch=4)
    assert all(equal(each, pictured(each.episode)) for each in again)
    replay.confirm(4)
    assert on_disk(tmp_path) == set()


def test_what_a_full_shard_lets_go_leaves_no_file(tmp_path: Path) -> None:
    replay, files = spilling(tmp_path, "ring")
    for number in range(60):
        assert replay.push(pictured(number))
    assert len(on_disk(tmp_path)) == 20
    assert files.memory_bytes <= MIB


def test_files_of_a_process_that_died_are_removed(tmp_path: Path) -> None:
    (tmp_path / "00000007.safetensors").write_bytes(b"old")
    spilling(tmp_path)
    assert on_disk(tmp_path) == set()


def test_a_full_disk_is_named_with_the_setting_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, trajectory: Trajectory) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    replay, _ = spilling(tmp_path)
    monkeypatch.setattr(trajectories, "save", full)
    with pytest.raises(ConfigError, match=r"replay\.memory_mb: .*No space left on device.* raise replay\.memory_mb"):
        push_all(replay.push)


def push_all(push: Callable[[Trajectory], bool]) -> None:
    for number in range(30):
        push(pictured(number))
