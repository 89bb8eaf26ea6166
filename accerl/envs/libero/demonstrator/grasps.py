"""Where to take hold of a thing from above: across it where the fingers fit around it, else at its rim."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accerl.envs.libero.demonstrator.scene import Scene

WIDEST = 0.074
"""Between the open fingers, less a margin."""
GRID = np.arange(-0.20, 0.2001, 0.01)
"""Around the thing: places whose heights are looked at."""
DOWN = np.array([0.0, 0.0, -1.0])


class Grasp(NamedTuple):
    """The hand points down."""

    position: np.ndarray
    """Of the point between the fingertips [3]."""
    angle: float
    """Of the line along which the fingers move, from the x axis."""
    score: float


class Surroundings:
    """The surfaces around a thing, which hand and fingers must not meet."""

    def __init__(self, scene: Scene, centre: np.ndarray):
        x, y = np.meshgrid(centre[0] + GRID, centre[1] + GRID)
        self._places = np.stack([x, y], -1)
        self._heights = scene.heights(x, y)

    def collisions(self, grasp: np.ndarray, fingers: np.ndarray) -> int:
        """How many places are in the way of a grasp [3] with the fingers along a unit vector [2]."""
        offset = self._places - grasp[:2]
        along = np.abs(offset @ fingers)
        across = np.abs(offset @ np.array([-fingers[1], fingers[0]]))
        palm = (along < 0.112) & (across < 0.035) & (self._heights > grasp[2] + 0.030)
        tips = (along > 0.036) & (along < 0.062) & (across < 0.014) & (self._heights > grasp[2] - 0.008)
        wrist = (np.linalg.norm(offset, axis=-1) < 0.07) & (self._heights > grasp[2] + 0.12)
        return int(palm.sum()) + 2 * int(tips.sum()) + int(wrist.sum())


def plan_grasp(scene: Scene, name: str, *, inset: float = 0.006, narrow: np.ndarray | None = None) -> Grasp:
    """The best grasp of an object.

    Args:
        narrow: unit vector [3] along which there is little room where the thing goes: the palm lies across it.
        inset: metres from the outer edge of a rim to the middle between the fingers.
    """
    points = scene.points(scene.body(name))
    top, bottom = points[:, 2].max(), points[:, 2].min()
    centre = (points[:, :2].max(0) + points[:, :2].min(0)) / 2
    surroundings = Surroundings(scene, centre)
    across = scene.hand_rotation[:2, 1]
    present = float(np.arctan2(across[1], across[0]))
    z = max(bottom + 0.010, min(top - 0.025, (top + bottom) / 2 + 0.01))
    candidates = _across(points[points[:, 2] > top - 0.04], z, present, surroundings)
    if not candidates:
        candidates = _rim(points[points[:, 2] > top - 0.015], top, inset, present, surroundings)

    def score(grasp: Grasp) -> float:
        if narrow is None:
            return grasp.score
        return grasp.score - abs(float(narrow[:2] @ [np.cos(grasp.angle), np.sin(grasp.angle)]))

    return max(candidates, key=score)


def _across(points: np.ndarray, z: float, present: float, surroundings: Surroundings) -> list[Grasp]:
    grasps = []
    for angle in np.deg2rad(np.arange(0, 180, 7.5)):
        fingers = np.array([np.cos(angle), np.sin(angle)])
        sideways = np.array([-fingers[1], fingers[0]])
        along, beside = points[:, :2] @ fingers, points[:, :2] @ sideways
        width, length = np.ptp(along), np.ptp(beside)
        if width >= WIDEST:
            continue
        middle, middle_beside = (along.max() + along.min()) / 2, (beside.max() + beside.min()) / 2
        for shift in (0.0, -0.15, 0.15, -0.3, 0.3) if length >= 0.05 else (0.0,):
            place = np.append(fingers * middle + sideways * (middle_beside + shift * length), z)
            turn = abs(wrap(angle - present))
            hits = min(surroundings.collisions(place, fingers), 10)
            grasps.append(Grasp(place, float(angle), -8 * width - 0.15 * turn - abs(shift) - 0.3 * hits))
    return grasps


def _rim(rim: np.ndarray, top: float, inset: float, present: float, surroundings: Surroundings) -> list[Grasp]:
    centre = (rim[:, :2].max(0) + rim[:, :2].min(0)) / 2
    radius = np.linalg.norm(rim[:, :2] - centre, axis=1).max()
    grasps = []
    for angle in np.deg2rad(np.arange(0, 360, 15)):
        fingers = np.array([np.cos(angle), np.sin(angle)])
        for lift in (0.0, 0.008):
            place = np.append(centre + fingers * (radius - inset), top - 0.022 + lift)
            turn = abs(wrap(angle - present))
            hits = min(surroundings.collisions(place, fingers), 10)
            grasps.append(Grasp(place, float(angle), -0.4 * turn - 0.3 * hits - 20 * lift))
    return grasps


def wrap(angle: float) -> float:
    """Into [-pi/2, pi/2): the fingers can be exchanged."""
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
