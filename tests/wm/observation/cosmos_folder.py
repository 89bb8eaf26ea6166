"""A Cosmos 2 video-to-world model of random weights and a few kilobytes, in the published layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel

LATENT = 4
SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 8,
    "adaln_lora_dim": 4,
    "max_size": (8, 16, 16),
    "out_channels": LATENT,
    "extra_pos_embed_type": None,
}


def write(folder: Path, **changes: Any) -> Path:
    """Write both networks; `changes` are of the transformer."""
    torch.manual_seed(7)
    transformer = CosmosTransformer3DModel(**{"in_channels": LATENT + 1, **SIZES, **changes})
    transformer.save_pretrained(folder / "transformer")
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
        scale_factor_spatial=2,
        scale_factor_temporal=1,
    )
    vae.save_pretrained(folder / "vae")
    return folder
