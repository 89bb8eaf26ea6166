"""The network agrees with the reference, however its sequence is laid out, padded, batched, compiled or cast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from accerl.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from accerl.policies.openvla_oft.actions import normalize
from accerl.policies.openvla_oft.layout import Layout, pad_prompts
from accerl.policies.openvla_oft.model import OpenVLAModel
from tests.policies.openvla_oft import reference

TOLERANCE = 5e-5
"""Logits go up to 33."""
STATISTICS = {"action": {"q01": [-1] * 7, "q99": [1] * 7}, "proprio": {"q01": [-1] * 8, "q99": [1] * 8}}


def inputs(policy: OpenVLAOFT, golden: dict[str, Tensor], name: str, places: int = 40) -> dict[str, Any]:
    proprio = normalize(golden[f"{name}.proprio"].numpy(), reference.statistics()[reference.KEY]["proprio"])
    return {
        "prompts": pad_prompts(reference.PROMPTS, places),
        "pixels": golden[f"{name}.pixels"],
        "proprio": torch.from_numpy(proprio).float() if policy.config.proprio_dim else None,
    }


@pytest.mark.parametrize("slimmed", [True, False])
@pytest.mark.parametrize("name", reference.CASES)
def test_logits_and_tokens_are_those_of_the_reference(name, slimmed, checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints[name], slimmed=slimmed)
    with torch.no_grad():
        prediction = policy.model(**inputs(policy, golden, name))
    assert prediction.logits.shape == (3, 56, 256)
    assert (prediction.logits - golden[f"{name}.logits"]).abs().max() < TOLERANCE
    assert torch.equal(31744 + prediction.logits.argmax(-1), golden[f"{name}.ids"])


class CausalLayout:
    """A layout in which no token attends to those after it in the published order."""

    def __init__(self, layout: Layout):
        self.layout, self.actions, self.mean_text = layout, layout.actions, layout.mean_text

    def __call__(self, *arguments: Any) -> Any:
        sequences = self.layout(*arguments)
        key, query = sequences.positions[:, None, None], sequences.positions[:, None, :, None]
        return sequences._replace(visible=sequences.visible & (key <= query))


@pytest.mark.parametrize("name", reference.CASES)
def test_a_causal_mask_would_not_agree(name, checkpoints, golden):
    policy: Any = OpenVLAOFT.from_pretrained(checkpoints[name])
    policy.model.layout = CausalLayout(policy.model.layout)
    with torch.no_grad():
        logits = policy.model(**inputs(policy, golden, name)).logits
    assert (logits - golden[f"{name}.logits"]).abs().max() > 1
    causal = reference.expected_of(reference.CASES[name], causal=True)["logits"]
    assert (logits - causal).abs().max() < 2 * TOLERANCE, "it is the mask that makes the difference"


@pytest.mark.parametrize("name", reference.CASES)
def test_a_row_does_not_depend_on_its_batch_or_the_padding(name, checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints[name])
    whole = inputs(policy, golden, name)
    with torch.no_grad():
        together = policy.model(**whole)
        for row, prompt in enumerate(reference.PROMPTS):
            alone = policy.model(
                prompts=pad_prompts([prompt], len(prompt) - 2),
                pixels=whole["pixels"][[row]],
                proprio=None if whole["proprio"] is None else whole["proprio"][[row]],
            )
            assert (alone.logits[0] - together.logits[row]).abs().max() < TOLERANCE
            torch.testing.assert_close(alone.states[0], together.states[row], atol=1e-5, rtol=1e-5)
    prompts = whole["prompts"]
    other = prompts.ids.where(torch.arange(40) < prompts.length[:, None], 77)
    with torch.no_grad():
        repadded = policy.model(**{**whole, "prompts": prompts._replace(ids=other)})
    assert torch.equal(repadded.logits, together.logits), "padding is never looked at"


def test_gradients_are_those_of_the_reference(checkpoints, golden):
    name = "two_images"
    case = reference.CASES[name]
    policy = OpenVLAOFT.from_pretrained(checkpoints[name])
    given = inputs(policy, golden, name)
    target = golden[f"{name}.ids"][0] - 31744
    loss = torch.nn.functional.cross_entropy(policy.model(**given).logits[0], (target + 5) % 256)
    loss.backward()
    tensors = {key: tensor.double().requires_grad_() for key, tensor in reference.tensors_of(case).items()}
    logits = reference.logits_of(
        tensors, case, reference.PROMPTS[0], given["pixels"][0].double(), given["proprio"][0].double()
    )
    expected = torch.nn.functional.cross_entropy(logits[:, 31744:32000], (target + 5) % 256)
    expected.backward()
    assert abs(loss.item() - expected.item()) < TOLERANCE
    for key, parameter in policy.model.named_parameters():
        wanted = tensors[key].grad
        assert wanted is not None
        assert parameter.grad is not None, key
        if key.endswith("lm_head.weight"):
            wanted = wanted[31744:32000]
        scale = wanted.abs().max().item()
        assert (parameter.grad - wanted).abs().max() < 1e-4 * scale + 1e-7, key
    unused = {key for key in tensors if tensors[key].grad is None}
    assert unused == tensors.keys() - dict(policy.model.named_parameters()).keys()


def test_recomputing_blocks_in_the_backward_pass_changes_no_gradient(checkpoints, golden):
    gradients = []
    for recomputes in (False, True):
        policy = OpenVLAOFT.from_pretrained(checkpoints["film"]).train()
        if recomputes:
            policy.gradient_checkpointing_enable()
        calls = []
        blocks: tuple[Any, ...] = (
            policy.model.language_model.model.layers[1].mlp,
            policy.model.vision_backbone.featurizer.blocks[0],
        )
        for block in blocks:
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        policy.model(**inputs(policy, golden, "film")).logits.square().mean().backward()
        assert len(calls) == 2 * (1 + recomputes)
        gradients.append([parameter.grad for parameter in policy.model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", reference.CASES)
def test_one_compiled_graph_serves_prompts_of_every_length(name, checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints[name]).eval()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(policy.model, backend=counter, fullgraph=True)
    given = inputs(policy, golden, name)
    with torch.no_grad():
        for shift in range(3):
            order = [(row + shift) % 3 for row in range(3)]
            rows = {key: None if tensor is None else tensor[order] for key, tensor in given.items() if key != "prompts"}
            prompts = pad_prompts([reference.PROMPTS[row] for row in order], 40)
            logits = compiled(prompts=prompts, **rows).logits
            assert (logits - golden[f"{name}.logits"][order]).abs().max() < TOLERANCE
    assert counter.frame_count == 1


# --- rotary frequencies -----------------------------------------------------------------------------------------------


def frequencies(model: OpenVLAModel) -> Tensor:
    return model.language_model.model.rotary_emb.inv_freq


@pytest.mark.parametrize(
    "cast",
    [
        lambda policy: policy.to(torch.bfloat16),
        lambda policy: policy.half(),
        lambda policy: policy.model.language_model.model.bfloat16(),
        lambda policy: policy.to("meta").to_empty(device="cpu"),
    ],
    ids=["to", "half", "inner", "meta"],
)
def test_rotary_frequencies_stay_float32_after_every_cast(cast, checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"])
    expected = 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    assert torch.allclose(frequencies(policy.model).double(), expected, rtol=1e-6)
    before = frequencies(policy.model).clone()
    cast(policy)
    assert frequencies(policy.model).dtype == torch.float32
    assert torch.equal(frequencies(policy.model), before)


def test_in_bfloat16_the_angles_at_a_late_position_are_exact(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], dtype=torch.bfloat16)
    rotary = policy.model.language_model.model.rotary_emb
    cosine, _ = rotary(torch.zeros(1, dtype=torch.float32), torch.tensor([[600]]))
    expected = (600 * 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)).cos()
    assert (cosine[0, 0, :4] - expected).abs().max() < 1e-4
    assert next(policy.model.parameters()).dtype == torch.bfloat16


def test_bfloat16_is_near_float32(checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], dtype=torch.bfloat16)
    with torch.no_grad():
        logits = policy.model(**inputs(policy, golden, "film")).logits
    assert logits.dtype == torch.float32
    assert (logits - golden["film.logits"]).abs().mean() < 0.15


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slimmed", "billions"), [(False, 7.515), (True, 7.385)])
def test_the_real_sizes_have_the_published_number_of_parameters(slimmed, billions):
    config = OpenVLAOFTConfig(
        num_images=2, proprio_dim=8, slimmed=slimmed, norm_stats_key="a", norm_stats=STATISTICS, tokenizer=("a",)
    )
    with torch.device("meta"):
        model = OpenVLAModel(config)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 3) == billions
    assert model.layout.num_context == 2 * 256 + 1
    shards = [name for name in model.state_dict() if not name.startswith("proprio_projector.")]
    unused = 14 + 2 + 12 + 2 + 13  # DINOv2's last block and norm, SigLIP's, its pooling
    assert len(shards) + unused == 982, "tensors in the index of a published checkpoint"


def test_a_model_that_looks_at_proprioception_refuses_to_go_without(checkpoints, golden):
    policy = OpenVLAOFT.from_pretrained(checkpoints["two_images"])
    with pytest.raises(ValueError, match=r"^proprio: this model looks at proprioception$"):
        policy.model(**{**inputs(policy, golden, "two_images"), "proprio": None})


# --- layout -----------------------------------------------------------------------------------------------------------


def test_positions_are_those_of_the_published_order():
    layout = Layout(num_context=3, num_tokens=2, stop_token=True)
    prompts = pad_prompts([[1, 10, 11, 29871], [1, 12, 29871]], 3)
    embedded = layout(prompts, torch.zeros(2, 3, 4), lambda ids: ids[..., None].expand(*ids.shape, 4).float())
    # in memory: BOS, three patches, ▁, two actions, </s>, text
    assert embedded.embeddings[0, :, 0].tolist() == [1, 0, 0, 0, 29871, 0, 0, 2, 10, 11, 32000]
    assert embedded.positions[0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 6]
    assert embedded.positions[1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 4, 5, 6]
    assert embedded.visible.shape == (2, 1, 11, 11)
    assert np.array_equal(embedded.visible[1, 0, 5].int().tolist(), [1] * 9 + [0, 0])
    assert layout.actions == slice(4, 6), "▁ predicts the first action token, that one the second"
    without = replace(layout, stop_token=False)
    assert without(prompts, torch.zeros(2, 3, 4), lambda ids: torch.zeros(*ids.shape, 4)).embeddings.shape[1] == 10


def test_film_looks_at_the_mean_of_all_text():
    layout = Layout(num_context=3, num_tokens=2, stop_token=True)
    prompts = pad_prompts([[1, 10, 11, 29871], [1, 12, 29871]], 3)
    mean = layout.mean_text(prompts, lambda ids: ids[..., None].float())
    assert torch.allclose(mean[:, 0], torch.tensor([(1 + 10 + 11 + 29871 + 2) / 5, (1 + 12 + 29871 + 2) / 4]))


def test_the_golden_file_is_what_the_reference_gives(golden: dict[str, Tensor], tmp_path: Path):
    for name, case in reference.CASES.items():
        for key, value in reference.expected_of(case).items():
            torch.testing.assert_close(golden[f"{name}.{key}"], value, atol=1e-5, rtol=0)
