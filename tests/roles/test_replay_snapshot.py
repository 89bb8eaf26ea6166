"""Snapshots: what comes back is what was there when the process ended, to the last bit."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import random
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accerl.config import ReplayConfig
from accerl.replay import Replay
from accerl.replay.journal import Snapshots, clean
from accerl.replay.snapshot import Checkpoint
from accerl.replay.spill import SegmentFiles
from accerl.types import BatchRule, Trajectory
from tests.roles.test_replay_orders import KINDS, origins, segment, sized

COUNTERS = ("num", "unused", "lent", "pushed", "used", "sampled", "aged", "discarded")


def equal(ours: Trajectory, others: Trajectory) -> bool:
    """Field by field and bit by bit."""

    def same(value: Any, other: Any) -> bool:
        if isinstance(value, dict):
            return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
        if isinstance(value, np.ndarray):
            return value.dtype == other.dtype and value.shape == other.shape and value.tobytes() == other.tobytes()
        return value == other

    names = (field.name for field in dataclasses.fields(Trajectory))
    return all(same(getattr(ours, name), getattr(others, name)) for name in names)


def counters(replay: Replay) -> dict[str, int]:
    return {name: getattr(replay, f"{name}_decisions") for name in COUNTERS}


def held(replay: Replay) -> dict[str, tuple[int, int | None]]:
    """Origin to uses and the batch that it is lent in, for all that is held or lent."""
    entries = (*replay._stock, *replay._lent)
    return {entry.trajectory.origin: (entry.uses, entry.batch) for entry in entries}


class Shard:
    """A replay with its folder, as the actor keeps it."""

    def __init__(self, folder: Path, config: ReplayConfig, start: str = "first"):
        self.folder = folder
        self.files = SegmentFiles(folder / "segments", config.memory_mb, config.order)
        self.snapshots = Snapshots(folder, self.files, start)
        self.replay = Replay(config, 0, files=self.files, snapshots=self.snapshots)

    def snapshot(self) -> None:
        content = self.replay.content()
        self.snapshots.begin()
        self.snapshots.write(content)
        self.snapshots.finish()
        self.snapshots.tidy()

    def restored(self, checkpoint: Checkpoint | None = None, config: ReplayConfig | None = None) -> Shard:
        """Another process, after this one was killed."""
        other = Shard(self.folder, config or sized())
        assert other.snapshots.newest is not None
        other.replay.load(other.snapshots.newest, checkpoint)
        return other


def busy(replay: Replay, steps: int, chance: random.Random, pushes: bool = True, batch: int = 0) -> int:
    """Some operations at random; returns the newest batch."""
    for _ in range(steps):
        match chance.choice(("push", "push", "sample", "sample", "take", "confirm", "reclaim")):
            case "push" if pushes:
                ended = chance.random() < 0.4
                number, success = chance.randrange(10**9), ended and chance.random() < 0.5
                version = max(0, batch - chance.randrange(3))
                replay.push(segment(chance.randint(1, 6), number, version, terminal=ended, success=success))
            case "sample":
                replay.sample(chance.randint(1, 9), batch := batch + 1)
            case "take":
                replay.take(chance.randint(1, 9), BatchRule(), batch := batch + 1)
            case "confirm":
                replay.confirm(batch - chance.randrange(3))
            case "reclaim" if chance.random() < 0.3:
                replay.reclaim()
    return batch


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_saved_shard_goes_on_where_it_was(kind: dict[str, Any], tmp_path: Path) -> None:
    config = sized(**kind)
    for seed in range(8):
        first, second = Replay(config, seed), Replay(config, seed + 1)
        busy(first, 40, random.Random(seed))
        folder = tmp_path / str(seed)
        folder.mkdir()
        first.save(folder)
        second.load(folder)
        assert counters(first) == counters(second)
        assert held(first) == held(second)
        ours, others = (
            [replay.sample(4, batch) for batch in range(50, 53) if replay.push(segment(3, batch, 50))]
            for replay in (first, second)
        )
        assert [origins(batch) for batch in ours] == [origins(batch) for batch in others]
        pairs = zip((part for batch in ours for part in batch), (part for b in others for part in b), strict=True)
        assert all(equal(one, other) for one, other in pairs)


def test_what_was_lent_when_it_was_saved_is_unused_again_for_the_next_learner(tmp_path: Path) -> None:
    first, second = Replay(sized(max_reuse=1)), Replay(sized(max_reuse=1))
    for origin in range(3):
        first.push(segment(2, origin))
    first.take(2, BatchRule(), batch=0)
    first.take(2, BatchRule(), batch=1)
    first.confirm(0)
    first.save(tmp_path)
    second.load(tmp_path)
    assert (second.unused_decisions, second.lent_decisions, second.used_decisions) == (2, 2, 4)
    assert second.reclaim() == 2
    assert sorted(origins(second.sample(4, batch=1))) == ["1", "2"]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_shard_that_was_killed_comes_back_as_it_was(kind, tmp_path: Path) -> None:
    config = sized(**kind)
    for seed in range(8):
        chance = random.Random(seed)
        shard = Shard(tmp_path / str(seed), config)
        batch = busy(shard.replay, 30, chance)
        shard.snapshot()
        busy(shard.replay, 40, chance, batch=batch)
        shard.replay.push(segment(2, 7))
        restored = shard.restored(config=config).replay
        assert counters(restored) == counters(shard.replay)
        assert held(restored) == held(shard.replay)
        assert restored.pushed_decisions == (
            restored.used_decisions + restored.unused_decisions + restored.discarded_decisions + restored.aged_decisions
        )


def test_no_decision_is_used_too_often_however_often_its_shard_is_killed(tmp_path: Path) -> None:
    config = sized()
    chance = random.Random(0)
    shard, uses = Shard(tmp_path, config), Counter[str]()
    for origin in range(60):
        shard.replay.push(segment(2, origin))
        uses.update(origins(shard.replay.sample(5, origin)))
        shard.replay.confirm(origin)
        if chance.random() < 0.2:
            shard.snapshot()
        if chance.random() < 0.2 and shard.snapshots.newest is not None:
            shard = shard.restored()
            shard.snapshot()
    assert max(uses.values()) == config.max_reuse


def test_events_while_a_snapshot_is_written_are_in_it(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized(max_reuse=1))
    for origin in range(4):
        shard.replay.push(segment(2, origin))
    content = shard.replay.content()
    shard.snapshots.begin()
    shard.replay.take(2, BatchRule(), batch=0)
    shard.replay.confirm(0)
    shard.snapshots.write(content)
    shard.replay.take(2, BatchRule(), batch=1)
    shard.snapshots.finish()
    restored = shard.restored(config=sized(max_reuse=1)).replay
    assert held(restored) == held(shard.replay) == {"1": (1, 1), "2": (0, None), "3": (0, None)}
    assert {file.name for file in (tmp_path / "segments").iterdir()} == {
        f"{number:08d}.safetensors" for number in (1, 2, 3)
    }


def test_an_interrupted_snapshot_leaves_the_one_before(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized())
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    shard.replay.push(segment(3, 1))
    shard.snapshots.begin()
    shard.snapshots.write(shard.replay.content())
    shard.replay.sample(6)
    restored = shard.restored()
    assert held(restored.replay) == {"0": (1, 0), "1": (1, 0)}
    assert [path.name for path in tmp_path.glob("*snapshot*")] == ["snapshot-00000000"]


def test_what_comes_while_a_snapshot_is_written_is_in_it(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized(max_reuse=1))
    shard.snapshot()
    for origin in range(2):
        shard.replay.push(segment(2, origin))
    content = shard.replay.content()
    shard.snapshots.begin()
    shard.replay.push(segment(2, 2))
    shard.replay.push(segment(2, 3))
    shard.snapshots.write(content)
    shard.replay.take(6, BatchRule(), batch=0)
    shard.replay.confirm(0)
    shard.snapshots.finish()
    shard.snapshots.tidy()
    shard.replay.push(segment(2, 4))
    restored = shard.restored(config=sized(max_reuse=1)).replay
    assert held(restored) == held(shard.replay) == {"3": (0, None), "4": (0, None)}


def test_what_came_and_went_since_the_snapshot_is_off_the_disk(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized(max_reuse=1))
    shard.snapshot()
    for origin in range(3):
        shard.replay.push(segment(2, origin))
    shard.replay.take(4, BatchRule(), batch=0)
    shard.replay.confirm(0)
    assert [path.name for path in tmp_path.glob("*/*.safetensors")] == ["00000002.safetensors"] * 2
    assert held(shard.restored(config=sized(max_reuse=1)).replay) == {"2": (0, None)}


def test_segments_are_written_once_for_all_snapshots(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized())
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    shard.snapshot()
    (file,) = (tmp_path / "segments").iterdir()
    (copy,) = tmp_path.glob("snapshot-*/*.safetensors")
    assert copy.samefile(file)
    assert len(list(tmp_path.glob("snapshot-*"))) == 1


def test_a_full_disk_leaves_the_snapshot_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(tmp_path, sized())
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    shard.snapshots.begin()
    shard.replay.sample(3)
    shard.snapshots.abandon()
    assert held(shard.restored().replay) == held(shard.replay) == {"0": (1, 0)}


def test_a_journal_that_cannot_be_written_takes_its_snapshot_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Otherwise it would bring back what was used up."""

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shard = Shard(tmp_path, sized())
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        assert shard.replay.sample(3)
    assert not any(tmp_path.glob("snapshot-*"))
    shard.replay.sample(3)
    shard.snapshot()
    assert held(shard.restored().replay) == {"0": (2, 0)}


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_back_to_its_checkpoint(tmp_path: Path) -> None:
    """The learner had trained on the batches below 4, and episode 6 is the first one that is played again."""
    config = sized(order="fifo", max_reuse=1, capacity_decisions=40)
    shard = Shard(tmp_path, config)
    for number in range(9):
        shard.replay.push(segment(2, number, episode=number))
    for batch in (2, 3, 4):
        shard.replay.take(2, BatchRule(), batch)
    shard.snapshot()
    shard.replay.confirm(3)
    shard.replay.take(2, BatchRule(), batch=5)
    shard.replay.confirm(5)
    restored = shard.restored(Checkpoint(version=4, first_episode=6), config).replay
    assert held(restored) == {str(number): (0, None) for number in (2, 3, 4, 5)}
    assert (restored.pushed_decisions, restored.used_decisions, restored.unused_decisions) == (12, 4, 8)
    assert restored.sampled_decisions == 4
    assert restored.discarded_decisions == 0


def test_what_was_let_go_after_the_checkpoint_is_there_again(tmp_path: Path) -> None:
    config = sized(capacity_decisions=4, max_reuse=2)
    shard = Shard(tmp_path, config)
    shard.replay.push(segment(4, 0, episode=0))
    shard.snapshot()
    shard.replay.sample(4, batch=1)
    shard.replay.confirm(1)
    shard.replay.push(segment(4, 1, episode=1))
    assert held(shard.replay) == {"1": (0, None)}
    assert held(shard.restored(Checkpoint(version=1, first_episode=1), config).replay) == {"0": (0, None)}


def test_a_snapshot_knows_whether_its_run_was_resumed_since(tmp_path: Path) -> None:
    shard = Shard(tmp_path, sized(), start="first")
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    assert Shard(tmp_path, sized(), start="first").snapshots.is_of_this_start
    assert not Shard(tmp_path, sized(), start="second").snapshots.is_of_this_start


def test_a_snapshot_of_another_format_is_refused(tmp_path: Path) -> None:
    Replay(sized()).save(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(ValueError, match="another format"):
        Replay(sized()).load(tmp_path)


def test_a_run_that_has_ended_leaves_nothing_but_snapshots_and_those_only_to_be_resumed(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "shard-0", sized())
    shard.replay.push(segment(3, 0))
    shard.snapshot()
    Shard(tmp_path / "shard-1", sized())
    clean(tmp_path, keeps_snapshots=True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == ["shard-0/snapshot-00000000"]
    clean(tmp_path, keeps_snapshots=False)
    assert not tmp_path.exists()


def test_a_shard_that_still_writes_when_its_run_has_ended_leaves_nothing(tmp_path: Path) -> None:
    segments = Shard(tmp_path / "shard-0", sized()).folder / "segments"
    writes = threading.Event()

    def write() -> None:
        with suppress(FileNotFoundError):  # as soon as the folder is gone
            for number in itertools.count():
                (segments / str(number)).write_bytes(b"images")
                if number == 100:
                    writes.set()

    writer = threading.Thread(target=write)
    writer.start()
    writes.wait()
    clean(tmp_path, keeps_snapshots=False)
    writer.join()
    assert not tmp_path.exists()
