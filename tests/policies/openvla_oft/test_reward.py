"""The success classifier: what it is made of, where its gradients go, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from accerl.config import ConfigError
from accerl.policies.openvla_oft.reward import SuccessClassifier, focal_loss
from tests.policies.openvla_oft.fakes import INSTRUCTIONS, observations, tiny_policy


def classifier(num_layers: int = 1, **fields: Any) -> SuccessClassifier:
    torch.manual_seed(0)
    return SuccessClassifier(tiny_policy(), num_layers=num_layers, **fields)


def logits_of(model: SuccessClassifier, num: int = 4, seed: int = 0) -> Tensor:
    batch = observations(num, seed)
    return model(batch.images, batch.instructions)


# --- focal loss -------------------------------------------------------------------------------------------------------


def test_focal_loss_by_hand():
    logits, success = torch.tensor([math.log(3), math.log(3)]), torch.tensor([1.0, 0.0])
    # p = 3/4 for the success, 1/4 for the failure: 1/4 (1/4)^2 ln(4/3) and 3/4 (3/4)^2 ln 4, their mean
    expected = (0.25 * 0.0625 * math.log(4 / 3) + 0.75 * 0.5625 * math.log(4)) / 2
    assert focal_loss(logits, success).item() == pytest.approx(expected, rel=1e-6)


def test_without_focus_it_is_half_the_cross_entropy():
    logits, success = torch.tensor([0.3, -2.0, 5.0]), torch.tensor([1.0, 1.0, 0.0])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, success)
    assert focal_loss(logits, success, gamma=0, alpha=0.5).item() == pytest.approx(plain.item() / 2, rel=1e-6)


def test_a_certain_frame_counts_next_to_nothing_and_an_extreme_one_stays_finite():
    logits = torch.tensor([8.0, -300.0, 300.0], requires_grad=True)
    loss = [focal_loss(logits[[row]], torch.ones(1)) for row in range(3)]
    assert loss[0] < 1e-9
    assert loss[1].item() == pytest.approx(0.25 * 300)
    sum(loss, torch.zeros(())).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


# --- the network ------------------------------------------------------------------------------------------------------


def test_it_has_the_policys_weights_and_shares_none():
    policy = tiny_policy()
    model = SuccessClassifier(policy, num_layers=1)
    own, theirs = model.state_dict(), policy.model.state_dict()
    for name, tensor in own.items():
        if not name.startswith("head."):
            source = theirs[name.replace("language_model.", "language_model.model.")]
            assert torch.equal(tensor, source), name
            assert tensor.data_ptr() != source.data_ptr(), name
    assert len(model.language_model.layers) == 1
    assert not any("lm_head" in name or "layers.1." in name for name in own)


def test_logits_are_float32_also_in_bfloat16():
    model = SuccessClassifier(tiny_policy().to(torch.bfloat16), num_layers=1)
    assert logits_of(model).dtype == torch.float32
    assert logits_of(model).shape == (4,)
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert ((model.predict(*images_and_texts()) > 0) & (model.predict(*images_and_texts()) < 1)).all()


def images_and_texts() -> tuple[Tensor, list[str]]:
    batch = observations(3)
    return batch.images, batch.instructions


def test_frames_and_instructions_matter_and_other_rows_do_not():
    model = classifier()
    images, _ = images_and_texts()
    same, other = model(images, [INSTRUCTIONS[0]] * 3), model(images, [INSTRUCTIONS[1]] * 3)
    assert (same - other).abs().min() > 1e-6
    assert (same[0] - same[1]).abs() > 1e-6
    torch.testing.assert_close(model(images[1:2], [INSTRUCTIONS[0]]), same[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_all_that_trains(frozen: bool):
    model = classifier(num_layers=2, freeze_vision=frozen)
    focal_loss(logits_of(model), torch.tensor([1.0, 0.0, 1.0, 0.0])).backward()
    for name, parameter in model.named_parameters():
        expected = not (frozen and name.startswith("vision_backbone."))
        assert (parameter.grad is not None) is expected, name
    trained = {id(parameter) for parameter in model.trained_parameters()}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.grad is not None}


def test_it_learns_whether_a_frame_is_bright():
    model = classifier()
    optimizer = torch.optim.AdamW(model.trained_parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def sample() -> tuple[Tensor, Tensor]:
        success = torch.randint(2, (16,), generator=generator).float()
        noise = torch.randint(100, (16, 1, 16, 16, 3), generator=generator)
        return (noise + 120 * success.view(-1, 1, 1, 1, 1)).to(torch.uint8), success

    for _ in range(30):
        frames, success = sample()
        optimizer.zero_grad()
        focal_loss(model(frames, [INSTRUCTIONS[0]] * 16), success).backward()
        optimizer.step()
    frames, success = sample()
    assert ((model.predict(frames, [INSTRUCTIONS[1]] * 16) > 0.5) == success.bool()).all()
    with torch.no_grad():
        forgotten = model.renew_head()(frames, [INSTRUCTIONS[0]] * 16)
    assert ((forgotten > 0) == success.bool()).float().mean() < 1


def test_what_it_cannot_be_made_from_is_refused():
    with pytest.raises(ConfigError, match=r"^num_layers: 4 of the policy's 2 layers; take fewer$"):
        SuccessClassifier(tiny_policy())
    with pytest.raises(ConfigError, match=r"^policy: its patches are modulated by the text \(FiLM\)"):
        SuccessClassifier(tiny_policy(film=True), num_layers=1)
    with pytest.raises(ValueError, match=r"^policy\.prompt_length: 8 places, but"):
        SuccessClassifier(tiny_policy(prompt_length=8), num_layers=1)(*images_and_texts())
