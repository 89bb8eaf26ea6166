"""Credits, waves, bounds: what may start and what a batch is made of, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from accerl.admission import Admission
from accerl.config import RunConfig, merge
from accerl.tasks import TaskSampler
from accerl.types import BatchRule, Episode, EpisodePlan


def admission(**overrides: Any) -> Admission:
    """Two slots, rounds of four episodes."""
    fields: dict[str, Any] = {
        "env.tasks": ("red", "blue"),
        "rollout.slots_per_worker": 2,
        "rollout.episodes_per_round": 4,
        "inference.batch_size": 2,
    }
    config = RunConfig(**merge({}, fields | overrides))
    return Admission(config, TaskSampler(config.env.tasks, config.tasks, config.seed))


def bounded(lag: int) -> Admission:
    return admission(**{"rollout.max_policy_lag": lag})


def start(desk: Admission, num: int, worker: str = "rollout-0.0") -> list[EpisodePlan]:
    plans = [desk.start(worker) for _ in range(num)]
    assert None not in plans
    return [plan for plan in plans if plan is not None]


def ended(plan: EpisodePlan, version: int = 0) -> Episode:
    return Episode(
        task=plan.task,
        success=False,
        episode_return=0.0,
        num_decisions=5,
        num_env_steps=20,
        policy_version=version,
        origin="",
        number=plan.number,
    )


def play(desk: Admission, num: int) -> list[EpisodePlan]:
    plans = start(desk, num)
    for plan in plans:
        assert desk.finish(ended(plan))
    return plans


def test_without_a_bound_nobody_waits():
    desk = admission()
    start(desk, 100)
    assert desk.rule(0) == BatchRule()


def test_plans_are_numbered_and_have_seeds_of_their_own():
    plans = start(admission(), 20)
    assert [plan.number for plan in plans] == list(range(20))
    assert len({plan.seed for plan in plans}) == 20
    assert [plan.seed for plan in start(admission(), 20)] == [plan.seed for plan in plans]
    assert start(admission(seed=1), 1)[0].seed != plans[0].seed


# --- credits ----------------------------------------------------------------------------------------------------------


def test_there_are_k_plus_one_rounds_of_credits():
    desk = bounded(2)
    plans = start(desk, 12)
    assert desk.start("rollout-0.0") is None
    desk.finish(ended(plans[0]))
    assert desk.start("rollout-0.0") is None, "a played episode holds its credit until it was trained on"
    desk.train(1, [plans[0].number])
    desk.serve("inference-0", 1)
    assert start(desk, 1)[0].number == 12
    assert desk.start("rollout-0.0") is None


def test_an_episode_starts_only_where_inference_is_recent_enough():
    desk = bounded(1)
    desk.serve("inference-0", 0)
    desk.serve("inference-1", 0)
    desk.train(2, [])
    assert desk.start("w") is None
    desk.serve("inference-0", 1)
    assert desk.start("w") is None, "the other service may be asked too"
    desk.unserve("inference-1")
    assert desk.start("w") is not None


def test_a_batch_takes_what_would_be_too_old_for_the_next_one():
    desk = bounded(2)
    assert desk.rule(0).oldest_version == -1
    assert desk.rule(5) == BatchRule(oldest_version=4, is_complete=True)


def test_a_batch_waits_for_decisions_that_would_be_too_old_for_the_next_one():
    desk = bounded(2)
    plan = start(desk, 1)[0]
    assert desk.rule(1).is_complete
    assert not desk.rule(2).is_complete, "batch 3 would train on version 0"
    desk.deliver(plan.number, 1)
    assert desk.rule(2).is_complete
    assert not desk.rule(3).is_complete
    desk.finish(ended(plan))
    assert desk.rule(3).is_complete


def test_a_batch_is_starved_when_nothing_more_can_come_before_it():
    desk = bounded(1)
    plans = start(desk, 8)
    for plan in plans[:7]:
        desk.finish(ended(plan))
    assert not desk.rule(0).is_starved, "one is still being played"
    desk.finish(ended(plans[7]))
    assert desk.rule(0).is_starved
    assert not desk.rule(1).is_starved, "batch 0 gives credits back"
    desk.train(1, [plan.number for plan in plans[:4]])
    assert not desk.rule(1).is_starved


# --- rounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{"mode": "barrier"}, {"rollout.max_policy_lag": 0}])
def test_without_staleness_a_round_is_played_trained_on_and_served_before_the_next(overrides):
    desk = admission(**overrides)
    desk.serve("inference-0", 0)
    plans = start(desk, 4)
    assert desk.start("w") is None
    for plan in plans[1:]:
        desk.finish(ended(plan))
    assert desk.rule(0) == BatchRule(episodes_below=4, needs_all=True, is_complete=False)
    desk.finish(ended(plans[0]))
    assert desk.rule(0) == BatchRule(episodes_below=4, needs_all=True, is_complete=True)
    assert not desk.rule(1).is_complete
    desk.train(1, range(4))
    assert desk.start("w") is None, "inference still answers with version 0"
    desk.serve("inference-0", 1)
    assert start(desk, 4)[0].number == 4


def test_in_lockstep_nobody_starts_before_all_have_ended():
    desk = admission(mode="sync")
    first, second = start(desk, 2)
    assert desk.start("w") is None, "there are two slots"
    desk.finish(ended(first))
    assert desk.start("w") is None
    desk.finish(ended(second))
    assert [plan.number for plan in start(desk, 2)] == [2, 3]
    assert desk.start("w") is None


def test_one_step_off_plays_the_next_round_while_one_is_trained_on():
    desk = admission(mode="one_step_off")
    play(desk, 2)
    play(desk, 2)
    play(desk, 2)
    play(desk, 2)
    assert desk.rule(0) == BatchRule(episodes_below=4, needs_all=True)
    assert desk.rule(1) == BatchRule(episodes_below=8, needs_all=True)
    assert desk.start("w") is None
    desk.serve("inference-0", 0)
    desk.train(1, range(4))
    assert desk.start("w") is None, "round 2 is trained on at version 2, for which version 0 is too old"
    desk.serve("inference-0", 1)
    assert start(desk, 2)[0].number == 8
    assert desk.rule(1) == BatchRule(episodes_below=8, needs_all=True)
    assert not desk.rule(2).is_complete


def test_the_last_wave_of_a_round_has_what_is_left_of_it():
    desk = admission(mode="sync", **{"rollout.episodes_per_round": 3})
    play(desk, 2)
    assert len(play(desk, 1)) == 1
    assert desk.start("w") is None
    assert desk.rule(0).is_complete


def test_the_outcomes_of_a_round_are_counted_in_its_own_order():
    order, reverse = admission(mode="barrier"), admission(mode="barrier")
    for desk, backwards in ((order, False), (reverse, True)):
        for plan in sorted(start(desk, 4), key=lambda each: each.number, reverse=backwards):
            desk.finish(ended(plan))
        desk.train(1, range(4))
        desk.serve("inference-0", 1)
    assert order.tasks.state_dict() == reverse.tasks.state_dict()
    assert sum(map(len, order.tasks.state_dict()["outcomes"].values())) == 4
    assert [plan.task for plan in start(order, 4)] == [plan.task for plan in start(reverse, 4)]


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"mode": "barrier"}, {"mode": "sync"}, {"rollout.max_policy_lag": 1}])
def test_what_a_dead_worker_played_is_played_again_with_the_same_seed(overrides):
    desk = admission(**overrides)
    lost = start(desk, 1, worker="rollout-0.0")
    other = start(desk, 1, worker="rollout-1.0")
    assert desk.lose("rollout-0.0") == 1
    assert not desk.finish(ended(lost[0])), "a late report does not count"
    assert start(desk, 1, worker="rollout-0.1") == lost
    assert desk.finish(ended(lost[0]))
    assert desk.finish(ended(other[0]))


def test_an_episode_whose_environment_failed_is_played_again_with_another_task_if_its_own_is_given_up():
    desk = bounded(1)
    (plan,) = start(desk, 1)
    desk.fail(plan.number)
    assert start(desk, 1) == [plan]
    for _ in range(3):
        desk.tasks.fail(plan.task)
    desk.fail(plan.number)
    (again,) = start(desk, 1)
    assert (again.number, again.seed) == (plan.number, plan.seed)
    assert again.task != plan.task
    for _ in range(3):
        desk.tasks.fail(again.task)
    assert desk.start("rollout-0.0") is None


def test_a_round_is_not_complete_while_a_lost_episode_is_to_be_played_again():
    desk = admission(mode="barrier")
    plans = start(desk, 3) + start(desk, 1, worker="dying")
    for plan in plans[:3]:
        desk.finish(ended(plan))
    desk.lose("dying")
    assert not desk.rule(0).is_complete
    play(desk, 1)
    assert desk.rule(0).is_complete


def test_episodes_that_a_shard_lost_give_their_credits_back():
    desk = bounded(1)
    play(desk, 8)
    assert desk.start("w") is None
    desk.lose_waiting(desk.waiting - {0, 1, 2})
    assert desk.lost == 5
    assert len(start(desk, 5)) == 5
    assert desk.start("w") is None


def test_an_episode_that_is_trained_on_before_its_worker_reports_it_does_not_wait_for_ever():
    desk = bounded(1)
    plans = start(desk, 3)
    desk.train(1, [plans[0].number, plans[1].number])
    taken_over = bounded(1)
    taken_over.load(desk.content())
    assert taken_over.finish(ended(plans[0])) and taken_over.waiting == frozenset()
    taken_over.lose("w")
    (again, *_) = start(taken_over, 1)
    assert taken_over.finish(ended(again)) and taken_over.waiting == {again.number}, "what is played again is new"


def test_numbers_go_on_after_a_resumption():
    desk = bounded(0)
    play(desk, 3)
    resumed = bounded(0)
    resumed.load_state_dict(desk.state_dict())
    resumed.begin(7)
    assert resumed.rule(7) == BatchRule(episodes_below=7, needs_all=True, is_complete=False)
    assert [plan.number for plan in start(resumed, 4)] == [3, 4, 5, 6]
    assert resumed.start("w") is None
    resumed.begin(2)
    assert resumed.version == 7, "another learner goes on above every version that was used"


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_of_one_task_and_one_start_with_noise_of_its_own():
    desk = admission(**{"rollout.group_size": 4})
    plans = start(desk, 32)
    for first in range(0, 32, 4):
        group = plans[first : first + 4]
        assert len({(plan.task, plan.seed) for plan in group}) == 1
        assert len({plan.noise for plan in group}) == 4
    assert len({plan.seed for plan in plans}) == 8
    assert {plan.task for plan in plans} == {"red", "blue"}


def test_without_groups_the_seed_is_that_of_the_noise_too():
    assert [plan.noise for plan in start(admission(), 3)] == [None] * 3


def test_a_round_draws_a_task_for_each_of_its_groups():
    desk = admission(**{"rollout.group_size": 2, "mode": "barrier"})
    plans = start(desk, 2)
    assert plans[0].task == plans[1].task


def test_a_group_that_was_cut_off_is_not_gone_on_with():
    desk = admission(**{"rollout.group_size": 4})
    start(desk, 6)
    resumed = admission(**{"rollout.group_size": 4})
    resumed.load_state_dict(desk.state_dict())
    assert start(resumed, 1)[0].number == 8
