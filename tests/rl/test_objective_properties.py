"""What holds for every objective: the gradient that its weight promises, bounds, finiteness, masks and packing."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from accerl.rl import objectives
from accerl.rl.objectives import LOG_RATIO_CEILING, Objective

Function = Callable[[Tensor, Tensor, Tensor], Objective]
"""Of log-ratios, advantages and mask, with the settings below."""


TO_PROXIMAL = 0.25
"""log pi_prox - log mu of every token, in the tests of decoupled PPO."""


def decoupled(log_ratio: Tensor, advantage: Tensor, mask: Tensor, clip_high: float, weight_cap: float) -> Objective:
    proximal = torch.full_like(log_ratio, TO_PROXIMAL)
    return objectives.decoupled_ppo(log_ratio, advantage, mask, proximal, 0.2, clip_high, weight_cap)


OURS: dict[str, Function] = {
    "importance_sampling": objectives.importance_sampling,
    "gipo": partial(objectives.gipo, sigma=0.5, sigma_negative=0.3),
    "gipo_laplace": partial(objectives.gipo, sigma=0.5, sigma_negative=0.3, kernel="laplace"),
    "gipo_cauchy": partial(objectives.gipo, sigma=0.5, sigma_negative=0.3, kernel="cauchy"),
    "tis": partial(objectives.tis, cap=2.0),
    "mis": partial(objectives.mis, low=0.5, high=2.0),
    "cispo": partial(objectives.cispo, clip_high=0.3, clip_low=0.2),
    "sapo": partial(objectives.sapo, temperature=1.0, temperature_negative=2.0),
    "ppo": partial(objectives.ppo, clip=0.2, clip_high=0.3),
    "dual_clip_ppo": partial(objectives.dual_clip_ppo, clip=0.2, clip_high=0.3, dual_clip=3.0),
    "decoupled_ppo": partial(decoupled, clip_high=0.3, weight_cap=math.inf),
    "decoupled_ppo_capped": partial(decoupled, clip_high=0.2, weight_cap=1.2),
}


def by_the_equation(name: str, l: Tensor, a: Tensor) -> Tensor:  # noqa: E741
    """Each token's term of the published objective, as the paper writes it, to be differentiated by autograd."""
    rho = torch.exp(l)
    fixed = rho.detach()
    sigma, tau = torch.where(a < 0, 0.3, 0.5), torch.where(a > 0, 1.0, 2.0)
    clipped = torch.minimum(rho * a, rho.clamp(0.8, 1.3) * a)
    to_proximal = math.exp(TO_PROXIMAL)
    r = rho / to_proximal
    return {
        "importance_sampling": rho * a,
        "gipo": torch.exp(-(fixed.log() ** 2) / (2 * sigma**2)) * rho * a,
        "gipo_laplace": torch.exp(-fixed.log().abs() / sigma) * rho * a,
        "gipo_cauchy": 1 / (1 + (fixed.log() / sigma) ** 2) * rho * a,
        "tis": torch.minimum(fixed, torch.tensor(2.0)) * a * l,
        "mis": torch.where((fixed >= 0.5) & (fixed <= 2), rho, 0.0) * a,
        "cispo": fixed.clamp(0.8, 1.3) * a * l,
        "sapo": 4 / tau * torch.sigmoid(tau * (rho - 1)) * a,
        "ppo": clipped,
        "dual_clip_ppo": torch.where(a < 0, torch.maximum(clipped, 3 * a), clipped),
        "decoupled_ppo": to_proximal * torch.minimum(r * a, r.clamp(0.8, 1.3) * a),
        "decoupled_ppo_capped": 1.2 * torch.minimum(r * a, r.clamp(0.8, 1.2) * a),
    }[name]


WITHOUT_A_PUBLISHED_VALUE = ("tis", "cispo")
BOUNDS = {
    "gipo": math.exp(0.5**2 / 2),
    "gipo_laplace": 1.0,
    "tis": 2.0,
    "mis": 2.0,
    "cispo": 1.3,
    "sapo": 4.0,  # 4 exp(tau - 1) / tau is 4 at tau = 1, and 5.4 at tau = 2
    "dual_clip_ppo": 3.0,
}

every_objective = pytest.mark.parametrize("name", list(OURS))
numbers = st.floats(-3, 3) | st.just(0.0)
extremes = st.floats(-1e4, 1e4) | st.floats(-3, 3) | st.sampled_from([-1e4, 1e4, 88.8, -88.8, 20.0, 0.0])


def batches(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, list[float]]]]:
    """Decisions of three tokens, each with its advantage."""
    return st.lists(
        st.tuples(st.floats(-5, 5, width=32), st.lists(values, min_size=3, max_size=3)), min_size=1, max_size=5
    )


def tensors(batch: list[tuple[float, list[float]]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    log_ratio = torch.tensor([tokens for _, tokens in batch], dtype=dtype, requires_grad=True)
    advantage = torch.tensor([value for value, _ in batch], dtype=dtype)
    return log_ratio, advantage, torch.ones(log_ratio.shape, dtype=torch.bool)


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at, retain_graph=True)[0]


@every_objective
@given(batch=batches(numbers))
def test_the_gradient_is_that_of_the_equation_and_the_one_that_the_weight_promises(name, batch):
    log_ratio, advantage, mask = tensors(batch, torch.float64)
    loss, weight = OURS[name](log_ratio, advantage, mask)
    found = gradient(loss, log_ratio)
    equation = -by_the_equation(name, log_ratio, advantage[:, None]).mean()
    promised = -(weight * advantage[:, None] * log_ratio).mean()
    torch.testing.assert_close(found, gradient(equation, log_ratio))
    torch.testing.assert_close(found, gradient(promised, log_ratio))
    if name not in WITHOUT_A_PUBLISHED_VALUE:
        torch.testing.assert_close(loss, equation)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(batch=batches(extremes))
def test_losses_weights_and_gradients_are_finite_however_far_the_policies_are_apart(name, dtype, batch):
    log_ratio, advantage, mask = tensors(batch, dtype)
    loss, weight = OURS[name](log_ratio, advantage, mask)
    found = gradient(loss, log_ratio)
    assert loss.isfinite()
    assert weight.isfinite().all()
    assert weight.min() >= 0
    assert found.dtype == dtype
    assert found.isfinite().all()
    promised = (-weight * advantage[:, None].float() / weight.numel()).to(dtype)
    torch.testing.assert_close(found, promised, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-30)


@every_objective
@given(batch=batches(numbers))
def test_bfloat16_is_computed_in_float32(name, batch):
    narrow, advantage, mask = tensors(batch, torch.bfloat16)
    in_bfloat16 = OURS[name](narrow, advantage, mask)
    in_float32 = OURS[name](narrow.detach().float(), advantage.float(), mask)
    torch.testing.assert_close(in_bfloat16, in_float32)  # of the same type too


@pytest.mark.parametrize("name", list(BOUNDS))
@given(batch=batches(extremes))
def test_bounded_weights_keep_their_bound(name, batch):
    log_ratio, advantage, mask = tensors(batch, torch.float32)
    bound = BOUNDS[name] if name != "sapo" else torch.where(advantage[:, None] > 0, 4.0, 4 * math.e / 2)
    assert (OURS[name](log_ratio, advantage, mask).weight <= bound * 1.0001).all()


@pytest.mark.parametrize(
    ("name", "advantage"),
    [("importance_sampling", 1.0), ("gipo_cauchy", 1.0), ("ppo", -1.0), ("decoupled_ppo", -1.0)],
)
def test_unbounded_weights_end_at_the_ceiling(name, advantage):
    log_ratio, advantages, mask = tensors([(advantage, [100.0, 1e3, 1e4])], torch.float32)
    weight = OURS[name](log_ratio, advantages, mask).weight
    assert weight.flatten().tolist() == pytest.approx([math.exp(LOG_RATIO_CEILING)] * 3)


def test_the_laplace_kernel_is_unbounded_where_it_is_wider_than_one():
    log_ratio, advantage, mask = tensors([(1.0, [10.0, 20.0, 1e4])], torch.float32)
    _, at_one = objectives.gipo(log_ratio, advantage, mask, sigma=1.0, kernel="laplace")
    _, wider = objectives.gipo(log_ratio, advantage, mask, sigma=2.0, kernel="laplace")
    assert at_one.flatten().tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert wider.flatten().tolist() == pytest.approx([math.exp(5), math.exp(10), math.exp(LOG_RATIO_CEILING)])


@every_objective
def test_on_policy_they_are_all_the_policy_gradient(name):
    log_ratio, advantage, mask = tensors([(2.0, [0.0, 0.0, 0.0]), (-1.0, [0.0, 0.0, 0.0])], torch.float32)
    loss, weight = OURS[name](log_ratio, advantage, mask)
    if name == "decoupled_ppo_capped":  # its cap is below the ratio of the proximal policy
        assert weight.max().item() == pytest.approx(1.2 / math.exp(TO_PROXIMAL))
    elif name == "decoupled_ppo":  # r = exp(-0.25) is below the clip where the advantage is negative
        assert weight.tolist() == [[pytest.approx(1.0)] * 3, [0.0] * 3]
    else:
        torch.testing.assert_close(weight, torch.ones(2, 3))
        torch.testing.assert_close(gradient(loss, log_ratio), -advantage[:, None].expand(2, 3) / 6)


@every_objective
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e4, 0.5])
def test_what_stands_at_masked_tokens_does_not_matter(name, garbage):
    batch = [(2.0, [0.1, -0.4, garbage]), (-1.0, [0.9, garbage, garbage])]
    log_ratio, advantage, _ = tensors(batch, torch.float32)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, weight = OURS[name](log_ratio, advantage, mask)
    found = gradient(loss, log_ratio)
    assert not weight[~mask].any()
    assert not found[~mask].any()
    alone, repeated, all_valid = tensors([(2.0, [0.1] * 3), (2.0, [-0.4] * 3), (-1.0, [0.9] * 3)], torch.float32)
    expected, expected_weight = OURS[name](alone, repeated, all_valid)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(weight[mask], expected_weight[:, 0])
    torch.testing.assert_close(found[mask], gradient(expected, alone).sum(1))


@every_objective
def test_nothing_valid_is_no_loss(name):
    log_ratio, advantage, mask = tensors([(2.0, [0.1, math.nan, 1e4])], torch.float32)
    loss, _ = OURS[name](log_ratio, advantage, ~mask)
    assert loss.item() == 0
    assert not gradient(loss, log_ratio).any()


@every_objective
@given(batch=batches(numbers), cut=st.integers(0, 5))
def test_neither_the_order_of_decisions_nor_the_split_of_a_batch_matters(name, batch, cut):
    log_ratio, advantage, mask = tensors(batch, torch.float64)
    whole = OURS[name](log_ratio, advantage, mask).loss * mask.sum()
    parts = [slice(0, cut), slice(cut, None)]
    split = [OURS[name](log_ratio[p], advantage[p], mask[p]).loss * mask[p].sum() for p in parts]
    turned = OURS[name](log_ratio.flip(0), advantage.flip(0), mask).loss * mask.sum()
    for other in (torch.stack(split).sum(), turned):
        torch.testing.assert_close(other, whole)
        torch.testing.assert_close(gradient(other, log_ratio), gradient(whole, log_ratio))


@given(batch=batches(numbers))
def test_a_one_sided_cispo_is_truncated_importance_sampling(batch):
    log_ratio, advantage, mask = tensors(batch, torch.float64)
    torch.testing.assert_close(
        objectives.cispo(log_ratio, advantage, mask, clip_high=1.0), objectives.tis(log_ratio, advantage, mask, cap=2.0)
    )
