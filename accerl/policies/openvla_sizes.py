r"""What OpenVLA-OFT with discrete action tokens consists of, counted from its published architecture.

    images ─► DINOv2 ViT-L/14 ─┬─► projector ─┐
           └► SigLIP so400m/14 ┘              ├─► Llama 2 7B ─► head of the 256 action tokens
    prompt, proprio, empty action tokens ─────┘

Counted are the parts that contribute: a vision tower gives the output of its block before the last, so that its last
block, final norm and pooling are not there.
"""

from __future__ import annotations

from typing import NamedTuple

VOCABULARY, ACTION_TOKENS = 32064, 256
WIDTH, LAYERS, MLP = 4096, 32, 11008
"""Of Llama 2 7B."""
IMAGE_SIZE, PATCH = 224, 14
PROMPT_TOKENS = 35
"""A typical instruction; each task has its own length."""


class Tower(NamedTuple):
    """A vision transformer."""

    width: int
    blocks: int
    """That are used."""
    mlp: int
    prefix: int
    """Class and register tokens."""
    scales: bool
    """Whether each branch is multiplied by a learned vector (LayerScale)."""


DINO = Tower(width=1024, blocks=23, mlp=4096, prefix=5, scales=True)
SIGLIP = Tower(width=1152, blocks=26, mlp=4304, prefix=0, scales=False)


class Sizes(NamedTuple):
    """What a policy of this kind costs."""

    parameters: int
    """With the head cut down to the action tokens."""
    parameters_full_head: int
    tokens: int
    """Of a decision: images, prompt, actions."""
    flop: float
    """Of a forward for one decision; a multiplication and an addition are two."""
    activation_bytes: int
    """That backward needs of one decision, bf16, nothing recomputed."""
    checkpointed_bytes: int
    """The same where only the inputs of the blocks are kept, with the largest block, which is recomputed."""
    lora_parameters: int
    """Of additions of rank 1 to every linear layer that trains, but the head."""
    frozen_parameters: int
    """Of the vision backbone, if that does not train."""
    frozen_flop: float
    """Of its forward for one decision, likewise."""


def sizes_of(
    num_images: int = 1, chunk_length: int = 8, action_dim: int = 7, proprio_dim: int = 0, freeze_vision: bool = False
) -> Sizes:
    """Of a policy that sees `num_images` images of 224 pixels; the value head, 0.1 % of it, is left out."""
    patches = (IMAGE_SIZE // PATCH) ** 2
    proprio = proprio_dim * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH if proprio_dim else 0
    projector = _projector(DINO.width + SIGLIP.width)
    layers = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * MLP + 2 * WIDTH) + WIDTH
    trunk = _tower(DINO, patches) + _tower(SIGLIP, patches) + projector + proprio + layers + VOCABULARY * WIDTH
    tokens = num_images * patches + bool(proprio_dim) + PROMPT_TOKENS + chunk_length * action_dim + 1
    towers = (DINO, SIGLIP)
    trained = () if freeze_vision else towers
    seeing = sum(_tower_flop(tower, patches) for tower in towers)
    vision = seeing + 2 * projector * patches
    language = 2 * layers * tokens + LAYERS * 4 * tokens**2 * WIDTH
    return Sizes(
        parameters=trunk + ACTION_TOKENS * WIDTH,
        parameters_full_head=trunk + VOCABULARY * WIDTH,
        tokens=tokens,
        flop=float(num_images * vision + language),
        activation_bytes=_language_activations(tokens) + num_images * _vision_activations(patches, trained),
        checkpointed_bytes=2 * LAYERS * tokens * WIDTH
        + _language_activations(tokens) // LAYERS
        + num_images * sum(2 * tower.blocks * (patches + tower.prefix) * tower.width for tower in trained),
        lora_parameters=LAYERS * (4 * 2 * WIDTH + 3 * (WIDTH + MLP))
        + sum(tower.blocks * (4 * tower.width + 2 * tower.width + 2 * (tower.width + tower.mlp)) for tower in trained)
        + _projector_ends(DINO.width + SIGLIP.width)
        + (proprio_dim + 3 * WIDTH if proprio_dim else 0),
        frozen_parameters=sum(_tower(tower, patches) for tower in towers) if freeze_vision else 0,
        frozen_flop=float(num_images * seeing) if freeze_vision else 0.0,
    )


def _tower(tower: Tower, patches: int) -> int:
    width, mlp = tower.width, tower.mlp
    block = 4 * width**2 + 4 * width + 2 * width * mlp + mlp + width + 4 * width + 2 * width * tower.scales
    return tower.blocks * block + 3 * PATCH**2 * width + width + (patches + tower.prefix) * width


def _projector(width: int) -> int:
    hidden = 4 * width
    return width * hidden + hidden + hidden * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH


def _projector_ends(width: int) -> int:
    """Inputs and outputs of its three layers."""
    return (width + 4 * width) + (4 * width + WIDTH) + (WIDTH + WIDTH)


def _tower_flop(tower: Tower, patches: int) -> float:
    tokens = patches + tower.prefix
    return 2 * _tower(tower, 0) * tokens + tower.blocks * 4 * tokens**2 * tower.width


def _language_activations(tokens: int) -> int:
    """A layer keeps two inputs, two norms (float32), query, key, value, attention's output, and four of its MLP."""
    layer = 2 * (2 + 2 * 3 + 3 + 1) * WIDTH + 2 * 4 * MLP
    return LAYERS * tokens * layer


def _vision_activations(patches: int, trained: tuple[Tower, ...]) -> int:
    """Of the projector, and of those towers that train.

    A block keeps two inputs, two norms, query, key, value, attention's output, its scaling, and two of its MLP.
    """
    towers = sum(
        tower.blocks * (patches + tower.prefix) * 2 * ((2 + 2 + 3 + 2 + 2 * tower.scales) * tower.width + 2 * tower.mlp)
        for tower in trained
    )
    return towers + patches * 2 * (4 * 4 * (DINO.width + SIGLIP.width) // 2 + 3 * WIDTH)
