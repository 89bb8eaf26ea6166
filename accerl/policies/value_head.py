"""The action-aware value head (paper eq. 14-16)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Attention over the hidden states of the action tokens, a learned episode step, an MLP.

    The hidden states are detached: no gradient reaches the backbone. With `probability` the output is squashed into
    (0, 1), for returns that are success probabilities. `pooling="mean"`, the ablation, weighs all action tokens alike.
    """

    def __init__(
        self,
        width: int,
        max_episode_steps: int,
        hidden: int = 256,
        probability: bool = False,
        pooling: Literal["attention", "mean"] = "attention",
    ):
        super().__init__()
        self.probability = probability
        self.score = nn.Linear(width, 1) if pooling == "attention" else None
        self.step_embedding = nn.Embedding(max_episode_steps + 1, width)
        nn.init.normal_(self.step_embedding.weight, std=0.5)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.out = nn.Linear(hidden, 1)

    def forward(
        self, hidden: Float[Tensor, "batch token width"], episode_step: Int[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Values; steps beyond the longest known one count as that one."""
        hidden = hidden.detach()
        if self.score is None:
            pooled = hidden.mean(1)
        else:
            pooled = (torch.softmax(self.score(hidden), dim=1) * hidden).sum(1)
        known_step = episode_step.clamp(max=self.step_embedding.num_embeddings - 1)
        step = self.step_embedding(known_step.to(hidden.device))
        value = self.out(self.mlp(pooled + step)).squeeze(-1)
        return torch.sigmoid(value) if self.probability else value
