"""The kernel against its torch twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accerl import kernels
from accerl.rl.tokens import slim_log_prob as twin
from accerl_ext.slim_log_prob import BLOCK_ELEMENTS, _forward, slim_log_prob

pytestmark = pytest.mark.usefixtures("native")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def made(shape, width, bins, dtype, scale=1.0) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(*shape, width, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(width, bins, generator=generator, dtype=torch.float64) / width**0.5
    tokens = torch.randint(0, bins, shape, generator=generator)
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), tokens


def through(function, states, weight, tokens):
    """Both results, and both gradients of a sum that weighs them differently."""
    log_prob, entropy = function(states, weight, tokens)
    shares = torch.linspace(-1, 1, max(1, tokens.numel()))[: tokens.numel()].view(tokens.shape)
    grads = torch.autograd.grad((shares * log_prob + (0.3 - shares) * entropy).sum(), (states, weight))
    return log_prob, entropy, *grads


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("shape", "width", "bins"),
    [
        ((7,), 16, 256),
        ((3, 5), 16, 256),
        ((2, 4), 64, 7),
        ((1,), 1, 1),
        ((0,), 8, 9),
        ((2, 0), 8, 9),
        ((40, 56), 8, 256),
    ],
)
def test_results_and_gradients_are_the_twins(shape, width, bins, dtype):
    inputs = made(shape, width, bins, dtype)
    ours, theirs = through(slim_log_prob, *inputs), through(twin, *inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(mine, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


def test_more_rows_than_a_block():
    inputs = made((2 * BLOCK_ELEMENTS // 256 + 3,), 16, 256, torch.float32)
    for mine, other in zip(through(slim_log_prob, *inputs), through(twin, *inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_wide_head_stays_with_torch(monkeypatch):
    states, weight, tokens = made((4,), 300, 256, torch.float32)
    plain = twin(states, weight, tokens)
    monkeypatch.setitem(kernels._chosen, ("slim_log_prob", "cpu"), lambda *_: pytest.fail("the kernel was used"))
    torch.testing.assert_close(twin(states, weight, tokens), plain)
    with pytest.raises(pytest.fail.Exception):
        twin(states[:, :16], weight[:16], tokens)


@pytest.mark.parametrize("scale", [1e-4, 30.0, 1e4])
def test_extreme_logits_stay_finite_and_equal(scale):
    inputs = made((64,), 16, 256, torch.float32, scale)
    for mine, other in zip(through(slim_log_prob, *inputs), through(twin, *inputs), strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * max(1.0, other.abs().max().item()))


def test_strided_states_and_weight():
    states, weight, tokens = made((6, 4), 16, 32, torch.float32)
    turned = (states.transpose(0, 1), weight[:, ::2], tokens.T % 16)
    for mine, other in zip(slim_log_prob(*turned), twin(*turned), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_row_does_not_depend_on_its_batch():
    states, weight, tokens = made((512,), 16, 256, torch.float32)
    whole = slim_log_prob(states, weight, tokens)
    part = slim_log_prob(states[100:140], weight, tokens[100:140])
    for mine, other in zip(part, whole, strict=True):
        torch.testing.assert_close(mine, other[100:140], rtol=1e-6, atol=1e-6)


def test_gradcheck():
    states, weight, tokens = made((5,), 4, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda s, w: slim_log_prob(s, w, tokens), (states, weight))
    assert torch.autograd.gradcheck(lambda s: slim_log_prob(s, weight.detach(), tokens), (states,))


def test_opcheck():
    states, weight, tokens = made((5,), 4, 6, torch.float32)
    torch.library.opcheck(_forward, (states, weight, tokens))


def test_compile_sees_through_it():
    inputs = made((5,), 4, 6, torch.float32)
    compiled = torch.compile(slim_log_prob, backend="aot_eager", fullgraph=True)
    for mine, other in zip(through(compiled, *inputs), through(twin, *inputs), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_token_that_is_no_bin_is_refused():
    states, weight, tokens = made((5,), 4, 6, torch.float32)
    with pytest.raises(IndexError, match="tokens: 6 to 6, but the head has 6 bins"):
        slim_log_prob(states, weight, torch.full_like(tokens, 6))
