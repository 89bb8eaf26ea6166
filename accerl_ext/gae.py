"""Generalised advantage estimation over packed, ragged segments: twin of `accerl.rl.gae`, on a CPU to the bit.

The twin pads all segments to the longest one. Here each is gone through once, backwards, where it lies; on a GPU by a
scan (`accerl_ext.gpu.gae`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from accerl_ext.library import library
from accerl_ext.pointers import of


def gae(
    reward: Float[Tensor, " decision"],
    value: Float[Tensor, " decision"],
    bootstrap_value: Float[Tensor, " segment"],
    lengths: Int[Tensor, " segment"],
    terminal: Bool[Tensor, " segment"],
    discount: float,
    trace: float,
) -> Float[Tensor, " decision"]:
    """As `accerl.rl.gae.gae`."""
    return _gae(reward, value, bootstrap_value, lengths, terminal, discount, trace)


def accumulate_backwards(
    term: Float[Tensor, " decision"], decay: Float[Tensor, " decision"], lengths: Int[Tensor, " segment"]
) -> Float[Tensor, " decision"]:
    """As `accerl.rl.gae.accumulate_backwards`, of float32."""
    return _accumulate(term, decay, lengths)


@torch.library.custom_op("accerl::gae", mutates_args=(), device_types="cpu")
def _gae(
    reward: Tensor,
    value: Tensor,
    bootstrap_value: Tensor,
    lengths: Tensor,
    terminal: Tensor,
    discount: float,
    trace: float,
) -> Tensor:
    reward, value, bootstrap = (each.float().contiguous() for each in (reward, value, bootstrap_value))
    starts, ended = _starts(lengths, len(reward)), terminal.contiguous()
    _check(len(value) == len(reward) and len(bootstrap) == len(ended) == len(lengths), "lengths: do not fit")
    advantage = torch.empty_like(reward)
    library().gae(
        *of(reward, value, bootstrap, ended, starts, len(lengths)),
        *of(discount, discount * trace, advantage, torch.get_num_threads()),
    )
    return advantage


@_gae.register_kernel("cuda")
def _(reward: Tensor, *others: Any) -> Tensor:
    from accerl_ext.gpu import gae as gpu

    return gpu.gae(reward, *others)


@_gae.register_fake
def _(reward: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(reward, dtype=torch.float32, memory_format=torch.contiguous_format)


@torch.library.custom_op("accerl::accumulate_backwards", mutates_args=(), device_types="cpu")
def _accumulate(term: Tensor, decay: Tensor, lengths: Tensor) -> Tensor:
    term, decay = term.float().contiguous(), decay.float().contiguous()
    starts = _starts(lengths, len(term))
    total = torch.empty_like(term)
    library().accumulate_backwards(*of(term, decay, starts, len(lengths), total, torch.get_num_threads()))
    return total


@_accumulate.register_kernel("cuda")
def _(term: Tensor, decay: Tensor, lengths: Tensor) -> Tensor:
    from accerl_ext.gpu import gae as gpu

    return gpu.accumulate_backwards(term, decay, lengths)


@_accumulate.register_fake
def _(term: Tensor, decay: Tensor, lengths: Tensor) -> Tensor:
    return torch.empty_like(term, dtype=torch.float32, memory_format=torch.contiguous_format)


def _starts(lengths: Tensor, num_decisions: int) -> Tensor:
    """Where each segment begins, and the end of the last one; no pointer goes beyond the decisions."""
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=starts[1:])
    total = int(starts[-1])
    _check(total == num_decisions, f"lengths: sum to {total}, but there are {num_decisions} decisions")
    _check(bool((lengths >= 0).all()), "lengths: below 0")
    return starts


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
