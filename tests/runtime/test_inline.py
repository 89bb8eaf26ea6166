"""The roles in one process: a run repeats itself bit for bit, keeps its limits, and learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from accerl import demos, evaluation, imitation
from accerl.config import CloneConfig, DemosConfig, EnvConfig, InferenceConfig, RunConfig, merge
from accerl.envs import make_env, make_expert
from accerl.evaluation import EvaluationReport
from accerl.inference import PolicyServer
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.protocols import Policy
from accerl.runtime.inline import InlineRun

DOTS = EnvConfig(
    suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=2, steps_per_action=2, max_decisions=5
)
SMALL = {
    "env": DOTS.model_dump(),
    "rollout.slots_per_worker": 8,
    "replay.min_decisions": 32,
    "replay.capacity_decisions": 256,
    "learner.batch_decisions": 48,
    "learner.value_warmup_updates": 1,
    "limits.max_updates": 4,
}


def untrained(env: EnvConfig, seed: int = 0) -> TinyVLA:
    torch.manual_seed(seed)
    instructions = [f"go to the {task} dot" for task in env.tasks]
    return TinyVLA(TinyVLAConfig.for_env(make_env(env).spec, instructions, width=32, num_layers=1))


def inline(overrides: dict[str, Any] | None = None, **options: Any) -> InlineRun:
    config = RunConfig(**merge({}, SMALL | (overrides or {})))
    return InlineRun(config, untrained(config.env), lambda: make_env(config.env), **options)


# --- lockstep ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["fused", "prefetch"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(recompute):
    first, second = (inline({"learner.recompute": recompute, "seed": 3}) for _ in range(2))
    start = copy.deepcopy(first.learner.policy.state_dict())
    for run in (first, second):
        run.run()
    assert first.episodes == second.episodes
    parameters, others = first.learner.policy.state_dict(), second.learner.policy.state_dict()
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)
    assert not all(torch.equal(parameters[name], start[name]) for name in parameters)


def test_the_policy_that_acts_stays_as_many_versions_behind_as_is_wanted():
    lags: list[float] = []
    for lag in (0, 2):
        updates: list[dict[str, float]] = []
        run = inline({"replay.max_reuse": 1, "limits.max_updates": 6}, lag=lag, on_update=updates.append)
        run.run()
        lags.append(updates[-1]["policy_lag_mean"])
    assert lags[1] == pytest.approx(lags[0] + 2, abs=0.5)


def test_another_seed_gives_another_run():
    first, second = inline({"seed": 3}), inline({"seed": 4})
    for run in (first, second):
        run.run()
    assert first.episodes != second.episodes
    ours, theirs = first.learner.policy.state_dict(), second.learner.policy.state_dict()
    assert not torch.equal(ours["action_queries"], theirs["action_queries"])


def test_updates_come_at_equal_distances_and_their_weights_are_used_at_once():
    lags: list[dict[str, float]] = []
    run = inline({"replay.max_reuse": 1, "learner.batch_decisions": 32}, decisions_per_update=32, on_update=lags.append)
    run.run()
    assert run.learner.updates == len(lags) == 4
    assert run.episodes[-1].policy_version > 0
    assert max(metrics["policy_lag_max"] for metrics in lags) <= 2, "each decision is used about when it is made"
    assert run.replay.discarded_decisions == 0


def test_a_limit_of_decisions_ends_the_run_when_the_episodes_at_hand_are_played():
    run = inline({"limits.max_updates": None, "limits.max_decisions": 100})
    run.run()
    at_hand = run.config.num_slots * DOTS.max_decisions
    assert 100 <= run.replay.pushed_decisions < 100 + at_hand
    assert run.replay.pushed_decisions == sum(episode.num_decisions for episode in run.episodes)


def test_a_replay_that_is_too_small_for_the_pace_is_refused_with_the_remedy():
    run = inline({"replay.capacity_decisions": 64}, decisions_per_update=500)
    with pytest.raises(ExceptionGroup) as raised:
        run.run()
    assert raised.group_contains(RuntimeError, match="decisions_per_update: 500 leaves decisions unused")


def test_what_the_last_episodes_bring_may_find_the_replay_full():
    run = inline({"replay.capacity_decisions": 64, "limits.max_updates": 2, "rollout.slots_per_worker": 32})
    run.run()
    assert run.learner.updates == 2


@pytest.mark.parametrize(
    "replay",
    [
        {"replay.order": "fifo", "replay.max_reuse": 1},
        {"replay.order": "ring", "replay.max_age_versions": 2},
        {"replay.success_share": 0.5},
    ],
    ids=str,
)
def test_every_order_of_the_replay_trains_and_repeats_itself(replay):
    ages: list[float] = []
    first, second = (inline(replay, on_update=lambda metrics: ages.append(metrics["policy_lag_max"])) for _ in range(2))
    first.run()
    second.run()
    parameters, others = first.learner.policy.state_dict(), second.learner.policy.state_dict()
    assert first.learner.updates == 4
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)
    assert max(ages) <= replay.get("replay.max_age_versions", 4)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_groups_are_compared_and_trained_on(mode):
    """Their advantages add up to nothing within a group, so that the first loss, with ratios of 1, is near 0."""
    logged: list[dict[str, float]] = []
    groups = {
        "mode": mode,
        "objective.advantages": "group",
        "rollout.group_size": 4,
        "objective.group_scale": False,
        "objective.normalization": "off",
        "learner.batch_decisions": 64,
        "replay.min_decisions": 64,
    }
    run = inline(groups, on_update=logged.append)
    run.run()
    assert run.learner.updates == 4
    assert abs(logged[0]["policy_loss"]) < 0.2
    by_start: dict[int, set[str]] = {}
    for episode in run.episodes:
        by_start.setdefault(episode.number // 4, set()).add(episode.task)
    assert all(len(tasks) == 1 for tasks in by_start.values())


# --- modes ------------------------------------------------------------------------------------------------------------

ROUNDS = {
    "rollout.episodes_per_round": 24,  # three waves of the eight slots
    "rollout.segment_decisions": 2,
    "inference.batch_size": 3,
    "inference.buckets": (8,),
    "replay.capacity_decisions": 700,
    "limits.max_updates": 5,
}


class Ragged:
    """`dots` with a time limit that depends on the episode's seed."""

    def __init__(self, config: EnvConfig):
        self._env = make_env(config)
        self.spec = self._env.spec
        self.close, self.render = self._env.close, self._env.render

    def reset(self, *, seed: int | None = None, options=None):
        self._left = 1 + (seed or 0) % self.spec.max_decisions
        return self._env.reset(seed=seed, options=options)

    def step_chunk(self, actions, on_step=None):
        self._left -= 1
        result = self._env.step_chunk(actions, on_step)
        return result._replace(truncated=not result.terminal and (result.truncated or self._left == 0))


def parameters_after(**overrides: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], InlineRun]:
    updates: list[dict[str, float]] = []
    config = RunConfig(**merge({}, SMALL | ROUNDS | overrides))
    run = InlineRun(config, untrained(config.env), lambda: Ragged(config.env), on_update=updates.append)
    run.run()
    return copy.deepcopy(run.learner.policy.state_dict()), updates, run


@pytest.mark.parametrize("recompute", ["fused", "prefetch"])
def test_without_staleness_the_asynchronous_run_is_the_synchronous_one(recompute):
    """One steps all environments together, the other three at a time, ending episodes in another order."""
    overrides = {"learner.recompute": recompute, "learner.micro_batch_decisions": 20}
    synchronous, updates, first = parameters_after(mode="sync", **overrides)
    asynchronous, others, second = parameters_after(**{"mode": "async", "rollout.max_policy_lag": 0, **overrides})
    assert [episode.number for episode in first.episodes] != [episode.number for episode in second.episodes]
    assert len(updates) == len(others) == 5
    assert all(torch.equal(synchronous[name], asynchronous[name]) for name in synchronous)
    assert updates == others
    assert [update["policy_lag_max"] for update in updates] == [0] * 5
    start = inline().learner.policy.state_dict()
    assert not all(torch.equal(synchronous[name], start[name]) for name in synchronous)


def test_barrier_and_asynchronous_without_staleness_are_one():
    barrier, _, _ = parameters_after(mode="barrier")
    asynchronous, _, _ = parameters_after(**{"mode": "async", "rollout.max_policy_lag": 0})
    assert all(torch.equal(barrier[name], asynchronous[name]) for name in barrier)


@pytest.mark.parametrize("bound", [1, 2, 4])
@pytest.mark.parametrize("max_reuse", [1, 3])
def test_staleness_keeps_its_bound_and_everything_is_used(bound, max_reuse):
    overrides = {"rollout.max_policy_lag": bound, "replay.max_reuse": max_reuse, "limits.max_updates": 12}
    _, updates, run = parameters_after(**overrides)
    assert len(updates) == 12
    assert 0 < max(update["policy_lag_max"] for update in updates) <= bound
    assert run.replay.discarded_decisions == 0


def test_one_step_off_plays_one_round_ahead_at_most():
    _, updates, _ = parameters_after(mode="one_step_off")
    assert max(update["policy_lag_max"] for update in updates) <= 1


def test_a_round_is_a_batch_whatever_the_batch_size_says():
    _, updates, run = parameters_after(**{"mode": "sync", "learner.batch_decisions": 16, "replay.max_reuse": 1})
    decisions = sum(episode.num_decisions for episode in run.episodes if episode.number < 5 * 24)
    assert sum(update["batch_decisions"] for update in updates) == decisions


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.learns
def test_a_cloned_policy_gets_better_by_reinforcement_learning():
    env = EnvConfig(suite="dots", tasks=("red",), image_size=16, chunk_length=1, steps_per_action=4, max_decisions=6)
    policy = cloned_from_slow_demonstrations(env)
    before = evaluate(policy, env)
    config = RunConfig(
        **merge(
            {},
            {
                "env": env.model_dump(),
                "rollout.slots_per_worker": 32,
                "replay.min_decisions": 512,
                "objective.time_limit": "failure",
                "objective.value_loss": "bce",
                "learner.batch_decisions": 512,
                "learner.policy_lr": 5e-4,
                "learner.warmup_updates": 5,
                "learner.value_warmup_updates": 10,
                "limits.max_decisions": 24_000,
            },
        )
    )
    run = InlineRun(config, copy.deepcopy(policy), lambda: make_env(env), decisions_per_update=128)
    run.run()
    after = evaluate(run.learner.policy, env)
    print(f"success before {before.success}, after {after.success}")
    assert 0.2 < before.success.rate < 0.6, "neither hopeless nor solved"
    assert after.success.interval[0] > before.success.interval[1]


def cloned_from_slow_demonstrations(env: EnvConfig) -> TinyVLA:
    """A policy that knows where to go but is mostly too slow to get there in time."""
    config = DemosConfig(episodes_per_task=150, speed=0.45, noise=0.1)
    single = demos.single_action(env, config)
    recording = make_env(single)
    expert = make_expert(single, recording, speed=config.speed, noise=config.noise)
    policy = untrained(env)
    clone = CloneConfig(updates=400, batch_size=32, lr=2e-3, shift_pixels=0)
    imitation.clone(policy, demos.record(recording, expert, config), env.chunk_length, clone)
    return policy


def evaluate(policy: Policy, env: EnvConfig) -> EvaluationReport:
    """200 episodes that depend on nothing but their seeds."""
    server = PolicyServer(copy.deepcopy(policy), InferenceConfig())
    return evaluation.evaluate(
        server, lambda: make_env(env), evaluation.plan_episodes(env.tasks, 200, seed=0, greedy=False), num_slots=32
    )
