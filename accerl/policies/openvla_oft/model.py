r"""The network: vision backbone, projector, and a stock Llama without its causal mask.

    pixels ──► vision_backbone ─► projector ─┐
    proprio ─► proprio_projector ────────────┼─► layout ─► language_model ─► states [batch, token, width]
    prompt ids ─► embeddings ────────────────┘                                └─► lm_head ─► logits of 256 tokens

Parameters have their names in public checkpoints. Hidden states are those after the final norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from accerl.policies.openvla_oft.config import ACTION_TOKENS, OpenVLAOFTConfig
from accerl.policies.openvla_oft.layout import Layout, Prompts
from accerl.policies.openvla_oft.vision import Projector, ProprioProjector, VisionBackbone


class Prediction(NamedTuple):
    """Of the action tokens of a decision."""

    logits: Float[Tensor, "batch token 256"]
    states: Float[Tensor, "batch token width"]


class OpenVLAModel(nn.Module):
    """The published network, cut down to what contributes; see the module's picture."""

    def __init__(self, config: OpenVLAOFTConfig):
        super().__init__()
        llama = config.llama()
        width = llama.hidden_size
        self.vision_backbone = VisionBackbone(config.vision, config.images.size, width if config.film else None)
        self.projector = Projector(self.vision_backbone.width, width)
        self.language_model = LanguageModel(llama, len(ACTION_TOKENS) if config.slimmed else llama.vocab_size)
        self.proprio_projector = ProprioProjector(config.proprio_dim, width) if config.proprio_dim else None
        self.film = config.film
        self.vision_frozen = False
        self.layout = Layout(
            num_context=config.num_images * self.patches_per_image(config) + bool(config.proprio_dim),
            num_tokens=config.num_tokens,
            stop_token=config.stop_token,
        )

    def forward(
        self,
        prompts: Prompts,
        pixels: Float[Tensor, "batch image 6 height width"],
        proprio: Float[Tensor, "batch proprio"] | None = None,
    ) -> Prediction:
        """Logits in float32, and the states that they are read from.

        Args:
            prompts: as `layout.pad_prompts` gives them, on the device of the weights.
            pixels: as `images.process` gives them.
            proprio: scaled to [-1, 1]; needed if and only if the model looks at it.
        """
        embed = self.language_model.model.embed_tokens
        text = self.layout.mean_text(prompts, embed) if self.film else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_frozen):
            features = self.vision_backbone(pixels.to(self.projector.fc1.weight.dtype), text)
        context = self.projector(features)
        if self.proprio_projector is not None:
            if proprio is None:
                raise ValueError("proprio: this model looks at proprioception")
            context = torch.cat([context, self.proprio_projector(proprio.to(context.dtype))[:, None]], dim=1)
        sequences = self.layout(prompts, context, embed)
        states = self.language_model(sequences.embeddings, sequences.positions, sequences.visible)
        states = states[:, self.layout.actions]
        logits = self.language_model.lm_head(states).float()
        if logits.shape[-1] != len(ACTION_TOKENS):
            logits = logits[..., ACTION_TOKENS.start : ACTION_TOKENS.stop]
        return Prediction(logits, states)

    def freeze_vision(self, frozen: bool) -> None:
        """Whether the vision backbone runs without a graph, which keeps nothing of it for the backward pass."""
        self.vision_frozen = frozen
        self.vision_backbone.requires_grad_(not frozen)

    def gradient_checkpointing_enable(self) -> None:
        """The blocks run a second time in the backward pass; those of the language model only in train mode."""
        self.vision_backbone.gradient_checkpointing_enable()
        self.language_model.gradient_checkpointing_enable()

    @staticmethod
    def patches_per_image(config: OpenVLAOFTConfig) -> int:
        """Both towers give as many, side by side."""
        return (config.images.size // config.vision[0].patch) ** 2


class LanguageModel(nn.Module):
    """A Llama and its head, which may be cut down to some rows of the vocabulary (`accerl.policies.vocabulary`)."""

    def __init__(self, config: LlamaConfig, num_rows: int):
        super().__init__()
        self.model = LlamaModel(config)
        self.model.rotary_emb = Float32RotaryEmbedding(config)
        self.lm_head = nn.Linear(config.hidden_size, num_rows, bias=False)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)

    def forward(self, embeddings: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Hidden states after the final norm."""
        return self.model(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=visible, use_cache=False
        ).last_hidden_state

    def gradient_checkpointing_enable(self) -> None:
        for layer in self.model.layers:
            vars(layer)["gradient_checkpointing"] = True
            vars(layer)["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)


class Float32RotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary frequencies that stay float32 whatever the module is cast to, and are there after it was on meta.

    In bfloat16 an angle at position 600 is off by 0.73 rad.
    """

    def __init__(self, config: LlamaConfig):
        with torch.device("cpu"):
            super().__init__(config)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if (device := self.inv_freq.device).type != "meta":
            fresh = type(self)(self.config)
            self.inv_freq, self.original_inv_freq = fresh.inv_freq.to(device), fresh.original_inv_freq.to(device)
        return self
