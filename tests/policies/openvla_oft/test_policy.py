"""OpenVLA-OFT keeps the promises of `accerl.protocols.Policy`."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accerl.config import ConfigError, PolicyConfig
from accerl.policies import build_policy, new_policy
from accerl.policies.lora import LowRankPolicy
from accerl.policies.openvla_oft import OpenVLAOFT, images, start_weights
from accerl.policies.openvla_oft.tokenizer import PROMPT
from accerl.protocols import Policy
from accerl.types import ObservationBatch
from tests.policies.openvla_oft.fakes import INSTRUCTIONS, SEEDS, observations, tiny_policy
from tests.policies.openvla_oft.reference import CASES, PROMPTS, TEXTS
from tests.roles.fakes import SPEC, rows


@pytest.mark.parametrize("name", CASES)
def test_greedy_actions_are_those_of_the_reference(name, checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints[name])
    published = {PROMPT.format(text): ids[:-1] for text, ids in zip(TEXTS, PROMPTS, strict=True)}
    policy.tokenizer = lambda text: SimpleNamespace(input_ids=published[text])
    batch = ObservationBatch(
        images=golden[f"{name}.images"],
        proprio=golden[f"{name}.proprio"],
        instructions=list(TEXTS),
        episode_step=torch.zeros(3, dtype=torch.long),
    )
    output = policy.act(batch, np.full(3, -1))
    assert torch.equal(output.blob["tokens"] + 31744, golden[f"{name}.ids"])
    assert (output.action - golden[f"{name}.actions"]).abs().max() < 1e-6
    assert output.action.shape == (3, 8, 7)
    assert output.action[..., -1].abs().eq(1).all(), "the gripper is open or closed"


def test_what_act_gives_fits_the_specification():
    output = tiny_policy().act(observations(5), SEEDS)
    assert output.action.shape == (5, 2, 2)
    assert output.action.dtype == output.log_prob.dtype == output.value.dtype == torch.float32
    assert output.action.abs().max() <= 1
    assert output.log_prob.shape == (5, 4)
    assert output.value.shape == (5,)
    assert output.blob["tokens"].dtype == torch.int16


@pytest.mark.parametrize("others", [[0], [3, 0, 1], [4, 4, 2, 0]])
def test_an_action_depends_on_its_row_and_seed_only(others):
    policy, batch = tiny_policy(), observations(5)
    whole = policy.act(batch, SEEDS)
    part = policy.act(rows(batch, others), SEEDS[others])
    assert torch.equal(part.blob["tokens"], whole.blob["tokens"][others])
    torch.testing.assert_close(part.log_prob, whole.log_prob[others], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.value, whole.value[others], atol=1e-5, rtol=0)
    assert not torch.equal(policy.act(batch, SEEDS + 100).blob["tokens"], whole.blob["tokens"])


@pytest.mark.parametrize("slimmed", [True, False])
def test_evaluate_gives_the_log_prob_that_act_gave(slimmed):
    policy, batch = tiny_policy(slimmed=slimmed), observations(5)
    output = policy.act(batch, SEEDS)
    evaluation = policy.evaluate(batch, output.blob)
    torch.testing.assert_close(evaluation.log_prob, output.log_prob)
    torch.testing.assert_close(evaluation.value, output.value)
    torch.testing.assert_close(policy.value(batch), output.value)


def test_probabilities_and_entropy_are_those_of_a_distribution():
    policy = tiny_policy()
    same = rows(observations(1), [0] * 256)
    evaluation = policy.evaluate(same, {"tokens": torch.arange(256)[:, None].expand(256, 4)})
    probability = evaluation.log_prob.exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(4))
    torch.testing.assert_close(evaluation.entropy[0], -(probability * evaluation.log_prob).sum(0))


def test_every_input_matters():
    policy, batch = tiny_policy(), observations(2)
    blob = policy.act(batch, SEEDS[:2]).blob
    seen = policy.evaluate(batch, blob)
    changes = (
        replace(batch, images=255 - batch.images),
        replace(batch, proprio=-batch.proprio),
        replace(batch, instructions=batch.instructions[::-1]),
    )
    for changed in changes:
        assert not torch.allclose(policy.evaluate(changed, blob).log_prob, seen.log_prob, atol=1e-4)
    later = policy.evaluate(replace(batch, episode_step=batch.episode_step.flip(0) + 1), blob)
    assert torch.equal(later.log_prob, seen.log_prob), "the step is for the critic only"
    assert not torch.allclose(later.value, seen.value, atol=1e-4)


def test_a_policy_without_proprioception_does_not_look_at_it():
    policy, batch = tiny_policy(proprio_dim=None), observations(2)
    assert torch.equal(policy.value(batch), policy.value(replace(batch, proprio=torch.full((2, 9), 7.0))))
    policy.check_env(replace(SPEC, proprio_dim=9))


@pytest.mark.parametrize("field", ["num_cameras", "proprio_dim", "action_dim", "chunk_length"])
def test_another_environment_is_refused_by_the_field_that_differs(field):
    policy = tiny_policy()
    policy.check_env(replace(SPEC, image_size=300))
    with pytest.raises(ValueError, match=rf"policy\.checkpoint: made for {field}={getattr(SPEC, field)}, .* has 6"):
        policy.check_env(replace(SPEC, **{field: 6}))


def test_a_prompt_that_is_too_long_is_refused():
    policy = tiny_policy(prompt_length=30)
    batch = replace(observations(1), instructions=["zzzz " * 10])
    with pytest.raises(ValueError, match=r"^policy\.prompt_length: 30 places, but 'zzzz .* takes \d+; raise it$"):
        policy.value(batch)


def test_bounds_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"action_dim: 3, but norm_stats of 'env' have 2 dimensions of action"):
        tiny_policy(action_dim=3)
    with pytest.raises(ConfigError, match=r"images\.size: 57 is no multiple of both towers' patch=14"):
        tiny_policy(images={"size": 57})
    with pytest.raises(ConfigError, match="depth"):
        tiny_policy(depth=3)


# --- training ---------------------------------------------------------------------------------------------------------


def test_policy_and_value_parameters_are_all_parameters_and_share_none():
    policy = tiny_policy()
    of_policy, of_value = ({id(p) for p in each} for each in (policy.policy_parameters(), policy.value_parameters()))
    assert not of_policy & of_value
    assert of_policy | of_value == {id(parameter) for parameter in policy.parameters()}


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_the_critic_trains_the_value_head_only(pooling):
    policy, batch = tiny_policy(value_pooling=pooling), observations(3)
    policy.evaluate(batch, {"tokens": torch.zeros(3, 4, dtype=torch.int16)}).value.sum().backward()
    policy.value(batch).sum().backward()
    assert all(parameter.grad is None for parameter in policy.policy_parameters())
    assert all(parameter.grad is not None for parameter in policy.value_parameters())


def test_every_policy_parameter_gets_a_gradient():
    policy, batch = tiny_policy(film=True), observations(3)
    policy.evaluate(batch, {"tokens": torch.zeros(3, 4, dtype=torch.int16)}).log_prob.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.policy_parameters())


@pytest.mark.parametrize(("label_width", "floor"), [(0.0, 0.0), (4.0, math.log(4.0 * math.sqrt(2 * math.pi * math.e)))])
def test_the_imitation_loss_falls_to_its_floor_with_the_actions_known(label_width: float, floor: float):
    policy, batch = tiny_policy(label_width=label_width).train(), observations(6)
    policy.gradient_checkpointing_enable()
    actions = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mask = torch.ones(6, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.policy_parameters(), lr=3e-3)
    for _ in range(160):
        optimizer.zero_grad()
        loss = policy.imitation_loss(batch, actions, mask)
        loss.backward()
        optimizer.step()
    assert loss.item() < floor + 0.5, "a Gaussian's entropy is the least that soft labels leave"
    assert (policy.act(batch, np.full(6, -1)).action - actions).abs().mean() < (0.02 if label_width else 0.01)


def test_the_imitation_loss_is_the_cross_entropy_of_the_counted_actions():
    policy, batch = tiny_policy(label_width=0.0), observations(3)
    actions = torch.rand(3, 2, 2) * 2 - 1
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    log_prob = policy.evaluate(batch, {"tokens": policy.tokens_of(actions)}).log_prob.view(3, 2, 2)
    torch.testing.assert_close(policy.imitation_loss(batch, actions, mask), -log_prob[mask].mean())


def test_the_start_weights_do_not_see_a_uniform_background_but_what_is_on_it():
    policy = tiny_policy()
    start_weights(policy)
    frames = torch.full((3, 1, 16, 16, 3), 30, dtype=torch.uint8)
    frames[1] = 200
    frames[2, :, 3:7, 3:7] = 200
    pixels = images.process(frames, policy.config.images)
    with torch.no_grad():
        dark, bright, dot = policy.model.vision_backbone(pixels)
    torch.testing.assert_close(dark, bright, atol=1e-4, rtol=0)
    assert (dot - dark).std() > 0.5 * dark.std()


def test_demonstrated_actions_of_libero_come_back(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"])
    statistics = policy.config.norm_stats["action"]
    low, high = (torch.tensor(statistics[name]) for name in ("q01", "q99"))
    actions = low + torch.rand(2, 8, 7, generator=torch.Generator().manual_seed(1)) * (high - low)
    actions[..., -1] = torch.tensor([1.0, -1.0]).repeat(8).view(2, 8)
    tokens = policy.tokens_of(actions)
    restored = policy._actions[tokens.view(2, 8, 7), torch.arange(7)]
    assert ((restored - actions).abs() <= (high - low) / 255 + 1e-6).all()
    assert torch.equal(restored[..., -1], actions[..., -1])


def test_low_rank_additions_fit_and_merge():
    policy, batch = tiny_policy(), observations(3)
    before = policy.act(batch, SEEDS[:3])
    adapted = LowRankPolicy(policy, rank=2, alpha=4)
    torch.testing.assert_close(adapted.act(batch, SEEDS[:3]).log_prob, before.log_prob)
    merged = adapted.merged()
    torch.testing.assert_close(merged.act(batch, SEEDS[:3]).log_prob, before.log_prob)


def test_bfloat16_weights_with_a_float32_critic(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], dtype=torch.bfloat16)
    batch = ObservationBatch(
        images=torch.zeros(1, 1, 28, 28, 3, dtype=torch.uint8),
        proprio=torch.zeros(1, 8),
        instructions=[TEXTS[0]],
        episode_step=torch.zeros(1, dtype=torch.long),
    )
    output = policy.act(batch, SEEDS[:1])
    assert output.value.dtype == output.log_prob.dtype == torch.float32
    assert {parameter.dtype for parameter in policy.policy_parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in policy.value_parameters()} == {torch.float32}
    policy.to(torch.bfloat16).act(batch, SEEDS[:1])


# --- rebuilding -------------------------------------------------------------------------------------------------------


def test_a_policy_is_rebuilt_from_its_description():
    policy = tiny_policy(film=True, value_pooling="mean")
    rebuilt = build_policy(json.loads(json.dumps({"format": 1, **policy.config_dict()})))
    rebuilt.load_state_dict(policy.state_dict())
    first, second = (each.act(observations(5), SEEDS) for each in (policy, copy.deepcopy(rebuilt)))
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(first.value, second.value)


def test_the_tiny_kind_is_made_for_an_environment():
    config = PolicyConfig(kind="openvla_oft_tiny", width=32, num_layers=2, num_heads=2)
    policy: Policy = new_policy(config, SPEC, INSTRUCTIONS, False, [(0.0, 2.0), (-1.0, 3.0)])
    policy.check_env(SPEC)
    assert policy.num_tokens == 4
    assert policy.config_dict()["norm_stats"]["proprio"] == {"q01": [0.0, -1.0], "q99": [2.0, 3.0]}
    assert not policy.config_dict()["value_probability"]
    assert policy.act(observations(5), SEEDS).action.shape == (5, 2, 2)


def test_a_single_layer_is_refused_as_it_cannot_tell_action_tokens_apart():
    with pytest.raises(ConfigError, match=r"^policy\.num_layers: 1 cannot tell the empty action tokens apart"):
        new_policy(PolicyConfig(kind="openvla_oft_tiny", num_layers=1), SPEC, INSTRUCTIONS, False)


def test_the_large_kind_is_not_made_at_random():
    with pytest.raises(ConfigError, match=r"^policy\.kind: openvla_oft begins with a public checkpoint"):
        new_policy(PolicyConfig(kind="openvla_oft"), SPEC, INSTRUCTIONS, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_policy_on_a_gpu_takes_batches_from_the_cpu(checkpoints: Any, golden: dict[str, Tensor]):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], device="cuda")
    batch = ObservationBatch(
        images=golden["film.images"],
        proprio=golden["film.proprio"],
        instructions=list(TEXTS),
        episode_step=torch.zeros(3, dtype=torch.long),
    )
    output = policy.act(batch, SEEDS[:3])
    evaluation = policy.evaluate(batch, {"tokens": output.blob["tokens"].cpu()})
    torch.testing.assert_close(evaluation.log_prob, output.log_prob, atol=1e-4, rtol=0)
    policy.imitation_loss(batch, output.action.cpu(), torch.ones(3, 8, dtype=torch.bool)).backward()
