"""A small OpenVLA-OFT with all parts of the large one, for tests, tutorials and first runs on a laptop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from accerl.config import ConfigError
from accerl.policies.openvla_oft.actions import NUM_TOKENS
from accerl.policies.openvla_oft.config import ImageConfig, OpenVLAOFTConfig, VisionTower
from accerl.policies.openvla_oft.policy import OpenVLAOFT
from accerl.policies.openvla_oft.tokenizer import load_tokenizer, prompt_ids
from accerl.policies.tiny_vla import radial_basis
from accerl.types import EnvSpec

NUM_BASIS = 16
"""Smooth functions over the tokens that the head's first rows are made of."""


def tiny_config(
    spec: EnvSpec,
    instructions: Iterable[str],
    *,
    width: int = 192,
    num_layers: int = 2,
    num_heads: int = 4,
    value_probability: bool = True,
    proprio_bounds: Iterable[tuple[float, float]] | None = None,
) -> OpenVLAOFTConfig:
    """For an environment: random weights, a tokenizer trained on its instructions, and places for the longest of them.

    Args:
        width: of the language model; as many layers and heads as given.
        proprio_bounds: low and high of each dimension, which become -1 and 1; None: as it comes.

    Raises:
        ConfigError: a single layer. Empty action tokens are zeros, whose queries are zero wherever they stand: it takes
            a first layer to give them a state, and a second to tell them apart by their position.
    """
    if num_layers < 2:
        raise ConfigError(f"policy.num_layers: {num_layers} cannot tell the empty action tokens apart; use at least 2")
    bounds = list(proprio_bounds) if proprio_bounds is not None else [(-1.0, 1.0)] * spec.proprio_dim
    low, high = ([bound[side] for bound in bounds] for side in (0, 1))
    texts = tuple(sorted(set(instructions)))
    unit = {"q01": [-1.0] * spec.action_dim, "q99": [1.0] * spec.action_dim, "mask": [True] * spec.action_dim}
    return OpenVLAOFTConfig(
        vision=(
            VisionTower(width=64, depth=3, num_heads=4, mlp=128, class_token=True, num_registers=4, layer_scale=True),
            VisionTower(width=64, depth=3, num_heads=4, mlp=128),
        ),
        text={
            "vocab_size": 32064,
            "pad_token_id": 32000,
            "hidden_size": width,
            "intermediate_size": 8 * width // 3,  # of three matrices, as in Llama
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "initializer_range": width**-0.5,
        },
        images=ImageConfig(size=56, crop_area=1.0),
        num_images=spec.num_cameras,
        proprio_dim=spec.proprio_dim or None,
        chunk_length=spec.chunk_length,
        action_dim=spec.action_dim,
        prompt_length=max(len(prompt_ids(load_tokenizer(texts), text)) - 2 for text in texts),
        gripper="none",
        label_width=6.0,
        norm_stats_key="env",
        norm_stats={"action": unit, "proprio": {"q01": low, "q99": high}},
        tokenizer=texts,
        max_decisions=spec.max_decisions,
        value_probability=value_probability,
    )


def start_weights(policy: OpenVLAOFT) -> None:
    """Random weights that it learns to see from, in place.

    From the usual ones the policy goes by proprioception alone for thousands of updates: what all images share, above
    all a uniform background, is most of what the language model gets. So filters have no mean, which makes them blind
    to it, positions are as strong as contents, the layers of the projector keep the scale, and words are weak beside
    what attention brings to their places. The head begins nearly uniform, and with rows of neighbouring tokens alike:
    what reinforcement learning finds of a token then says something of those beside it.
    """
    vision, projector = policy.model.vision_backbone, policy.model.projector
    words, head = policy.model.language_model.model.embed_tokens.weight, policy.model.language_model.lm_head.weight
    for tower in (vision.featurizer, vision.fused_featurizer):
        filters = tower.patch_embed.proj
        nn.init.normal_(filters.weight, std=3 * filters.weight[0].numel() ** -0.5)
        with torch.no_grad():
            filters.weight -= filters.weight.mean((2, 3), keepdim=True)
        nn.init.normal_(tower.pos_embed, std=0.5)
    for part, gain in ((vision, 1.0), (projector, 1.4)):
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    nn.init.normal_(words, std=0.02)
    with torch.no_grad():
        head.copy_(radial_basis(NUM_BASIS, NUM_TOKENS).T @ (0.02 * torch.randn(NUM_BASIS, head.shape[1])))
