"""The kernel against its torch twin, whose logits are widened first: the kernel's sums are wide."""

from __future__ import annotations

import pytest
import torch

from accerl.rl.tokens import slim_log_prob as twin
from tests.ext.test_slim_log_prob import made

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [(7, 16, 256), (70, 100, 300), (3, 64, 7), (1, 1, 1), (0, 8, 9), (130, 8, 600)]


@pytest.fixture
def gpu(device):
    from accerl_ext.gpu import slim_log_prob

    return slim_log_prob


def both(gpu, states, weight, tokens):
    """Of the kernel and of the twin: results, and both gradients of a sum that weighs them differently."""
    shares = torch.linspace(-1, 1, max(2, len(tokens)), device=states.device)[: len(tokens)]
    results = gpu.forward(states.detach(), weight.detach(), tokens)
    wide = results[0].dtype
    grads = gpu.backward(
        *(shares.to(wide), (0.3 - shares).to(wide), states.detach(), weight.detach(), tokens, *results[1:], True)
    )
    log_prob, entropy = twin(states.to(wide), weight.to(wide), tokens)
    loss = (shares * log_prob + (0.3 - shares) * entropy).sum()
    return (*results[:2], *grads), (log_prob, entropy, *torch.autograd.grad(loss, (states, weight)))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "width", "bins"), SHAPES)
def test_results_and_gradients_are_the_twins(gpu, device, rows, width, bins, dtype):
    if device.type == "cuda" and dtype == torch.float64:
        pytest.skip("tensor cores of few GPUs have it; the learner does not")
    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers")
    states, weight, tokens = (each.to(device) for each in made((rows,), width, bins, dtype))
    for mine, other in zip(*both(gpu, states, weight, tokens), strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(mine, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_extreme_logits_stay_finite_and_equal(gpu, device, scale):
    inputs = (each.to(device) for each in made((64,), 16, 600, torch.float32, scale))
    for mine, other in zip(*both(gpu, *inputs), strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * max(1.0, other.abs().max().item()))


def test_strided_states_and_weight_and_more_rows_than_a_part(gpu, device, monkeypatch):
    monkeypatch.setattr(gpu, "BACKWARD_ROWS", 10)
    states, weight, tokens = (each.to(device) for each in made((24,), 32, 64, torch.float32))
    turned = states.detach()[:, ::2].requires_grad_(), weight.detach()[::2, ::2].requires_grad_(), tokens % 32
    for mine, other in zip(*both(gpu, *turned), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_without_a_gradient_of_the_weight_there_is_none(gpu, device):
    states, weight, tokens = (each.detach().to(device) for each in made((5,), 4, 6, torch.float32))
    ones = torch.ones(5, device=device)
    results = gpu.forward(states, weight, tokens)
    assert gpu.backward(ones, ones, states, weight, tokens, *results[1:], False)[1].shape == (0, 0)


def test_a_token_that_is_no_bin_is_refused_in_the_interpreter(gpu, device):
    if device.type == "cuda":
        pytest.skip("there it ends the process, and all that follows in it")
    states, weight, tokens = made((5,), 4, 6, torch.float32)
    with pytest.raises(RuntimeError, match="tokens: not all of them are bins"):
        gpu.forward(states.detach(), weight.detach(), torch.full_like(tokens, 6))


def test_the_operation_differentiates_on_a_gpu(gpu, device):
    if device.type == "cpu":
        pytest.skip("the operation is C++ there")
    from accerl_ext.slim_log_prob import _forward, slim_log_prob

    states, weight, tokens = (each.detach().to(device) for each in made((5,), 32, 64, torch.float32))
    inputs = states.requires_grad_(), weight.requires_grad_()
    ours, theirs = (function(*inputs, tokens) for function in (slim_log_prob, twin))
    grads = (torch.autograd.grad(each[0].sum() - each[1].sum(), inputs) for each in (ours, theirs))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    torch.library.opcheck(_forward, (*inputs, tokens), test_utils=("test_schema", "test_faketensor"))
