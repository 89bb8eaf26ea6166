"""What every observation model is told about the world it models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from accerl.types import EnvSpec


class SceneConfig(BaseModel):
    """Sizes of what is seen and done; each family's configuration adds its own to these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(multiple_of=8, gt=0)
    num_cameras: int = Field(default=1, ge=1)
    proprio_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    chunk_length: int = Field(ge=1)
    history: int = Field(default=2, ge=1)
    """Decisions looked back on."""
    proprio_bounds: tuple[tuple[float, float], ...] | None = None
    """What becomes -1 and 1, for each dimension of proprioception, inside the model. None: as it comes."""
    window: int | None = Field(default=None, gt=0, multiple_of=8)
    """Side in pixels of the square around the body in which pictures can change. None: all of it."""
    num_keypoints: int = Field(default=2, ge=1)
    """Points of the body that a learned camera projects into each image."""
    place_channels: int = Field(default=8, ge=1)
    """Learned planes of each camera: what stands still need not be found."""
    modulation: int = Field(default=128, ge=1)
    """Width of what tells each layer the actions and the body's position."""
    proprio_weight: float = Field(default=2.0, ge=0)
    localisation_weight: float = Field(default=0.02, ge=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> SceneConfig:
        if self.proprio_bounds is not None and len(self.proprio_bounds) != self.proprio_dim:
            raise ValueError(f"proprio_bounds: {len(self.proprio_bounds)} for a proprio_dim of {self.proprio_dim}")
        if self.window is not None and self.window > self.image_size:
            raise ValueError(f"window: {self.window} is more than an image_size of {self.image_size}")
        return self

    @classmethod
    def for_env(cls, spec: EnvSpec, **settings: Any):
        """The configuration that fits an environment."""
        return cls(
            image_size=spec.image_size,
            num_cameras=spec.num_cameras,
            proprio_dim=spec.proprio_dim,
            action_dim=spec.action_dim,
            chunk_length=spec.chunk_length,
            **settings,
        )
