"""TinyVLA: a VLA of one to three million parameters with the interface and heads of the large ones.

    images ─► conv stem ─► patch tokens ─┐
    instruction ─► words ────────────────┤
    proprio ─► one token ────────────────┼─► transformer ─► action tokens' hidden states ─► bins (256 a dimension)
    queries (chunk x dims) ──────────────┘                                  └─ detached ──► value head

All action tokens are decoded in parallel, as in OpenVLA-OFT; attention is bidirectional over everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accerl.policies.action_tokens import sample_tokens, soft_labels, to_actions, to_tokens
from accerl.policies.value_head import ValueHead
from accerl.rl.tokens import chosen, slim_log_prob
from accerl.types import Blob, EnvSpec, Evaluation, ObservationBatch, PolicyOutput

PADDING, UNKNOWN = 0, 1
PATCH = 16
"""Pixels an image token covers in each direction: the stem's total stride."""
MIN_REACH = 1e-3
"""Of proprioception that hardly changes: 1 mm."""


Size = Annotated[int, Field(gt=0, le=4096)]
"""So that a damaged file does not ask for a network that no memory holds."""


class TinyVLAConfig(BaseModel):
    """What rebuilds a TinyVLA; saved beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: Size
    num_cameras: Size
    proprio_dim: Annotated[int, Field(ge=0, le=4096)]
    action_dim: Size
    chunk_length: Size
    max_decisions: Size
    vocabulary: tuple[str, ...]
    """Words of the instructions it was made for; any other word is one and the same unknown token."""
    width: Size = 192
    num_layers: Annotated[int, Field(gt=0, le=64)] = 2
    num_heads: Size = 4
    num_bins: Size = 256
    num_basis: Annotated[int, Field(gt=1, le=4096)] = 16
    """Smooth radial functions the bins' logits are made of, so that neighbouring bins move together."""
    max_words: Size = 16
    value_probability: bool = True
    """The value is a success probability in (0, 1), see `accerl.policies.value_head`."""
    label_width: float = 6.0
    """Bins over which imitation smears its targets."""
    proprio_bounds: tuple[tuple[float, float], ...] | None = None
    """What becomes -1 and 1, for each dimension of proprioception: metres and finger widths differ a hundredfold. None:
    as it comes."""

    @classmethod
    def for_env(cls, spec: EnvSpec, instructions: Iterable[str], **sizes: Any) -> TinyVLAConfig:
        """The configuration that fits an environment and the instructions it gives."""
        return cls(
            image_size=spec.image_size,
            num_cameras=spec.num_cameras,
            proprio_dim=spec.proprio_dim,
            action_dim=spec.action_dim,
            chunk_length=spec.chunk_length,
            max_decisions=spec.max_decisions,
            vocabulary=tuple(sorted({word for text in instructions for word in split_words(text)})),
            **sizes,
        )


class TinyVLA(nn.Module):
    """The embedded default policy; see the module's picture."""

    def __init__(self, config: TinyVLAConfig):
        super().__init__()
        if config.image_size % PATCH:
            raise ValueError(f"env.image_size: TinyVLA needs a multiple of {PATCH}, not {config.image_size}")
        if config.proprio_bounds is not None and len(config.proprio_bounds) != config.proprio_dim:
            raise ValueError(f"proprio_bounds: {len(config.proprio_bounds)} for a proprio_dim of {config.proprio_dim}")
        self.config = config
        self._recomputes = False
        width = config.width
        self.num_tokens = config.chunk_length * config.action_dim
        num_patches = config.num_cameras * (config.image_size // PATCH) ** 2
        self._word_ids = {word: index + 2 for index, word in enumerate(config.vocabulary)}

        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=4, padding=2),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, width, 3, stride=2, padding=1),
        )
        self.words = nn.Embedding(len(config.vocabulary) + 2, width)
        self.proprio = nn.Linear(config.proprio_dim, width)
        self.patch_position = nn.Parameter(0.02 * torch.randn(num_patches, width))
        self.word_position = nn.Parameter(0.02 * torch.randn(config.max_words, width))
        self.action_queries = nn.Parameter(0.1 * torch.randn(self.num_tokens, width))
        self.blocks = nn.ModuleList(Block(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.action_head = nn.Linear(width, config.num_basis)
        self.value_head = ValueHead(width, config.max_decisions, probability=config.value_probability)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.action_head.weight, std=0.01)
        nn.init.zeros_(self.action_head.bias)
        self.register_buffer("basis", radial_basis(config.num_basis, config.num_bins), persistent=False)
        self.basis: Tensor
        bounds = torch.tensor(config.proprio_bounds or [(-1.0, 1.0)] * config.proprio_dim).reshape(
            config.proprio_dim, 2
        )
        low, high = bounds.float().unbind(-1)
        self.register_buffer("proprio_centre", (low + high) / 2, persistent=False)
        self.register_buffer("proprio_reach", ((high - low) / 2).clamp(min=MIN_REACH), persistent=False)
        self.proprio_centre: Tensor
        self.proprio_reach: Tensor

    def check_env(self, spec: EnvSpec) -> None:
        for field in ("image_size", "num_cameras", "proprio_dim", "action_dim", "chunk_length"):
            mine, theirs = getattr(self.config, field), getattr(spec, field)
            if mine != theirs:
                raise ValueError(
                    f"policy.checkpoint: made for {field}={mine}, but the environment has {theirs}; "
                    f"change env or clone a policy for it"
                )

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        logits, value = self._forward(observations)
        log_probs = torch.log_softmax(logits, dim=-1)
        tokens = sample_tokens(log_probs, seeds)
        action = to_actions(tokens, self.config.num_bins).view(-1, self.config.chunk_length, self.config.action_dim)
        blob = {"tokens": tokens.to(torch.int16)}
        return PolicyOutput(action, chosen(log_probs, tokens), value, blob)

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        states = self._action_states(observations)
        tokens = blob["tokens"].to(states.device).long()
        log_prob, entropy = slim_log_prob(self.action_head(states).float(), self.basis, tokens)
        return Evaluation(log_prob, entropy, self.value_head(states, observations.episode_step).float())

    def value(self, observations: ObservationBatch) -> Float[Tensor, " batch"]:
        return self.value_head(self._action_states(observations), observations.episode_step).float()

    def imitation_loss(
        self,
        observations: ObservationBatch,
        actions: Float[Tensor, "batch chunk action"],
        mask: Bool[Tensor, "batch chunk"],
    ) -> Float[Tensor, ""]:
        log_probs = torch.log_softmax(self._forward(observations)[0], dim=-1)
        tokens = to_tokens(actions, self.config.num_bins).flatten(1).to(log_probs.device)
        labels = soft_labels(tokens, self.config.num_bins, self.config.label_width)
        cross_entropy = -(labels * log_probs).sum(-1).view(*mask.shape, -1).mean(-1)
        return torch.where(mask.to(log_probs.device), cross_entropy, 0.0).sum() / mask.sum()

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        return (p for name, p in self.named_parameters() if not name.startswith("value_head."))

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def gradient_checkpointing_enable(self) -> None:
        """The blocks run a second time in the backward pass, which keeps only their inputs until then."""
        self._recomputes = True

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "tiny_vla", **self.config.model_dump(mode="json")}

    def _forward(self, observations: ObservationBatch) -> tuple[Tensor, Tensor]:
        states = self._action_states(observations)
        logits = self.action_head(states).float() @ self.basis
        return logits, self.value_head(states, observations.episode_step).float()

    def _action_states(self, observations: ObservationBatch) -> Float[Tensor, "batch token width"]:
        batch = len(observations)
        device = self.patch_position.device
        images = observations.images.to(device).flatten(0, 1).permute(0, 3, 1, 2)
        pixels = images.float().div_(127.5).sub_(1).to(self.patch_position.dtype)
        patches = self.stem(pixels).flatten(2).transpose(1, 2)
        word_ids = self._tokenize(observations.instructions).to(device)
        tokens = torch.cat(
            [
                patches.reshape(batch, -1, self.config.width) + self.patch_position,
                self.words(word_ids) + self.word_position[: word_ids.shape[1]],
                self.proprio(self._scaled(observations.proprio.to(device)))[:, None],
                self.action_queries.expand(batch, -1, -1),
            ],
            dim=1,
        )
        visible = torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
        first_word = patches.shape[1] * self.config.num_cameras
        visible[:, first_word : first_word + word_ids.shape[1]] = word_ids != PADDING
        *early, last = self.blocks
        for block in early:
            tokens = self._run(block, tokens, visible, tokens.shape[1])
        return self.norm(self._run(last, tokens, visible, self.num_tokens))

    def _run(self, block: nn.Module, *arguments: Any) -> Tensor:
        if self._recomputes and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def _scaled(self, proprio: Tensor) -> Tensor:
        return ((proprio - self.proprio_centre) / self.proprio_reach).to(self.patch_position.dtype)

    def _tokenize(self, instructions: list[str]) -> Int[Tensor, "batch word"]:
        """Word ids, padded to the longest instruction of the batch, so that a row does not depend on its batch."""
        rows = [
            [self._word_ids.get(word, UNKNOWN) for word in split_words(text)][: self.config.max_words]
            for text in instructions
        ]
        longest = max((len(row) for row in rows), default=0)
        padded = [row + [PADDING] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).view(len(rows), longest)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor, visible: Tensor, num_last: int) -> Tensor:
        """The last `num_last` positions, which attend to every position that is `visible` [batch, time]."""
        batch, _, width = x_BTD.shape
        normed = self.norm_attention(x_BTD)
        query = self._split_heads(self.query(normed[:, -num_last:]))
        key, value = (self._split_heads(half) for half in self.key_value(normed).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None, None])
        x_BTD = x_BTD[:, -num_last:] + self.project(attended.transpose(1, 2).reshape(batch, num_last, width))
        return x_BTD + self.contract(F.relu(self.expand(self.norm_mlp(x_BTD))))

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of an instruction."""
    return re.findall(r"[a-z0-9]+", text.lower())


def radial_basis(num_basis: int, num_bins: int) -> Float[Tensor, "basis bin"]:
    """Gaussians at equal distances over the bins, 0.8 of that distance wide."""
    centre = torch.linspace(0, 1, num_basis)[:, None]
    position = torch.linspace(0, 1, num_bins)[None]
    return torch.exp(-((position - centre) ** 2) / (2 * (0.8 / (num_basis - 1)) ** 2))
