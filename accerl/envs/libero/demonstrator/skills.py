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
CENTRED = np.zeros(2)
GRASP_STEPS = 9
"""For the fingers to close."""
ATTEMPTS = 3
LIFTED = 0.03
"""Metres that a thing must rise to count as held."""
RIDGE = 0.012
"""Height of the part of a knob that is taken."""
TURN, TURN_STEPS = 2.8, 24
"""Radians that the hand goes around a knob at most, and in how many steps."""
DRAG_HEIGHT = 0.022
"""Of the fingertips above the bottom of a thing that they are in."""
INSETS = (0.006, 0.014, 0.022)
"""Metres from the outer edge of a rim at which it is taken, one after another."""
PUSH_HEIGHT = 0.012
"""Of the fingertips above the table."""
LEAN = 0.5
"""Of the hand, out of the way of what is above a drawer: the tangent of the angle."""
DOOR_STEPS = 16


class Skills:
    """On the scene of one episode."""

    def __init__(self, scene: Scene):
        self._scene = scene
        self._upright = scene.hand_rotation
        """The hand at the beginning, which points down."""

    def pick(self, name: str, clearance: float, narrow: np.ndarray | None = None) -> Motion:
        """Take an object and lift it so that its lowest point is above `clearance`.

        Args:
            narrow: see `plan_grasp`.
        """
        scene = self._scene
        for _ in range(ATTEMPTS):
            grasp = plan_grasp(scene, name, narrow=narrow)
            top = scene.points(scene.body(name))[:, 2].max()
            rotation = self._down(grasp.angle)
            yield from self._travel(above(grasp.position, top + 0.10), rotation)
            again = plan_grasp(scene, name, narrow=narrow)  # things may come to rest while the arm travels
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

    def place(self, name: str, target: str, inside: bool, aside: np.ndarray = CENTRED) -> Motion:
        """Put the held object down on, or into, an object or a region.

        Args:
            aside: from the middle of the target [2], where other things come beside it.
        """
        scene = self._scene
        rotation = scene.hand_rotation
        height = scene.hand[2]
        for _ in range(ATTEMPTS):
            way = scene.position(target)[:2] + aside - scene.position(name)[:2]
            if (yield from reach(scene, above(scene.hand[:2] + way, height), rotation, CLOSED, tolerance=0.012)):
                break
            if self._is_over(name, target):
                break  # as far as it goes
        goal = scene.position(target)
        way = goal[:2] + aside - scene.position(name)[:2]
        if self._is_over(name, target):
            way = np.clip(way, -0.02, 0.02)
        hang = self._hang(name)
        if scene.is_object(target):
            top = scene.points(scene.body(target))[:, 2].max()
            z = max(top + hang - 0.04, goal[2] + hang + 0.02) if inside else goal[2] + hang + 0.025
        else:
            z = height - 0.05 if inside else goal[2] + hang + 0.008
        place = above(scene.hand[:2] + way, z)
        yield from reach(scene, place, rotation, CLOSED, tolerance=0.012, max_steps=40, speed=SLOW)
        yield from hold(scene, rotation, OPEN, 6)
        yield from reach(scene, scene.hand + 0.10 * UP, rotation, OPEN, tolerance=0.02, max_steps=25)
        yield from hold(scene, rotation, OPEN, 10)
        return True

    def drag(self, name: str, place: np.ndarray) -> Motion:
        """Move a hollow thing over the table to `place` [2], with the closed fingers inside of it."""
        scene = self._scene
        bottom, top = (edge(scene.points(scene.body(name))[:, 2]) for edge in (np.min, np.max))
        start = scene.position(name)
        yield from reach(scene, above(start, top + 0.06), self._upright, CLOSED, tolerance=0.02)
        yield from reach(scene, above(start, bottom + DRAG_HEIGHT), self._upright, CLOSED, max_steps=30)
        for _ in range(ATTEMPTS):
            way = np.append(place - scene.position(name)[:2], 0.0)
            if np.linalg.norm(way) < 0.02:
                break
            radius = 0.03 * way / np.linalg.norm(way)
            aim = above(scene.position(name) + way + radius, bottom + DRAG_HEIGHT)
            yield from reach(scene, aim, self._upright, CLOSED, max_steps=30)
        yield from self._rise(top + 0.06)
        return True

    def open(self, joint: Joint) -> Motion:
        """Pull a drawer by its handle, from the front."""
        scene = self._scene
        outward = opening_direction(joint)
        centre, _ = handle(scene, joint, outward)
        rotation = nearest_pose(-outward, UP, scene.hand_rotation)
        yield from self._rise(centre[2] + 0.08)
        yield from reach(scene, centre + 0.10 * outward, rotation, OPEN, tolerance=0.015, max_steps=80)
        yield from reach(scene, centre, rotation, OPEN, tolerance=0.008, speed=SLOW)
        yield from hold(scene, rotation, CLOSED, GRASP_STEPS)
        travel = abs(joint.high - joint.low) + 0.03
        yield from reach(scene, scene.hand + travel * outward, rotation, CLOSED, tolerance=0.02)
        yield from hold(scene, rotation, OPEN, 4)
        yield from reach(scene, scene.hand + 0.05 * outward, rotation, OPEN, tolerance=0.03, max_steps=20)
        yield from reach(scene, scene.hand + 0.03 * outward + 0.12 * UP, rotation, OPEN, tolerance=0.04, max_steps=20)
        return True

    def close(self, joint: Joint) -> Motion:
        """Push a drawer or a door shut with the closed fingers, leaning back so that the palm stays outside."""
        return (yield from self._push_drawer(joint) if joint.is_slide else self._push_door(joint))

    def turn(self, joint: Joint, target: float) -> Motion:
        """Push the end of a knob's ridge around with the closed fingers until its joint is past `target`, radians."""
        scene = self._scene
        points = scene.points(joint.body)
        top = points[:, 2].max()
        ridge = points[points[:, 2] > top - RIDGE, :2]
        across = narrowest(ridge)
        sign = 1.0 if target > joint.position else -1.0
        turn = sign * float(np.sign(joint.axis[2]))
        end = across + np.pi / 2  # the end of the ridge that is further from the robot's base, where the arm has room
        end += np.pi if np.cos(end) < 0 else 0.0
        radius = 0.9 * float(np.abs((ridge - joint.anchor[:2]) @ np.array([np.cos(end), np.sin(end)])).max())

        def place(turned: float, height: float) -> np.ndarray:
            angle = end + turn * turned
            return above(joint.anchor[:2] + radius * np.array([np.cos(angle), np.sin(angle)]), height)

        start = -0.03 / radius - 0.35
        yield from reach(scene, place(start, top + 0.08), self._upright, CLOSED, tolerance=0.015, max_steps=80)
        yield from reach(scene, place(start, top - RIDGE), self._upright, CLOSED, max_steps=40)
        for turned in np.linspace(start, start + TURN, TURN_STEPS):
            yield from reach(scene, place(turned, top - RIDGE), self._upright, CLOSED, tolerance=0.01, max_steps=4)
            if sign * (scene.joint_position(joint) - target) > 0.05:
                break
        yield from self._rise(top + 0.12)
        return sign * (scene.joint_position(joint) - target) > 0

    def push(self, name: str, region: str) -> Motion:
        """Move a flat thing over the table, held at its rim between the fingers so that it does not turn away."""
        scene = self._scene
        for inset in INSETS:
            grasp = plan_grasp(scene, name, inset=inset)
            rotation = self._down(grasp.angle)
            bottom = scene.points(scene.body(name))[:, 2].min()
            place = above(grasp.position, max(grasp.position[2], bottom + PUSH_HEIGHT))
            yield from self._travel(place + 0.10 * UP, rotation)
            yield from reach(scene, place, rotation, OPEN, tolerance=0.008, speed=SLOW)
            yield from hold(scene, rotation, CLOSED, GRASP_STEPS)
            start = scene.position(name)
            for _ in range(ATTEMPTS):
                way = scene.position(region) - scene.position(name)
                aim = above(scene.hand + way, place[2])
                yield from reach(scene, aim, rotation, CLOSED, tolerance=0.01, speed=SLOW)
                if np.linalg.norm(scene.position(name) - start) < 0.5 * np.linalg.norm(way):
                    break  # it has slipped away
            yield from hold(scene, rotation, OPEN, 4)
            yield from self._rise(place[2] + 0.12)
            if np.linalg.norm((scene.position(region) - scene.position(name))[:2]) < 0.02:
                return True
        return False

    def _push_drawer(self, joint: Joint) -> Motion:
        scene = self._scene
        outward = opening_direction(joint)
        centre, half = handle(scene, joint, outward)
        rotation = nearest_pose(DOWN - LEAN * outward, np.cross(UP, outward), scene.hand_rotation)
        face = centre + (half @ np.abs(outward)) * outward
        yield from self._rise(centre[2] + 0.15)
        yield from reach(scene, face + 0.06 * outward + 0.15 * UP, rotation, CLOSED, tolerance=0.02, max_steps=80)
        yield from reach(scene, face + 0.04 * outward, rotation, CLOSED, tolerance=0.012)
        way = abs(joint.position) + 0.06
        yield from reach(scene, scene.hand - way * outward, rotation, CLOSED, tolerance=0.01, speed=SLOW, max_steps=50)
        yield from reach(scene, scene.hand + 0.06 * outward, rotation, CLOSED, tolerance=0.02, max_steps=20)
        yield from self._rise(centre[2] + 0.25)
        return True

    def _push_door(self, joint: Joint) -> Motion:
        """Along the arc of its outer edge."""
        scene = self._scene
        points = scene.points(joint.body)
        offset = points - joint.anchor
        edge = offset[np.argmax(np.linalg.norm(offset[:, :2], axis=1))][:2]
        reach_m = 0.85 * float(np.linalg.norm(edge))
        closing = -np.sign(joint.position) * np.sign(joint.axis[2])
        start = float(np.arctan2(edge[1], edge[0]))
        height = float((points[:, 2].max() + points[:, 2].min()) / 2)
        top = float(points[:, 2].max())
        rotation = self._upright

        def place(turned: float, gap: float) -> np.ndarray:
            angle = start + closing * turned
            radial = np.array([np.cos(angle), np.sin(angle)])
            behind = -closing * np.array([-radial[1], radial[0]])
            return above(joint.anchor[:2] + reach_m * radial + gap * behind, height)

        yield from self._rise(top + 0.10)
        yield from reach(scene, above(place(0.0, 0.10), top + 0.10), rotation, CLOSED, tolerance=0.02, max_steps=80)
        yield from reach(scene, place(0.0, 0.08), rotation, CLOSED, tolerance=0.02)
        for step in range(DOOR_STEPS):
            turned = step / (DOOR_STEPS - 1) * (abs(joint.position) + 0.15)
            yield from reach(scene, place(turned, 0.02), rotation, CLOSED, tolerance=0.02, max_steps=6)
        yield from self._rise(top + 0.10)
        return True

    def _down(self, angle: float) -> np.ndarray:
        """The hand pointing down with the fingers along `angle`, turned as little as possible from the beginning."""
        fingers = self._upright[:2, 1]
        return about_z(wrap(angle - float(np.arctan2(fingers[1], fingers[0])))) @ self._upright

    def _travel(self, place: np.ndarray, rotation: np.ndarray) -> Motion:
        """With the open hand to a place above something: over it first where things stand in the way, then down."""
        scene = self._scene
        if self._is_blocked(scene.hand, place):
            height = max(scene.hand[2], place[2])
            yield from reach(scene, above(place, height), rotation, OPEN, tolerance=0.03)
        return (yield from reach(scene, place, rotation, OPEN, tolerance=0.015))

    def _is_blocked(self, start: np.ndarray, end: np.ndarray) -> bool:
        """Whether anything reaches into the way of the palm on a straight line."""
        line = start + np.linspace(0.0, 1.0, 12)[:, None] * (end - start)
        sideways = np.array([[0.0, 0.0], [0.06, 0.0], [-0.06, 0.0], [0.0, 0.06], [0.0, -0.06]])
        places = line[:, None, :2] + sideways
        heights = self._scene.heights(places[..., 0], places[..., 1])
        return bool((heights > line[:, None, 2] - 0.01).any())

    def _rise(self, height: float) -> Motion:
        """Straight up to `height`, if the hand is below it."""
        scene = self._scene
        if scene.hand[2] < height:
            yield from reach(scene, above(scene.hand, height), scene.hand_rotation, OPEN, tolerance=0.02, max_steps=40)
        return True

    def _is_over(self, name: str, target: str) -> bool:
        """Whether an object would fall well inside a region."""
        scene = self._scene
        if scene.is_object(target):
            return False
        offset = np.abs(scene.position(name) - scene.position(target))
        return bool((offset[:2] < 0.6 * scene.region_size(target)[:2]).all())

    def _hang(self, name: str) -> float:
        """How far an object reaches below the hand."""
        scene = self._scene
        return float(scene.hand[2] - scene.points(scene.body(name))[:, 2].min())


def above(place: np.ndarray, height: float) -> np.ndarray:
    return np.array([place[0], place[1], height])


def opening_direction(joint: Joint) -> np.ndarray:
    """Unit vector along which a drawer comes out: towards the end of its range that is further from closed (0)."""
    return joint.axis * (1.0 if abs(joint.high) > abs(joint.low) else -1.0)


def narrowest(points: np.ndarray) -> float:
    """The angle of the line along which points [point, 2] extend the least."""
    angles = np.deg2rad(np.arange(0, 180, 7.5))
    return float(min(angles, key=lambda angle: np.ptp(points @ np.array([np.cos(angle), np.sin(angle)]))))


def handle(scene: Scene, joint: Joint, outward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half extent of the part of a drawer that sticks out the most."""
    return max(scene.solid_boxes(joint.body), key=lambda box: float(box[0] @ outward + box[1] @ np.abs(outward)))
