"""Straight motions of the hand, as generators of actions. What a generator returns says how the motion ended."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

import numpy as np

from accerl.envs.libero.demonstrator.scene import Scene

Motion: TypeAlias = Generator[np.ndarray, None, bool]

OPEN, CLOSED = -1.0, 1.0
"""Actions of the gripper."""
FAST, SLOW = 0.05, 0.03
"""Metres in one environment step."""
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""Metres and radians that an action of 1 asks for."""
ROTATION_GAIN = 0.7
"""Of the remaining turn, asked for in each step."""
ROTATION_TOLERANCE = 0.08
STALL_STEPS = 9


def reach(
    scene: Scene,
    position: np.ndarray,
    rotation: np.ndarray,
    grip: float,
    *,
    tolerance: float = 0.01,
    max_steps: int = 60,
    speed: float = FAST,
) -> Motion:
    """Straight to a pose. False: it stopped short of it, or took too long.

    robosuite's controller stops about a centimetre short under load, so the error is integrated near the end.
    """
    integral = np.zeros(3)
    path: list[np.ndarray] = []
    for _ in range(max_steps):
        error = position - scene.hand
        turn = rotation_vector(rotation @ scene.hand_rotation.T)
        if np.linalg.norm(error) < tolerance and np.linalg.norm(turn) < ROTATION_TOLERANCE:
            return True
        path.append(scene.hand)
        stalled = len(path) > STALL_STEPS + 1 and np.linalg.norm(path[-1] - path[-STALL_STEPS]) < 0.002
        if stalled and np.linalg.norm(turn) < 2 * ROTATION_TOLERANCE:
            return False
        if np.linalg.norm(error) < 0.04:
            integral = np.clip(integral + 0.15 * error, -0.02, 0.02)
        step = error * min(1.0, speed / max(np.abs(error).max(), 1e-9))
        yield action_of(step + integral, ROTATION_GAIN * turn, grip)
    return False


def hold(scene: Scene, rotation: np.ndarray, grip: float, num_steps: int) -> Motion:
    """Stay, while the fingers move or things come to rest."""
    for _ in range(num_steps):
        yield action_of(np.zeros(3), ROTATION_GAIN * rotation_vector(rotation @ scene.hand_rotation.T), grip)
    return True


def action_of(step: np.ndarray, turn: np.ndarray, grip: float) -> np.ndarray:
    """The action [7] for a displacement, metres, and a rotation vector, radians."""
    return np.clip(np.concatenate([step / POSITION_SCALE, turn / ROTATION_SCALE, [grip]]), -1.0, 1.0)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle of a rotation matrix [3, 3]."""
    cosine = np.clip((np.trace(rotation) - 1) / 2, -1, 1)
    angle = np.arccos(cosine)
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if angle < 1e-6:
        return np.zeros(3)
    if angle < np.pi - 1e-3:
        return skew * angle / (2 * np.sin(angle))
    column = int(np.argmax(np.diag(rotation)))  # half a turn: the axis is a column of R + 1
    axis = (rotation + np.eye(3))[:, column]
    return axis / np.linalg.norm(axis) * angle


def about_z(angle: float) -> np.ndarray:
    """Rotation matrix."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def hand_pose(approach: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a hand that points along `approach` and whose fingers move along `fingers`."""
    z = approach / np.linalg.norm(approach)
    y = fingers - z * (fingers @ z)
    y = y / np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def nearest_pose(approach: np.ndarray, fingers: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The same with the fingers exchanged, if that is nearer to `present`."""
    poses = [hand_pose(approach, sign * fingers) for sign in (1, -1)]
    return min(poses, key=lambda pose: float(np.linalg.norm(rotation_vector(pose @ present.T))))
