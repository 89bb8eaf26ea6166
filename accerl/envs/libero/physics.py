"""robosuite's physics steps with every result computed once."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np


class LeanPhysics:
    """In the place of robosuite's `sim.forward` and `sim.step`, with the same results to the last bit.

    robosuite computes positions and velocities three times in each physics step: before its controller, in it, and in
    the step. Nothing has moved in between, so the second and the third time only forces and accelerations are computed
    anew, whose solver starts from its last result. This takes a third off.

    Raises:
        FloatingPointError: the physics have become unstable, where MuJoCo would silently start from zero.
    """

    def __init__(self, sim: Any):
        self._model: mujoco.MjModel = sim.model._model
        self._data: mujoco.MjData = sim.data._data
        self._at = np.full(self._model.nq + self._model.nv, np.nan)
        """Positions and velocities of the last forward pass."""
        if self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER:
            sim.forward, sim.step = self.forward, self.step

    def forward(self) -> None:
        now = np.concatenate([self._data.qpos, self._data.qvel])
        if np.array_equal(now, self._at):
            mujoco.mj_forwardSkip(self._model, self._data, mujoco.mjtStage.mjSTAGE_VEL, 1)
        else:
            mujoco.mj_forward(self._model, self._data)
            self._at = now

    def step(self) -> None:
        self.forward()
        if not np.isfinite(self._data.qacc).all():
            raise FloatingPointError("the physics have become unstable")
        mujoco.mj_Euler(self._model, self._data)
