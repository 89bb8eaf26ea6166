from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from accerl.config import ConfigError, EnvConfig
from accerl.envs import make_env
from accerl.envs.conformance import check_env
from accerl.envs.gymnasium import GymnasiumEnv

CONFIG = EnvConfig(suite="gymnasium", tasks=("Corridor-v0",), image_size=16, chunk_length=2, steps_per_action=1)
LEFT, STAY, RIGHT = -1.0, 0.0, 1.0


class Corridor(gymnasium.Env):
    """Ten cells in a row; the image shows where one is. Reward 2 and the end at cell 9, and the end at cell 0."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (4, 10, 3), np.uint8)
    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, render_mode=None, informs=False):
        self.render_mode = render_mode
        self.informs = informs
        self.cell = 0
        self.last_action: Any = None

    def observe(self):
        image = np.zeros((4, 10, 3), np.uint8)
        image[:, self.cell] = 255
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(3, 6))
        return self.observe(), {}

    def step(self, action):
        self.last_action = action
        self.cell += int(np.clip(action, -1, 1))
        terminated = self.cell in (0, 9)
        info = {"is_success": self.cell == 7} if self.informs else {}
        return self.observe(), 2.0 * (self.cell == 9), terminated, False, info


class Arm(Corridor):
    """The corridor with vectors, bounded continuous actions and a dict observation."""

    observation_space = spaces.Dict(
        {
            "camera": Corridor.observation_space,
            "force": spaces.Box(-np.inf, np.inf, (1,), np.float64),
            "angle": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        }
    )
    action_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), dtype=np.float64)

    def observe(self):
        return {"camera": super().observe(), "force": np.array([5.0]), "angle": np.array([1.0, 2.0], np.float32)}

    def step(self, action):
        result = super().step(np.round(action[0]))
        self.last_action = action
        return result


class Blind(Corridor):
    """A vector observation, and a picture only by `render`."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def observe(self):
        return np.array([self.cell / 10, 0.5], np.float32)

    def render(self):
        return Corridor.observe(self)


def chunk(*actions: float) -> np.ndarray:
    return np.array(actions, np.float32)[:, None]


@pytest.mark.parametrize("env", [Corridor(), Corridor(informs=True), Arm(), Blind(render_mode="rgb_array")])
def test_environments_of_every_kind_keep_the_promises(env):
    check_env(GymnasiumEnv(env, config=CONFIG, instruction="walk to the right"))


def test_registered_environments_are_made_by_id_and_keep_the_promises():
    gymnasium.register("Corridor-v0", f"{__name__}:Corridor", max_episode_steps=7)
    try:
        env = make_env(CONFIG)
        assert env.spec.max_decisions == 4, "7 steps are 4 decisions of 2"
        assert env.reset(seed=0)[0]["instruction"] == "corridor"
        check_env(env)
    finally:
        del gymnasium.registry["Corridor-v0"]


def test_discrete_actions_cut_the_interval_into_bins():
    inner = Corridor()
    env = GymnasiumEnv(inner, config=CONFIG)
    for value, native in [(-1.0, -1), (-0.4, -1), (-0.3, 0), (0.3, 0), (0.4, 1), (1.0, 1)]:
        env.reset(seed=0)
        env.step_chunk(chunk(value, value))
        assert inner.last_action == native


def test_box_actions_are_scaled_to_the_bounds():
    inner = Arm()
    env = GymnasiumEnv(inner, config=CONFIG)
    env.reset(seed=0)
    env.step_chunk(np.array([[0.0, 0.0], [0.0, 0.5]]))
    assert np.allclose(inner.last_action, [0.0, 7.5])


def test_the_rest_of_a_dict_observation_is_proprioception_in_the_order_of_the_keys():
    observation, _ = GymnasiumEnv(Arm(), config=CONFIG).reset(seed=0)
    assert observation["proprio"].tolist() == [1.0, 2.0, 5.0]


def test_the_image_is_resized_to_a_square():
    inner = Corridor()
    env = GymnasiumEnv(inner, config=CONFIG)
    image = env.reset(seed=0)[0]["images"][0]
    columns = np.flatnonzero(image[0, :, 0] > 128)
    assert columns.min() / 16 == pytest.approx(inner.cell / 10, abs=0.07)


def test_termination_with_a_positive_reward_is_success_where_the_info_does_not_say():
    inner = Corridor()
    env = GymnasiumEnv(inner, config=CONFIG)
    env.reset(seed=0)
    inner.cell = 8
    result = env.step_chunk(chunk(RIGHT, RIGHT))
    assert (result.terminal, result.success, result.reward, result.num_actions) == (True, True, 1.0, 1)
    env.reset(seed=0)
    inner.cell = 1
    result = env.step_chunk(chunk(LEFT, LEFT))
    assert (result.terminal, result.success, result.reward) == (True, False, 0.0)


def test_success_in_the_info_ends_the_episode_before_the_environment_does():
    inner = Corridor(informs=True)
    env = GymnasiumEnv(inner, config=CONFIG)
    env.reset(seed=0)
    inner.cell = 6
    result = env.step_chunk(chunk(RIGHT, RIGHT))
    assert (result.terminal, result.success, result.num_env_steps, inner.cell) == (True, True, 1, 7)


def test_a_success_rule_of_the_user_goes_before_the_info():
    env = GymnasiumEnv(Corridor(informs=True), config=CONFIG, success=lambda info: info["is_success"] is False)
    env.reset(seed=0)
    assert env.step_chunk(chunk(STAY, STAY)).success


def test_the_dense_reward_is_the_environments_own():
    inner = Corridor()
    env = GymnasiumEnv(inner, config=CONFIG.model_copy(update={"reward": "dense"}))
    env.reset(seed=0)
    inner.cell = 8
    assert env.step_chunk(chunk(RIGHT, RIGHT)).reward == 2.0


def test_the_time_limit_of_the_environment_truncates_and_does_not_terminate():
    env = GymnasiumEnv(gymnasium.wrappers.TimeLimit(Corridor(), 3), config=CONFIG)
    env.reset(seed=0)
    assert not env.step_chunk(chunk(STAY, STAY)).truncated
    result = env.step_chunk(chunk(STAY, STAY))
    assert (result.truncated, result.terminal, result.num_env_steps) == (True, False, 1)


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(ConfigError, match="has no image; make it with render_mode='rgb_array'"):
        GymnasiumEnv(Blind(), config=CONFIG)
    unbounded = Arm()
    unbounded.action_space = spaces.Box(-np.inf, np.inf, (2,))
    with pytest.raises(ConfigError, match="only Discrete and Box with bounds"):
        GymnasiumEnv(unbounded, config=CONFIG)
    with pytest.raises(ConfigError, match="proprio_dim is 0 for 'a' and 3 for 'b'"):
        GymnasiumEnv({"a": Corridor(), "b": Arm()}, config=CONFIG)
