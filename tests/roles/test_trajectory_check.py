"""The replay's door: what a worker sends is trained on only if it can be."""

from __future__ import annotations

import timeit
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accerl.config import EnvConfig
from accerl.trajectory_check import TrajectoryCheck
from accerl.types import TrajectoryRefused
from tests.roles.fakes import tiny_policy, trajectory

ENV = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, max_decisions=8)


def check(policy: dict[str, Any] | None = None) -> TrajectoryCheck:
    return TrajectoryCheck(ENV, tiny_policy().config_dict() if policy is None else policy)


def with_one(name: str, value: float) -> dict[str, Any]:
    array = getattr(trajectory(), name).copy()
    array.flat[-1] = value
    return {name: array}


def test_good_ones_pass_whether_they_go_on_end_or_are_imagined():
    door = check()
    for number, fields in enumerate(({}, {"terminal": True}, {"truncated": True}, {"is_imagined": True})):
        door.admit(trajectory(3, seed=number, **fields))
    door.admit(trajectory(4, first_step=4, policy_version=np.array([3, 2, 3, 4], np.int32)))


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        (with_one("proprio", np.nan), "proprio is not finite"),
        (with_one("reward", np.inf), "reward is not finite"),
        (with_one("value", np.nan), "value is not finite"),
        (with_one("log_prob", -np.inf), "log_prob is not finite"),
        (with_one("log_prob", 0.5), "a log-prob is above 0"),
        (with_one("policy_version", -1), "policy_version is negative"),
        (with_one("num_actions", 3), "num_actions is outside 0 to 2"),
        (with_one("episode_step", 7), "its decisions do not follow one another"),
        ({"images": np.zeros((4, 1, 16, 15, 3), np.uint8)}, r"images is uint8 \(4, 1, 16, 15, 3\)"),
        ({"images": np.zeros((4, 1, 16, 16, 3), np.float32)}, "images is float32"),
        ({"images": np.zeros((3, 1, 16, 16, 3), np.uint8)}, "images has 3 rows, not 4"),
        ({"proprio": np.zeros((4, 3), np.float32)}, r"proprio is float32 \(4, 3\), not float32 \(4, 2\)"),
        ({"value": None}, "value is NoneType"),
        ({"blob": {"tokens": np.full((3, 4), 256, np.int16)}}, "a token is outside 0 to 255"),
        ({"blob": {"tokens": np.zeros((2, 4), np.int16)}}, "blob.tokens has 2 rows, not 3"),
        ({"blob": {}}, "its blob differs in tokens"),
        ({"blob": {"tokens": np.zeros((3, 4), np.int64)}}, "blob.tokens is int64"),
        ({"action": np.full((3, 2, 2), np.nan, np.float32)}, "action is not finite"),
        ({"task": "green"}, "task 'green' is none of the run's"),
        ({"instruction": ""}, "it has no instruction"),
        ({"terminal": True, "truncated": True}, "terminal and truncated"),
        ({"reward": np.zeros(0, np.float32)}, "it has no decision"),
        ({"reward": None}, "is no trajectory"),
    ],
)
def test_a_bad_one_is_refused_with_its_origin_and_the_next_good_one_is_taken(fields, wrong):
    door = check()
    door.admit(trajectory())
    bad = trajectory(**{"origin": "rollout-1.0/2/7", "episode": 31} | fields)
    with pytest.raises(TrajectoryRefused, match=rf"^rollout-1.0/2/7, (red|green), episode 31: .*{wrong}"):
        door.admit(bad)
    door.admit(trajectory(seed=1))


def test_an_episode_is_no_longer_than_the_environment_lets_it_be():
    with pytest.raises(TrajectoryRefused, match="decisions 6 to 9, of at most 8"):
        check().admit(trajectory(3, first_step=6))


def test_of_a_policy_that_is_not_known_the_first_trajectory_says_what_the_others_are_like():
    door = check({"kind": "somewhere:Flow"})
    first = trajectory(blob={"noise": np.zeros((3, 5), np.float32)}, log_prob=np.full((3, 1), 2.5, np.float32))
    door.admit(first)
    door.admit(first)
    with pytest.raises(TrajectoryRefused, match="log_prob is float32"):
        door.admit(replace(first, log_prob=np.zeros((3, 2), np.float32)))
    with pytest.raises(TrajectoryRefused, match=r"blob\.noise is not finite"):
        door.admit(replace(first, blob={"noise": np.full((3, 5), np.nan, np.float32)}))


def test_large_numbers_whose_sum_overflows_are_finite():
    check({}).admit(trajectory(reward=np.full(3, 3e38, np.float32), proprio=np.full((4, 2), -3e38, np.float32)))


if __name__ == "__main__":  # microseconds a trajectory
    door, sizes = check(), (3, 8)
    for num in sizes:
        each = trajectory(num)
        print(
            num, "decisions:", round(min(timeit.repeat(lambda e=each: door.admit(e), number=1000, repeat=5)) * 1000, 1)
        )
