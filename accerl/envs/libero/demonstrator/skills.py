"""What the arm can do with one thing: pick, place, open, close, turn, push. Each returns whether it went well."""

from __future__ import annotations

import numpy as np

from accerl.envs.libero.demonstrator.grasps import DOWN, plan_grasp, wrap
from accerl.envs.libero.demonstrator.motions import (
    CLOSED,
    OPEN,
    SLOW,
    Motion,
    about_z,
    hold,
    nearest_pose,
    reach,
)
from accerl.envs.libero.demonstrator.scene import Joint, Scene

UP = -DOWN
GRASP_STEPS = 9
"""For the fingers to close."""
ATTEMPTS = 3
LIFTED = 0.03
"""Metres that a thing must rise to count as held."""


class Skills:
    """On the scene of one episode."""

    def __init__(self, scene: Scene):
        self._scene = scene
        self._upright = scene.hand_rotation
        """The hand at the beginning, which points down."""

    def pick(self, name: str, clearance: float) -> Motion:
        """Take an object and lift it so that its lowest point is above `clearance`."""
        scene = self._scene
        for _ in range(ATTEMPTS):
            grasp = plan_grasp(scene, name)
            top = scene.points(scene.body(name))[:, 2].max()
            rotation = self._down(grasp.angle)
            yield from reach(scene, above(grasp.position, top + 0.10), rotation, OPEN, tolerance=0.012)
            again = plan_grasp(scene, name)  # things may come to rest while the arm travels
            if np.linalg.norm(again.position - grasp.position) > 0.006 or abs(wrap(again.angle - grasp.angle)) > 0.1:
                grasp, rotation = again, self._down(again.angle)
                yield from reach(scene, above(grasp.position, top + 0.06), rotation, OPEN)
            yield from reach(scene, grasp.position, rotation, OPEN, tolerance=0.008, max_steps=45, speed=SLOW)
            before = scene.position(name)[2]
            yield from hold(scene, rotation, CLOSED, GRASP_STEPS)
            hand = scene.hand
            height = max(clearance + self._hang(name) + 0.06, hand[2] + 0.10)
            yield from reach(scene, above(hand, height), rotation, CLOSED, tolerance=0.02, max_steps=40)
            if scene.position(name)[2] - before > LIFTED:
                return True
            yield from hold(scene, rotation, OPEN, 4)
        return False

    def place(self, name: str, target: str, inside: bool) -> Motion:
        """Put the held object down on, or into, an object or a region."""
        scene = self._scene
        rotation = scene.hand_rotation
        height = scene.hand[2]
        goal = scene.position(target)
        for _ in range(3):
            offset = (scene.position(name) - scene.hand)[:2]
            if (yield from reach(scene, np.append(goal[:2] - offset, height), rotation, CLOSED, tolerance=0.012)):
                break
        goal = scene.position(target)
        offset = (scene.position(name) - scene.hand)[:2]
        hang = self._hang(name)
        if scene.is_object(target):
            top = scene.points(scene.body(target))[:, 2].max()
            z = max(top + hang - 0.04, goal[2] + hang + 0.02) if inside else goal[2] + hang + 0.025
        else:
            z = height - 0.05 if inside else goal[2] + hang + 0.008
        place = np.append(goal[:2] - offset, z)
        yield from reach(scene, place, rotation, CLOSED, tolerance=0.012, max_steps=40, speed=SLOW)
        yield from hold(scene, rotation, OPEN, 6)
        yield from reach(scene, scene.hand + 0.10 * UP, rotation, OPEN, tolerance=0.02, max_steps=25)
        yield from hold(scene, rotation, OPEN, 10)
        return True

    def open(self, joint: Joint) -> Motion:
        """Pull a drawer by its handle, from the front."""
        scene = self._scene
        outward = opening_direction(joint)
        centre, _ = handle(scene, joint, outward)
        rotation = nearest_pose(-outward, UP, scene.hand_rotation)
        yield from self._rise(centre[2] + 0.12)
        yield from reach(scene, centre + 0.12 * outward + 0.05 * UP, rotation, OPEN, tolerance=0.02, max_steps=80)
        yield from reach(scene, centre + 0.10 * outward, rotation, OPEN, tolerance=0.01)
        yield from reach(scene, centre, rotation, OPEN, tolerance=0.008, speed=SLOW)
        yield from hold(scene, rotation, CLOSED, GRASP_STEPS)
        travel = abs(joint.high - joint.low) + 0.03
        yield from reach(scene, scene.hand + travel * outward, rotation, CLOSED, tolerance=0.01, speed=SLOW)
        yield from hold(scene, rotation, OPEN, 4)
        yield from reach(scene, scene.hand + 0.08 * outward, rotation, OPEN, tolerance=0.02, max_steps=20)
        yield from self._rise(centre[2] + 0.25)
        return True

    def _down(self, angle: float) -> np.ndarray:
        """The hand pointing down with the fingers along `angle`, turned as little as possible from the beginning."""
        fingers = self._upright[:2, 1]
        return about_z(wrap(angle - float(np.arctan2(fingers[1], fingers[0])))) @ self._upright

    def _rise(self, height: float) -> Motion:
        """Straight up to `height`, if the hand is below it."""
        scene = self._scene
        if scene.hand[2] < height:
            yield from reach(scene, above(scene.hand, height), scene.hand_rotation, OPEN, tolerance=0.02, max_steps=40)
        return True

    def _hang(self, name: str) -> float:
        """How far an object reaches below the hand."""
        scene = self._scene
        return float(scene.hand[2] - scene.points(scene.body(name))[:, 2].min())


def above(place: np.ndarray, height: float) -> np.ndarray:
    return np.array([place[0], place[1], height])


def opening_direction(joint: Joint) -> np.ndarray:
    """Unit vector along which a drawer comes out: towards the end of its range that is further from closed (0)."""
    return joint.axis * (1.0 if abs(joint.high) > abs(joint.low) else -1.0)


def handle(scene: Scene, joint: Joint, outward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half extent of the part of a drawer that sticks out the most."""
    return max(scene.solid_boxes(joint.body), key=lambda box: float(box[0] @ outward + box[1] @ np.abs(outward)))
