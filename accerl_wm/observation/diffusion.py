"""Diffusion over the change of the picture, after DIAMOND (Alonso et al. 2024) and EDM (Karras et al. 2022).

    frames, proprio, actions ─► Conditioning ─► planes, modulation ───────┐
                                      └─► next proprio                    ▼
    noise ───────────────────────────────────────────────► n Euler steps of UNet ─► change ─► next frame

The parts are diffusers': `UNet2DModel`, and `EDMEulerScheduler` for preconditioning and noise levels. What is denoised
is the change in the window around the body, so that what stands still needs no capacity. The first step from pure noise
gives about the mean of what may come; further ones commit to one of the possibilities.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from jaxtyping import Float32
from pydantic import Field
from torch import Tensor, nn

from accerl_wm.carriers import Frames, Windows
from accerl_wm.observation.conditioning import Conditioning, Conditions, Scaling
from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.unroll import Decision, unroll

NOISE_LEVELS = 1000.0
"""What `UNet2DModel` embeds is a time step of hundreds; c_noise is a logarithm around 0."""


class DiffusionConfig(SceneConfig):
    """What rebuilds a `DiffusionModel`. Defaults are DIAMOND's, but for the sizes."""

    kind: Literal["diffusion"] = "diffusion"
    widths: tuple[int, int, int] = (32, 48, 64)
    """Channels at half, a quarter and an eighth of the image's size."""
    num_steps: int = Field(default=3, ge=1)
    """Evaluations of the UNet a prediction."""
    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    sigma_data: float = 0.5
    change_scale: float = 2.0
    """Brings the changes, of images in [-1, 1], near `sigma_data`."""
    offset_noise: float = Field(default=0.1, ge=0)
    """Of each colour as a whole, in training: what own outputs get wrong most."""
    log_sigma: tuple[float, float] = (-0.4, 1.2)
    """Mean and standard deviation of the logarithm of the training noise."""
    changed_weight: float = Field(default=10.0, ge=0)
    """How much more a changed pixel counts in the loss."""


class DiffusionModel(nn.Module):
    """The second family; see the module's picture. Predictions draw their noise from torch's generator."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.scaling = Scaling(config)
        self.conditioning = Conditioning(config)
        embedding = 4 * config.widths[0]  # the width UNet2DModel gives what it modulates its layers with
        self.modulation = nn.Linear(config.modulation, embedding)
        self.unet = UNet2DModel(
            in_channels=12 + self.conditioning.num_planes,
            out_channels=12,
            block_out_channels=config.widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            add_attention=False,
            norm_num_groups=8,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        self.scheduler = _scheduler(config)

    @property
    def history(self) -> int:
        return self.config.history

    def config_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    @torch.no_grad()
    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        proprio = self.scaling.proprio_in(past.proprio)
        conditions = self.conditioning(past.images.movedim(-1, -3), proprio, actions)
        image = self._finish(conditions, self._sample(conditions))
        return Frames(images=image.movedim(-3, -1).contiguous(), proprio=self.scaling.proprio_out(conditions.proprio))

    def loss(self, windows: Windows) -> tuple[Float32[Tensor, ""], dict[str, float]]:
        """What a window's further decisions look back on is what was denoised, from whatever noise was drawn."""
        return unroll(windows, self.scaling, self.history, self._answer)

    def denoise(self, noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """D(x; sigma), the change in the window [BV, 12, W, W]; Karras et al. 2022, equation 7. sigma is [BV]."""
        sigma = sigma.view(-1, 1, 1, 1)
        scaled = self.scheduler.precondition_inputs(noisy, sigma)
        level = NOISE_LEVELS * self.scheduler.precondition_noise(sigma.flatten())
        inputs = torch.cat([scaled, conditions.planes], dim=1)
        output = self.unet(inputs, level, class_labels=self.modulation(conditions.modulation)).sample
        return self.scheduler.precondition_outputs(noisy, output, sigma)

    def _sample(self, conditions: Conditions) -> Tensor:
        sigmas = self._sigmas()
        pixels = conditions.pixels
        change = sigmas[0] * torch.randn_like(pixels)
        for sigma, lower in pairwise(sigmas):
            denoised = self.denoise(change, pixels.new_full((len(pixels),), sigma), conditions)
            change = denoised + (change - denoised) * (lower / sigma)  # Euler; Karras et al. 2022, algorithm 1
        return change

    def _sigmas(self) -> list[float]:
        """Noise levels of the steps, ending in 0."""
        scheduler = _scheduler(self.config)
        scheduler.set_timesteps(self.config.num_steps)
        return scheduler.sigmas.tolist()

    def _finish(self, conditions: Conditions, change: Tensor) -> Tensor:
        return conditions.finish(conditions.pixels + change / self.config.change_scale)

    def _answer(self, decision: Decision) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        config = self.config
        conditions = self.conditioning(decision.images, decision.proprio, decision.actions)
        truth = conditions.window_of(decision.next_image)
        change = config.change_scale * (truth - conditions.pixels)
        mean, std = config.log_sigma
        sigma = (mean + std * torch.randn(len(change), device=change.device)).exp()
        sigma = sigma.clamp(config.sigma_min, config.sigma_max)
        offset = torch.randn(len(change), 3, 1, 1, device=change.device).repeat_interleave(4, dim=1)
        noise = sigma.view(-1, 1, 1, 1) * torch.randn_like(change) + config.offset_noise * offset
        denoised = self.denoise((change + noise).detach(), sigma, conditions)
        # lambda(sigma) c_out^2 = 1: every noise level counts the same (Karras et al. 2022, section 5)
        evenness = (sigma.square() + config.sigma_data**2) / (sigma * config.sigma_data).square()
        changed = conditions.window_of(decision.changed.expand_as(decision.next_image))
        error = evenness.view(-1, 1, 1, 1) * (1 + config.changed_weight * changed) * (denoised - change).square()
        image = self._finish(conditions, denoised)
        terms = decision.body_losses(config, conditions.proprio, conditions.points)
        per_row = error.flatten(1).mean(1).unflatten(0, (len(image), -1))
        return image, conditions.proprio, {"denoising": decision.mean(per_row), **terms}


def _scheduler(config: DiffusionConfig) -> EDMEulerScheduler:
    return EDMEulerScheduler(
        sigma_min=config.sigma_min, sigma_max=config.sigma_max, sigma_data=config.sigma_data, rho=config.rho
    )
