"""TinyVLA keeps the promises of `accerl.protocols.Policy`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from accerl.config import ConfigError, EnvConfig
from accerl.envs.metaworld_tasks import INSTRUCTIONS as METAWORLD
from accerl.policies import build_policy
from accerl.policies.action_tokens import sample_tokens
from accerl.policies.tiny_vla import PATCH, TinyVLA, TinyVLAConfig, radial_basis, split_words
from accerl.types import ObservationBatch
from tests.roles.fakes import SPEC, observations, rows, tiny_policy

SEEDS = np.array([3, 1, 4, 15, 9])


def told(batch: ObservationBatch, *instructions: str) -> ObservationBatch:
    return replace(batch, instructions=list(instructions))


def same_observation(num: int) -> ObservationBatch:
    return rows(observations(1), [0] * num)


def test_the_default_has_one_to_three_million_parameters():
    env = EnvConfig()
    spec = replace(SPEC, image_size=env.image_size, proprio_dim=4, action_dim=4, chunk_length=env.chunk_length)
    policy = TinyVLA(TinyVLAConfig.for_env(spec, METAWORLD.values()))
    assert 1e6 < sum(parameter.numel() for parameter in policy.parameters()) < 3e6


def test_what_act_gives_fits_the_specification():
    output = tiny_policy().act(observations(5), SEEDS)
    assert output.action.shape == (5, 2, 2)
    assert output.action.abs().max() < 1
    assert output.log_prob.shape == (5, 4)
    assert output.value.shape == (5,)
    assert all(array.shape[0] == 5 for array in output.blob.values())


def test_the_same_observation_and_seed_give_the_same_action():
    first, second = (tiny_policy().act(observations(5), SEEDS) for _ in range(2))
    assert torch.equal(first.blob["tokens"], second.blob["tokens"])
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(first.action, second.action)


def test_another_seed_gives_another_action():
    policy = tiny_policy()
    assert not torch.equal(policy.act(observations(5), SEEDS).action, policy.act(observations(5), SEEDS + 100).action)


@pytest.mark.parametrize("others", [[0], [3, 0, 1], [4, 4, 2, 0]])
def test_an_action_does_not_depend_on_the_batch_it_is_made_in(others):
    policy, batch = tiny_policy(), observations(5)
    whole = policy.act(batch, SEEDS)
    part = policy.act(rows(batch, others), SEEDS[others])
    assert torch.equal(part.blob["tokens"], whole.blob["tokens"][others])
    torch.testing.assert_close(part.log_prob, whole.log_prob[others], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.value, whole.value[others], atol=1e-5, rtol=0)


def test_a_negative_seed_takes_the_most_probable_tokens_and_leaves_other_rows_alone():
    policy, batch = tiny_policy(), observations(5)
    sampled = policy.act(batch, SEEDS).blob["tokens"]
    mixed = policy.act(batch, np.where(np.arange(5) % 2, SEEDS, -1)).blob["tokens"]
    greedy = policy.act(batch, np.full(5, -7))
    assert torch.equal(mixed[1::2], sampled[1::2])
    assert torch.equal(mixed[::2], greedy.blob["tokens"][::2])
    assert (greedy.log_prob >= policy.act(batch, SEEDS).log_prob).all()
    for token in range(0, 256, 5):
        rival = policy.evaluate(batch, {"tokens": torch.full((5, 4), token)})
        assert (greedy.log_prob >= rival.log_prob - 1e-6).all()


def test_evaluate_gives_the_log_prob_that_act_gave():
    policy, batch = tiny_policy(), observations(5)
    output = policy.act(batch, SEEDS)
    evaluation = policy.evaluate(batch, output.blob)
    torch.testing.assert_close(evaluation.log_prob, output.log_prob)
    torch.testing.assert_close(evaluation.value, output.value)
    torch.testing.assert_close(policy.value(batch), output.value)


def test_probabilities_and_entropy_are_those_of_a_distribution():
    policy, batch = tiny_policy(num_bins=8), same_observation(8)
    every_token = {"tokens": torch.arange(8)[:, None].expand(8, 4)}
    evaluation = policy.evaluate(batch, every_token)
    probability = evaluation.log_prob.exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(4))
    torch.testing.assert_close(evaluation.entropy[0], -(probability * evaluation.log_prob).sum(0))


def test_sampled_tokens_come_as_often_as_their_probabilities_say():
    num = 3000
    policy = tiny_policy(num_bins=8, num_basis=8)
    with torch.no_grad():
        output = policy.act(same_observation(num), np.arange(num))
        every_token = {"tokens": torch.arange(8)[:, None].expand(8, 4)}
        probability = policy.evaluate(same_observation(8), every_token).log_prob.exp()
    assert probability.max() > 0.2, "uniform probabilities would hide an error"
    for token in range(4):
        counts = torch.bincount(output.blob["tokens"][:, token].long(), minlength=8)
        expected = num * probability[:, token]
        chi_square = ((counts - expected).square() / expected).sum()
        assert chi_square < 24.3, "99.9 % of 7 degrees of freedom"


def test_tokens_of_one_row_are_drawn_independently():
    num = 4000
    tokens = sample_tokens(torch.tensor([0.5, 0.25, 0.25]).log().expand(num, 2, 3), np.arange(num))
    joint = torch.bincount(3 * tokens[:, 0] + tokens[:, 1], minlength=9)
    expected = num * torch.outer(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.5, 0.25, 0.25])).flatten()
    assert ((joint - expected).square() / expected).sum() < 26.1, "99.9 % of 8 degrees of freedom"


def test_an_impossible_token_is_never_drawn():
    log_probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).log().expand(500, 1, 5)
    assert set(sample_tokens(log_probs, np.arange(500)).flatten().tolist()) == {1, 3}


def test_the_longest_seed_is_a_seed():
    assert tiny_policy().act(same_observation(1), np.array([2**63 - 1])).action.isfinite().all()


# --- language ---------------------------------------------------------------------------------------------------------


def test_a_longer_instruction_in_the_batch_changes_nothing_for_the_others():
    policy, batch = tiny_policy(), observations(2)
    blob = policy.act(batch, SEEDS[:2]).blob
    beside_short = policy.evaluate(told(batch, "go red", "go"), blob)
    beside_long = policy.evaluate(told(batch, "go red", "go to the blue dot and to the red dot"), blob)
    torch.testing.assert_close(beside_long.log_prob[0], beside_short.log_prob[0], atol=1e-5, rtol=0)
    assert not torch.allclose(beside_long.log_prob[1], beside_short.log_prob[1], atol=1e-3)


def test_the_instruction_matters_and_so_does_the_order_of_its_words():
    policy = tiny_policy()
    batch = told(same_observation(3), "red dot", "blue dot", "dot red")
    log_prob = policy.evaluate(batch, {"tokens": torch.full((3, 4), 100)}).log_prob
    assert not torch.allclose(log_prob[0], log_prob[1], atol=1e-4)
    assert not torch.allclose(log_prob[0], log_prob[2], atol=1e-4)


def test_every_unknown_word_is_the_unknown_token():
    policy = tiny_policy()
    batch = told(same_observation(3), "go to the purple dot", "go to the xyzzy dot", "go to the red dot")
    log_prob = policy.evaluate(batch, {"tokens": torch.full((3, 4), 100)}).log_prob
    torch.testing.assert_close(log_prob[0], log_prob[1])
    assert not torch.allclose(log_prob[0], log_prob[2], atol=1e-4)


def test_case_and_punctuation_are_not_read():
    assert split_words("Go to the RED dot, no. 2!") == ["go", "to", "the", "red", "dot", "no", "2"]


def test_words_past_the_last_that_fit_are_not_read():
    policy = tiny_policy(max_words=2)
    batch = told(same_observation(2), "red dot", "red dot to the blue")
    output = policy.act(batch, np.array([7, 7]))
    assert torch.equal(output.blob["tokens"][0], output.blob["tokens"][1])


def test_a_batch_without_any_word_is_answered():
    policy, batch = tiny_policy(), observations(2)
    empty = policy.act(told(batch, "", ""), SEEDS[:2])
    beside_words = policy.act(told(batch, "", "go to the red dot"), SEEDS[:2])
    torch.testing.assert_close(empty.log_prob[0], beside_words.log_prob[0], atol=1e-5, rtol=0)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_two_cameras_are_told_apart():
    policy, batch = tiny_policy(num_cameras=2), observations(3, num_cameras=2)
    blob = policy.act(batch, SEEDS[:3]).blob
    swapped = replace(batch, images=batch.images.flip(1))
    second_is_dark = replace(batch, images=batch.images * torch.tensor([1, 0], dtype=torch.uint8)[:, None, None, None])
    seen = policy.evaluate(batch, blob).log_prob
    assert not torch.allclose(policy.evaluate(swapped, blob).log_prob, seen, atol=1e-4)
    assert not torch.allclose(policy.evaluate(second_is_dark, blob).log_prob, seen, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_proprioception_is_scaled_by_its_bounds():
    millimetres = tiny_policy(proprio_bounds=((0.0, 0.002), (-1.0, 3.0)))
    scaled = tiny_policy()
    scaled.load_state_dict(millimetres.state_dict())
    batch = observations(3)
    metres = replace(batch, proprio=torch.tensor([[0.0, -1.0], [0.002, 3.0], [0.0015, 1.0]]))
    expected = replace(batch, proprio=torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.5, 0.0]]))
    assert torch.allclose(millimetres.value(metres), scaled.value(expected), atol=1e-5)
    assert not torch.allclose(millimetres.value(metres), scaled.value(metres), atol=1e-5)
    with pytest.raises(ValueError, match=r"^proprio_bounds: 1 for a proprio_dim of 2$"):
        tiny_policy(proprio_bounds=((0.0, 1.0),))


def test_an_environment_without_proprioception_is_served():
    policy = tiny_policy(proprio_dim=0)
    assert policy.act(observations(3, proprio_dim=0), SEEDS[:3]).action.shape == (3, 2, 2)


def test_every_input_matters():
    policy, batch = tiny_policy(num_layers=2), observations(2)
    blob = policy.act(batch, SEEDS[:2]).blob
    seen = policy.evaluate(batch, blob)
    for changed in (replace(batch, images=255 - batch.images), replace(batch, proprio=batch.proprio + 1)):
        assert not torch.allclose(policy.evaluate(changed, blob).log_prob, seen.log_prob, atol=1e-4)
    later = policy.evaluate(replace(batch, episode_step=batch.episode_step.flip(0) + 1), blob)
    assert torch.equal(later.log_prob, seen.log_prob), "the step is for the critic only"
    assert not torch.allclose(later.value, seen.value, atol=1e-4)


@pytest.mark.parametrize("field", ["image_size", "num_cameras", "proprio_dim", "action_dim", "chunk_length"])
def test_another_environment_is_refused_by_the_field_that_differs(field):
    policy = tiny_policy()
    policy.check_env(SPEC)
    value = getattr(SPEC, field)
    with pytest.raises(ValueError, match=rf"policy\.checkpoint: made for {field}={value}, .* has {value * 2}"):
        policy.check_env(replace(SPEC, **{field: value * 2}))


def test_images_that_do_not_divide_into_patches_are_refused():
    with pytest.raises(ValueError, match=f"env.image_size: TinyVLA needs a multiple of {PATCH}, not 24"):
        tiny_policy(image_size=24)


def test_neighbouring_bins_move_together():
    basis = radial_basis(16, 256)
    assert basis.shape == (16, 256)
    assert (basis.argmax(1).float() - torch.linspace(0, 255, 16)).abs().max() <= 0.5
    assert (basis[:, 1:] - basis[:, :-1]).abs().max() < 0.06
    assert (basis.sum(0) > 0.9).all(), "no bin is out of reach"


# --- training ---------------------------------------------------------------------------------------------------------


def test_policy_and_value_parameters_are_all_parameters_and_share_none():
    policy = tiny_policy()
    of_policy = {id(parameter) for parameter in policy.policy_parameters()}
    of_value = {id(parameter) for parameter in policy.value_parameters()}
    assert not of_policy & of_value
    assert of_policy | of_value == {id(parameter) for parameter in policy.parameters()}


def test_the_critic_trains_the_value_head_only():
    policy, batch = tiny_policy(), observations(3)
    policy.evaluate(batch, {"tokens": torch.zeros(3, 4, dtype=torch.int16)}).value.sum().backward()
    assert all(parameter.grad is None for parameter in policy.policy_parameters())
    assert all(parameter.grad is not None for parameter in policy.value_parameters())


def test_the_imitation_loss_falls_on_one_batch_until_its_actions_are_known():
    policy, batch = tiny_policy(label_width=1.0), observations(6)
    actions = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mask = torch.ones(6, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.policy_parameters(), lr=3e-3)
    before = policy.imitation_loss(batch, actions, mask).item()
    for _ in range(150):
        optimizer.zero_grad()
        policy.imitation_loss(batch, actions, mask).backward()
        optimizer.step()
    assert policy.imitation_loss(batch, actions, mask).item() < before - 2
    assert (policy.act(batch, np.full(6, -1)).action - actions).abs().mean() < 0.05


def test_masked_actions_teach_nothing():
    policy, batch = tiny_policy(), observations(3)
    actions = torch.zeros(3, 2, 2)
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    other = torch.where(mask[..., None], actions, torch.tensor(0.9))
    assert torch.equal(policy.imitation_loss(batch, actions, mask), policy.imitation_loss(batch, other, mask))
    assert not torch.equal(policy.imitation_loss(batch, actions, mask), policy.imitation_loss(batch, actions, ~mask))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_policy_on_a_gpu_takes_batches_from_the_cpu():
    policy, batch = tiny_policy().to("cuda"), observations(3)
    output = policy.act(batch, SEEDS[:3])
    evaluation = policy.evaluate(batch, {"tokens": output.blob["tokens"].cpu()})
    torch.testing.assert_close(evaluation.log_prob, output.log_prob, atol=1e-4, rtol=0)
    policy.imitation_loss(batch, output.action.cpu(), torch.ones(3, 2, dtype=torch.bool)).backward()


# --- rebuilding -------------------------------------------------------------------------------------------------------


def test_a_policy_is_rebuilt_from_its_description():
    policy = tiny_policy(num_layers=2, label_width=3.0)
    rebuilt = build_policy(json.loads(json.dumps({"format": 1, **policy.config_dict()})))
    rebuilt.load_state_dict(policy.state_dict())
    assert torch.equal(rebuilt.act(observations(5), SEEDS).log_prob, policy.act(observations(5), SEEDS).log_prob)


def test_unknown_kinds_and_fields_are_refused():
    with pytest.raises(
        ConfigError, match=r"policy\.kind: 'huge_vla' is unknown; known: openvla_oft, openvla_oft_tiny, tiny_vla"
    ):
        build_policy({"kind": "huge_vla"})
    with pytest.raises(ConfigError, match=r"policy\.kind: 'accerl\.plugins:find_object' is no class"):
        build_policy({"kind": "accerl.plugins:find_object"})
    with pytest.raises(ConfigError, match=r"policy\.checkpoint: policy\.json does not fit this version \(depth"):
        build_policy({**tiny_policy().config_dict(), "depth": 3})
