"""Success rates with intervals from the literature, and episodes that depend on nothing but their seeds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accerl.config import EnvConfig, InferenceConfig
from accerl.envs import make_env
from accerl.evaluation import evaluate, plan_episodes, shuffle_instructions
from accerl.inference import PolicyServer
from accerl.rates import SuccessRate, mean_over_tasks, wilson
from accerl.types import Episode, EpisodePlan
from tests.roles.fakes import INSTRUCTIONS, tiny_policy

DOTS = EnvConfig(
    suite="dots",
    tasks=("red", "blue"),
    image_size=16,
    chunk_length=2,
    steps_per_action=2,
    max_decisions=4,
    reward="dense",
)
"""Whose returns tell episodes apart."""


def played(plans: list[EpisodePlan], num_slots: int = 16, policy_seed: int = 0) -> tuple[Episode, ...]:
    server = PolicyServer(tiny_policy(policy_seed), InferenceConfig())
    return evaluate(server, lambda: make_env(DOTS), plans, num_slots).episodes


def outcomes(episodes: tuple[Episode, ...]) -> list[tuple[str, bool, float, int, int]]:
    return sorted((e.task, e.success, e.episode_return, e.num_decisions, e.num_env_steps) for e in episodes)


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (81, 263, 0.2552861, 0.3661680),  # Newcombe 1998, table I
    ],
)
def test_wilsons_interval_is_that_of_the_textbook(successes, episodes, low, high):
    assert SuccessRate(successes, episodes).interval == pytest.approx((low, high), abs=1e-4)


def test_the_rate_of_nothing_is_unknown():
    assert math.isnan(SuccessRate(0, 0).rate)
    assert SuccessRate(0, 0).interval == (0.0, 1.0)
    assert SuccessRate(0, 0).to_dict() == {"rate": None, "interval": [0.0, 1.0], "episodes": 0}


def test_a_rate_is_told_with_its_interval():
    assert str(SuccessRate(8, 10)) == "0.80 [0.49, 0.94]"
    assert SuccessRate(8, 10).to_dict()["episodes"] == 10


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_holds_the_rate_and_stays_between_zero_and_one(episodes, share):
    rate = SuccessRate(round(share * episodes), episodes)
    low, high = rate.interval
    assert 0 <= low <= rate.rate + 1e-12 and rate.rate - 1e-12 <= high <= 1
    assert high - low < 1


def test_each_task_counts_the_same_in_the_mean_over_tasks():
    mean, interval = mean_over_tasks([SuccessRate(9, 10), SuccessRate(10, 100), SuccessRate(0, 0)])
    assert mean == pytest.approx((0.9 + 0.1) / 2)
    effective = 2**2 / (1 / 10 + 1 / 100)
    assert interval == pytest.approx(wilson(0.5 * effective, effective))


def test_the_mean_over_tasks_of_equal_size_is_the_pooled_rate():
    mean, interval = mean_over_tasks([SuccessRate(3, 10), SuccessRate(5, 10)])
    assert mean == pytest.approx(0.4)
    assert interval == pytest.approx(SuccessRate(8, 20).interval)
    assert mean_over_tasks([]) == (None, (0.0, 1.0))


# --- plans ------------------------------------------------------------------------------------------------------------


def test_every_task_is_played_as_often_with_seeds_of_its_own():
    plans = plan_episodes(("red", "blue"), 3, seed=0, greedy=True)
    assert [plan.task for plan in plans] == ["red", "blue"] * 3
    assert len({plan.seed for plan in plans}) == 6
    assert all(plan.greedy for plan in plans)
    assert {p.seed for p in plans}.isdisjoint({p.seed for p in plan_episodes(("red", "blue"), 3, seed=1, greedy=True)})


def test_more_episodes_go_on_where_fewer_ended():
    few, many = (plan_episodes(("red", "blue"), num, seed=4, greedy=False) for num in (2, 5))
    assert many[: len(few)] == few


INSTRUCTION_OF = {"push": "push it", "pull": "pull it", "press": "push it", "lift": "lift it"}


def test_a_shuffled_instruction_is_never_the_own_one_and_every_other_one_has_its_turn():
    plans = plan_episodes(tuple(INSTRUCTION_OF), 6, seed=0, greedy=False)
    shuffled = shuffle_instructions(plans, INSTRUCTION_OF)
    assert [(p.task, p.seed, p.greedy) for p in shuffled] == [(p.task, p.seed, p.greedy) for p in plans]
    for task, own in INSTRUCTION_OF.items():
        given = {plan.instruction for plan in shuffled if plan.task == task}
        assert given == set(INSTRUCTION_OF.values()) - {own}


def test_a_single_instruction_cannot_be_shuffled():
    with pytest.raises(ValueError, match=r"env\.tasks: shuffling instructions needs tasks with different"):
        shuffle_instructions(plan_episodes(("push", "press"), 1, 0, False), {"push": "push it", "press": "push it"})


# --- playing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("greedy", [False, True])
def test_the_same_seeds_give_the_same_episodes_however_many_play_at_once(greedy):
    plans = plan_episodes(DOTS.tasks, 4, seed=0, greedy=greedy)
    together = played(plans, num_slots=5)
    assert outcomes(together) == outcomes(played(plans, num_slots=1))
    assert outcomes(together) != outcomes(played(plan_episodes(DOTS.tasks, 4, seed=1, greedy=greedy)))


def test_a_report_counts_by_task_and_over_all():
    told: list[Episode] = []
    server = PolicyServer(tiny_policy(), InferenceConfig())
    plans = plan_episodes(DOTS.tasks, 3, seed=0, greedy=False)
    report = evaluate(server, lambda: make_env(DOTS), plans, on_episode=told.append)
    assert sorted(map(str, told)) == sorted(map(str, report.episodes))
    assert [(episode.task, episode.number) for episode in report.episodes] == [(p.task, p.number) for p in plans]
    assert [played.seed for played in report.played] == [plan.seed for plan in plans]
    assert {task: rate.episodes for task, rate in report.by_task.items()} == {"red": 3, "blue": 3}
    assert report.success.episodes == 6
    assert report.success.successes == sum(rate.successes for rate in report.by_task.values())


def test_a_report_tells_episodes_with_equal_plans_apart():
    plans = [EpisodePlan(task="red", seed=seed) for seed in (1, 2, 1)]
    report = evaluate(PolicyServer(tiny_policy(), InferenceConfig()), lambda: make_env(DOTS), plans)
    assert [played.seed for played in report.played] == [1, 2, 1]
    first, second, third = report.episodes
    assert first == third != second


def test_no_more_environments_are_made_than_there_are_episodes():
    made: list[object] = []

    def make():
        made.append(env := make_env(DOTS))
        return env

    evaluate(PolicyServer(tiny_policy(), InferenceConfig()), make, plan_episodes(("red",), 2, 0, True), num_slots=16)
    assert len(made) == 2


def test_wrong_instructions_reach_the_policy():
    wrong = dict(zip(DOTS.tasks, INSTRUCTIONS[::-1], strict=True))
    plans = plan_episodes(DOTS.tasks, 3, seed=0, greedy=True)
    swapped = [EpisodePlan(task=p.task, seed=p.seed, greedy=True, instruction=wrong[p.task]) for p in plans]
    told = [EpisodePlan(task=p.task, seed=p.seed, greedy=True, instruction=wrong[wrong_task(p.task)]) for p in plans]
    assert outcomes(played(plans)) == outcomes(played(told))
    assert outcomes(played(plans)) != outcomes(played(swapped))


def wrong_task(task: str) -> str:
    return {"red": "blue", "blue": "red"}[task]
