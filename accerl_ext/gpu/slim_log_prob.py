r"""Log-probability and entropy of chosen tokens of a linear head; see `accerl_ext.slim_log_prob`.

Forward: a program forms the logits of some rows, a tile of bins at a time, in registers, and keeps of each row the
maximum m, $\sum e^{l-m}$ and $\sum (l-m) e^{l-m}$, so that logits never stand in memory and any number of bins will do.

Backward: the same product again, and of it the gradient of the logits, for `BACKWARD_ROWS` rows at a time, rounded to
the states' type; the two products with states and weight are torch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accerl_ext.gpu.tiles import Tile

TILE = Tile(rows=64, depth=64, warps=8, stages=3)
BINS = 256
"""Of a tile, at most."""
BACKWARD_ROWS = 2**13
"""4 MiB of bfloat16 at 256 bins."""


def forward(states: Tensor, weight: Tensor, tokens: Tensor, tile: Tile = TILE) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(torch.promote_types(states.dtype, weight.dtype), torch.float32)
    log_prob, entropy, log_normalizer = (torch.empty(len(states), dtype=wide, device=states.device) for _ in range(3))
    states, weight = _alike(states, weight)
    _check_tokens(tokens, weight)
    if len(states):
        _forward[(triton.cdiv(len(states), tile.rows),)](
            *(states, weight, tokens.contiguous(), log_prob, entropy, log_normalizer),
            *(len(states), *weight.shape, *states.stride(), *weight.stride()),
            **_shape(weight, wide, tile),
        )
    return log_prob, entropy, log_normalizer


def backward(
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    states: Tensor,
    weight: Tensor,
    tokens: Tensor,
    entropy: Tensor,
    log_normalizer: Tensor,
    wants_weight: bool,
    tile: Tile = TILE,
) -> tuple[Tensor, Tensor]:
    grads = grad_log_prob.contiguous(), grad_entropy.contiguous()
    grad_states = torch.empty_like(states, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(weight.shape if wants_weight else (0, 0), dtype=entropy.dtype, device=weight.device)
    alike, alike_weight = _alike(states, weight)
    tokens = tokens.contiguous()
    for first in range(0, len(states), BACKWARD_ROWS):
        rows = slice(first, min(first + BACKWARD_ROWS, len(states)))
        part = alike[rows]
        grad_logits = part.new_empty(len(part), weight.shape[1])
        _backward[(triton.cdiv(len(part), tile.rows),)](
            *(part, alike_weight, tokens[rows], *(each[rows] for each in (*grads, entropy, log_normalizer))),
            *(grad_logits, len(part), *weight.shape, *part.stride(), *alike_weight.stride()),
            **_shape(weight, entropy.dtype, tile),
        )
        grad_states[rows] = grad_logits @ alike_weight.T
        if wants_weight:
            grad_weight += part.T @ grad_logits
    return grad_states, grad_weight.to(weight.dtype)


def _alike(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of one type, as the tensor cores take them; the sums are wide whatever it is."""
    dtype = torch.promote_types(states.dtype, weight.dtype)
    return states.to(dtype), weight.to(dtype)


def _check_tokens(tokens: Tensor, weight: Tensor) -> None:
    """On the device, which nobody waits for."""
    torch._assert_async(((tokens >= 0) & (tokens < weight.shape[1])).all(), "tokens: not all of them are bins")


def _shape(weight: Tensor, wide: torch.dtype, tile: Tile) -> dict:
    return {
        "ROWS": tile.rows,
        "BINS": min(BINS, max(16, triton.next_power_of_2(weight.shape[1]))),
        "DEPTH": tile.depth,
        "WIDE": tl.float64 if wide == torch.float64 else tl.float32,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


@triton.jit
def _logits(
    states,
    weight,
    row,
    bins,
    num_rows,
    depth,
    num_bins,
    state_row,
    state_depth,
    weight_depth,
    weight_bin,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of a tile; -inf where there is no bin."""
    total = tl.zeros((ROWS, BINS), dtype=WIDE)
    inner = tl.arange(0, DEPTH)
    for start in range(0, depth, DEPTH):
        at = start + inner
        left = tl.load(
            states + row[:, None] * state_row + at[None, :] * state_depth,
            mask=(row[:, None] < num_rows) & (at[None, :] < depth),
            other=0.0,
        )
        right = tl.load(
            weight + at[:, None] * weight_depth + bins[None, :] * weight_bin,
            mask=(at[:, None] < depth) & (bins[None, :] < num_bins),
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision="ieee", out_dtype=WIDE)
    return tl.where(bins[None, :] < num_bins, total, float("-inf"))


@triton.jit
def _forward(
    states,
    weight,
    tokens,
    log_prob,
    entropy,
    log_normalizer,
    num_rows,
    depth,
    num_bins,
    state_row,
    state_depth,
    weight_depth,
    weight_bin,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < num_rows
    token = tl.load(tokens + row, mask=inside, other=0)
    highest = tl.full((ROWS,), float("-inf"), dtype=WIDE)
    total = tl.zeros((ROWS,), dtype=WIDE)
    weighted = tl.zeros((ROWS,), dtype=WIDE)
    chosen = tl.zeros((ROWS,), dtype=WIDE)
    for start in range(0, num_bins, BINS):
        bins = start + tl.arange(0, BINS)
        logits = _logits(
            states,
            weight,
            row,
            bins,
            num_rows,
            depth,
            num_bins,
            state_row,
            state_depth,
            weight_depth,
            weight_bin,
            ROWS,
            BINS,
            DEPTH,
            WIDE,
        )
        higher = tl.maximum(highest, tl.max(logits, 1))
        apart = tl.where(bins[None, :] < num_bins, logits - higher[:, None], 0.0)
        share = tl.where(bins[None, :] < num_bins, tl.exp(apart), 0.0)
        # what was summed so far, about the new maximum; before the first tile it is nothing
        moved = tl.where(highest == float("-inf"), 0.0, highest - higher)
        scale = tl.exp(moved)
        weighted = scale * (weighted + moved * total) + tl.sum(share * apart, 1)
        total = scale * total + tl.sum(share, 1)
        chosen += tl.sum(tl.where(bins[None, :] == token[:, None], logits, 0.0), 1)
        highest = higher
    log_total = tl.log(total)
    tl.store(log_prob + row, chosen - highest - log_total, mask=inside)
    tl.store(entropy + row, log_total - weighted / total, mask=inside)
    tl.store(log_normalizer + row, highest + log_total, mask=inside)


@triton.jit
def _backward(
    states,
    weight,
    tokens,
    grad_log_prob,
    grad_entropy,
    entropy,
    log_normalizer,
    grad_logits,
    num_rows,
    depth,
    num_bins,
    state_row,
    state_depth,
    weight_depth,
    weight_bin,
    ROWS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < num_rows
    token = tl.load(tokens + row, mask=inside, other=0)
    by_chosen = tl.load(grad_log_prob + row, mask=inside, other=0.0).to(WIDE)
    by_entropy = tl.load(grad_entropy + row, mask=inside, other=0.0).to(WIDE)
    spread = tl.load(entropy + row, mask=inside, other=0.0)
    normalizer = tl.load(log_normalizer + row, mask=inside, other=0.0)
    for start in range(0, num_bins, BINS):
        bins = start + tl.arange(0, BINS)
        logits = _logits(
            states,
            weight,
            row,
            bins,
            num_rows,
            depth,
            num_bins,
            state_row,
            state_depth,
            weight_depth,
            weight_bin,
            ROWS,
            BINS,
            DEPTH,
            WIDE,
        )
        there = bins[None, :] < num_bins
        log_share = tl.where(there, logits - normalizer[:, None], 0.0)
        share = tl.exp(log_share)
        is_chosen = (bins[None, :] == token[:, None]).to(WIDE)
        grad = by_chosen[:, None] * (is_chosen - share)
        grad -= by_entropy[:, None] * share * (log_share + spread[:, None])
        tl.store(
            grad_logits + row[:, None] * num_bins + bins[None, :],
            grad.to(grad_logits.dtype.element_ty),
            mask=inside[:, None] & there,
        )
