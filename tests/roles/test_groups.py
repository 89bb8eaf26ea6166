"""Episodes that start alike are compared with one another, when all are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accerl.config import ConfigError, ReplayConfig, RunConfig, merge
from accerl.groups import Groups, groups_of
from accerl.replay import Replay
from accerl.types import Trajectory
from tests.roles.fakes import trajectory


def episode(number: int, episode_return: float, size: int = 2, **fields: Any) -> Trajectory:
    reward = np.zeros(size, np.float32)
    reward[-1] = episode_return
    return trajectory(size, seed=number, **{"episode": number, "reward": reward, "terminal": True} | fields)


def groups(size: int = 2, scale: bool = True, leave_one_out: bool = False, max_decisions: int = 100) -> Groups:
    return Groups(size, scale, leave_one_out, max_decisions)


def test_a_group_is_given_when_its_last_episode_has_come():
    held = groups(size=3)
    assert not held.add(episode(4, 0.0))
    assert not held.add(episode(3, 1.0))
    assert held.num_decisions == 4
    given = held.add(episode(5, 2.0))
    assert [each.episode for each in given] == [3, 4, 5]
    # returns 1, 0, 2: mean 1, deviation sqrt(2/3)
    assert [each.advantage for each in given] == pytest.approx([0, -np.sqrt(1.5), np.sqrt(1.5)], abs=1e-5)
    assert held.num_decisions == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"scale": False}, [-0.5, 0.5]), ({"scale": False, "leave_one_out": True}, [-1.0, 1.0])],
)
def test_what_is_compared_with_is_configured(options, expected):
    held = groups(**options)
    held.add(episode(0, 0.0))
    assert [each.advantage for each in held.add(episode(1, 1.0))] == pytest.approx(expected)


def test_groups_do_not_mix():
    held = groups()
    assert not held.add(episode(0, 1.0))
    assert not held.add(episode(3, 1.0))
    assert [each.episode for each in held.add(episode(1, 0.0))] == [0, 1]
    assert [each.episode for each in held.add(episode(2, 0.0))] == [2, 3]


def test_an_episode_that_is_played_again_takes_the_place_of_the_first():
    held = groups()
    held.add(episode(0, 0.0))
    held.add(episode(0, 1.0))
    assert [each.advantage for each in held.add(episode(1, 1.0))] == [0.0, 0.0]


def test_episodes_of_different_tasks_are_not_compared():
    held = groups()
    held.add(episode(0, 0.0, task="red"))
    assert [each.advantage for each in held.add(episode(1, 1.0, task="blue"))] == [0.0, 0.0]


def test_groups_that_will_never_be_complete_are_let_go_and_counted():
    held = groups(max_decisions=5)
    for number in (0, 2, 4):
        assert not held.add(episode(number, 0.0))
    assert (held.num_decisions, held.discarded_decisions) == (4, 2)
    assert len(held.add(episode(5, 1.0))) == 2


@pytest.mark.parametrize("fields", [{"terminal": False}, {"first_step": 2}, {"episode": -1}])
def test_only_whole_episodes_are_compared(fields):
    with pytest.raises(ValueError, match=r"a group compares whole episodes"):
        groups().add(episode(0, 1.0, **fields))


def test_the_replay_gives_groups_and_nothing_else():
    replay = Replay(ReplayConfig(capacity_decisions=4, min_decisions=1, max_reuse=1), groups=groups())
    assert replay.push(episode(0, 1.0))
    assert not replay.sample(1)
    assert replay.push(episode(1, 0.0))
    assert replay.push(episode(2, 1.0))
    assert replay.push(episode(3, 0.0)), "it is taken, although there is no room in the shard"
    assert not replay.push(episode(4, 0.0)), "no more before that"
    assert sorted(each.episode for each in replay.sample(4)) == [0, 1]
    assert replay.push(episode(4, 0.0))
    assert sorted(each.episode for each in replay.sample(4)) == [2, 3]
    assert replay.discarded_decisions == 0


def config(**overrides: Any) -> RunConfig:
    fields = {"objective.advantages": "group", "rollout.group_size": 4}
    return RunConfig(**merge({}, fields | overrides))


def test_groups_are_held_where_they_are_compared():
    assert groups_of(config()) is not None
    assert groups_of(RunConfig()) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rollout.group_size": 1}, "rollout.group_size: 1 leaves nothing"),
        ({"rollout.segment_decisions": 5}, "rollout.segment_decisions: 5 cuts episodes of up to env.max_decisions=12"),
        ({"rollout.max_policy_lag": 4}, "rollout.max_policy_lag: cuts episodes"),
        ({"replay.num_shards": 2}, "replay.num_shards: a group must come together"),
        ({"mode": "sync", "rollout.slots_per_worker": 10}, "rollout.episodes_per_round: 10 is no multiple"),
    ],
)
def test_what_would_cut_groups_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        config(**overrides)
