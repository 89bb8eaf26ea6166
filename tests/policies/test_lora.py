"""Low-rank additions: nothing changes at the start, only they train, and they come back from files and merge."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from accerl.checkpoint import load_policy, save_policy
from accerl.config import ConfigError, LearnerConfig, ObjectiveConfig, PolicyConfig
from accerl.learner import Learner
from accerl.packing import pack
from accerl.policies import build_policy
from accerl.policies.lora import LowRankPolicy, adapted, linear_layers
from tests.roles.fakes import observations, tiny_policy, trajectory

SEEDS = np.arange(3)


def low_rank(**fields: Any) -> LowRankPolicy:
    policy = adapted(tiny_policy(), PolicyConfig(lora_rank=2, **fields))
    assert isinstance(policy, LowRankPolicy)
    return policy


def trained(policy: Any, updates: int = 2, **learner: Any) -> Learner:
    config = LearnerConfig(policy_lr=1e-2, value_lr=1e-2, warmup_updates=0, value_warmup_updates=0, **learner)
    result = Learner(policy, config, ObjectiveConfig())
    for update in range(updates):
        parts = [trajectory(3, seed=2 * update, terminal=True, reward=np.array([0, 0, 1], np.float32))]
        result.update(pack([*parts, trajectory(2, seed=2 * update + 1)], chunk_length=2))
    return result


def test_additions_change_nothing_before_they_are_trained() -> None:
    own, added = tiny_policy().act(observations(3), SEEDS), low_rank().act(observations(3), SEEDS)
    assert torch.equal(own.action, added.action)
    assert torch.equal(own.log_prob, added.log_prob)
    assert torch.equal(own.value, added.value)


def test_only_additions_and_the_value_head_train() -> None:
    policy = low_rank()
    before = copy.deepcopy(policy.state_dict())
    trained(policy)
    changed = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name or "value_head." in name for name in changed)
    assert {"lora_A", "lora_B"} == {part for name in changed for part in name.split(".") if part.startswith("lora_")}
    assert any("value_head." in name for name in changed)


def test_the_optimizer_holds_nothing_for_what_is_frozen() -> None:
    whole, added = trained(tiny_policy()), trained(low_rank())
    sizes = [
        sum(entry["exp_avg"].numel() for entry in learner.state_dict()["optimizer"]["state"].values())
        for learner in (whole, added)
    ]
    trains = sum(parameter.numel() for parameter in added.policy.policy_parameters() if parameter.requires_grad)
    value_head = sum(parameter.numel() for parameter in added.policy.value_parameters())
    assert sizes[1] == trains + value_head
    assert sizes[1] < sizes[0]


def test_additions_come_back_from_a_file(tmp_path) -> None:
    policy = low_rank(lora_layers=("query", "key_value"))
    trained(policy)
    save_policy(tmp_path / "policy", policy.config_dict(), policy.state_dict())
    found = load_policy(tmp_path / "policy")
    assert isinstance(found, LowRankPolicy)
    assert found.layers == ("query", "key_value")
    expected, again = policy.act(observations(3), SEEDS), found.act(observations(3), SEEDS)
    assert torch.equal(expected.log_prob, again.log_prob)


def test_merged_additions_act_the_same_and_leave_a_plain_policy() -> None:
    policy = low_rank()
    trained(policy)
    expected = policy.act(observations(3), SEEDS)
    merged = adapted(policy, PolicyConfig())
    plain = build_policy(merged.config_dict())
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain.act(observations(3), SEEDS).log_prob, expected.log_prob)
    assert all(parameter.requires_grad for parameter in merged.policy_parameters())


def test_chosen_layers_are_found_by_the_ends_of_their_names() -> None:
    assert {name.rpartition(".")[2] for name in linear_layers(tiny_policy(), ("query", "expand"))} == {
        "query",
        "expand",
    }
    assert not any("value_head" in name for name in linear_layers(tiny_policy(), ()))


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"policy.lora_layers: no linear layer ends in .*q_proj.*query"):
        low_rank(lora_layers=("q_proj",))


def test_another_rank_than_the_checkpoint_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank.*merges"):
        adapted(low_rank(), PolicyConfig(lora_rank=4))
    same = low_rank()
    assert adapted(same, PolicyConfig(lora_rank=2)) is same


@pytest.mark.parametrize("make", [tiny_policy, low_rank])
def test_gradient_checkpointing_gives_the_same_gradients_from_less_memory(make) -> None:
    kept, weights = [], []
    for recomputes in (False, True):
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            weights.append(trained(make(), updates=1, gradient_checkpointing=recomputes).weights().tensors)
        kept.append(sum(saved.values()))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    assert kept[1] < kept[0]
