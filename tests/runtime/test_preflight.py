"""What is refused before a run starts, where it takes an environment to tell."""

from __future__ import annotations

import numpy as np
import pytest

from accerl.config import ConfigError, EnvConfig, RolloutConfig, RunConfig
from accerl.envs import make_env
from accerl.runtime import preflight
from tests.wm.scenes import DOTS


class Forgetful:
    """`Dots` without a state that can be saved."""

    def __init__(self, config: EnvConfig):
        self._env = make_env(config)
        self.spec = self._env.spec

    def reset(self, *, seed=None, options=None):
        return self._env.reset(seed=seed, options=options)

    def step_chunk(self, actions: np.ndarray, on_step=None):
        return self._env.step_chunk(actions, on_step)

    def render(self, size: int) -> np.ndarray:
        return self._env.render(size)

    def close(self) -> None:
        self._env.close()


def test_a_state_that_an_environment_cannot_save_is_not_kept(monkeypatch):
    kept = RunConfig(env=DOTS, rollout=RolloutConfig(keep_state=True))
    assert preflight.describe_env(kept, DOTS.tasks)[0] == make_env(DOTS).spec
    monkeypatch.setattr(preflight, "make_env", Forgetful)
    with pytest.raises(
        ConfigError, match=r"^rollout\.keep_state: env\.suite='dots' has no save_state\(\); leave it out$"
    ):
        preflight.describe_env(kept, DOTS.tasks)
    preflight.describe_env(RunConfig(env=DOTS), DOTS.tasks)
