"""What a demonstrator sees: where things are, their shapes, the hand. Metres and radians, in the world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np

from accerl.envs.libero.simulation import Simulation

ROBOT = ("robot0", "gripper0", "mount0")
"""Prefixes of its bodies."""
MAX_MESH_POINTS = 400
RAY_TOP = 1.6
"""Height from which surfaces are looked for; above the arm."""
CORNERS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], float)


@dataclass(frozen=True, slots=True)
class Joint:
    """A drawer's slide, a door's or a knob's hinge."""

    name: str
    body: int
    is_slide: bool
    anchor: np.ndarray
    axis: np.ndarray
    """Positive motion goes along it, or turns around it."""
    position: float
    low: float
    high: float


class Scene:
    """The present state of a simulation; reads it anew at each call."""

    def __init__(self, simulation: Simulation):
        self.simulation = simulation
        self.model = simulation.model
        self.data = simulation.data
        self.robosuite: Any = simulation.robosuite

    @property
    def goals(self) -> list[tuple[str, ...]]:
        """Predicates that must hold together, such as ("on", "bowl_1", "plate_1")."""
        return [tuple(goal) for goal in self.robosuite.parsed_problem["goal_state"]]

    def holds(self, goal: tuple[str, ...]) -> bool:
        return bool(self.robosuite._eval_predicate(list(goal)))

    # The hand.

    @property
    def hand(self) -> np.ndarray:
        """The point between the fingertips [3]."""
        return self.data.site_xpos[self.simulation.hand_site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """[3, 3]; the third column points out of the palm, the second one along the fingers' motion."""
        return self.data.xmat[self.simulation.hand_body].reshape(3, 3).copy()

    # Things.

    def is_object(self, name: str) -> bool:
        """Whether it is a body, not a region of one."""
        return name in self.robosuite.obj_body_id

    def body(self, name: str) -> int:
        return self.robosuite.obj_body_id[name]

    def position(self, name: str) -> np.ndarray:
        """Of an object's origin or a region's centre [3]."""
        if self.is_object(name):
            return self.data.xpos[self.body(name)].copy()
        return self.data.site_xpos[self.model.site(name).id].copy()

    def region_size(self, name: str) -> np.ndarray:
        """Half of its extent along the world's axes [3]."""
        site = self.model.site(name).id
        return np.abs(self.data.site_xmat[site].reshape(3, 3) @ self.model.site_size[site])

    def parent(self, region: str) -> str:
        """The object that a region belongs to; the table's have none."""
        return getattr(self.robosuite.object_states_dict[region], "parent_name", None) or ""

    def joint(self, name: str) -> Joint | None:
        """That of a region (a drawer) or an object (a door, a knob); None: it has none of its own."""
        thing = self.robosuite.object_sites_dict.get(name) or self.robosuite.get_object(name)
        names = [joint for joint in (getattr(thing, "joints", None) or []) if self._is_hinge_or_slide(joint)]
        if not names:
            return None
        index = self.model.joint(names[0]).id
        low, high = self.model.jnt_range[index]
        return Joint(
            name=names[0],
            body=int(self.model.jnt_bodyid[index]),
            is_slide=self.model.jnt_type[index] == mujoco.mjtJoint.mjJNT_SLIDE,
            anchor=self.data.xanchor[index].copy(),
            axis=self.data.xaxis[index].copy(),
            position=float(self.data.qpos[self.model.jnt_qposadr[index]]),
            low=float(low),
            high=float(high),
        )

    def joint_position(self, joint: Joint) -> float:
        """Where it is now."""
        return float(self.data.joint(joint.name).qpos[0])

    def points(self, body: int) -> np.ndarray:
        """Of the surface of a body and what hangs on it [point, 3]: corners of shapes, vertices of meshes."""
        clouds = [self._geom_points(geom) for part in self._subtree(body) for geom in self._geoms(part)]
        return np.concatenate([cloud for cloud in clouds if len(cloud)])

    def swept(self, joint: Joint) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner [2] of the table below a drawer on its way from where it is to fully open."""
        points = self.points(joint.body)[:, :2]
        ends = [points + (end - joint.position) * joint.axis[:2] for end in (joint.low, joint.high)]
        ends = [points, max(ends, key=lambda end: float(np.abs(end - points).max()))]
        return np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))

    def solid_boxes(self, body: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Centre and half extent along the world's axes of each collision shape of a body alone."""
        boxes = []
        for geom in self._geoms(body):
            if self._is_solid(geom):
                points = self._geom_points(geom)
                low, high = points.min(0), points.max(0)
                boxes.append(((low + high) / 2, (high - low) / 2))
        return boxes

    def heights(self, x: np.ndarray, y: np.ndarray, ignore: int = -1) -> np.ndarray:
        """Of the highest collision surface at each place that is not the robot's nor of body `ignore`; -1: nothing."""
        groups = np.array([1, 0, 0, 0, 0, 0], np.uint8)
        down = np.array([0.0, 0.0, -1.0])
        hit = np.zeros(1, np.int32)
        heights = np.full(x.shape, -1.0)
        skipped = self._robot_bodies | (self._within(ignore) if ignore >= 0 else False)
        for place in np.ndindex(x.shape):
            z = RAY_TOP
            while True:
                distance = mujoco.mj_ray(
                    self.model, self.data, np.array([x[place], y[place], z]), down, groups, 1, -1, hit
                )
                if distance < 0:
                    break
                z -= distance
                if not skipped[self.model.geom_bodyid[hit[0]]]:
                    heights[place] = z
                    break
                z -= 1e-4
        return heights

    @cached_property
    def _robot_bodies(self) -> np.ndarray:
        names = [self.model.body(index).name for index in range(self.model.nbody)]
        return np.array([name.startswith(ROBOT) for name in names])

    def _within(self, root: int) -> np.ndarray:
        """Which bodies are `root` or hang on it."""
        within = np.zeros(self.model.nbody, bool)
        within[self._subtree(root)] = True
        return within

    def _subtree(self, root: int) -> list[int]:
        inside = {root}
        for body in range(root + 1, self.model.nbody):  # a child comes after its parent
            if self.model.body_parentid[body] in inside:
                inside.add(body)
        return sorted(inside)

    def _geoms(self, body: int) -> range:
        first = self.model.body_geomadr[body]
        return range(first, first + self.model.body_geomnum[body]) if first >= 0 else range(0)

    def _is_solid(self, geom: int) -> bool:
        return bool(self.model.geom_contype[geom] or self.model.geom_conaffinity[geom])

    def _is_hinge_or_slide(self, joint: str) -> bool:
        return self.model.jnt_type[self.model.joint(joint).id] >= int(mujoco.mjtJoint.mjJNT_SLIDE)

    def _geom_points(self, geom: int) -> np.ndarray:
        kinds = mujoco.mjtGeom
        kind, size = self.model.geom_type[geom], self.model.geom_size[geom]
        if kind == kinds.mjGEOM_MESH:
            mesh = self.model.geom_dataid[geom]
            first, num = self.model.mesh_vertadr[mesh], self.model.mesh_vertnum[mesh]
            local = self.model.mesh_vert[first : first + num][:: max(1, num // MAX_MESH_POINTS)]
        elif not self._is_solid(geom):
            return np.zeros((0, 3))
        elif kind == kinds.mjGEOM_SPHERE:
            local = CORNERS * size[0]
        elif kind in (kinds.mjGEOM_CYLINDER, kinds.mjGEOM_CAPSULE):
            local = CORNERS * [size[0], size[0], size[1] + (size[0] if kind == kinds.mjGEOM_CAPSULE else 0.0)]
        else:
            local = CORNERS * size
        return local @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]
