"""The kernel against its torch twin: every objective it takes, over ratios from none to beyond all bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accerl.config import ObjectiveConfig
from accerl.losses import policy_loss as twin
from accerl_ext.policy_loss import form_of, logged

OBJECTIVES: list[dict[str, Any]] = [
    {"kind": "gipo"},
    {"kind": "gipo", "sigma": 0.5, "sigma_negative": 0.1, "kernel": "laplace"},
    {"kind": "gipo", "sigma": 1.5, "kernel": "cauchy"},
    {"kind": "gipo", "sigma": float("inf")},
    {"kind": "ppo", "clip": 0.2, "clip_high": 0.3},
    {"kind": "dual_clip_ppo"},
    {"kind": "importance_sampling"},
    {"kind": "tis"},
    {"kind": "mis"},
    {"kind": "cispo"},
    {"kind": "sapo", "temperature": 2.0},
]


@pytest.fixture
def gpu(device):
    from accerl_ext.gpu import policy_loss

    return policy_loss


def made(decisions: int, tokens: int, scale: float, device: torch.device):
    generator = torch.Generator().manual_seed(0)
    behaviour = -5 * torch.rand(decisions, tokens, generator=generator)
    log_prob = behaviour + scale * torch.randn(decisions, tokens, generator=generator)
    advantage = torch.randn(decisions, generator=generator)
    mask = torch.rand(decisions, tokens, generator=generator) < 0.8
    if decisions > 1:
        advantage[0] = 0
        behaviour[~mask] = torch.nan
    return log_prob.to(device), behaviour.to(device), advantage.to(device), mask.to(device)


def ours(gpu, log_prob, behaviour, advantage, mask, config):
    """Loss, gradient and what is logged."""
    statistics, slope, distance = gpu.forward(log_prob, behaviour, advantage, mask, *form_of(config))
    return statistics[0], statistics[1] * slope, logged(statistics, distance)


def theirs(log_prob, behaviour, advantage, mask, config):
    log_prob = log_prob.clone().requires_grad_()
    loss, seen = twin(log_prob, behaviour, advantage, mask, config)
    return loss.detach(), torch.autograd.grad(loss, log_prob)[0], seen


def compare(mine, other, tolerance: float = 1e-5) -> None:
    scale = max(1.0, other[1].abs().max().item())
    torch.testing.assert_close(mine[0], other[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mine[1], other[1], rtol=tolerance, atol=tolerance * scale)
    assert mine[2].keys() == other[2].keys()
    assert mine[2] == pytest.approx(other[2], rel=10 * tolerance, abs=tolerance)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: f"{each['kind']}-{each.get('kernel', '')}")
def test_loss_gradient_and_diagnostics_are_the_twins(gpu, device, objective, scale):
    inputs = made(37, 56, scale, device)
    config = ObjectiveConfig(**objective)
    compare(ours(gpu, *inputs, config), theirs(*inputs, config))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: f"{each['kind']}-{each.get('kernel', '')}")
def test_ratios_beyond_the_ceiling_stay_finite(gpu, device, objective):
    log_prob, behaviour, advantage, mask = made(4, 8, 0.1, device)
    log_prob[1, :2], log_prob[2, :2] = 90.0, -90.0
    mask[1:3, :2], behaviour[1:3, :2] = True, 0.0
    config = ObjectiveConfig(**objective)
    compare(
        ours(gpu, log_prob, behaviour, advantage, mask, config), theirs(log_prob, behaviour, advantage, mask, config)
    )


@pytest.mark.parametrize(("decisions", "tokens"), [(1, 1), (300, 8)])
def test_one_token_and_more_than_a_program_takes(gpu, device, decisions, tokens):
    inputs = made(decisions, tokens, 0.2, device)
    inputs[3][0, 0] = True
    inputs[1][0, 0] = -1.0
    compare(ours(gpu, *inputs, ObjectiveConfig()), theirs(*inputs, ObjectiveConfig()))


def test_bfloat16_log_probs(gpu, device):
    log_prob, behaviour, advantage, mask = made(20, 8, 0.2, device)
    inputs = log_prob.bfloat16(), behaviour, advantage, mask
    mine, other = ours(gpu, *inputs, ObjectiveConfig()), theirs(*inputs, ObjectiveConfig())
    compare((mine[0], mine[1].bfloat16().float(), mine[2]), (other[0], other[1].float(), other[2]))


def test_without_a_valid_token_the_loss_is_0(gpu, device):
    log_prob, behaviour, advantage, mask = made(3, 4, 0.1, device)
    mine = ours(gpu, log_prob, behaviour, advantage, torch.zeros_like(mask), ObjectiveConfig())
    assert mine[0] == 0 and not mine[1].any() and mine[2] == {"policy_loss": 0.0}


def test_a_proximal_policy_stays_with_the_twin():
    with pytest.raises(ValueError, match="decoupled_ppo"):
        form_of(ObjectiveConfig(kind="decoupled_ppo"))


def test_the_operation_differentiates_on_a_gpu(gpu, device):
    if device.type == "cpu":
        pytest.skip("there is no such operation there")
    from accerl_ext.policy_loss import policy_loss

    log_prob, behaviour, advantage, mask = made(20, 8, 0.2, device)
    log_prob.requires_grad_()
    loss, seen = policy_loss(log_prob, behaviour, advantage, mask, ObjectiveConfig())
    grad = torch.autograd.grad(3 * loss, log_prob)[0] / 3
    other = theirs(log_prob.detach(), behaviour, advantage, mask, ObjectiveConfig())
    compare((loss.detach(), grad, seen), other)
