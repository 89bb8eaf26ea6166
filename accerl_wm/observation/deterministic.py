"""The most likely next picture in one pass: cheap, and sharp where the world is nearly deterministic.

    frames, proprio, actions ─► Conditioning ─► planes, modulation ─► light UNet ─► new pixels, mask ─► next frame
                                      └─► next proprio

What the mask leaves out is copied from the present frame, so that nothing drifts over many decisions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float32
from pydantic import Field
from torch import Tensor, nn

from accerl_wm.carriers import Frames, Windows
from accerl_wm.observation.conditioning import Conditioning, Conditions, Scaling
from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.layers import UNet
from accerl_wm.observation.unroll import Decision, unroll


class DeterministicConfig(SceneConfig):
    """What rebuilds a `DeterministicModel`."""

    kind: Literal["deterministic"] = "deterministic"
    widths: tuple[int, int, int] = (32, 48, 64)
    """Channels at half, a quarter and an eighth of the image's size."""
    changed_weight: float = Field(default=10.0, ge=0)
    """How much more a changed pixel counts in the loss."""


class DeterministicModel(nn.Module):
    """The first family; see the module's picture."""

    def __init__(self, config: DeterministicConfig) -> None:
        super().__init__()
        self.config = config
        self.scaling = Scaling(config)
        self.conditioning = Conditioning(config)
        self.unet = UNet(self.conditioning.num_planes, 16, config.widths, config.modulation)

    @property
    def history(self) -> int:
        return self.config.history

    def config_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    @torch.no_grad()
    def predict(self, past: Frames, actions: Float32[Tensor, "batch history chunk action"]) -> Frames:
        proprio = self.scaling.proprio_in(past.proprio)
        image, conditions = self(past.images.movedim(-1, -3), proprio, actions)
        return Frames(images=image.movedim(-3, -1).contiguous(), proprio=self.scaling.proprio_out(conditions.proprio))

    def forward(self, images: Tensor, proprio: Tensor, actions: Tensor) -> tuple[Tensor, Conditions]:
        """The next frame [B, V, 3, Y, X], of the images' type, and what was known of it before; as `Conditioning`."""
        conditions = self.conditioning(images, proprio, actions)
        drawn = self.unet(conditions.planes, conditions.modulation)
        new, mask = drawn[:, :12].unflatten(1, (3, 4)), torch.sigmoid(drawn[:, None, 12:] - 2)
        present = conditions.pixels.unflatten(1, (3, 4))
        return conditions.finish((present + mask * (new - present)).flatten(1, 2)), conditions

    def loss(self, windows: Windows) -> tuple[Float32[Tensor, ""], dict[str, float]]:
        return unroll(windows, self.scaling, self.history, self._answer)

    def _answer(self, decision: Decision) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        image, conditions = self(decision.images, decision.proprio, decision.actions)
        error = image - decision.next_image
        weight = 1 + self.config.changed_weight * decision.changed
        weighted = weight * (error.abs() + 2 * error.square()) / decision.mean(weight).detach()
        terms = decision.body_losses(self.config, conditions.proprio, conditions.points)
        return image, conditions.proprio, {"pixels": decision.mean(weighted), **terms}
