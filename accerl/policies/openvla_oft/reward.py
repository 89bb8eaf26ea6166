r"""A success classifier out of a policy's first layers: the reward model of the paper's Section 6.1.

    frames ─► vision_backbone ─► projector ─┐
    instruction ─► embeddings ──────────────┴─► first language layers ─► norm ─► state of ▁ ─► head ─► logit

The sequence is the policy's without action tokens and stop token, `[BOS | patches | ▁ | text]`, every token attending
to every other; `▁` closes the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from accerl.config import ConfigError
from accerl.policies.openvla_oft import images
from accerl.policies.openvla_oft.layout import Layout
from accerl.policies.openvla_oft.model import Float32RotaryEmbedding, OpenVLAModel
from accerl.policies.openvla_oft.tokenizer import PromptEncoder

if TYPE_CHECKING:
    from accerl.policies.openvla_oft.policy import OpenVLAOFT

HEAD_WIDTH = 256


class SuccessClassifier(nn.Module):
    """Whether a frame shows that the instruction is carried out.

    Args:
        policy: whose vision backbone, projector, embeddings and first language layers it starts with, copied.
        num_layers: of the language model, from the first on; the paper takes 4.
        freeze_vision: the backbone is not trained, and nothing is kept for its backward pass.

    Raises:
        ConfigError: the policy has fewer layers, or patches modulated by the text (FiLM).
    """

    def __init__(self, policy: OpenVLAOFT, num_layers: int = 4, freeze_vision: bool = False):
        super().__init__()
        model, llama = policy.model, policy.config.llama()
        if not 0 < num_layers <= llama.num_hidden_layers:
            raise ConfigError(f"num_layers: {num_layers} of the policy's {llama.num_hidden_layers} layers; take fewer")
        if policy.config.film:
            raise ConfigError("policy: its patches are modulated by the text (FiLM); take one without")
        self._config = policy.config
        self._tokenizer = policy.tokenizer
        self._encode = PromptEncoder(policy.config.prompt_length)
        self.freeze_vision = freeze_vision
        self.vision_backbone = copy.deepcopy(model.vision_backbone).requires_grad_(not freeze_vision)
        self.projector = copy.deepcopy(model.projector)
        self.language_model = first_layers(model.language_model.model, llama, num_layers)
        self.layout = Layout(
            num_context=policy.config.num_images * OpenVLAModel.patches_per_image(policy.config),
            num_tokens=0,
            stop_token=False,
        )
        width = llama.hidden_size
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HEAD_WIDTH), nn.GELU(), nn.Linear(HEAD_WIDTH, 1)
        )
        self.head.to(model.projector.fc1.weight.device)
        for part in (self.projector, self.language_model):
            part.requires_grad_(True)

    def forward(
        self, frames: UInt8[Tensor, "batch image height width 3"], instructions: list[str]
    ) -> Float[Tensor, " batch"]:
        """Logits of success, float32.

        Raises:
            ValueError: an instruction is longer than the policy has places for.
        """
        dtype, device = self.projector.fc1.weight.dtype, self.projector.fc1.weight.device
        pixels = images.process(frames.to(device), self._config.images).to(dtype)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_vision):
            features = self.vision_backbone(pixels)
        prompts = self._encode(self._tokenizer, instructions, device)
        sequences = self.layout(prompts, self.projector(features), self.language_model.embed_tokens)
        states = self.language_model(
            inputs_embeds=sequences.embeddings,
            position_ids=sequences.positions,
            attention_mask=sequences.visible,
            use_cache=False,
        ).last_hidden_state
        closing = states[:, 1 + self.layout.num_context]
        return self.head(closing.to(self.head[0].weight.dtype)).squeeze(-1).float()

    @torch.no_grad()
    def predict(
        self, frames: UInt8[Tensor, "batch image height width 3"], instructions: list[str]
    ) -> Float[Tensor, " batch"]:
        """Probabilities of success."""
        return torch.sigmoid(self(frames, instructions))

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """All but those of a frozen vision backbone."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def renew_head(self) -> Self:
        """Random weights again."""
        for module in self.head.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        return self


def first_layers(model: LlamaModel, config: LlamaConfig, num_layers: int) -> LlamaModel:
    """A copy of a language model that ends after `num_layers` layers, with the final norm of the whole."""
    short = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": num_layers})
    short._attn_implementation = config._attn_implementation
    with torch.device("meta"):
        own = LlamaModel(short)
    own.embed_tokens = copy.deepcopy(model.embed_tokens)
    own.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(model.layers)[:num_layers])
    own.norm = copy.deepcopy(model.norm)
    own.rotary_emb = Float32RotaryEmbedding(short).to(model.norm.weight.device)
    return own


def focal_loss(
    logits: Float[Tensor, " batch"], success: Float[Tensor, " batch"], gamma: float = 2.0, alpha: float = 0.25
) -> Float[Tensor, ""]:
    r"""Cross-entropy in which frames that are told apart already count little (Lin et al. 2017, eq. 5).

    $$L = -\frac1N \sum_i \alpha_i (1 - p_i)^\gamma \log p_i, \quad
    p_i = \begin{cases} \sigma(z_i) & y_i = 1 \\ 1 - \sigma(z_i) & y_i = 0 \end{cases}, \quad
    \alpha_i = \begin{cases} \alpha & y_i = 1 \\ 1 - \alpha & y_i = 0 \end{cases}$$

    Args:
        logits: z.
        success: y, 0 or 1.
        gamma: 0: plain cross-entropy, weighed by alpha.
        alpha: weight of successes.
    """
    sign = 2 * success - 1
    log_p = F.logsigmoid(sign * logits)
    weight = success * alpha + (1 - success) * (1 - alpha)
    return -(weight * (1 - log_p.exp()).pow(gamma) * log_p).mean()
