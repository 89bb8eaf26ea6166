"""Vocabulary slimming: a language model's head cut down to the rows of its action tokens, and made whole again.

A policy that only ever says action tokens needs no other row: neither its weight, nor its gradient, optimizer state and
logits. OpenVLA's head goes from 32064 rows to 256, 261 MB less in bfloat16 (paper Section 4.5).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from accerl.config import ConfigError


def slim(model: nn.Module, tokens: range) -> int:
    """Cut the head of a causal language model down to the rows of `tokens`, in place.

    The rows are copied: a view would keep all of the storage. Where the head shares its weight with the embedding,
    which stays whole, they come on top.

    Returns:
        Bytes of parameters freed; negative where the weight was shared.

    Raises:
        ConfigError: it has no linear head, or one without these rows.
    """
    head, embedding = head_of(model), _embedding(model)
    if tokens.step != 1 or not 0 <= tokens.start < tokens.stop <= head.out_features:
        raise ConfigError(f"tokens: {tokens} are not rows of a head with {head.out_features}; is it slimmed already?")
    shared = embedding is not None and embedding.weight is head.weight
    before = 0 if shared else _num_bytes(head)
    for name, parameter in list(head.named_parameters(recurse=False)):
        rows = parameter.detach()[tokens.start : tokens.stop].clone()
        setattr(head, name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
    head.out_features = len(tokens)
    if shared and hasattr(model, "config"):
        cast(Any, model.config).tie_word_embeddings = False
    return before - _num_bytes(head)


def restore(model: nn.Module, tokens: range, weight: Float[Tensor, "vocabulary width"]) -> None:
    """Make a slimmed head whole again, in place: its own rows for `tokens`, all others from `weight`.

    Raises:
        ConfigError: the head has other rows than `tokens`, or `weight` none for them.
    """
    head = head_of(model)
    if head.out_features != len(tokens) or len(weight) < tokens.stop:
        raise ConfigError(f"tokens: {tokens} fit neither a head of {head.out_features} rows nor {len(weight)} in full")
    if head.bias is not None:
        raise ConfigError("tokens: a head with a bias can be slimmed, not restored")
    head.weight = nn.Parameter(whole(head.weight, tokens, weight), requires_grad=head.weight.requires_grad)
    head.out_features = len(weight)


@torch.no_grad()
def whole(rows: Float[Tensor, "token width"], tokens: range, weight: Float[Tensor, "vocabulary width"]) -> Tensor:
    """A copy of `weight` with `rows` in the place of `tokens`, of the type and on the device of `rows`."""
    full = weight.to(rows.device, rows.dtype, copy=True)
    full[tokens.start : tokens.stop] = rows
    return full


def head_of(model: nn.Module) -> nn.Linear:
    """`get_output_embeddings()` where the model has that, as those of transformers do, else `lm_head`.

    Raises:
        ConfigError: that is no linear layer.
    """
    found = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head = found if found is not None else getattr(model, "lm_head", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"policy: {type(model).__name__} has no linear lm_head to slim; use a causal language model")
    return head


def _embedding(model: nn.Module) -> Any:
    return cast(Any, model).get_input_embeddings() if hasattr(model, "get_input_embeddings") else None


def _num_bytes(head: nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in head.parameters())
