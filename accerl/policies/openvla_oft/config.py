"""What rebuilds an OpenVLA-OFT policy, read from and written to the public `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from transformers import LlamaConfig

from accerl.config import ConfigError, Positive, Section, suggest

ACTION_TOKENS = range(31744, 32000)
"""Ids of the 256 action tokens: the last ones of Llama's vocabulary, before it is padded."""
EXTRAS = "accerl"
"""Key of config.json for what the public layout has no place for; upstream code ignores it."""
FIXED = {
    "architectures": ["OpenVLAForActionPrediction"],
    "arch_specifier": "no-align+fused-gelu-mlp",
    "auto_map": {
        "AutoConfig": "configuration_prismatic.OpenVLAConfig",
        "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
    },
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
    "model_type": "openvla",
    "n_action_bins": len(ACTION_TOKENS),
    "output_projector_states": False,
    "pad_to_multiple_of": 64,
    "pad_token_id": 32000,
    "timm_override_act_layers": [None, None],
    "use_fused_vision_backbone": True,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}


class VisionTower(Section):
    """Sizes of a vision transformer; its last block is counted, and never built."""

    width: Positive
    depth: Positive
    num_heads: Positive
    mlp: Positive
    """Hidden features of each MLP."""
    patch: Positive = 14
    """Pixels a side."""
    class_token: bool = False
    num_registers: int = 0
    layer_scale: bool = False
    """Each branch is multiplied by a learned vector."""

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.num_registers


TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": VisionTower(
        width=1024, depth=24, num_heads=16, mlp=4096, class_token=True, num_registers=4, layer_scale=True
    ),
    "vit_so400m_patch14_siglip_224": VisionTower(width=1152, depth=27, num_heads=16, mlp=4304),
}
"""By timm's names."""


class ImageConfig(Section):
    """What happens to a frame before the vision towers see it."""

    size: Positive = 224
    """Height and width, pixels; other frames are resized."""
    rotate: bool = False
    """Turn by 180 degrees first. Off for `accerl.envs.libero`, whose frames are turned already."""
    crop_area: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the area that a centre crop keeps, scaled up again; 1: no crop. 0.9 after training with random crops."""


class OpenVLAOFTConfig(Section):
    """What rebuilds an OpenVLA-OFT; saved beside its weights.

    Raises:
        ConfigError: in one line, naming the field.
    """

    vision: tuple[VisionTower, VisionTower] = (
        TOWERS["vit_large_patch14_reg4_dinov2.lvd142m"],
        TOWERS["vit_so400m_patch14_siglip_224"],
    )
    """`featurizer` (DINOv2) and `fused_featurizer` (SigLIP)."""
    text: dict[str, Any] = Field(default_factory=lambda: {"vocab_size": 32064, "pad_token_id": 32000})
    """`LlamaConfig`'s fields, where they differ from its defaults."""
    images: ImageConfig = ImageConfig()
    num_images: Positive = 1
    proprio_dim: Positive | None = None
    """None: proprioception is not looked at."""
    film: bool = False
    """Patches are modulated by the mean embedding of the text in every block (FiLM), as in OpenVLA-OFT+."""
    chunk_length: Positive = 8
    action_dim: Positive = 7
    stop_token: bool = True
    """`</s>` after the action tokens; some checkpoints were trained without it."""
    prompt_length: Positive = 48
    """Places for the text of a prompt, so that every sequence is equally long; longer prompts are refused."""
    slimmed: bool = True
    """The head has the rows of the action tokens only; else all of the vocabulary."""
    gripper: Literal["libero", "none"] = "libero"
    """Of the last action dimension: `libero` maps 1 (open) to 0 (closed) onto -1 to 1 and rounds; `none` leaves it."""
    norm_stats_key: str
    """Data set whose statistics scale actions and proprioception."""
    norm_stats: dict[str, dict[str, Any]]
    """Of that data set: `action` and `proprio`, each with lists `q01`, `q99` and `mask`."""
    tokenizer: str | tuple[str, ...]
    """Directory or hub id that has the checkpoint's own; or texts, on which one in the same layout is trained."""
    checkpoint: str | None = None
    """The public checkpoint it came from, which `save_pretrained` takes the parts from that are not held here."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights when a policy is built; the value head is always float32 then."""
    freeze_vision: bool = False
    """The vision backbone does not train."""
    label_width: Annotated[float, Field(ge=0)] = 0.0
    """Of imitation targets, tokens: a Gaussian around the demonstrated token; 0: that token alone, as upstream."""
    max_decisions: Positive = 64
    """Of an episode; the value head learns an embedding of each."""
    value_probability: bool = True
    """The value is a success probability in (0, 1)."""
    value_pooling: Literal["attention", "mean"] = "attention"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for tower in self.vision:
            if self.images.size % tower.patch or tower.patch != self.vision[0].patch:
                raise ValueError(f"images.size: {self.images.size} is no multiple of both towers' patch={tower.patch}")
        for part, size in (("action", self.action_dim), ("proprio", self.proprio_dim)):
            if size is not None and (found := len(self.norm_stats.get(part, {}).get("q01", ()))) != size:
                raise ValueError(
                    f"{part}_dim: {size}, but norm_stats of {self.norm_stats_key!r} have {found} dimensions of {part}"
                )
        return self

    @property
    def num_tokens(self) -> int:
        return self.chunk_length * self.action_dim

    def llama(self) -> LlamaConfig:
        """Bidirectional, on torch's attention.

        A ready 4-D boolean mask, which the layout makes, is silently wrong with transformers' eager attention.
        """
        llama = LlamaConfig(**{**self.text, "is_causal": False, "use_cache": False})
        llama._attn_implementation = "sdpa"
        return llama

    def to_public(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """The content of `config.json`, which `from_public` reads and upstream code too.

        Args:
            source: that of the checkpoint it came from, kept where nothing here says otherwise.
        """
        names = [next((name for name, known in TOWERS.items() if known == tower), None) for tower in self.vision]
        own = {"text", "norm_stats", "checkpoint", "tokenizer", "dtype", "freeze_vision", "label_width"}
        return {
            **FIXED,
            "timm_model_ids": names,
            **source,
            "image_sizes": [self.images.size] * 2,
            "norm_stats": {**source.get("norm_stats", {}), self.norm_stats_key: self.norm_stats},
            "text_config": {**source.get("text_config", {}), "model_type": "llama", **self.text},
            "torch_dtype": self.dtype,
            EXTRAS: self.model_dump(mode="json", exclude=own),
        }


def from_public(public: Mapping[str, Any], statistics: Mapping[str, Any], **chosen: Any) -> OpenVLAOFTConfig:
    """The configuration of a public checkpoint.

    Args:
        public: the content of its `config.json`.
        statistics: of its `dataset_statistics.json`; empty: those in `config.json`.
        chosen: fields that the files don't know or that are to differ; `checkpoint` is needed.

    Raises:
        ConfigError: another architecture; sizes that are not known; no statistics of `norm_stats_key`.
    """
    if public.get("model_type") != "openvla":
        raise ConfigError(
            f"policy.checkpoint: config.json has model_type={public.get('model_type')!r}; OpenVLA-OFT needs 'openvla'"
        )
    if public.get("use_fused_vision_backbone") is not True or "text_config" not in public:
        raise ConfigError(
            "policy.checkpoint: config.json needs use_fused_vision_backbone=true (DINOv2 and SigLIP) and text_config"
        )
    extras = dict(public.get(EXTRAS, {}))
    known_stats = {**public.get("norm_stats", {}), **statistics}
    key = _find_key(known_stats, chosen.pop("norm_stats_key", extras.pop("norm_stats_key", None)))
    text = {name: value for name, value in public["text_config"].items() if name not in ("torch_dtype", "dtype")}
    fields = {
        "vision": extras.pop("vision", None) or _towers(public.get("timm_model_ids", [])),
        "images": {"size": public.get("image_sizes", [224])[0]},
        "tokenizer": chosen["checkpoint"],
        "dtype": public.get("torch_dtype", "bfloat16"),
        **extras,
        "text": text,
        "norm_stats_key": key,
        "norm_stats": {part: known_stats[key][part] for part in ("action", "proprio") if part in known_stats[key]},
        **chosen,
    }
    return OpenVLAOFTConfig(**fields)


def _find_key(statistics: Mapping[str, Any], wanted: str | None) -> str:
    """`wanted`, or that of the same data set without idle steps; None: the only one there is."""
    if wanted is None and len(statistics) == 1:
        return next(iter(statistics))
    for key in (wanted, f"{wanted}_no_noops"):
        if key in statistics:
            return str(key)
    if wanted is None:
        raise ConfigError(f"norm_stats_key: give one of the checkpoint's data sets: {', '.join(statistics) or 'none'}")
    raise ConfigError(f"norm_stats_key: {wanted!r} is unknown; {suggest(wanted, list(statistics))}")


def _towers(names: list[str]) -> list[VisionTower]:
    for name in names:
        if name not in TOWERS:
            raise ConfigError(f"policy.checkpoint: timm_model_ids: {name!r} is unknown; known: {', '.join(TOWERS)}")
    if len(names) != 2:
        raise ConfigError(f"policy.checkpoint: timm_model_ids must name two vision towers, not {len(names)}")
    return [TOWERS[name] for name in names]
