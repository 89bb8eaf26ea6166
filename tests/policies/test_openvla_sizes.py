"""The arithmetic gives the figures that were counted on the model and published for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from accerl.config import LearnerConfig, PolicyConfig
from accerl.plan_memory import training_flop
from accerl.policies.costs import openvla_costs
from accerl.policies.lora import LowRankPolicy
from accerl.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from accerl.policies.openvla_oft.layout import Prompts
from accerl.policies.openvla_sizes import network_of, sizes_of
from accerl.types import EnvSpec

SPEC = EnvSpec(
    tasks=("task",),
    num_cameras=1,
    image_size=224,
    proprio_dim=0,
    action_dim=7,
    chunk_length=8,
    steps_per_action=1,
    max_decisions=64,
)
BOUNDS = {"q01": [-1.0] * 8, "q99": [1.0] * 8}


def built(proprio_dim: int = 0, **fields: Any) -> OpenVLAOFT:
    """The real network, without memory."""
    stats = {"action": {name: bound[:7] for name, bound in BOUNDS.items()}, "proprio": BOUNDS}
    config = OpenVLAOFTConfig(
        norm_stats_key="a", norm_stats=stats, tokenizer=("go",), proprio_dim=proprio_dim or None, **fields
    )
    with torch.device("meta"):
        return OpenVLAOFT(config)


@pytest.mark.parametrize("proprio_dim", [0, 8])
@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_are_exactly_those_of_the_network(frozen: bool, proprio_dim: int):
    sizes = sizes_of(proprio_dim=proprio_dim, freeze_vision=frozen)
    parameters = list(built(proprio_dim, freeze_vision=frozen).model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == sizes.parameters
    assert sum(parameter.numel() for parameter in parameters if not parameter.requires_grad) == sizes.frozen_parameters


@pytest.mark.parametrize(("frozen", "proprio_dim"), [(False, 0), (True, 0), (False, 8)])
def test_additions_are_exactly_those_that_are_made(frozen: bool, proprio_dim: int):
    with torch.device("meta"):
        policy = LowRankPolicy(built(proprio_dim, freeze_vision=frozen), rank=2, alpha=2)
    added = sum(parameter.numel() for name, parameter in policy.named_parameters() if "lora_" in name)
    assert added == 2 * sizes_of(proprio_dim=proprio_dim, freeze_vision=frozen).lora_parameters


def test_parameters_are_those_of_the_counted_model():
    sizes = sizes_of(num_images=2, proprio_dim=8)
    assert sizes.parameters == pytest.approx(7.385e9, abs=5e5)
    assert sizes.parameters_full_head == pytest.approx(7.515e9, abs=5e5)


def test_slimming_the_head_drops_all_rows_but_those_of_the_action_tokens():
    sizes = sizes_of()
    assert sizes.parameters_full_head - sizes.parameters == (32064 - 256) * 4096


@pytest.mark.parametrize(("images", "tokens", "tflop"), [(1, 348, 4.98), (2, 604, 8.82)])
def test_a_decision_takes_as_many_tokens_and_operations_as_counted(images: int, tokens: int, tflop: float):
    sizes = sizes_of(images)
    assert sizes.tokens == tokens
    assert sizes.flop / 1e12 == pytest.approx(tflop, abs=0.01)


def test_activations_are_near_those_measured():
    """3452 MiB of the language model and 905 of the vision towers, two images."""
    assert sizes_of(2).activation_bytes / 2**20 == pytest.approx(3452 + 905, rel=0.02)


def test_a_frozen_vision_backbone_saves_its_activations():
    """905 MiB were measured with it and 27 without, two images."""
    saved = sizes_of(2).activation_bytes - sizes_of(2, freeze_vision=True).activation_bytes
    assert saved / 2**20 == pytest.approx(905 - 27, rel=0.07)


class FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps; on meta torch would take apart what it does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError


def run(policy: OpenVLAOFT, num_images: int) -> Tensor:
    """The logits of a forward on meta."""
    model, places = policy.model, policy.config.prompt_length
    vars(model.language_model.model.rotary_emb)["_buffers"]["inv_freq"] = torch.zeros(64, device="meta")
    prompts = Prompts(torch.zeros(1, places, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    pixels = torch.zeros(1, num_images, 6, 224, 224, device="meta")
    return model(Prompts(*(each.to("meta") for each in prompts)), pixels).logits


@pytest.mark.parametrize(("images", "frozen", "lora"), [(1, False, False), (2, True, False), (1, False, True)])
@pytest.mark.parametrize("recomputes", [False, True])
def test_what_is_kept_for_the_backward_pass_is_what_was_counted(
    images: int, frozen: bool, lora: bool, recomputes: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *parts, **_: FusedAttention.apply(*parts))
    policy = built(num_images=images, freeze_vision=frozen, dtype="bfloat16").train()
    if lora:
        with torch.device("meta"):
            LowRankPolicy(policy, rank=2, alpha=2).to(torch.bfloat16)
    if recomputes:
        policy.gradient_checkpointing_enable()
    own = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage()._cdata) not in own:
            kept[place] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run(policy, images)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    sizes = sizes_of(images, freeze_vision=frozen, lora=lora, network=network_of(policy.config))
    if not recomputes:
        assert counted / sizes.activation_bytes == pytest.approx(1, abs=0.01)
        return
    plain = sizes_of(images, freeze_vision=True, lora=lora, network=network_of(policy.config))
    block = (plain.activation_bytes - images * 256 * 2 * (9 * 2176 + 3 * 4096)) / 32
    assert (counted + block) / sizes.checkpointed_bytes == pytest.approx(1, abs=0.05)


def test_operations_are_those_that_torch_counts():
    policy = built(num_images=2, dtype="bfloat16")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(policy, 2)
    assert counter.get_total_flops() / sizes_of(2, network=network_of(policy.config)).flop == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("lora", "frozen"), [(False, False), (True, True)])
def test_operations_of_training_are_those_that_torch_counts(lora: bool, frozen: bool):
    """With checkpointing; those of the additions, which are left out, are 3 %."""
    policy = built(freeze_vision=frozen, dtype="bfloat16").train()
    if lora:
        with torch.device("meta"):
            LowRankPolicy(policy, rank=32, alpha=16).to(torch.bfloat16)
    policy.gradient_checkpointing_enable()
    with FlopCounterMode(display=False) as counter:
        run(policy, 1).sum().backward()
    learner = LearnerConfig(gradient_checkpointing=True)
    chosen = PolicyConfig(lora_rank=32 * lora, freeze_vision=frozen)
    costs = openvla_costs(chosen, learner, SPEC, network_of(policy.config))
    counted = counter.get_total_flops() / training_flop(learner, costs)
    assert counted == pytest.approx(1.02 if lora else 1.0, abs=0.01 if lora else 1e-3)
