"""The emulated devices: promises of the ports, the same work whatever the mode, times that are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from accerl.config import ConfigError, EnvConfig, PolicyConfig
from accerl.envs import make_env
from accerl.envs.conformance import check_env
from accerl.policies import build_policy, new_policy
from accerl.types import ObservationBatch
from benchmarks import emulation as emulation_module
from benchmarks.devices import STEP_LIMITS, Emulation, emulation_of, script, task_names
from benchmarks.emulation import NUM_BINS, EmulatedPolicy
from benchmarks.meter import Meter, num_working, read, time_of

FAST = Emulation(time_scale=1e-6, inference_gpus=2, learner_gpus=4)


def env_config(tmp_path: Path, emulation: Emulation = FAST, **fields) -> EnvConfig:
    path = tmp_path / "emulation.json"
    emulation.save(path)
    return EnvConfig(
        suite="benchmarks.emulation:emulated_env",
        tasks=task_names(path),
        **{"image_size": 16, "cameras": ("a", "b"), "chunk_length": 8, "steps_per_action": 1, "max_decisions": 65}
        | fields,
    )


def policy_for(config: EnvConfig) -> EmulatedPolicy:
    policy = new_policy(PolicyConfig(kind="benchmarks.emulation:EmulatedPolicy"), make_env(config).spec, (), False)
    assert isinstance(policy, EmulatedPolicy)
    return policy


def observations_of(num: int) -> ObservationBatch:
    return ObservationBatch(
        images=torch.zeros(num, 2, 16, 16, 3, dtype=torch.uint8),
        proprio=torch.rand(num, 8, generator=torch.Generator().manual_seed(0)),
        instructions=["do a task"] * num,
        episode_step=torch.arange(num),
    )


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the devices were told to sleep, instead of sleeping; the clock stands still."""
    calls: list[float] = []
    monkeypatch.setattr(emulation_module.time, "sleep", calls.append)
    monkeypatch.setattr(emulation_module.time, "monotonic", lambda: 100.0)
    return calls


def test_the_environment_keeps_the_promises_of_its_port(tmp_path: Path) -> None:
    check_env(make_env(env_config(tmp_path)))


def test_an_episode_follows_its_script(tmp_path: Path, slept: list[float]) -> None:
    config = env_config(tmp_path, Emulation(time_scale=2.0))
    env = make_env(config)
    task = config.tasks[3]
    expected = script(Emulation(), "long", seed=7)
    env.reset(seed=7, options={"task": task})
    results = []
    while not results or not (results[-1].terminal or results[-1].truncated):
        results.append(env.step_chunk(np.zeros((8, 7), np.float32)))
    assert sum(result.num_env_steps for result in results) == expected.num_env_steps
    assert results[-1].success == expected.success
    assert [result.terminal for result in results[-2:]] == [False, True]
    assert slept[0] == pytest.approx(2 * expected.reset_s)
    assert slept[1:-1] == pytest.approx(2 * expected.chunk_s[:-1])
    assert slept[-1] == pytest.approx(2 * expected.chunk_s[-1] * results[-1].num_env_steps / 8)


def test_episodes_last_from_10_to_65_decisions_and_differ_by_their_seed() -> None:
    scripts = {suite: [script(Emulation(), suite, seed) for seed in range(1000)] for suite in STEP_LIMITS}
    lengths = [len(each.chunk_s) for each in scripts["long"]]
    assert (min(lengths), max(lengths)) == (10, 65)
    for suite, limit in STEP_LIMITS.items():
        assert all(each.num_env_steps == limit for each in scripts[suite] if not each.success)
        assert np.mean([each.success for each in scripts[suite]]) == pytest.approx(0.7, abs=0.1)
    resets = [each.reset_s for each in scripts["goal"]]
    assert all(0.02 <= reset <= 0.05 or 1.4 <= reset <= 2.0 for reset in resets)
    assert 0 < sum(reset > 1 for reset in resets) < 100


def test_chunk_times_have_the_mean_and_the_tail_that_are_asked_for() -> None:
    times = np.concatenate([script(Emulation(), "long", seed).chunk_s for seed in range(1000)])
    assert times.mean() == pytest.approx(0.2, rel=0.02)
    assert np.log(times).std() == pytest.approx(0.3, rel=0.02)


def test_a_forward_takes_as_long_as_the_gpu_with_the_most_rows() -> None:
    base = Emulation(forward_base_s=0.002, forward_s=0.01)
    assert base.act_s(8) == pytest.approx(0.082)
    four = base.model_copy(update={"inference_gpus": 4.0})
    assert [four.act_s(rows) for rows in (1, 4, 5)] == pytest.approx([0.012, 0.012, 0.022])
    quarter = base.model_copy(update={"inference_gpus": 0.25})
    assert quarter.act_s(2) == pytest.approx(4 * 0.022)
    assert Emulation(train_s=0.04, learner_gpus=8).evaluate_s(100) == pytest.approx(0.5)


def test_the_policy_takes_the_time_of_its_devices(tmp_path: Path, slept: list[float]) -> None:
    policy = policy_for(env_config(tmp_path, Emulation(inference_gpus=2, learner_gpus=4, time_scale=0.5)))
    output = policy.act(observations_of(3), np.arange(3))
    evaluation = policy.evaluate(observations_of(3), output.blob)
    update = 0.5 * 3 * 0.0447 / 4
    assert slept == pytest.approx([0.5 * 2 * 0.0112, 0.25 * update])
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert slept[2:] == pytest.approx([0.75 * update])
    policy.value(observations_of(2))
    assert slept[3:] == pytest.approx([0.5 * 2 * 0.0112 / 4])


def test_what_is_computed_while_the_device_is_busy_does_not_take_longer(
    tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 5.0, 5.2])  # forward begins, ends; backward begins, ends
    monkeypatch.setattr(emulation_module.time, "monotonic", lambda: next(clock))
    policy = policy_for(env_config(tmp_path, Emulation(train_s=4.0)))
    tokens = {"tokens": torch.zeros(1, 56, dtype=torch.int16)}
    evaluation = policy.evaluate(observations_of(1), tokens)
    (evaluation.log_prob.sum() + evaluation.value.sum()).backward()
    assert slept == pytest.approx([1.0 - 0.1, 3.0 - 0.2])
    assert list(clock) == []


def test_an_action_depends_on_its_own_row_and_seed_only(tmp_path: Path) -> None:
    policy = policy_for(env_config(tmp_path))
    observations = observations_of(4)
    together = policy.act(observations, np.array([5, -1, 7, 8]))
    alone = policy.act(observations[2:3], np.array([7]))
    assert torch.equal(together.blob["tokens"][2:3], alone.blob["tokens"])
    assert not torch.equal(together.blob["tokens"][2], together.blob["tokens"][3])
    assert together.action.shape == (4, 8, 7) and together.action.abs().max() < 1


def test_evaluation_gives_the_log_probs_of_acting_and_gradients(tmp_path: Path) -> None:
    policy = policy_for(env_config(tmp_path))
    observations = observations_of(5)
    output = policy.act(observations, np.arange(5))
    evaluation = policy.evaluate(observations, output.blob)
    torch.testing.assert_close(evaluation.log_prob, output.log_prob)
    assert evaluation.entropy.max() <= np.log(NUM_BINS) + 1e-6
    (evaluation.log_prob.mean() + evaluation.value.mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_the_policy_is_rebuilt_from_its_description(tmp_path: Path) -> None:
    policy = policy_for(env_config(tmp_path))
    rebuilt = build_policy(json.loads(json.dumps(policy.config_dict())))
    rebuilt.load_state_dict(policy.state_dict())
    assert isinstance(rebuilt, EmulatedPolicy) and rebuilt.emulation == FAST
    assert rebuilt.config_dict() == policy.config_dict()
    rebuilt.check_env(make_env(env_config(tmp_path)).spec)
    with pytest.raises(ValueError, match="image_size"):
        rebuilt.check_env(make_env(env_config(tmp_path, image_size=32)).spec)


def test_task_names_lead_to_the_emulation(tmp_path: Path) -> None:
    assert emulation_of(task_names()) == Emulation()
    assert emulation_of(env_config(tmp_path).tasks) == FAST
    with pytest.raises(ConfigError, match=r"unknown suite 'lomg'; did you mean 'long'"):
        emulation_of(("lomg",))
    with pytest.raises(ConfigError, match="one emulation a run"):
        emulation_of(("long", "goal@/tmp/x.json"))


def test_meters_add_up_over_processes_and_cut_at_the_ends(tmp_path: Path) -> None:
    (tmp_path / "env-1.txt").write_text("0 10 4 8\n10 20 6 2\n")
    (tmp_path / "env-2.txt").write_text("5 15 1 10\n")
    (tmp_path / "learner-3.txt").write_text("0 20 9 9\n")
    assert read(tmp_path, "env", 0, 20) == pytest.approx((11, 20))
    assert read(tmp_path, "env", 5, 10) == pytest.approx((2.5, 9))
    assert read(tmp_path, "inference", 0, 20) == (0, 0)
    assert [time_of(tmp_path, "env", decisions) for decisions in (8, 9, 18, 19)] == [10, 15, 15, 20]
    (tmp_path / "env-4.txt").write_text("0 20 1.5 0\n")
    assert [num_working(tmp_path, kind) for kind in ("env", "learner", "inference")] == [2, 1, 0]
    with pytest.raises(ValueError, match="20 decisions were done, not 21"):
        time_of(tmp_path, "env", 21)


def test_a_meter_writes_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("benchmarks.meter.time.time", lambda: now[0])
    meter = Meter.of(tmp_path / "meters", "env")
    for _ in range(3):
        now[0] += 0.2
        meter.add(0.1, 2)
    assert meter is Meter.of(tmp_path / "meters", "env")
    assert read(tmp_path / "meters", "env", 1000, 1000.4) == pytest.approx((0.2, 4))
