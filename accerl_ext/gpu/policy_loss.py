r"""The policy loss and its diagnostics in one pass over the tokens; see `accerl_ext.policy_loss`.

    log-probs ─► l = log rho ─► weight u, value ─► -u A (kept for the backward pass), |l| (for its quantile)
                                             └──► sums of each program ─► one program: loss, what is logged

`SHAPE` names the objective; its numbers come as `first`, `second`, `third` (`accerl_ext.policy_loss.form_of`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accerl.rl.diagnostics import DEAD_WEIGHT
from accerl.rl.objectives import LOG_RATIO_CEILING

BLOCK, WARPS = 1024, 4
SUMS = tl.constexpr(8)
"""What a program leaves: value x advantage, tokens, u, u², dead, KL, max |l|, nothing."""
STATISTICS = 8
"""Loss, 1 / tokens, KL, mean of u, effective sample size, dead fraction, max |l|, tokens."""
CEILING = tl.constexpr(LOG_RATIO_CEILING)
HIGHEST = tl.constexpr(4.851651954097903e8)  # exp(CEILING)
DEAD = tl.constexpr(DEAD_WEIGHT)
LOG_4 = tl.constexpr(1.3862943611198906)


def forward(
    log_prob: Tensor,
    behaviour_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    shape: str,
    first: float,
    second: float,
    third: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics, the gradient of the summed loss by each log-prob, and |l|, which is -1 where masked."""
    num_tokens = log_prob.numel()
    programs = max(1, triton.cdiv(num_tokens, BLOCK))
    fresh = {"dtype": torch.float32, "device": log_prob.device}
    slope, distance = (torch.empty(log_prob.shape, **fresh) for _ in range(2))
    sums, statistics = torch.empty(programs, SUMS.value, **fresh), torch.empty(STATISTICS, **fresh)
    _tokens[(programs,)](
        *(log_prob.contiguous(), behaviour_log_prob.contiguous(), advantage.contiguous()),
        *(mask.contiguous().view(torch.uint8), slope, distance, sums, num_tokens, max(1, log_prob.shape[1])),
        *(first, second, third),
        SHAPE=shape,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    _finish[(1,)](sums, statistics, programs, BLOCK=128, num_warps=WARPS)
    return statistics, slope, distance


@triton.jit
def _log1p(x):
    """Of what is not negative; below 2^-12 the series, where 1 + x has lost the digits."""
    return tl.where(x < 2.4e-4, x - 0.5 * x * x, tl.log(1.0 + x))


@triton.jit
def _expm1(x):
    """Near 0 the series, where the exponential has lost the digits."""
    near = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7))))))
    return tl.where(tl.abs(x) < 0.3, near, tl.exp(x) - 1.0)


@triton.jit
def _expm1_beyond(x):
    """exp(x) - 1 - x, without what cancels."""
    near = x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8))))))
    return tl.where(tl.abs(x) < 0.3, near, tl.exp(x) - 1.0 - x)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def _weigh(ratio, good, negative, first, second, third, SHAPE: tl.constexpr):
    """The logarithms of u and of the value, from l and the sign of the advantage, as in `accerl.rl.objectives`."""
    shut = float("-inf")
    log_weight = ratio
    log_value = ratio
    if SHAPE == "gaussian":
        width = tl.where(negative, second, first)
        log_weight = ratio - ratio * ratio / (2 * width * width)
        log_value = log_weight
    elif SHAPE == "laplace":
        log_weight = ratio - tl.abs(ratio) / tl.where(negative, second, first)
        log_value = log_weight
    elif SHAPE == "cauchy":
        scaled = ratio / tl.where(negative, second, first)
        log_weight = ratio - _log1p(scaled * scaled)
        log_value = log_weight
    elif SHAPE == "clamp":
        log_weight = tl.minimum(tl.maximum(ratio, first), second)
        log_value = log_weight
    elif SHAPE == "inside":
        log_weight = tl.where((ratio >= first) & (ratio <= second), ratio, shut)
        log_value = log_weight
    elif SHAPE == "gate":
        tau = tl.where(good, first, second)
        gate = tau * _expm1(ratio)
        log_value = _log_sigmoid(gate) + LOG_4 - tl.log(tau)
        log_weight = LOG_4 + _log_sigmoid(gate) + _log_sigmoid(-gate) + ratio
    else:
        tl.static_assert(SHAPE == "clip")
        log_value = tl.where(good, tl.minimum(ratio, second), tl.minimum(tl.maximum(ratio, first), third))
        log_weight = tl.where(log_value == ratio, ratio, shut)
    return log_weight, log_value


@triton.jit
def _tokens(
    log_prob,
    behaviour,
    advantage,
    mask,
    slope,
    distance,
    sums,
    num_tokens,
    each_decision,
    first,
    second,
    third,
    SHAPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_tokens
    valid = tl.load(mask + at, mask=inside, other=0) != 0
    ours = tl.load(log_prob + at, mask=valid, other=0.0).to(tl.float32)
    theirs = tl.load(behaviour + at, mask=valid, other=0.0).to(tl.float32)
    gain = tl.load(advantage + at // each_decision, mask=inside, other=0.0).to(tl.float32)
    ratio = ours - theirs
    log_weight, log_value = _weigh(ratio, gain > 0, gain < 0, first, second, third, SHAPE)
    weight = tl.where(valid, tl.exp(tl.minimum(log_weight, CEILING)), 0.0)
    value = tl.where(valid, tl.exp(tl.minimum(log_value, CEILING)), 0.0)
    tl.store(slope + at, -weight * gain, mask=inside)
    tl.store(distance + at, tl.where(valid, tl.abs(ratio), -1.0), mask=inside)
    tangent = HIGHEST * (1 + ratio - CEILING) - 1 - ratio
    kl = tl.where(ratio > CEILING, tangent, _expm1_beyond(tl.minimum(ratio, CEILING)))
    left = sums + tl.program_id(0) * SUMS
    tl.store(left, tl.sum(value * gain))
    tl.store(left + 1, tl.sum(valid.to(tl.float32)))
    tl.store(left + 2, tl.sum(weight))
    tl.store(left + 3, tl.sum(weight * weight))
    tl.store(left + 4, tl.sum((valid & (weight < DEAD)).to(tl.float32)))
    tl.store(left + 5, tl.sum(tl.where(valid, kl, 0.0)))
    tl.store(left + 6, tl.max(tl.where(valid, tl.abs(ratio), 0.0)))


@triton.jit
def _total(sums, programs, number: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        total += tl.load(sums + program * SUMS + number, mask=program < programs, other=0.0)
    return tl.sum(total)


@triton.jit
def _finish(sums, statistics, programs, BLOCK: tl.constexpr):
    tokens = _total(sums, programs, 1, BLOCK)
    count = tl.maximum(tokens, 1.0)
    weights = _total(sums, programs, 2, BLOCK)
    squares = tl.maximum(_total(sums, programs, 3, BLOCK), 1e-30)
    farthest = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        farthest = tl.maximum(farthest, tl.load(sums + program * SUMS + 6, mask=program < programs, other=0.0))
    tl.store(statistics, -_total(sums, programs, 0, BLOCK) / count)
    tl.store(statistics + 1, 1.0 / count)
    tl.store(statistics + 2, _total(sums, programs, 5, BLOCK) / count)
    tl.store(statistics + 3, weights / count)
    tl.store(statistics + 4, weights * weights / (count * squares))
    tl.store(statistics + 5, _total(sums, programs, 4, BLOCK) / count)
    tl.store(statistics + 6, tl.max(farthest))
    tl.store(statistics + 7, tokens)
