"""Log-probability and entropy of chosen tokens of a slim head: twin of `accerl.rl.tokens.slim_log_prob`.

The logits are formed for a block of rows at a time, and formed again for the backward pass, so that [token, bin] never
stands in memory, and a row is gone through once while it is in the cache. float32 and float64; narrower states are
widened block by block. On a CPU it pays where the head is narrow: from 4096 numbers a token nearly all of the time goes
into matrix products, of which this has one more, and the twin is used. On a GPU the product is part of the kernel
(`accerl_ext.gpu.slim_log_prob`), for heads of any width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from accerl_ext.library import library
from accerl_ext.pointers import of

BLOCK_ELEMENTS = 2**18
"""Logits at a time: one MiB of float32."""


def slim_log_prob(
    states: Float[Tensor, "*axes width"], weight: Float[Tensor, "width bin"], tokens: Int[Tensor, "*axes"]
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """As `accerl.rl.tokens.slim_log_prob`."""
    log_prob, entropy, _ = _forward(states.flatten(0, -2), weight, tokens.flatten())
    return log_prob.view(tokens.shape), entropy.view(tokens.shape)


@torch.library.custom_op("accerl::slim_log_prob", mutates_args=(), device_types="cpu")
def _forward(states: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy, and the logarithm of the sum that they are normalised by."""
    _check_tokens(tokens, weight)
    wide, tokens = _wide(states, weight), tokens.contiguous()
    wide_weight = weight.to(wide)
    log_prob, entropy, log_normalizer = (torch.empty(len(states), dtype=wide) for _ in range(3))
    function = getattr(library(), f"slim_forward_{_name(wide)}")
    for rows in _blocks(states, weight):
        logits = states[rows].to(wide) @ wide_weight
        out = (each[rows] for each in (log_prob, entropy, log_normalizer))
        function(*of(logits, tokens[rows], *logits.shape, *out, torch.get_num_threads()))
    return log_prob, entropy, log_normalizer


@_forward.register_kernel("cuda")
def _(states: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from accerl_ext.gpu import slim_log_prob as gpu

    return gpu.forward(states, weight, tokens)


@_forward.register_fake
def _(states: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    made = [states.new_empty(len(states), dtype=_wide(states, weight)) for _ in range(3)]
    return made[0], made[1], made[2]


@torch.library.custom_op("accerl::slim_log_prob_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_log_prob: Tensor,
    grad_entropy: Tensor,
    states: Tensor,
    weight: Tensor,
    tokens: Tensor,
    entropy: Tensor,
    log_normalizer: Tensor,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of states and weight; of the weight none, [0, 0], where nobody wants it."""
    wide, tokens = _wide(states, weight), tokens.contiguous()
    grads = grad_log_prob.contiguous(), grad_entropy.contiguous()
    wide_weight = weight.to(wide)
    grad_states = torch.empty_like(states, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros(weight.shape if wants_weight else (0, 0), dtype=wide)
    function = getattr(library(), f"slim_backward_{_name(wide)}")
    for rows in _blocks(states, weight):
        logits = states[rows].to(wide) @ wide_weight
        per_row = (each[rows] for each in (*grads, entropy, log_normalizer))
        function(*of(logits, tokens[rows], *logits.shape, *per_row, torch.get_num_threads()))
        grad_states[rows] = logits @ wide_weight.T
        if wants_weight:
            grad_weight.addmm_(states[rows].to(wide).T, logits)
    return grad_states, grad_weight.to(weight.dtype)


@_backward.register_kernel("cuda")
def _(grad_log_prob: Tensor, grad_entropy: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    from accerl_ext.gpu import slim_log_prob as gpu

    return gpu.backward(grad_log_prob, grad_entropy, *others)


@_backward.register_fake
def _(
    grad_log_prob: Tensor, grad_entropy: Tensor, states: Tensor, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    shape = tuple(weight.shape) if others[-1] else (0, 0)
    return torch.empty_like(states, memory_format=torch.contiguous_format), weight.new_empty(shape)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, grad_log_prob: Tensor, grad_entropy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wants_weight = ctx.needs_input_grad[1]
    grad_states, grad_weight = _backward(grad_log_prob, grad_entropy, *ctx.saved_tensors, wants_weight)
    return grad_states, grad_weight if wants_weight else None, None


_forward.register_autograd(_differentiate, setup_context=_remember)


def _blocks(states: Tensor, weight: Tensor) -> Iterator[slice]:
    """Of rows."""
    size = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    for first in range(0, len(states), size):
        yield slice(first, min(first + size, len(states)))


def _wide(states: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(states.dtype, weight.dtype), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_tokens(tokens: Tensor, weight: Tensor) -> None:
    """C does not look."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < weight.shape[1]:
        raise IndexError(f"tokens: {int(tokens.min())} to {int(tokens.max())}, but the head has {weight.shape[1]} bins")
