"""The shard's actor without a cluster: what it restores, what it refuses to take twice, who is told of room."""

from __future__ import annotations

import asyncio
import errno
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accerl import trajectories
from accerl.config import RunConfig, merge
from accerl.replay.snapshot import Checkpoint
from accerl.runtime.actors import replay
from accerl.runtime.actors.replay import ReplayActor
from accerl.runtime.actors.role import Wiring
from accerl.types import Trajectory, TrajectoryRefused
from tests.roles.fakes import tiny_policy, trajectory
from tests.roles.test_replay_orders import segment

CHECKPOINT = Checkpoint(version=3, first_episode=2)


def actor(root: Path, started: str = "first", **fields: Any) -> ReplayActor:
    sizes = {"capacity_decisions": 64, "min_decisions": 1, "max_reuse": 2}
    small = {"rollout": {"segment_decisions": 4}, "learner": {"batch_decisions": 8}, "trace": {"enabled": False}}
    env = {"tasks": ("red",), "chunk_length": 2}
    config = RunConfig(**merge({"root": root, "replay": sizes, "env": env, **small}, fields))
    facts = {"started": started, "checkpoint": CHECKPOINT, "policy": tiny_policy().config_dict()}
    wiring: dict[str, Any] = dict.fromkeys(Wiring.__dataclass_fields__)
    return ReplayActor(config, 0, Wiring(**wiring | facts))


async def filled(shard: ReplayActor) -> ReplayActor:
    for number in range(4):
        assert await shard.push(trajectory(3, seed=number, episode=number))
    await shard.snapshot()
    return shard


def episodes(shard: ReplayActor) -> list[int]:
    return sorted(asyncio.run(shard.episodes()))


def test_a_restarted_shard_holds_what_the_one_before_held_and_takes_none_of_it_again(tmp_path: Path) -> None:
    async def play() -> None:
        first = await filled(actor(tmp_path))
        await first.sample(3, batch=9, timeout_s=1)
        second = actor(tmp_path)
        assert await second.push(trajectory(3, seed=1, episode=1)), "its worker had no answer"
        health = await second.health()
        assert (health["decisions"], health["unused"], health["lent"], health["progress"]) == (12, 9, 3, 12)
        assert await second.push(trajectory(3, seed=1, first_step=3, episode=1))
        assert (await second.health())["decisions"] == 15

    asyncio.run(play())


def test_a_shard_of_a_resumed_run_holds_no_episode_that_is_played_again(tmp_path: Path) -> None:
    asyncio.run(filled(actor(tmp_path)))
    resumed = actor(tmp_path, started="second")
    assert episodes(resumed) == [0, 1]
    assert episodes(actor(tmp_path, started="second")) == [0, 1], "it has a snapshot of its own at once"
    asyncio.run(resumed.push(trajectory(3, seed=1, episode=2)))
    assert episodes(resumed) == [0, 1, 2]


def test_a_shard_that_dies_loses_nothing_that_it_has_answered_for(tmp_path: Path) -> None:
    async def play() -> None:
        first = await filled(actor(tmp_path))
        for number in (4, 5):
            assert await first.push(trajectory(3, seed=number, episode=number))
        second = actor(tmp_path)
        assert await second.push(trajectory(3, seed=5, episode=5)), "its worker had no answer"
        assert sorted(await second.episodes()) == [0, 1, 2, 3, 4, 5]

    asyncio.run(play())


def test_without_snapshots_nothing_is_written(tmp_path: Path) -> None:
    off: dict[str, Any] = {"replay.snapshots": False}
    asyncio.run(filled(actor(tmp_path, **off)))
    assert not (tmp_path / "run" / "replay").exists() or not any((tmp_path / "run" / "replay").iterdir())
    assert episodes(actor(tmp_path, **off)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"rollout.max_policy_lag": 1, "rollout.episodes_per_round": 2},
        {"mode": "sync", "rollout.episodes_per_round": 2},
    ],
    ids=str,
)
def test_where_staleness_is_bounded_a_resumed_run_begins_empty(fields: dict[str, Any], tmp_path: Path) -> None:
    asyncio.run(filled(actor(tmp_path, **fields)))
    assert episodes(actor(tmp_path, **fields)) == [0, 1, 2, 3]
    assert episodes(actor(tmp_path, started="second", **fields)) == []


def test_a_snapshot_that_cannot_be_read_leaves_an_empty_shard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asyncio.run(filled(actor(tmp_path)))
    (snapshot,) = (tmp_path / "run" / "replay" / "shard-0").glob("snapshot-*")
    next(snapshot.glob("*.safetensors")).write_bytes(b"torn")
    second = actor(tmp_path)
    assert episodes(second) == []
    assert "begins empty" in capsys.readouterr().err
    asyncio.run(filled(second))
    assert episodes(actor(tmp_path)) == [0, 1, 2, 3]


def test_a_snapshot_that_does_not_fit_on_the_disk_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save = trajectories.save

    def full(path: Path, trajectory: Trajectory) -> None:
        if trajectory.episode > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, trajectory)

    async def play() -> None:
        shard = await filled(actor(tmp_path))
        monkeypatch.setattr(trajectories, "save", full)
        await shard.push(trajectory(3, seed=9, episode=9))
        await shard.snapshot()

    asyncio.run(play())
    said = capsys.readouterr().err
    assert "what came was not written" in said and "the snapshot was not written" in said
    assert episodes(actor(tmp_path)) == [0, 1, 2, 3]


def test_a_shard_is_whole_again_soon_after_the_disk_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        shard = await filled(actor(tmp_path))
        working = asyncio.create_task(shard.work(0))
        with monkeypatch.context() as full:
            full.setattr(trajectories, "save", no_room)
            await shard.push(trajectory(3, seed=9, episode=9))
        for _ in range(200):
            await asyncio.sleep(0.01)
            if len(list((tmp_path / "run" / "replay" / "shard-0" / "snapshot-00000002").glob("*.safetensors"))) == 5:
                break
        working.cancel()

    monkeypatch.setattr(replay, "AGAIN_AFTER_S", 0.01)
    asyncio.run(play())
    assert episodes(actor(tmp_path)) == [0, 1, 2, 3, 9]


def no_room(path: Path, trajectory: Trajectory) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_worker_that_waits_for_room_goes_on_when_what_is_too_old_is_let_go(tmp_path: Path) -> None:
    async def play() -> None:
        limits: dict[str, Any] = {"replay.max_age_versions": 1, "replay.capacity_decisions": 16}
        shard = actor(tmp_path, **limits)
        for number in range(4):
            await shard.push(segment(4, number))
        waiting = asyncio.create_task(shard.push(replace(segment(4, 9, version=5), episode=1)))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await shard.sample(4, batch=5, timeout_s=0.05) == []
        assert await asyncio.wait_for(waiting, 5)
        assert (await shard.health())["aged"] == 16

    asyncio.run(play())


def test_the_newest_trajectories_are_kept_up_to_a_number_and_a_size(tmp_path: Path) -> None:
    async def play() -> None:
        larger: dict[str, Any] = {"replay.capacity_decisions": 256}
        shard = actor(tmp_path, **larger)
        for number in range(40):
            await shard.push(trajectory(1, seed=number, episode=number))
        assert [each.episode for each in (await shard.recent(100))[1]] == list(range(8, 40))

    asyncio.run(play())


def test_a_shard_refuses_what_cannot_be_trained_on_and_counts_it(tmp_path: Path) -> None:
    async def play() -> None:
        shard = actor(tmp_path)
        assert await shard.push(trajectory(3, seed=1, episode=1)) is True
        bad = trajectory(3, seed=2, episode=2, value=np.full(3, np.nan, np.float32))
        answer = await shard.push(bad)
        assert isinstance(answer, TrajectoryRefused)
        assert str(answer) == "worker/0/2, red, episode 2: value is not finite"
        assert str(pickle.loads(pickle.dumps(answer))) == str(answer), "it goes to the worker"
        health = await shard.health()
        assert (health["refused"], health["decisions"], health["discarded"]) == (1, 3, 0)
        assert await shard.episodes() == [1]

    asyncio.run(play())
