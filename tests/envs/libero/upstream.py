"""LIBERO as its authors use it: rendering both cameras at every step, reset from the file at every episode."""

from __future__ import annotations

from typing import Any

import numpy as np

from accerl.envs.libero.simulation import LAYOUT_SEED, ControlEnv, quietly
from accerl.envs.libero.suites import CAMERAS, Task, init_states

STILL = np.array([0.0] * 6 + [-1.0])


class Upstream:
    """One task, with robosuite's own renderer and observations."""

    def __init__(self, task: Task, size: int, images: bool = True):
        self._task = task
        with quietly():
            self.control: Any = ControlEnv(
                bddl_file_name=str(task.problem),
                use_camera_obs=images,
                has_offscreen_renderer=images,
                camera_names=list(CAMERAS),
                camera_heights=size,
                camera_widths=size,
                ignore_done=True,
            )

    def reset(self, number: int, settle_steps: int) -> dict[str, Any]:
        """The observation after settling in an initial state."""
        self.control.seed(LAYOUT_SEED)
        with quietly():
            self.control.reset()
        observation = self.control.set_init_state(init_states(self._task)[number])
        for _ in range(settle_steps):
            observation = self.control.step(STILL)[0]
        return observation

    def close(self) -> None:
        self.control.close()
