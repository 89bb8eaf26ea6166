"""Observation models: what would be seen after an action chunk.

                          ┌─► deterministic: light UNet, one pass ─────┐
    Frames ─► conditioning ┤                                            ├─► Frames
                          └─► diffusion: EDM, a few Euler steps ───────┘
              body: kinematics, learned camera      unroll: training on own outputs
              window: where things can change

Both are told where the body will be (`conditioning`) and differ in how they draw it. `cosmos` stands apart: a large
pretrained video model (`pretrained`) with layers for the actions added. `build` makes any of them from the dictionary
its `config_dict` gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accerl.plugins import find_object
from accerl_wm.observation.deterministic import DeterministicConfig, DeterministicModel
from accerl_wm.protocols import TrainableObservationModel

__all__ = ["DeterministicConfig", "DeterministicModel", "build"]


def build(config: Mapping[str, Any]) -> TrainableObservationModel:
    """The model of a configuration, whose `kind` says the family; with fresh weights.

    A model of your own is `package.module:Class`, called with the configuration, which its `config_dict` gives back.

    Raises:
        ConfigError: there is no such kind.
        ValueError: a setting is unknown or impossible.
    """
    match config.get("kind"):
        case "deterministic":
            return DeterministicModel(DeterministicConfig(**config))
        case "diffusion":
            from accerl_wm.observation.diffusion import DiffusionConfig, DiffusionModel  # loads diffusers

            return DiffusionModel(DiffusionConfig(**config))
        case "cosmos":
            from accerl_wm.observation.cosmos import CosmosConfig, CosmosModel  # loads diffusers

            return CosmosModel(CosmosConfig(**config))
        case kind:
            return find_object(str(kind), "kind", ("deterministic", "diffusion", "cosmos"))(config)
