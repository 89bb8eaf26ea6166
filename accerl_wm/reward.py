"""Reward models: is what is seen what the instruction asks for?

image ─► convolutions ─► features ─┐
proprioception, words ─────────────┴─► MLP ─► log-odds of success ─► / temperature ─► probability
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float32
from pydantic import Field
from torch import Tensor, nn

from accerl.config import Section
from accerl.plugins import find_object
from accerl_wm.carriers import Frames
from accerl_wm.protocols import TrainableRewardModel

if TYPE_CHECKING:
    from accerl.policies.openvla_oft.reward import SuccessClassifier


class ConvolutionalRewardConfig(Section):
    """What rebuilds a `ConvolutionalReward`."""

    kind: Literal["convolutional"] = "convolutional"
    image_size: int = Field(ge=16)
    """Pixels; divisible by 8."""
    num_cameras: int = Field(ge=1)
    proprio_dim: int = Field(ge=0)
    vocabulary: tuple[str, ...]
    """Words of the instructions."""
    width: int = Field(default=32, ge=1)
    """Channels of the first convolution."""


class ConvolutionalReward(nn.Module):
    """A small `TrainableRewardModel` for scenes without a pretrained backbone; see the module's picture."""

    def __init__(self, config: ConvolutionalRewardConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.eyes = nn.Sequential(
            nn.Conv2d(3 * config.num_cameras, width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 16, 1),
            nn.Flatten(),
        )
        self.words = nn.EmbeddingBag(len(config.vocabulary), 2 * width, mode="sum")
        features = 16 * (config.image_size // 8) ** 2
        self.told = nn.Linear(2 * width + config.proprio_dim, 4 * width)
        self.seen = nn.Linear(features, 4 * width)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(4 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))
        self.register_buffer("temperature", torch.ones(()))
        self.temperature: Tensor
        self._place = {word: place for place, word in enumerate(config.vocabulary)}

    def config_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def logits(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        """Log-odds of success, before calibration.

        Raises:
            ValueError: an instruction has no word that the model knows.
        """
        images = frames.images.float().div(127.5).sub(1.0).movedim(-1, -3).flatten(1, 2)
        told = torch.cat([self._words(instructions, images.device), frames.proprio], dim=1)
        return self.head(self.seen(self.eyes(images)) * (1 + self.told(told))).squeeze(-1)

    @torch.no_grad()
    def predict(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        return torch.sigmoid(self.logits(frames, instructions) / self.temperature)

    def _words(self, instructions: Sequence[str], device: torch.device) -> Tensor:
        rows = [[self._place[word] for word in each.lower().split() if word in self._place] for each in instructions]
        if unknown := [each for each, row in zip(instructions, rows, strict=True) if not row]:
            raise ValueError(f"instruction: {unknown[0]!r} has no word of {', '.join(self.config.vocabulary)}")
        offsets = torch.tensor([0, *[len(row) for row in rows[:-1]]]).cumsum(0)
        return self.words(torch.tensor([place for row in rows for place in row]).to(device), offsets.to(device))


class LargeReward(nn.Module):
    """A `TrainableRewardModel` out of OpenVLA-OFT's first layers (the paper's Section 6.1).

    It is trained and kept beside the policy that its `SuccessClassifier` was cut from.
    """

    def __init__(self, classifier: SuccessClassifier):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("temperature", torch.ones(()))
        self.temperature: Tensor

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "openvla_oft", "freeze_vision": self.classifier.freeze_vision}

    def logits(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        return self.classifier(frames.images, list(instructions))

    @torch.no_grad()
    def predict(self, frames: Frames, instructions: Sequence[str]) -> Float32[Tensor, " batch"]:
        return torch.sigmoid(self.logits(frames, instructions) / self.temperature)


def build(config: dict[str, Any]) -> TrainableRewardModel:
    """The model of a configuration, whose `kind` says which; with fresh weights. Your own: `package.module:Class`.

    Raises:
        ConfigError: there is no such kind.
    """
    if (kind := config.get("kind")) != "convolutional":
        return find_object(str(kind), "kind", ("convolutional",))(config)
    return ConvolutionalReward(ConvolutionalRewardConfig(**config))
