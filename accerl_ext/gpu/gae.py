r"""Sums that run backwards over packed, ragged segments, by an associative scan; see `accerl_ext.gae`.

A program takes a segment, block by block from its end. In a block $x_t = y_t + d_t x_{t+1}$ is a scan of the pairs
$(d, y)$, of which two in a row are one: $(d, y)$ before $(d', y')$ in time is $(d d', y + d y')$. Sums are formed in
another order than the twin's, which goes decision by decision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
"""Decisions at a time."""
WARPS = 1


def gae(
    reward: Tensor,
    value: Tensor,
    bootstrap_value: Tensor,
    lengths: Tensor,
    terminal: Tensor,
    discount: float,
    trace: float,
) -> Tensor:
    reward, value, bootstrap = (each.float().contiguous() for each in (reward, value, bootstrap_value))
    starts = starts_of(lengths, len(reward))
    advantage = torch.empty_like(reward)
    if len(lengths):
        _gae[(len(lengths),)](
            reward,
            value,
            bootstrap,
            terminal.contiguous().view(torch.uint8),
            starts,
            advantage,
            discount,
            discount * trace,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return advantage


def accumulate_backwards(term: Tensor, decay: Tensor, lengths: Tensor) -> Tensor:
    term, decay = term.float().contiguous(), decay.float().contiguous()
    starts = starts_of(lengths, len(term))
    total = torch.empty_like(term)
    if len(lengths):
        _accumulate[(len(lengths),)](term, decay, starts, total, BLOCK=BLOCK, num_warps=WARPS)
    return total


def starts_of(lengths: Tensor, num_decisions: int) -> Tensor:
    """Where each segment begins, and the end of the last one; checked on the device, which nobody waits for."""
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=starts[1:])
    fits = (starts[-1] == num_decisions) & (lengths >= 0).all()
    torch._assert_async(fits, f"lengths: below 0, or their sum is not the number of decisions, {num_decisions}")
    return starts


@triton.jit
def _follow(later_decay, later_total, decay, total):
    """The scan goes backwards in time: first what is later."""
    return later_decay * decay, total + decay * later_total


@triton.jit
def _gae(reward, value, bootstrap, terminal, starts, advantage, discount, decay, BLOCK: tl.constexpr):
    segment = tl.program_id(0)
    first = tl.load(starts + segment)
    end = tl.load(starts + segment + 1)
    ended = tl.load(terminal + segment) != 0
    beyond = tl.load(bootstrap + segment, mask=ended == 0, other=0.0)
    place = tl.arange(0, BLOCK)
    carried = 0.0
    for block in range(tl.cdiv(end - first, BLOCK)):
        at = end - 1 - block * BLOCK - place
        inside = at >= first
        next_value = tl.load(value + at + 1, mask=inside & (at + 1 < end), other=0.0)
        next_value = tl.where(at + 1 == end, beyond, next_value)
        delta = tl.load(reward + at, mask=inside, other=0.0) + discount * next_value
        delta -= tl.load(value + at, mask=inside, other=0.0)
        decays, totals = tl.associative_scan((tl.where(inside, decay, 0.0), delta), 0, _follow)
        totals += decays * carried
        tl.store(advantage + at, totals, mask=inside)
        carried = tl.sum(tl.where(place == BLOCK - 1, totals, 0.0))


@triton.jit
def _accumulate(term, decay, starts, total, BLOCK: tl.constexpr):
    segment = tl.program_id(0)
    first = tl.load(starts + segment)
    end = tl.load(starts + segment + 1)
    place = tl.arange(0, BLOCK)
    carried = 0.0
    for block in range(tl.cdiv(end - first, BLOCK)):
        at = end - 1 - block * BLOCK - place
        inside = at >= first
        terms = tl.load(term + at, mask=inside, other=0.0)
        decays = tl.load(decay + at, mask=inside, other=0.0)
        decays, totals = tl.associative_scan((decays, terms), 0, _follow)
        totals += decays * carried
        tl.store(total + at, totals, mask=inside)
        carried = tl.sum(tl.where(place == BLOCK - 1, totals, 0.0))
