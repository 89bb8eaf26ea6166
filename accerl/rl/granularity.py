"""What a ratio is taken of: a token, an action, or the whole chunk (paper eq. 17 and its ablation)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Granularity: TypeAlias = Literal["token", "action", "chunk"]


def at_granularity(
    log_ratio: Float[Tensor, "decision token"],
    mask: Bool[Tensor, "decision token"],
    chunk_length: int,
    granularity: Granularity,
) -> Float[Tensor, "decision token"]:
    r"""Each token's log-ratio as that of the action, or of the executed part of the chunk, that it belongs to.

    The log-ratio of several tokens is the sum of theirs, masked ones left out, and stands at each of them:
    $\mathrm{sg}(\sum_j l_j) + l_i - \mathrm{sg}(l_i)$, the form of GSPO-token (arXiv 2507.18071, section 4.3). So the
    value is the joint ratio's, the mask and the mean over tokens are those of `token`, and each token keeps its own
    gradient: an objective with weight u on the sum has the gradient of -u A log pi of each token. This is the gradient
    of the plain sum divided by the number of its tokens, so that at $\rho = 1$ all granularities agree.

    `token` gives `log_ratio` itself, and so does everything for a policy with a single log-prob for the chunk.

    Raises:
        ValueError: the tokens do not divide into `chunk_length` actions.
    """
    num_tokens = log_ratio.shape[1]
    if granularity == "token" or num_tokens == 1:
        return log_ratio
    num_groups = chunk_length if granularity == "action" else 1
    size, rest = divmod(num_tokens, num_groups)
    if rest or not size:
        raise ValueError(f"num_tokens: {num_tokens} is not a multiple of chunk_length={chunk_length}")
    own = torch.where(mask, log_ratio, 0.0).to(torch.promote_types(log_ratio.dtype, torch.float32))
    joint = own.detach().unflatten(1, (num_groups, size)).sum(-1).repeat_interleave(size, dim=1)
    return joint + (own - own.detach())
