"""Which column of a LeRobot data set is what."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from accerl.config import ConfigError, Section
from accerl.types import Array


class Columns(Section):
    """Names of the columns, and how they differ from ours; the same object reads and writes."""

    cameras: tuple[str, ...] = ()
    """Images, in the order of `env.cameras`; none: all in the order of the data set, or `observation.images.CAMERA`."""
    proprio: str = "observation.state"
    """What the robot feels of itself."""
    action: str = "action"
    """What it does."""
    gripper: Literal["signed", "open"] = "signed"
    """Last number of an action. `signed`: as the simulators have it, in LIBERO -1 open to 1 closed; `open`: 1 open to 0
    closed, as OpenVLA's loaders give it."""
    turned: bool = False
    """Images are turned by 180 degrees from ours."""
    fit: Literal["square", "crop", "stretch"] = "square"
    """Images that are not square: refused, cut to their middle, or stretched."""


def our_action(action: Float32[Array, "time action"], columns: Columns) -> Float32[Array, "time action"]:
    """In [-1, 1], the gripper as the simulator has it.

    Raises:
        ConfigError: a number is out of range.
    """
    low, high = np.full(action.shape[1], -1.0), np.ones(action.shape[1])
    if columns.gripper == "open":
        low[-1] = 0.0
    outside = np.argwhere((action < low - 1e-6) | (action > high + 1e-6))
    if len(outside):
        step, place = outside[0]
        value = f"{columns.action}[{place}] is {action[step, place]:.3g} at frame {step}"
        if place == action.shape[1] - 1 and columns.gripper == "open":
            raise ConfigError(f"{value}, where columns.gripper='open' means 0 to 1; use 'signed'")
        raise ConfigError(f"{value}, and actions here lie in [-1, 1]; these are of another environment")
    return _with_gripper(action, 1.0 - 2.0 * action[:, -1]) if columns.gripper == "open" else action


def their_action(action: Float32[Array, "time action"], columns: Columns) -> Float32[Array, "time action"]:
    """The inverse of `our_action`."""
    return _with_gripper(action, (1.0 - action[:, -1]) / 2.0) if columns.gripper == "open" else action


def turn(images: UInt8[Array, "*batch height width 3"], columns: Columns) -> UInt8[Array, "*batch height width 3"]:
    """By 180 degrees if the columns are; its own inverse."""
    return images[..., ::-1, ::-1, :] if columns.turned else images


def _with_gripper(action: Float32[Array, "time action"], gripper: Array) -> Float32[Array, "time action"]:
    return np.concatenate([action[:, :-1], gripper[:, None]], axis=1).astype(np.float32)
