"""An independent OpenVLA-OFT in plain torch and numpy, in the published order of the sequence, for the golden file.

It shares nothing with `accerl.policies.openvla_oft` but the tokenizer files it writes: weights are a dictionary in the
public layout, every block of the towers is run and the output of the one before the last taken, the sequence is
`[BOS | patches | proprio | text | ▁ | zeros | </s>]` of one row at a time without any padding, the head has all rows,
the image crop is a loop over pixels. The network is evaluated in float64, images and rotary angles as upstream in
float32. Weights and inputs come from `numpy.random.RandomState`, whose streams never change.

    python -m tests.policies.openvla_oft.reference        # writes golden.safetensors beside this file
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden.safetensors")
IMAGE, PATCH, VOCABULARY = 28, 14, 32064
DINO = {
    "width": 24,
    "depth": 3,
    "num_heads": 2,
    "mlp": 48,
    "class_token": True,
    "num_registers": 4,
    "layer_scale": True,
}
SIGLIP = {"width": 32, "depth": 4, "num_heads": 4, "mlp": 40}
TEXT = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 32000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
}
WIDTH, LAYERS, HEADS = 32, 3, 4
CHUNK, ACTION_DIM, PROPRIO_DIM = 8, 7, 8
KEY = "libero_spatial_no_noops"
TEXTS = (
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "open the middle drawer of the cabinet",
    "turn on the stove",
)
PROMPTS = (
    # published by third parties for TEXTS[0] with Llama 2's own tokenizer
    [
        *(1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 5839, 701, 278, 4628, 12580, 29880, 1546, 278, 15284),
        *(322, 278, 364, 420, 9089, 322, 2058, 372, 373, 278, 15284, 29973, 13, 3744, 29901, 29871),
    ],
    [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1722, 278, 7256, 29973, 13, 3744, 29901, 29871],
    [1, 512, 29901, 304, 29973, 13, 3744, 29901, 29871],
)


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint, and what it looks at."""

    num_images: int
    proprio: bool
    film: bool
    stop_token: bool
    seed: int


CASES = {
    "two_images": Case(num_images=2, proprio=True, film=False, stop_token=True, seed=1),
    "film": Case(num_images=1, proprio=False, film=True, stop_token=False, seed=2),
}


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def tensors_of(case: Case) -> dict[str, Tensor]:
    """Everything that a public checkpoint has, with the names in the shards; FiLM's and proprio's under theirs here."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tower, sizes in (("featurizer", DINO), ("fused_featurizer", SIGLIP)):
        shapes |= {f"vision_backbone.{tower}.{name}": shape for name, shape in _tower_shapes(sizes, case.film).items()}
    features = DINO["width"] + SIGLIP["width"]
    shapes |= _linear("projector.fc1", features, 4 * features) | _linear("projector.fc2", 4 * features, WIDTH)
    shapes |= _linear("projector.fc3", WIDTH, WIDTH)
    if case.proprio:
        shapes |= _linear("proprio_projector.fc1", PROPRIO_DIM, WIDTH) | _linear("proprio_projector.fc2", WIDTH, WIDTH)
    shapes["language_model.model.embed_tokens.weight"] = (VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{prefix}mlp.{part}_proj.weight": (64, WIDTH) for part in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (WIDTH, 64)
        shapes |= {f"{prefix}{part}_layernorm.weight": (WIDTH,) for part in ("input", "post_attention")}
    shapes["language_model.model.norm.weight"] = (WIDTH,)
    shapes["language_model.lm_head.weight"] = (VOCABULARY, WIDTH)
    random = np.random.RandomState(case.seed)
    return {name: _random(random, name, shape) for name, shape in shapes.items()}


def _tower_shapes(sizes: dict[str, Any], film: bool) -> dict[str, tuple[int, ...]]:
    width, mlp = sizes["width"], sizes["mlp"]
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, (IMAGE // PATCH) ** 2, width)}
    if sizes.get("class_token"):
        shapes |= {"cls_token": (1, 1, width), "reg_token": (1, sizes["num_registers"], width)}
    else:
        shapes |= {"attn_pool.latent": (1, 1, width)} | _linear("attn_pool.q", width, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, PATCH, PATCH), "patch_embed.proj.bias": (width,)}
    for index in range(sizes["depth"]):
        block = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
        block |= _linear("attn.qkv", width, 3 * width) | _linear("attn.proj", width, width)
        block |= _linear("mlp.fc1", width, mlp) | _linear("mlp.fc2", mlp, width)
        if sizes.get("layer_scale"):
            block |= {"ls1.scale_factor": (width,), "ls2.scale_factor": (width,)}
        if film:
            block |= _linear("scale", WIDTH, width) | _linear("shift", WIDTH, width)
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _random(random: np.random.RandomState, name: str, shape: tuple[int, ...]) -> Tensor:
    values = random.standard_normal(shape)
    if ("norm" in name and name.endswith("weight")) or "scale_factor" in name:
        values = 1 + 0.2 * values
    elif name == "language_model.lm_head.weight":
        values = 1.2 * values
    elif name.endswith("bias") or name.endswith("_token"):
        values = 0.3 * values
    elif "embed_tokens" not in name:
        values = values / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def statistics() -> dict[str, Any]:
    """In the layout of `dataset_statistics.json`."""
    random = np.random.RandomState(7)
    parts: dict[str, Any] = {"num_trajectories": 432, "num_transitions": 52970}
    for part, size in (("action", ACTION_DIM), ("proprio", PROPRIO_DIM)):
        low = -random.uniform(0.2, 1, size)
        parts[part] = {"q01": low.tolist(), "q99": (low + random.uniform(0.3, 1.5, size)).tolist()}
    parts["action"]["mask"] = [True] * 6 + [False]
    return {KEY: parts}


def public_config(case: Case) -> dict[str, Any]:
    extras = {"vision": [DINO, SIGLIP], "num_images": case.num_images, "stop_token": case.stop_token}
    return {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "use_fused_vision_backbone": True,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [IMAGE, IMAGE],
        "norm_stats": {},
        "text_config": {"model_type": "llama", "torch_dtype": "float32", **TEXT},
        "torch_dtype": "float32",
        "accerl": extras,
    }


def write_checkpoint(folder: Path, case: Case, prefix: str = "") -> Path:
    """A folder in the public layout, in two shards; `prefix` is what data-parallel training puts before names."""
    from accerl.policies.openvla_oft.tokenizer import train_tokenizer

    folder.mkdir(parents=True)
    tensors = tensors_of(case)
    in_shards = {name: tensor for name, tensor in tensors.items() if not _has_own_file(name)}
    names = sorted(in_shards)
    files = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, members in files.items():
        save_file({name: in_shards[name] for name in members}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in files.items() for name in members}
    total = sum(tensor.numel() * 4 for tensor in in_shards.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(public_config(case)))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics()))
    train_tokenizer(TEXTS).save_pretrained(folder)
    if case.proprio:
        names = [name for name in tensors if name.startswith("proprio_projector.")]
        state = {prefix + name.removeprefix("proprio_projector."): tensors[name] for name in names}
        torch.save(state, folder / "proprio_projector--150000_checkpoint.pt")
    if case.film:
        torch.save(film_file(tensors), folder / "vision_backbone--150000_checkpoint.pt")
    return folder


def film_file(tensors: dict[str, Tensor], rank: int = 32) -> dict[str, Tensor]:
    """As upstream saves it: blocks wrapped, LoRA (alpha 16) still beside every linear layer of the plain ViT."""
    random = np.random.RandomState(11)
    state = {}
    for name, tensor in tensors.items():
        if not name.startswith("vision_backbone."):
            continue
        head, dot, rest = name.partition(".blocks.")
        index, _, rest = rest.partition(".")
        if dot and not rest.startswith(("scale.", "shift.")):
            name = f"{head}.blocks.{index}.block.{rest}"
        if not rest.startswith(("attn.", "mlp.")):
            state[name] = tensor
            continue
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            state[f"{layer}.base_layer.bias"] = tensor
            continue
        a = torch.from_numpy(random.standard_normal((rank, tensor.shape[1])).astype(np.float32))
        b = torch.from_numpy(random.standard_normal((tensor.shape[0], rank)).astype(np.float32)) * 0.01
        state[f"{layer}.base_layer.weight"] = tensor - 16 / rank * (b @ a)
        state[f"{layer}.lora_A.default.weight"], state[f"{layer}.lora_B.default.weight"] = a, b
    return state


def _has_own_file(name: str) -> bool:
    return name.startswith("proprio_projector.") or name.split(".")[-2] in ("scale", "shift")


# --- the network ------------------------------------------------------------------------------------------------------


def logits_of(
    tensors: dict[str, Tensor],
    case: Case,
    prompt: list[int],
    pixels: Tensor,
    proprio: Tensor | None,
    causal: bool = False,
) -> Tensor:
    """Logits [56, 32064] of one row: pixels [image, 6, height, width], proprio [8] already scaled."""
    table = tensors["language_model.model.embed_tokens.weight"]
    text = table[torch.tensor(prompt)]
    stop = table[torch.tensor([2])] if case.stop_token else table[:0]
    language = torch.cat([text, stop]).mean(0) if case.film else None
    patches = torch.cat([_patches(tensors, image, language) for image in pixels])
    context = [_projected(tensors, patches)]
    if proprio is not None:
        hidden = F.gelu(_apply(tensors, "proprio_projector.fc1", proprio))
        context.append(_apply(tensors, "proprio_projector.fc2", hidden)[None])
    num_actions = CHUNK * ACTION_DIM
    sequence = torch.cat([text[:1], *context, text[1:], torch.zeros(num_actions, WIDTH).to(text), stop])
    states = _llama(tensors, sequence, causal)
    last_of_prompt = len(sequence) - len(stop) - num_actions - 1
    return states[last_of_prompt : last_of_prompt + num_actions] @ tensors["language_model.lm_head.weight"].T


def _patches(tensors: dict[str, Tensor], image: Tensor, language: Tensor | None) -> Tensor:
    first = _tower(tensors, "vision_backbone.featurizer.", DINO, image[:3], language)
    second = _tower(tensors, "vision_backbone.fused_featurizer.", SIGLIP, image[3:], language)
    return torch.cat([first, second], dim=1)


def _tower(
    tensors: dict[str, Tensor], prefix: str, sizes: dict[str, Any], image: Tensor, language: Tensor | None
) -> Tensor:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    side = IMAGE // PATCH
    squares = [image[:, y * PATCH :, x * PATCH :][:, :PATCH, :PATCH] for y in range(side) for x in range(side)]
    x = torch.stack(squares).flatten(1) @ own["patch_embed.proj.weight"].flatten(1).T + own["patch_embed.proj.bias"]
    x = x + own["pos_embed"][0]
    prefix_tokens = [own[name][0] for name in ("cls_token", "reg_token") if name in own]
    x = torch.cat([*prefix_tokens, x])
    outputs = []
    for index in range(sizes["depth"]):
        block = {
            name.removeprefix(f"blocks.{index}."): t for name, t in own.items() if name.startswith(f"blocks.{index}.")
        }
        x = _vision_block(block, x, sizes["num_heads"], language)
        outputs.append(x)
    return outputs[-2][sum(len(token) for token in prefix_tokens) :]


def _vision_block(block: dict[str, Tensor], x: Tensor, heads: int, language: Tensor | None) -> Tensor:
    width = x.shape[1]
    normed = F.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
    query, key, value = _apply(block, "attn.qkv", normed).chunk(3, dim=1)
    attended = _apply(block, "attn.proj", _attention(query, key, value, heads))
    x = x + attended * block.get("ls1.scale_factor", 1)
    if language is not None:
        x = x * (1 + _apply(block, "scale", language)) + _apply(block, "shift", language)
    normed = F.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
    grown = _apply(block, "mlp.fc2", F.gelu(_apply(block, "mlp.fc1", normed)))
    return x + grown * block.get("ls2.scale_factor", 1)


def _projected(tensors: dict[str, Tensor], patches: Tensor) -> Tensor:
    hidden = F.gelu(_apply(tensors, "projector.fc1", patches))
    return _apply(tensors, "projector.fc3", F.gelu(_apply(tensors, "projector.fc2", hidden)))


def _llama(tensors: dict[str, Tensor], x: Tensor, causal: bool) -> Tensor:
    mask = torch.ones(len(x), len(x)).tril() if causal else torch.ones(len(x), len(x))
    for layer in range(LAYERS):
        prefix = f"language_model.model.layers.{layer}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        normed = _rms_norm(x, own["input_layernorm.weight"])
        query, key, value = (normed @ own[f"self_attn.{part}_proj.weight"].T for part in "qkv")
        attended = _attention(_rotated(query), _rotated(key), value, HEADS, mask)
        x = x + attended @ own["self_attn.o_proj.weight"].T
        normed = _rms_norm(x, own["post_attention_layernorm.weight"])
        gate = F.silu(normed @ own["mlp.gate_proj.weight"].T)
        x = x + (gate * (normed @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    return _rms_norm(x, tensors["language_model.model.norm.weight"])


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(1, keepdim=True) + 1e-6)


def _rotated(x: Tensor) -> Tensor:
    """Rotary position embedding of heads side by side; a head's first half pairs with its second."""
    size = WIDTH // HEADS
    frequency = 1.0 / (10000.0 ** (torch.arange(0, size, 2).float() / size))
    angle = (torch.arange(len(x)).float()[:, None, None] * frequency).to(x.dtype)
    first, second = x.view(len(x), HEADS, 2, size // 2).unbind(2)
    turned = (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin())
    return torch.stack(turned, dim=2).flatten(1)


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    parts = []
    for q, k, v in zip(query.chunk(heads, 1), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
        score = q @ k.T / math.sqrt(q.shape[1])
        if mask is not None:
            score = score.masked_fill(mask == 0, -math.inf)
        parts.append(torch.softmax(score, dim=1) @ v)
    return torch.cat(parts, dim=1)


def _apply(tensors: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


# --- images and actions -----------------------------------------------------------------------------------------------


def pixels_of(image: np.ndarray) -> Tensor:
    """Pixel values [6, height, width] of one uint8 image [height, width, 3]: `tf.image.crop_and_resize` of area 0.9."""
    size = len(image)
    floats = image.astype(np.float32) * np.float32(1 / 255)
    side = np.sqrt(np.float32(0.9))
    start = (np.float32(1) - side) / np.float32(2)
    step = (start + side - start) * np.float32(size - 1) / np.float32(size - 1)
    places = [start * np.float32(size - 1) + np.float32(index) * step for index in range(size)]
    crop = np.zeros_like(floats)
    for y, at_y in enumerate(places):
        top, bottom = floats[int(np.floor(at_y))], floats[int(np.ceil(at_y))]
        down = at_y - np.floor(at_y)
        for x, at_x in enumerate(places):
            left, right, along = int(np.floor(at_x)), int(np.ceil(at_x)), at_x - np.floor(at_x)
            above = top[left] + (top[right] - top[left]) * along
            below = bottom[left] + (bottom[right] - bottom[left]) * along
            crop[y, x] = above + (below - above) * down
    cropped = (np.clip(crop, 0, 1) * np.float32(255.5)).astype(np.uint8)
    unit = torch.from_numpy(cropped.transpose(2, 0, 1)).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return torch.cat([(unit - mean[:, None, None]) / std[:, None, None], (unit - 0.5) / 0.5])


def actions_of(ids: Tensor) -> np.ndarray:
    """Actions [8, 7] of LIBERO from ids [56] of the vocabulary."""
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    normalized = centres[np.clip(32000 - ids.numpy() - 1, 0, 254)].reshape(CHUNK, ACTION_DIM)
    own = statistics()[KEY]["action"]
    low, high = np.array(own["q01"]), np.array(own["q99"])
    actions = np.where(own["mask"], 0.5 * (normalized + 1) * (high - low + 1e-8) + low, normalized)
    actions[:, -1] = -np.sign(2 * actions[:, -1] - 1)
    return actions.astype(np.float32)


def scaled_proprio(proprio: np.ndarray) -> Tensor:
    own = statistics()[KEY]["proprio"]
    low, high = np.array(own["q01"]), np.array(own["q99"])
    return torch.from_numpy(np.clip(2 * (proprio - low) / (high - low + 1e-8) - 1, -1, 1))


def inputs_of(case: Case) -> dict[str, np.ndarray]:
    random = np.random.RandomState(100 + case.seed)
    images = random.randint(0, 256, (len(PROMPTS), case.num_images, IMAGE, IMAGE, 3)).astype(np.uint8)
    proprio = random.uniform(-1, 1, (len(PROMPTS), PROPRIO_DIM)).astype(np.float32)
    return {"images": images, "proprio": proprio}


def expected_of(case: Case, causal: bool = False) -> dict[str, Tensor]:
    """Logits of the action tokens [row, 56, 256], the most probable tokens' ids, their actions; the pixel values."""
    tensors, inputs = {name: tensor.double() for name, tensor in tensors_of(case).items()}, inputs_of(case)
    pixels = torch.stack([torch.stack([pixels_of(image) for image in row]) for row in inputs["images"]])
    proprio = [scaled_proprio(row) if case.proprio else None for row in inputs["proprio"]]
    rows = [
        logits_of(tensors, case, prompt, pixels[row].double(), proprio[row], causal)
        for row, prompt in enumerate(PROMPTS)
    ]
    logits = torch.stack(rows)[..., 31744:32000].float()
    ids = 31744 + logits.argmax(-1)
    actions = torch.from_numpy(np.stack([actions_of(row) for row in ids]))
    return {"logits": logits, "ids": ids, "actions": actions, "pixels": pixels}


if __name__ == "__main__":
    torch.set_num_threads(1)
    golden = {}
    for key, each in CASES.items():
        golden |= {f"{key}.{name}": torch.from_numpy(array) for name, array in inputs_of(each).items()}
        golden |= {f"{key}.{name}": tensor.contiguous() for name, tensor in expected_of(each).items()}
        away = (golden[f"{key}.logits"] - expected_of(each, causal=True)["logits"]).abs().max()
        print(
            f"{key}: |logits| up to {golden[f'{key}.logits'].abs().max():.1f}; a causal mask changes them by {away:.1f}"
        )
    save_file(golden, GOLDEN)
    print(f"{GOLDEN.stat().st_size / 1e6:.2f} MB")
