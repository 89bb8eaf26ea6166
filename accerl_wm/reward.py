"""Reward models: is what is seen what the instruction asks for?

convolutional:  image ─► convolutions ─► features ─┐
                proprioception, words ─────────────┴─► MLP ─┐
openvla_oft:    images, words ─► a policy's first layers ───┴─► log-odds of success ─► / temperature ─► probability
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Float32
from pydantic import Field
from torch import Tensor, nn

from accerl.config import ConfigError, Section
from accerl.plugins import find_object
from accerl.policies import empty_policy
from accerl.protocols import Policy
from accerl_wm.carriers import Frames
from accerl_wm.protocols import TrainableRewardModel

if TYPE_CHECKING:
    from accerl.policies.openvla_oft import OpenVLAOFT


KINDS = ("convolutional", "openvla_oft")


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


class LargeRewardConfig(Section):
    """What rebuilds a `LargeReward`."""

    kind: Literal["openvla_oft"] = "openvla_oft"
    policy: dict[str, Any]
    """The configuration of the policy that it was cut from."""
    num_layers: int = Field(default=4, ge=1)
    """Of its language model, from the first on; the paper takes 4."""
    freeze_vision: bool = False
    """The vision backbone stays as it was."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of all but the head."""


class LargeReward(nn.Module):
    """A `TrainableRewardModel` out of OpenVLA-OFT's first layers (the paper's Section 6.1); it needs no policy beside
    it once it is cut.
    """

    def __init__(self, config: LargeRewardConfig, policy: OpenVLAOFT):
        super().__init__()
        from accerl.policies.openvla_oft.reward import SuccessClassifier

        self.config = config
        self.classifier = SuccessClassifier(policy, config.num_layers, config.freeze_vision)
        self.register_buffer("temperature", torch.ones(()))
        self.temperature: Tensor

    @classmethod
    def cut_from(cls, policy: Policy, num_layers: int = 4, freeze_vision: bool = False) -> Self:
        """With the policy's weights, and a new head.

        Raises:
            ConfigError: it is no OpenVLA-OFT, has fewer layers, or patches modulated by the text.
        """
        description = policy.config_dict()
        if description.get("kind") != "openvla_oft":
            raise ConfigError(f"large.policy: is {description.get('kind')}; give the folder of an OpenVLA-OFT")
        whole: Any = policy
        dtype = str(whole.model.projector.fc1.weight.dtype).removeprefix("torch.")
        fields: Any = {"num_layers": num_layers, "freeze_vision": freeze_vision, "dtype": dtype}
        return cls(LargeRewardConfig(policy=description, **fields), whole)

    @classmethod
    def empty(cls, config: LargeRewardConfig) -> Self:
        """For weights that are still to come."""
        text = {**config.policy["text"], "num_hidden_layers": config.num_layers}
        policy: Any = empty_policy({**config.policy, "text": text}, "cpu")
        return cls(config, policy.to(getattr(torch, config.dtype)))

    def config_dict(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

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
    match kind := config.get("kind"):
        case "convolutional":
            return ConvolutionalReward(ConvolutionalRewardConfig(**config))
        case "openvla_oft":
            return LargeReward.empty(LargeRewardConfig(**config))
        case _:
            return find_object(str(kind), "reward_kind", KINDS)(config)
