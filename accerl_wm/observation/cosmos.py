"""A large pretrained video model, told what the robot does: NVIDIA's Cosmos 2 video-to-world on diffusers' classes.

    frames ─► autoencoder ─► latents of the history ──┐
    noise ────────────────────────────────────────────┴─► n Euler steps of transformer ─► autoencoder ─► next frame
    actions, proprio ─┬─► ActionEmbedding ─ added to each frame's time embedding ─▲
                      └─► Kinematics ─► next proprio

One decision is one frame of latents, encoded as a picture by itself; several cameras stand side by side in it. Both
networks stay as they were trained. What learns is added: the actions, low-rank adapters (LoRA, Hu et al. 2022) and what
stands in the prompt's place. All of it adds nothing at first, so that training starts from the pretrained model.

Letters of shapes: B batch, C latent channels, T frames, Y and X latent rows and columns, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float32
from peft import LoraConfig
from pydantic import Field, model_validator
from torch import Tensor, nn

from accerl.config import ConfigError
from accerl_wm.carriers import Frames, Windows
from accerl_wm.observation import pretrained
from accerl_wm.observation.body import Kinematics
from accerl_wm.observation.conditioning import Scaling
from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.layers import starting_at_zero

GIVEN_TIME = 1e-4
"""How noisy frames are that are given, as diffusers' pipeline tells the transformer."""
SIGMA_MIN, SIGMA_MAX, RHO = 2e-3, 80.0, 7.0
"""Of the pretrained model's noise levels (Karras et al. 2022, equation 5)."""
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


class CosmosConfig(SceneConfig):
    """What rebuilds a `CosmosModel`, beside the pretrained folder."""

    kind: Literal["cosmos"] = "cosmos"
    pretrained: Path
    """Folder with `transformer` and `vae` of a Cosmos 2 video-to-world model, or its place in the hub's cache."""
    revision: str | None = None
    """Of a model in the hub's cache. None: `main`."""
    fingerprint: str | None = None
    """Of the weights that the added layers were trained on."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the transformer."""
    rank: int = Field(default=16, ge=0)
    """Of the adapters of its attention; 0: none, and only the actions are learned."""
    num_steps: int = Field(default=8, ge=1)
    """Evaluations of the transformer a prediction."""
    action_width: int = Field(default=256, ge=1)
    """Of the hidden layer between actions and time embedding."""
    context_tokens: int = Field(default=8, ge=1)
    """Learned in the prompt's place."""
    fps: int = Field(default=16, ge=1)
    """Frames a second that the transformer is told of."""
    gradient_checkpointing: bool = False
    """Compute each layer twice in training, and keep less of it."""

    @model_validator(mode="after")
    def _whole_pictures(self) -> CosmosConfig:
        if self.window is not None:
            raise ValueError("window: cosmos draws whole pictures; leave it out")
        return self


class CosmosModel(nn.Module):
    """A `TrainableObservationModel`; see the module's picture. Predictions draw their noise from torch's generator.

    Its `state_dict` is of what was added; the rest is read from `config.pretrained` again.

    Raises:
        ConfigError: there is no such pretrained model, or it does not fit.
    """

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        loaded = pretrained.load(config.pretrained, config.revision, getattr(torch, config.dtype))
        if config.fingerprint not in (None, loaded.fingerprint):
            raise ConfigError(
                f"cosmos.pretrained: {config.pretrained} holds other weights than the added layers were trained on; "
                "put those back, or train again"
            )
        self.config = config.model_copy(
            update={"fingerprint": loaded.fingerprint, "pretrained": config.pretrained.resolve()}
        )
        self.transformer, self.vae = loaded.transformer, loaded.vae
        self._takes_padding = loaded.takes_padding
        sizes: Any = self.transformer.config
        coding: Any = self.vae.config
        _check_size(config, coding.scale_factor_spatial, sizes.patch_size)
        if config.rank:
            self.transformer.add_adapter(
                LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=list(ADAPTED), init_lora_weights=True)
            )
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:  # adapters learn in full precision
                parameter.data = parameter.data.float()
        self.scaling = Scaling(config)
        self.kinematics = Kinematics(config)
        width = sizes.num_attention_heads * sizes.attention_head_dim
        self.actions = ActionEmbedding(config, width)
        self.context = nn.Parameter(torch.zeros(config.context_tokens, sizes.text_embed_dim))
        latent = (1, -1, 1, 1, 1)
        self.register_buffer("latent_mean", torch.tensor(coding.latents_mean).view(latent), persistent=False)
        self.register_buffer("latent_std", torch.tensor(coding.latents_std).view(latent), persistent=False)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self._learned = frozenset(name for name, each in self.named_parameters() if each.requires_grad)
        self.register_state_dict_post_hook(_leave_out_what_is_frozen)
        self.register_load_state_dict_post_hook(_miss_nothing_that_is_frozen)

    @property
    def history(self) -> int:
        return self.config.history

    def config_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    @torch.no_grad()
    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        proprio = self.scaling.proprio_in(past.proprio)
        latents = self.encode(past.images)
        drawn = self._sample(latents, self.actions(proprio, actions))
        return Frames(
            images=self.decode(drawn),
            proprio=self.scaling.proprio_out(self.kinematics(proprio, actions)),
        )

    def loss(self, windows: Windows) -> tuple[Float32[Tensor, ""], dict[str, float]]:
        """Flow matching of the latents, and the error of proprioception, over the decisions of the windows.

        What further decisions look back on is what was denoised, from whatever noise was drawn.
        """
        history = self.history
        latents = self.encode(windows.frames.images)
        proprio = self.scaling.proprio_in(windows.frames.proprio)
        seen, felt = list(latents[:, :, :history].split(1, 2)), list(proprio[:, :history].unbind(1))
        flows, moves = [], []
        for last in range(history - 1, windows.actions.shape[1]):
            actions = windows.actions[:, last + 1 - history : last + 1]
            given, body = torch.cat(seen[-history:], 2), torch.stack(felt[-history:], 1)
            error, denoised = self._flow_error(given, latents[:, :, last + 1 : last + 2], self.actions(body, actions))
            moved = self.kinematics(body, actions)
            is_real = windows.is_real[:, last].float()
            flows.append(_mean(error, is_real))
            moves.append(_root_mean_square(moved - proprio[:, last + 1], is_real))
            seen.append(denoised)
            felt.append(moved)
        flow, move = torch.stack(flows).mean(), self.config.proprio_weight * torch.stack(moves).mean()
        total = flow + move
        return total, {"loss": total.item(), "flow": flow.item(), "proprio": move.item()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, T, V, height, width, 3], each by itself, to latents [B, C, T, Y, X]."""
        pictures = torch.cat(self.scaling.images_in(images).unbind(2), dim=-1)
        codes = self.vae.encode(pictures.flatten(0, 1).unsqueeze(2)).latent_dist.mode()  # type: ignore[union-attr]
        scaled = (codes - self.latent_mean) / self.latent_std
        return scaled.squeeze(2).unflatten(0, images.shape[:2]).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BC1YX: Tensor) -> Tensor:
        """Back to images [B, V, height, width, 3]."""
        pictures = self.vae.decode(latents_BC1YX * self.latent_std + self.latent_mean, return_dict=False)[0].squeeze(2)
        return self.scaling.images_out(torch.stack(pictures.chunk(self.config.num_cameras, dim=-1), 1))

    def velocity(self, given: Tensor, noisy: Tensor, time_B: Tensor, told: Tensor) -> Tensor:
        """What the transformer says of `noisy` = (1 - t) x + t noise: noise - x, [B, C, 1, Y, X].

        With t = sigma / (1 + sigma) this is diffusers' pipeline, whose preconditioning is c_in = c_skip = 1 - t and
        c_out = -t.

        Args:
            given: frames that are known [B, C, T - 1, Y, X].
            told: of each frame, what is added to its time embedding [B, T, 4 D].
        """
        latents = torch.cat([given, noisy], 2)
        condition = torch.zeros_like(latents[:, : 2 if self._takes_padding else 1])  # the padding mask stays zero
        condition[:, 0, :-1] = 1.0
        times = latents.new_full((len(latents), 1, latents.shape[2], 1, 1), GIVEN_TIME)
        times[:, 0, -1] = time_B.view(-1, 1, 1)
        kind = getattr(torch, self.config.dtype)
        with self._adding(told):
            output = self.transformer(
                hidden_states=latents.to(kind),
                timestep=times.to(kind),
                encoder_hidden_states=self.context.expand(len(latents), -1, -1).to(kind),
                fps=self.config.fps,
                condition_mask=condition.to(kind),
                return_dict=False,
            )[0]
        return output[:, :, -1:].float()

    def _flow_error(self, given: Tensor, clean: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row [B], and what was denoised, without gradient."""
        noise = torch.randn_like(clean)
        time_B = torch.randn(len(clean), device=clean.device).sigmoid()  # the logarithm of sigma is normal
        time = time_B.view(-1, 1, 1, 1, 1)
        noisy = (1 - time) * clean + time * noise
        velocity = self.velocity(given, noisy, time_B, told)
        error = (velocity - (noise - clean)).square().flatten(1).mean(1)
        return error, (noisy - time * velocity).detach()

    def _sample(self, given: Tensor, told: Tensor) -> Tensor:
        times = _times(self.config.num_steps)
        latents = times[0] * torch.randn_like(given[:, :, :1])
        for time, lower in pairwise(times):
            velocity = self.velocity(given, latents, latents.new_full((len(latents),), time), told)
            latents = latents + (lower - time) * velocity
        return latents

    @contextmanager
    def _adding(self, told: Tensor) -> Iterator[None]:
        """While the transformer runs, what its frames' time embeddings are moved by."""
        rows = told.flatten(0, 1)

        def add(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            modulation, embedded = output
            wide = modulation.shape[-1]
            return modulation + rows[:, :wide].to(modulation), embedded + rows[:, wide:].to(embedded)

        handle = self.transformer.time_embed.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


class ActionEmbedding(nn.Module):
    """Of each frame, what led to it: the chunk of actions, and where the body was -> [B, T, 4 D], at first zero.

    As Cosmos-Predict2 does it for robots, actions enter where the noise level does: an MLP's outputs are added to the
    time embedding and to its modulation of each layer. There one vector tells of all frames, here each has its own.
    """

    def __init__(self, config: SceneConfig, width: int) -> None:
        super().__init__()
        hidden: int = getattr(config, "action_width", width)
        self.layers = nn.Sequential(
            nn.Linear(config.chunk_length * config.action_dim + config.proprio_dim, hidden),
            nn.SiLU(),
            starting_at_zero(nn.Linear(hidden, 4 * width)),
        )

    def forward(self, proprio: Tensor, actions: Tensor) -> Tensor:
        """Of a history's proprio [B, H, P], scaled, and actions [B, H, chunk, action].

        Nothing led to its first frame.
        """
        told = self.layers(torch.cat([actions.flatten(2), proprio], -1))
        return torch.cat([torch.zeros_like(told[:, :1]), told], 1)


def _times(num: int) -> list[float]:
    """From nearly noise to a picture: t of Karras' noise levels, then 0."""
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigmas = [(ends[0] + step / max(1, num - 1) * (ends[1] - ends[0])) ** RHO for step in range(num)]
    return [*(sigma / (1 + sigma) for sigma in sigmas), 0.0]


def _check_size(config: CosmosConfig, spatial: int, patch: tuple[int, int, int]) -> None:
    for side in patch[1:]:
        if config.image_size % (spatial * side):
            raise ConfigError(
                f"env.image_size: {config.image_size} is no multiple of the {spatial * side} pixels of a patch of "
                f"{config.pretrained}; record pictures of another size"
            )


def _mean(error_B: Tensor, is_real_B: Tensor) -> Tensor:
    return (error_B * is_real_B).sum() / is_real_B.sum().clamp(min=1.0)


def _root_mean_square(error_BP: Tensor, is_real_B: Tensor) -> Tensor:
    """Mean over the dimensions, or else the one that is hardest to predict drowns the others."""
    return ((error_BP.square() * is_real_B[:, None]).sum(0) / is_real_B.sum().clamp(min=1.0) + 1e-8).sqrt().mean()


def _leave_out_what_is_frozen(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.removeprefix(prefix) not in module._learned]:
        del state[name]


def _miss_nothing_that_is_frozen(module: Any, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if name in module._learned]
