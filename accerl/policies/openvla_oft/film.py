r"""The vision backbone of a FiLM checkpoint: `vision_backbone--*_checkpoint.pt`.

Upstream saves it while LoRA is still attached, and attaches LoRA again before it loads it. So reading merges the
additions into the weights, and writing gives weights with additions that do nothing.

    vision_backbone.featurizer.blocks.3.block.attn.qkv.base_layer.weight  W   ─┐
    vision_backbone.featurizer.blocks.3.block.attn.qkv.lora_A.default.weight A ├─► …featurizer.blocks.3.attn.qkv.weight
    vision_backbone.featurizer.blocks.3.block.attn.qkv.lora_B.default.weight B ┘     W + (alpha / r) B A
    vision_backbone.featurizer.blocks.3.scale.weight  ─────────────────────────► …featurizer.blocks.3.scale.weight
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MAX_ALPHA = 16
"""Upstream's alpha is the rank, but at most this."""
LORA_A, LORA_B, BASE = "lora_A.default.weight", "lora_B.default.weight", "base_layer."


def from_file(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the names that they have in the model, LoRA merged."""
    tensors = {}
    for name, tensor in content.items():
        if name.endswith((LORA_A, LORA_B)):
            continue
        if name.endswith(BASE + "weight"):
            layer = name.removesuffix(BASE + "weight")
            a, b = content[layer + LORA_A].float(), content[layer + LORA_B].float()
            scale = min(len(a), MAX_ALPHA) / len(a)
            tensor = (tensor.float() + scale * (b @ a)).to(tensor.dtype)
        tensors[own_name(name)] = tensor
    return tensors


def to_file(tensors: Mapping[str, Tensor], content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`content`, a file, with `tensors` in the place of its weights; what the model does not have stays."""
    return {
        name: torch.zeros_like(tensor)
        if name.endswith(LORA_B)
        else tensors.get(own_name(name), tensor).detach().cpu().contiguous()
        for name, tensor in content.items()
    }


def own_name(name: str) -> str:
    """Of a tensor of the file, in the model."""
    return name.replace(".block.", ".").replace(BASE, "")
