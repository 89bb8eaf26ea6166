"""What trains, what is kept for it, and how it goes on: all weights, LoRA, a frozen vision backbone."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from accerl.checkpoint import Content, load_checkpoint, load_policy, save_checkpoint, save_policy
from accerl.config import ConfigError, LearnerConfig, ObjectiveConfig, PolicyConfig
from accerl.learner import Learner
from accerl.packing import pack
from accerl.policies import empty_policy, restore_policy
from accerl.policies.lora import LowRankPolicy, adapted
from accerl.policies.openvla_oft import OpenVLAOFT
from accerl.policies.openvla_oft.model import Float32RotaryEmbedding
from accerl.types import Batch
from tests.policies.openvla_oft.fakes import SEEDS, observations, tiny_policy
from tests.policies.openvla_oft.reference import CASES, write_checkpoint
from tests.roles.fakes import trajectory

WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora_rank": 2},
    "frozen vision": {"freeze_vision": True},
    "lora, frozen vision": {"lora_rank": 2, "freeze_vision": True},
}
BACKBONE = "vision_backbone."


def made(way: str) -> Any:
    torch.manual_seed(1)
    return adapted(tiny_policy(), PolicyConfig(**WAYS[way]))


def learner_of(policy: Any) -> Learner:
    config = LearnerConfig(policy_lr=1e-2, value_lr=1e-2, warmup_updates=0, value_warmup_updates=0)
    return Learner(policy, config, ObjectiveConfig(value_loss="bce"))


def batch(seed: int) -> Batch:
    parts = [trajectory(3, seed=2 * seed, terminal=True, reward=np.array([0, 0, 1], np.float32))]
    return pack([*parts, trajectory(2, seed=2 * seed + 1)], chunk_length=2)


def changed_names(policy: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("way", WAYS)
def test_exactly_what_should_train_does(way: str) -> None:
    policy = made(way)
    before = copy.deepcopy(policy.state_dict())
    learner = learner_of(policy)
    for seed in range(2):
        learner.update(batch(seed))
    names = changed_names(policy, before)
    assert any(name.endswith("lm_head.weight") for name in names)
    assert any("value_head." in name for name in names)
    assert any("projector.fc1" in name for name in names)
    assert any(BACKBONE in name for name in names) is ("frozen" not in way)
    if "lora" in way:
        others = [name for name in names if "lora_" not in name and "value_head." not in name]
        assert [name.removeprefix("base.") for name in others] == ["model.language_model.lm_head.weight"]
        assert not any("lm_head" in name and "lora_" in name for name in before)
    sizes = [entry["exp_avg"].numel() for entry in learner.state_dict()["optimizer"]["state"].values()]
    assert sum(sizes) == sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_from_a_checkpoint_bit_for_bit(way: str, tmp_path: Path) -> None:
    learner = learner_of(made(way))
    for seed in range(4):
        if seed == 2:
            policy: Any = learner.policy
            state = learner.state_dict()
            content = Content(policy_config=policy.config_dict(), policy=policy.state_dict(), learner=state, run={})
            folder = save_checkpoint(tmp_path, content, keep=1)
        learner.update(batch(seed))
    resumed = learner_of(load_policy(folder))
    resumed.load_state_dict(load_checkpoint(folder)[0])
    for seed in range(2, 4):
        resumed.update(batch(seed))
    for name, tensor in learner.policy.state_dict().items():
        assert torch.equal(tensor, resumed.policy.state_dict()[name]), name


def kept_bytes(policy: Any) -> int:
    """For the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        blob = {"tokens": torch.zeros(4, 4, dtype=torch.int16)}
        evaluation = policy.evaluate(observations(4), blob)
    assert evaluation.log_prob.requires_grad
    return sum(saved.values())


def test_a_frozen_vision_backbone_keeps_no_activations() -> None:
    inside: list[bool] = []
    policy = made("frozen vision")
    policy.model.vision_backbone.featurizer.blocks[0].register_forward_hook(
        lambda _, __, output: inside.append(output.requires_grad)
    )
    assert kept_bytes(policy) < 0.7 * kept_bytes(made("full"))
    assert inside == [False]


def test_gradients_of_the_rest_are_the_same_when_vision_is_frozen() -> None:
    gradients = []
    for way in ("full", "frozen vision"):
        policy = made(way)
        policy.evaluate(observations(4), {"tokens": torch.ones(4, 4, dtype=torch.int16)}).log_prob.sum().backward()
        gradients.append({name: parameter.grad for name, parameter in policy.named_parameters()})
    for name, gradient in gradients[1].items():
        if BACKBONE in name:
            assert gradient is None
        elif gradient is not None:
            assert torch.equal(gradient, gradients[0][name]), name


def test_merged_additions_are_written_in_the_public_layout(tmp_path: Path) -> None:
    public = write_checkpoint(tmp_path / "public", CASES["film"])
    policy = LowRankPolicy(OpenVLAOFT.from_pretrained(public), rank=2, alpha=4)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = OpenVLAOFT.from_pretrained(public).state_dict()
    merged: Any = policy.merged()
    merged.save_pretrained(tmp_path / "trained")
    again = OpenVLAOFT.from_pretrained(tmp_path / "trained")
    assert changed_names(again, before) >= {"model.projector.fc1.weight"}
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_freezing_comes_back_from_files_and_can_be_taken_back(tmp_path: Path) -> None:
    for way in ("frozen vision", "lora, frozen vision"):
        policy = made(way)
        save_policy(tmp_path / "policy", policy.config_dict(), policy.state_dict())
        found: Any = load_policy(tmp_path / "policy")
        trains = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
        assert trains == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        free: Any = adapted(found, PolicyConfig())
        assert all(parameter.requires_grad for parameter in free.parameters())
        assert not free.config.freeze_vision
    still: Any = adapted(made("lora, frozen vision"), PolicyConfig(freeze_vision=True))
    assert not any(parameter.requires_grad for parameter in still.model.vision_backbone.parameters())


def test_what_cannot_be_frozen_is_refused() -> None:
    from tests.roles.fakes import tiny_policy as tiny_vla

    with pytest.raises(ConfigError, match=r"^policy\.freeze_vision: TinyVLA has no freeze_vision\(\); leave it out$"):
        adapted(tiny_vla(), PolicyConfig(freeze_vision=True))
    with pytest.raises(ConfigError, match=r"^policy\.freeze_vision: True is not what the checkpoint's additions"):
        adapted(made("lora"), PolicyConfig(lora_rank=2, freeze_vision=True))


def test_a_policy_comes_back_without_being_filled_with_random_values_first(monkeypatch: Any) -> None:
    policy = made("lora")
    filled: list[str] = []
    plain = torch.nn.init.normal_

    def watched(tensor: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        filled.append(tensor.device.type)
        return plain(tensor, *rest, **more)

    monkeypatch.setattr(torch.nn.init, "normal_", watched)
    restored: Any = restore_policy(policy.config_dict(), policy.state_dict())
    assert filled and set(filled) == {"meta"}
    assert all(tensor.device.type == "cpu" for tensor in (*restored.parameters(), *restored.buffers()))
    first, second = (each.act(observations(5), SEEDS) for each in (policy.train(False), restored.train(False)))
    assert torch.equal(first.log_prob, second.log_prob)

    empty: Any = empty_policy(policy.config_dict(), "cpu")
    empty.load_state_dict(policy.state_dict())
    assert torch.equal(empty.train(False).act(observations(5), SEEDS).log_prob, first.log_prob)


def test_weights_that_were_stored_in_bfloat16_train_in_float32() -> None:
    policy: Any = tiny_policy().to(torch.bfloat16)
    trained: Any = learner_of(policy).policy
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert all(
        module.inv_freq.dtype == torch.float32
        for module in trained.modules()
        if isinstance(module, Float32RotaryEmbedding)
    )


def test_a_fresh_process_reads_a_policy_whose_module_it_has_not_imported_yet(tmp_path: Path) -> None:
    policy = made("full")
    save_policy(tmp_path / "policy", policy.config_dict(), policy.state_dict())
    code = "import sys, pathlib, accerl.checkpoint as c; c.load_policy(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "policy")], check=True, timeout=120)
