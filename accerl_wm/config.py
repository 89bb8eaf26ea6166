"""How the two models are trained; `accerl.config.ImaginationConfig` says what they are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from accerl.config import Fraction, NonNegative, Positive, PositiveFloat, Section


class ObservationTraining(Section):
    """Of the observation model."""

    updates: Positive = 3000
    """Optimizer steps."""
    max_s: PositiveFloat | None = None
    """Seconds after which the training is over, however many steps were taken; the learning rate falls in time."""
    batch_size: Positive = 32
    """Windows in a step, of the first of `steps`; longer ones are fewer, so that a step costs about as much."""
    steps: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 1, 2, 4)
    """Decisions predicted on the model's own outputs, one after the other over the training, each for as long."""
    ending: Fraction = 0.25
    """Share of the windows that end with their episode, where contact and success are."""
    lr: PositiveFloat = 2e-3
    """Peak of the learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's."""
    warmup_updates: NonNegative = 50
    """Updates over which the learning rate rises."""
    device: str = "cpu"
    """Torch device."""
    seed: NonNegative = 0
    """Of the weights and the windows."""


class CosmosOptions(Section):
    """Of a pretrained video model, for `kind = "cosmos"`."""

    pretrained: Path | None = None
    """Folder with `transformer` and `vae` of a Cosmos 2 video-to-world model in safetensors, or its place in the hub's
    cache; nothing is fetched."""
    revision: str | None = None
    """Branch, tag or commit of a model in the hub's cache; none: `main`."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the transformer; what is learned is float32."""
    rank: NonNegative = 16
    """Of the adapters (LoRA) of its attention; 0: none, and only what the actions add is learned."""
    num_steps: Positive = 8
    """Evaluations of the transformer a prediction."""
    gradient_checkpointing: bool = True
    """Compute each layer twice in training, and keep less of it in memory."""


class LargeOptions(Section):
    """Of a reward model out of a policy's first layers, for `reward_kind = "openvla_oft"`."""

    policy: Path | None = None
    """Folder of the OpenVLA-OFT that it is cut from: public, cloned, or a run's checkpoint."""
    num_layers: Positive = 4
    """Of the language model, from the first on; the paper takes 4."""
    freeze_vision: bool = False
    """The vision backbone is not trained."""


class RewardTraining(Section):
    """Of the reward model."""

    updates: Positive = 1500
    """Optimizer steps."""
    max_s: PositiveFloat | None = None
    """Seconds after which the training is over, however many steps were taken; the learning rate falls in time."""
    batch_size: Positive = 64
    """Frames in a step."""
    success_share: Fraction = 0.5
    """Share of the frames that end an episode; the others are drawn at random. Probabilities are calibrated afterwards
    on frames as they come."""
    focus: Annotated[float, Field(ge=0)] = 1.0
    """Gamma of the focal loss: how little frames count that are told apart already; 0: cross-entropy."""
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """Share of the labels that are taken to be wrong."""
    lr: PositiveFloat = 1e-3
    """Peak of the learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's."""
    warmup_updates: NonNegative = 50
    """Updates over which the learning rate rises."""
    device: str = "cpu"
    """Torch device."""
    seed: NonNegative = 0
    """Of the weights and the frames."""
