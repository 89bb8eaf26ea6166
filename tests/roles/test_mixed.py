"""Training in bfloat16 with a float32 copy of what trains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import accerl.mixed
from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.engine import StepFacts, TorchEngine
from accerl.learner import Learner
from accerl.mixed import MixedEngine, norm_of, parts_of
from tests.roles.fakes import tiny_policy
from tests.roles.ranks import LEARNER, micro_batches

CONFIG = LearnerConfig(**LEARNER, dtype="bfloat16")
FACTS = StepFacts(num_decisions=4, learning_rates=(1e-3, 1e-3), max_grad_norm=1.0)


def with_gradients(policy: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().to(parameter.dtype)


def test_a_step_is_that_of_float32_with_the_same_gradients_however_it_is_cut(monkeypatch: pytest.MonkeyPatch):
    plain, mixed, cut = (tiny_policy() for _ in range(3))
    engines = TorchEngine(plain, LearnerConfig(**LEARNER)), MixedEngine(mixed, CONFIG), MixedEngine(cut, CONFIG)
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.bfloat16}
    norms = []
    for seed in range(3):
        for engine, policy in zip(engines, (plain, mixed, cut), strict=True):
            monkeypatch.setattr(accerl.mixed, "PART", 1000 if policy is cut else 2**27)
            with_gradients(policy, seed)
            norms.append(engine.step(FACTS))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for number, parameter in enumerate([*plain.policy_parameters(), *plain.value_parameters()]):
        master = engines[1].state_dict()["state"][number]["master"]
        torch.testing.assert_close(master, parameter.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(engines[2].state_dict()["state"][number]["master"], master)
    for parameter, same in zip(mixed.parameters(), cut.parameters(), strict=True):
        assert torch.equal(parameter, same)
        assert parameter.grad is None


def test_steps_too_small_for_bfloat16_add_up():
    policy = tiny_policy()
    engine = MixedEngine(policy, CONFIG)
    before = copy.deepcopy(policy.state_dict())
    small = FACTS._replace(learning_rates=(1e-6, 1e-6))
    for _ in range(20):
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)
        engine.step(small)
    masters = [entry["master"] for entry in engine.state_dict()["state"].values()]
    starts = [parameter for parameter in (*tiny_policy().policy_parameters(), *tiny_policy().value_parameters())]
    for master, start in zip(masters, starts, strict=True):
        torch.testing.assert_close(start.detach() - master, torch.full_like(master, 20e-6), rtol=0.1, atol=1e-6)
    assert before.keys() == policy.state_dict().keys()


def test_gradients_that_are_not_finite_move_nothing():
    policy = tiny_policy()
    engine = MixedEngine(policy, CONFIG)
    before = copy.deepcopy(policy.state_dict())
    with_gradients(policy, 0)
    next(policy.value_parameters()).grad = torch.full_like(next(policy.value_parameters()), torch.inf)
    with pytest.raises(RuntimeError, match="non-finite"):
        engine.step(FACTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_a_learner_goes_on_from_its_state_bit_for_bit():
    def learner() -> Learner:
        return Learner(tiny_policy(), CONFIG, ObjectiveConfig())

    def train(learner: Learner, seeds: range) -> None:
        for seed in seeds:
            for part in micro_batches(seed):
                learner.accumulate(part)
            learner.step()

    whole, first, second = learner(), learner(), learner()
    train(whole, range(4))
    train(first, range(2))
    second.policy.load_state_dict(first.policy.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, range(2, 4))
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(tensor, second.policy.state_dict()[name]), name


def test_parts_cover_all_parameters_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accerl.mixed, "PART", 10)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (4, 4, 4, 30, 10, 1)]
    assert list(parts_of(parameters)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 6)]
    assert norm_of(parameters) == 0.0
