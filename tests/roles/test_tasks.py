"""Dynamic weighted resampling, with the probabilities worked out by hand."""

from __future__ import annotations

import json

import pytest

from accerl.config import TaskConfig
from accerl.tasks import TaskSampler
from accerl.types import Episode


def episode(task: str, success: bool, origin: str = "worker/0/0") -> Episode:
    return Episode(
        task=task,
        success=success,
        episode_return=float(success),
        num_decisions=3,
        num_env_steps=12,
        policy_version=1,
        origin=origin,
    )


def sampler(window: int = 2, epsilon: float = 1.0, seed: int = 0) -> TaskSampler:
    return TaskSampler(("red", "blue"), TaskConfig(window=window, epsilon=epsilon), seed)


def test_a_task_that_fails_is_played_more():
    tasks = sampler()
    assert tasks.probabilities() == {"red": 0.5, "blue": 0.5}
    tasks.report(episode("red", False))
    tasks.report(episode("red", False))
    tasks.report(episode("blue", True))
    assert tasks.probabilities() == {"red": 3 / 4, "blue": 1 / 4}


def test_only_the_last_episodes_in_the_window_count():
    tasks = sampler(window=2)
    for success in (False, False, True):
        tasks.report(episode("red", success))
    assert tasks.probabilities() == {"red": 2 / 3, "blue": 1 / 3}
    tasks.report(episode("red", True))
    assert tasks.probabilities() == {"red": 1 / 2, "blue": 1 / 2}


def test_a_large_epsilon_is_uniform():
    tasks = sampler(epsilon=1e9)
    tasks.report(episode("red", False))
    assert tasks.probabilities()["red"] == pytest.approx(0.5)


def test_the_episodes_of_all_workers_are_counted_together():
    tasks = sampler()
    for worker in range(2):
        tasks.report(episode("red", False, origin=f"worker-{worker}/0/0"))
    assert tasks.probabilities()["red"] == 3 / 4


def test_tasks_are_drawn_as_often_as_their_probabilities_say():
    tasks = sampler()
    tasks.report(episode("red", False))
    tasks.report(episode("red", False))
    drawn = [tasks.next_task() for _ in range(2000)]
    assert drawn.count("red") / 2000 == pytest.approx(0.75, abs=0.03)


def test_a_restored_sampler_goes_on_as_the_saved_one():
    saved = sampler(seed=5)
    for success in (False, True, False, False):
        saved.report(episode("red", success))
        saved.next_task()
    restored = sampler(seed=6)
    restored.report(episode("blue", False))
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored.probabilities() == saved.probabilities() == {"red": 3 / 4, "blue": 1 / 4}
    for tasks in (saved, restored):
        tasks.report(episode("red", True))
    assert restored.probabilities() == saved.probabilities()
    assert [restored.next_task() for _ in range(30)] == [saved.next_task() for _ in range(30)]


def test_a_state_with_other_tasks_and_a_longer_window_still_fits():
    saved = sampler(window=4)
    for success in (False, False, True, False):
        saved.report(episode("red", success))
    restored = TaskSampler(("red", "green"), TaskConfig(window=2), 0)
    restored.load_state_dict(saved.state_dict())
    assert restored.probabilities() == {"red": 2 / 3, "green": 1 / 3}


def test_a_task_whose_environment_keeps_failing_is_given_up():
    tasks = sampler()
    assert [tasks.fail("red"), tasks.fail("red")] == [False, False]
    tasks.report(episode("red", True))
    assert [tasks.fail("red"), tasks.fail("red"), tasks.fail("red")] == [False, False, True]
    assert tasks.quarantined == ("red",)
    assert tasks.probabilities() == {"red": 0.0, "blue": 1.0}
    tasks.report(episode("red", True))
    assert {tasks.next_task() for _ in range(20)} == {"blue"}, "an episode that was still going on let it out"
    for _ in range(3):
        tasks.fail("blue")
    with pytest.raises(RuntimeError, match="every task is in quarantine"):
        tasks.next_task()
