r"""One static sequence for every prompt, with `position_ids` that say where each token would be in the published order.

    published   [BOS | patches | proprio? | text | ▁ | empty action tokens | </s>?]
    in memory   [BOS | patches | proprio? | ▁ | empty action tokens | </s>? | text, padded on the right]

Attention is bidirectional over everything, so the order in memory does not matter to the result, and this one keeps the
action tokens at constant places: one shape for all prompts, mixed prompts in a batch, nothing gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BOS, EOS, SPACE, PAD = 1, 2, 29871, 32000
"""Ids in Llama's vocabulary; SPACE is `▁`, with which every prompt ends. Padding is never attended to."""


class Sequences(NamedTuple):
    """What the language model takes."""

    embeddings: Float[Tensor, "batch sequence width"]
    positions: Int[Tensor, "batch sequence"]
    visible: Bool[Tensor, "batch 1 sequence sequence"]


class Prompts(NamedTuple):
    """Text of prompts, without BOS and the closing `▁`, padded on the right."""

    ids: Int[Tensor, "batch text"]
    length: Int[Tensor, " batch"]


def pad_prompts(prompts: Sequence[Sequence[int]], places: int) -> Prompts:
    """Whole prompts, BOS first and `▁` last, as `tokenizer.prompt_ids` gives them; none has more than `places` + 2."""
    texts = [list(prompt[1:-1]) for prompt in prompts]
    ids = [text + [PAD] * (places - len(text)) for text in texts]
    return Prompts(torch.tensor(ids).view(len(texts), places), torch.tensor([len(text) for text in texts]))


@dataclass(frozen=True)
class Layout:
    """Where everything is in the sequence."""

    num_context: int
    """Patches of all images, and the proprioception if there is one."""
    num_tokens: int
    """Action tokens of a decision."""
    stop_token: bool

    @property
    def actions(self) -> slice:
        """Places of the states that predict the action tokens: each token is predicted one place before its own."""
        space = 1 + self.num_context
        return slice(space, space + self.num_tokens)

    def __call__(
        self,
        prompts: Prompts,
        context: Float[Tensor, "batch context width"],
        embed: Callable[[Tensor], Tensor],
    ) -> Sequences:
        """The sequences of a batch; `embed` gives the embeddings of token ids."""
        batch, places = prompts.ids.shape
        device = context.device
        special = embed(self._special(device)).expand(batch, -1, -1)
        empty = context.new_zeros(batch, self.num_tokens, context.shape[-1])
        text = embed(prompts.ids).to(context.dtype)
        embeddings = torch.cat([special[:, :1], context, special[:, 1:2], empty, special[:, 2:], text], dim=1)

        before = 1 + self.num_context
        num_fixed = embeddings.shape[1] - places
        length = prompts.length[:, None]
        fixed = torch.arange(num_fixed, device=device)
        fixed = torch.where(fixed < before, fixed, fixed + length)
        place = torch.arange(places, device=device)
        positions = torch.cat([fixed, (before + place).expand(batch, -1)], dim=1)
        seen = torch.cat([torch.ones_like(fixed, dtype=torch.bool), place < length], dim=1)
        return Sequences(embeddings, positions, seen[:, None, None].expand(-1, 1, seen.shape[1], -1))

    def mean_text(self, prompts: Prompts, embed: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch width"]:
        """Mean embedding of all tokens but patches, proprioception and actions; FiLM modulates by it."""
        device = prompts.ids.device
        special = embed(self._special(device))
        text = embed(prompts.ids)
        length = prompts.length[:, None]
        seen = torch.arange(text.shape[1], device=device) < length
        total = torch.where(seen[..., None], text.float(), 0).sum(1) + special.float().sum(0)
        return (total / (length + len(special))).to(text.dtype)

    def _special(self, device: torch.device) -> Int[Tensor, " special"]:
        """BOS, `▁` and `</s>` if it is there, filled in on the device: nothing is copied, as CUDA graphs need."""
        ids = (BOS, SPACE, EOS) if self.stop_token else (BOS, SPACE)
        return torch.cat([torch.full((1,), each, device=device) for each in ids])
