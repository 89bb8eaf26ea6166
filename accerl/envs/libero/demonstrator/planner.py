"""From the goal of a task to the order of skills that reaches it."""

from __future__ import annotations

import numpy as np

from accerl.envs.libero.demonstrator.motions import Motion
from accerl.envs.libero.demonstrator.scene import Joint, Scene
from accerl.envs.libero.demonstrator.skills import CENTRED, Skills, opening_direction

ORDER = {"open": 0, "turnon": 1, "turnoff": 1, "on": 2, "in": 2, "close": 3}
"""A drawer is opened before something is put in, and closed after it."""
PASSES = 3
"""Times that the whole plan is tried."""
FLAT, WIDE = 0.04, 0.10
"""Metres: lower and wider things are pushed over a table, not carried."""
CLOSED_MARGIN = 0.05
HAND_CLEARANCE = 0.10
"""Metres between the middle of a thing and an open drawer that the hand needs to take it."""
SPREAD = 0.8
"""Of half a region, from its middle, over which things are spread that share it."""
ANGLES = np.deg2rad(np.arange(0, 360, 22.5))
ON, OFF = 0.6, -0.003
"""Radians of a knob: LIBERO calls it on from 0.5, and off below 0."""


def plan(scene: Scene) -> Motion:
    """Actions for the whole task; ends when its goal holds or nothing more is to be tried."""
    skills = Skills(scene)
    for _ in range(PASSES):
        for goal in sorted(scene.goals, key=lambda goal: ORDER[goal[0]]):
            if not scene.holds(goal):
                yield from _achieve(scene, skills, goal)
        if all(scene.holds(goal) for goal in scene.goals):
            return True
    return False


def _achieve(scene: Scene, skills: Skills, goal: tuple[str, ...]) -> Motion:
    predicate, name, *others = goal
    match predicate:
        case "on" | "in":
            return (yield from _carry(scene, skills, name, others[0], predicate == "in"))
    joint = scene.joint(name)
    assert joint is not None, f"{name} has no joint"
    match predicate:
        case "open":
            return (yield from skills.open(joint))
        case "close":
            return (yield from skills.close(joint))
        case "turnon":
            return (yield from skills.turn(joint, ON))
        case "turnoff":
            return (yield from skills.turn(joint, OFF))
    raise NotImplementedError(f"no skill reaches {' '.join(goal)}")


def _carry(scene: Scene, skills: Skills, name: str, target: str, inside: bool) -> Motion:
    joint = None if scene.is_object(target) else scene.joint(target)
    if inside and joint is not None and joint.is_slide and abs(joint.position) < CLOSED_MARGIN:
        if (aside := place_aside(scene, name, joint)) is not None:
            yield from skills.drag(name, aside)
        yield from skills.open(joint)
    if target.endswith("_contain_region"):
        target = scene.parent(target) or target
    if not scene.is_object(target) and not scene.parent(target) and is_flat(scene, name):
        return (yield from skills.push(name, target))
    clearance = scene.position(target)[2]
    if scene.is_object(target):
        clearance = max(clearance, scene.points(scene.body(target))[:, 2].max())
    narrow = opening_direction(joint) if joint is not None and joint.is_slide else None
    if not (yield from skills.pick(name, float(clearance), narrow)):
        return False
    return (yield from skills.place(name, target, inside, beside_others(scene, name, target)))


def beside_others(scene: Scene, name: str, target: str) -> np.ndarray:
    """Where on a region [2, from its middle] a thing is put that shares it with others of the goal."""
    sharers = [goal[1] for goal in scene.goals if goal[0] == "on" and goal[2:] == (target,)]
    if len(sharers) < 2 or scene.is_object(target):
        return CENTRED
    size = scene.region_size(target)[:2]
    longer = np.eye(2)[int(np.argmax(size))]
    shares = np.linspace(-SPREAD, SPREAD, len(sharers))
    return shares[sharers.index(name)] * size * longer


def place_aside(scene: Scene, name: str, drawer: Joint) -> np.ndarray | None:
    """The nearest free place [2] on the table where the hand gets at a hollow thing when `drawer` is open.

    None: it stays where it is, out of the way, or is not hollow, or there is no such place.
    """
    low, high = scene.swept(drawer)
    points = scene.points(scene.body(name))
    centre = scene.position(name)[:2]
    radius = float(np.ptp(points[:, :2], axis=0).max()) / 2

    def clearance(place: np.ndarray) -> float:
        return float(np.linalg.norm(np.maximum(0.0, np.maximum(low - place, place - high))))

    if clearance(centre) >= HAND_CLEARANCE or 2 * radius < WIDE:
        return None
    around = np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)
    for distance in np.arange(0.03, 0.21, 0.015):
        for place in sorted(centre + distance * around, key=clearance, reverse=True):
            if clearance(place) < HAND_CLEARANCE:
                break
            disc = place + radius * np.concatenate([around, 0.5 * around, np.zeros((1, 2))])
            heights = scene.heights(disc[:, 0], disc[:, 1], ignore=scene.body(name))
            if heights.max() - points[:, 2].min() < 0.01:
                return place
    return None


def is_flat(scene: Scene, name: str) -> bool:
    """Whether a thing is to be pushed."""
    extent = np.ptp(scene.points(scene.body(name)), axis=0)
    return bool(extent[2] < FLAT and extent[:2].min() > WIDE)
