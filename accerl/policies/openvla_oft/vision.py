"""The fused vision backbone: DINOv2 and SigLIP side by side, and the projector into the language model's width.

    pixels [image, 3 + 3] ─┬─ first three ─► featurizer (DINOv2) ──────┐
                           └─ last three ──► fused_featurizer (SigLIP) ┴─► concatenated ─► projector ─► patches

Parameters have the names of timm's `VisionTransformer`, so that public checkpoints fit as they are. A tower gives the
output of its block before the last: the last block, the final norm and the attention pooling never contribute, and are
not built.

Shapes: B batch, T tokens, D width of the tower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accerl.policies.openvla_oft.config import VisionTower

EPSILON = 1e-6
"""Of the layer norms."""


class VisionBackbone(nn.Module):
    """Both towers; with `film_width` their patches are modulated by an embedding of that width."""

    def __init__(self, towers: tuple[VisionTower, VisionTower], image_size: int, film_width: int | None = None):
        super().__init__()
        self.featurizer = VisionTransformer(towers[0], image_size, film_width)
        self.fused_featurizer = VisionTransformer(towers[1], image_size, film_width)
        self.width = towers[0].width + towers[1].width

    def forward(
        self, pixels: Float[Tensor, "batch image 6 height width"], text: Float[Tensor, "batch film"] | None = None
    ) -> Float[Tensor, "batch patch feature"]:
        """Patches of all images of a row, one image after the other."""
        batch, num_images = pixels.shape[:2]
        if text is not None:
            text = text.repeat_interleave(num_images, dim=0)
        images = pixels.flatten(0, 1)
        features = torch.cat([self.featurizer(images[:, :3], text), self.fused_featurizer(images[:, 3:], text)], dim=-1)
        return features.reshape(batch, -1, self.width)

    def gradient_checkpointing_enable(self) -> None:
        """The blocks run a second time in the backward pass, which keeps only their inputs until then."""
        self.featurizer.recomputes = self.fused_featurizer.recomputes = True


class Projector(nn.Module):
    """Features of a patch to an embedding of the language model."""

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, text_width)
        self.fc3 = nn.Linear(text_width, text_width)

    def forward(self, features: Float[Tensor, "*axes feature"]) -> Float[Tensor, "*axes width"]:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Proprioception, scaled to [-1, 1], to one embedding of the language model."""

    def __init__(self, proprio_dim: int, text_width: int):
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, text_width)
        self.fc2 = nn.Linear(text_width, text_width)

    def forward(self, proprio: Float[Tensor, "batch proprio"]) -> Float[Tensor, "batch width"]:
        return self.fc2(F.gelu(self.fc1(proprio)))


class VisionTransformer(nn.Module):
    """A ViT (Dosovitskiy et al. 2021) up to the block before its last; prefix tokens are dropped from the output."""

    def __init__(self, tower: VisionTower, image_size: int, film_width: int | None = None):
        super().__init__()
        self.tower = tower
        self.recomputes = False
        self.patch_embed = PatchEmbed(tower)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, (image_size // tower.patch) ** 2, tower.width))
        if tower.class_token:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, tower.width))
        if tower.num_registers:
            self.reg_token = nn.Parameter(0.02 * torch.randn(1, tower.num_registers, tower.width))
        self.blocks = nn.ModuleList(Block(tower, film_width) for _ in range(tower.depth - 1))

    def forward(self, pixels: Float[Tensor, "batch 3 height width"], text: Tensor | None = None) -> Tensor:
        x_BTD = self.patch_embed(pixels) + self.pos_embed
        prefix = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        x_BTD = torch.cat([*(token.expand(len(x_BTD), -1, -1) for token in prefix), x_BTD], dim=1)
        for block in self.blocks:
            x_BTD = self._run(block, x_BTD, text)
        return x_BTD[:, self.tower.num_prefix :]

    def _run(self, block: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)


class PatchEmbed(nn.Module):
    """Square patches to embeddings, row by row."""

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.proj = nn.Conv2d(3, tower.width, tower.patch, stride=tower.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block; with FiLM (Perez et al. 2018) x (1 + scale(e)) + shift(e) between its two halves."""

    def __init__(self, tower: VisionTower, film_width: int | None):
        super().__init__()
        width = tower.width
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = Attention(width, tower.num_heads)
        self.ls1 = LayerScale(width) if tower.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = MLP(width, tower.mlp)
        self.ls2 = LayerScale(width) if tower.layer_scale else nn.Identity()
        if film_width is not None:
            self.scale = nn.Linear(film_width, width)
            self.shift = nn.Linear(film_width, width)

    def forward(self, x_BTD: Tensor, text: Float[Tensor, "batch film"] | None) -> Tensor:
        x_BTD = x_BTD + self.ls1(self.attn(self.norm1(x_BTD)))
        if text is not None:
            x_BTD = x_BTD * (1 + self.scale(text)[:, None]) + self.shift(text)[:, None]
        return x_BTD + self.ls2(self.mlp(self.norm2(x_BTD)))


class Attention(nn.Module):
    """Multi-head attention of all tokens to all."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        split = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with the exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BTD)))


class LayerScale(nn.Module):
    """A learned factor for each feature; `scale_factor` is its name in public checkpoints, `gamma` in timm's."""

    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.scale_factor
