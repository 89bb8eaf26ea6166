r"""What OpenVLA-OFT with discrete action tokens consists of, counted from its published architecture.

    images ─► DINOv2 ViT-L/14 ─┬─► projector ─┐
           └► SigLIP so400m/14 ┘              ├─► Llama 2 7B ─► head of the 256 action tokens
    prompt, proprio, empty action tokens ─────┘

Counted are the parts that contribute: a vision tower gives the output of its block before the last, so that its last
block, final norm and pooling are not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from accerl.policies.openvla_oft.config import OpenVLAOFTConfig

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
    recomputed_flop: float
    """That gradient checkpointing repeats: the blocks that are trained through, each up to the last thing it keeps."""


class Network(NamedTuple):
    """What the sizes are counted for; the published network unless said otherwise."""

    towers: tuple[Tower, Tower] = (DINO, SIGLIP)
    image_size: int = IMAGE_SIZE
    width: int = WIDTH
    """Of the language model."""
    layers: int = LAYERS
    mlp: int = MLP
    prompt_tokens: int = PROMPT_TOKENS
    """With the beginning and the closing one, and padding where there is some."""

    @property
    def patches(self) -> int:
        """Of an image."""
        return (self.image_size // PATCH) ** 2

    @property
    def features(self) -> int:
        """Of a patch, both towers together."""
        return sum(tower.width for tower in self.towers)


PUBLISHED = Network()


def network_of(config: OpenVLAOFTConfig) -> Network:
    """The network of a configuration, its prompts padded as they are."""
    llama = config.llama()
    dino, siglip = (
        Tower(each.width, each.depth - 1, each.mlp, each.num_prefix, each.layer_scale) for each in config.vision
    )
    return Network(
        towers=(dino, siglip),
        image_size=config.images.size,
        width=llama.hidden_size,
        layers=llama.num_hidden_layers,
        mlp=llama.intermediate_size,
        prompt_tokens=config.prompt_length + 2,
    )


def sizes_of(
    num_images: int = 1,
    chunk_length: int = 8,
    action_dim: int = 7,
    proprio_dim: int = 0,
    freeze_vision: bool = False,
    lora: bool = False,
    network: Network = PUBLISHED,
) -> Sizes:
    """Of a policy that sees `num_images` images; the value head, 0.1 % of it, is left out.

    Args:
        lora: additions train, of which only the activations are counted here.
    """
    patches, width = network.patches, network.width
    proprio = proprio_dim * width + width + width * width + width if proprio_dim else 0
    projector = _projector(network)
    layers = network.layers * (4 * width**2 + 3 * width * network.mlp + 2 * width) + width
    vision_parameters = sum(_tower(tower, patches) for tower in network.towers)
    trunk = vision_parameters + projector + proprio + layers + VOCABULARY * width
    actions = chunk_length * action_dim
    tokens = num_images * patches + bool(proprio_dim) + network.prompt_tokens + actions + 1
    trained = () if freeze_vision else network.towers
    seeing = sum(_tower_flop(tower, patches) for tower in network.towers)
    vision = seeing + 2 * projector * patches
    language = 2 * layers * tokens + network.layers * 4 * tokens**2 * width + 2 * actions * ACTION_TOKENS * width
    inputs = 2 * sum(tower.blocks * (patches + tower.prefix) * tower.width for tower in trained)
    return Sizes(
        parameters=trunk + ACTION_TOKENS * width,
        parameters_full_head=trunk + VOCABULARY * width,
        tokens=tokens,
        flop=float(num_images * vision + language),
        activation_bytes=network.layers * _layer_activations(network, tokens, lora)
        + num_images * (_vision_activations(network, trained, lora) + _projector_activations(network)),
        checkpointed_bytes=2 * network.layers * tokens * width
        + _layer_activations(network, tokens, lora)
        + tokens * (6 * width + 2 * network.mlp)  # the last norm, and a gradient within the block
        + num_images * (inputs + _projector_activations(network)),
        lora_parameters=network.layers * (4 * 2 * width + 3 * (width + network.mlp))
        + sum(tower.blocks * (4 * tower.width + 2 * tower.width + 2 * (tower.width + tower.mlp)) for tower in trained)
        + _projector_ends(network)
        + (proprio_dim + 3 * width if proprio_dim else 0),
        frozen_parameters=vision_parameters if freeze_vision else 0,
        frozen_flop=float(num_images * seeing) if freeze_vision else 0.0,
        recomputed_flop=float(
            network.layers * (2 * tokens * (4 * width**2 + (2 + lora) * width * network.mlp) + 4 * tokens**2 * width)
            + num_images * sum(_recomputed_flop(tower, patches, lora) for tower in trained)
        ),
    )


def _tower(tower: Tower, patches: int) -> int:
    width, mlp = tower.width, tower.mlp
    block = 4 * width**2 + 4 * width + 2 * width * mlp + mlp + width + 4 * width + 2 * width * tower.scales
    return tower.blocks * block + 3 * PATCH**2 * width + width + (patches + tower.prefix) * width


def _projector(network: Network) -> int:
    features, width = network.features, network.width
    hidden = 4 * features
    return features * hidden + hidden + hidden * width + width + width * width + width


def _projector_ends(network: Network) -> int:
    """Inputs and outputs of its three layers."""
    features, width = network.features, network.width
    return (features + 4 * features) + (4 * features + width) + (width + width)


def _tower_flop(tower: Tower, patches: int) -> float:
    tokens = patches + tower.prefix
    return 2 * _tower(tower, 0) * tokens + tower.blocks * 4 * tokens**2 * tower.width


def _recomputed_flop(tower: Tower, patches: int, lora: bool) -> int:
    """An MLP's last layer is not run again where nothing that trains wants its output."""
    tokens, width = patches + tower.prefix, tower.width
    mlp = (1 + (lora or tower.scales)) * width * tower.mlp
    return tower.blocks * (2 * tokens * (4 * width**2 + mlp) + 4 * tokens**2 * width)


def _layer_activations(network: Network, tokens: int, lora: bool) -> int:
    """Of two norms the input (float32), the output and, if its scale trains, what that is multiplied with; query, key,
    value, attention's output; four of the MLP.
    """
    norm = 2 + 1 + (not lora)
    return 2 * tokens * ((2 * norm + 3 + 1) * network.width + 4 * network.mlp)


def _vision_activations(network: Network, trained: tuple[Tower, ...], lora: bool) -> int:
    """Of the towers that train.

    A block keeps two inputs, two norms, query, key, value, attention's output, its scaling, and two of its MLP.
    """
    return sum(
        tower.blocks
        * (network.patches + tower.prefix)
        * 2
        * ((2 + 2 + 3 + 2 + 2 * (tower.scales and not lora)) * tower.width + 2 * tower.mlp)
        for tower in trained
    )


def _projector_activations(network: Network) -> int:
    """Of each of its three layers the input, and what the function between them is taken of."""
    return network.patches * 2 * (9 * network.features + 3 * network.width)
