import numpy as np
import pytest

from accerl.config import ConfigError, EnvConfig
from accerl.envs import make_env, make_expert
from accerl.envs.dots import RADIUS, SPEED, Dots

CONFIG = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=8)


def place(env: Dots, agent: tuple[float, float], red: tuple[float, float], blue: tuple[float, float]) -> None:
    env.agent, env.goals = np.array(agent), np.array([red, blue])


def test_both_tasks_show_the_same_scene_and_say_different_things():
    env = Dots(CONFIG)
    red, _ = env.reset(seed=4, options={"task": "red"})
    blue, _ = env.reset(seed=4, options={"task": "blue"})
    assert np.array_equal(red["images"], blue["images"])
    assert (red["instruction"], blue["instruction"]) == ("go to the red dot", "go to the blue dot")


def test_a_unit_action_moves_the_agent_by_the_speed_each_step():
    env = Dots(CONFIG)
    env.reset(seed=0)
    place(env, agent=(0.0, 0.0), red=(-0.8, 0.0), blue=(0.0, -0.8))
    result = env.step_chunk(np.tile([1.0, -0.5], (4, 1)))
    assert np.allclose(result.observation["proprio"], [4 * SPEED, -2 * SPEED])
    assert (result.num_actions, result.num_env_steps, result.reward) == (4, 4, 0.0)


def test_touching_the_named_dot_inside_a_chunk_ends_it_there_with_reward_one():
    env = Dots(CONFIG)
    env.reset(seed=0, options={"task": "red"})
    place(env, agent=(0.0, 0.0), red=(2 * RADIUS + 1.5 * SPEED, 0.0), blue=(0.0, -0.8))
    result = env.step_chunk(np.tile([1.0, 0.0], (4, 1)))
    assert (result.success, result.terminal, result.truncated, result.reward) == (True, True, False, 1.0)
    assert (result.num_actions, result.num_env_steps) == (2, 2)


def test_touching_the_other_dot_ends_the_episode_without_success():
    env = Dots(CONFIG)
    env.reset(seed=0, options={"task": "blue"})
    place(env, agent=(0.0, 0.0), red=(2 * RADIUS + 0.5 * SPEED, 0.0), blue=(0.0, -0.8))
    result = env.step_chunk(np.tile([1.0, 0.0], (4, 1)))
    assert (result.success, result.terminal, result.reward, result.num_actions) == (False, True, 0.0, 1)


def test_the_dense_reward_sums_to_the_distance_gained():
    env = Dots(CONFIG.model_copy(update={"reward": "dense"}))
    env.reset(seed=0, options={"task": "red"})
    place(env, agent=(0.0, 0.0), red=(0.8, 0.0), blue=(0.0, -0.8))
    assert env.step_chunk(np.tile([1.0, 0.0], (4, 1))).reward == pytest.approx(4 * SPEED)


def test_the_picture_shows_each_dot_where_it_is():
    env = Dots(CONFIG)
    env.reset(seed=0)
    place(env, agent=(0.0, 0.0), red=(0.5, 0.5), blue=(-0.5, -0.5))
    image = env.render(64).astype(int)
    assert (image[32, 32] > 200).all()
    assert image[16, 48, 0] > 200 > image[16, 48, 2], "red is up and to the right"
    assert image[48, 16, 2] > 200 > image[48, 16, 0], "blue is down and to the left"


def test_the_expert_solves_every_episode_open_loop():
    env = make_env(CONFIG)
    expert = make_expert(CONFIG, env)
    decisions = []
    for seed in range(40):
        env.reset(seed=seed, options={"task": ("red", "blue")[seed % 2]})
        ended, num_decisions = False, 0
        while not ended:
            result = env.step_chunk(np.tile(expert(env), (4, 1)))
            ended = result.terminal or result.truncated
            num_decisions += 1
        assert result.success
        decisions.append(num_decisions)
    assert 3 <= np.mean(decisions) <= 5


def test_unknown_tasks_and_several_cameras_are_refused():
    with pytest.raises(ConfigError, match=r"env.tasks: unknown task 'rde'; did you mean 'red'"):
        Dots(CONFIG, tasks=("rde",))
    with pytest.raises(ConfigError, match=r"env.cameras"):
        Dots(CONFIG.model_copy(update={"cameras": ("a", "b")}))


@pytest.mark.parametrize(
    "call", [lambda env: env.render(16), lambda env: env.step_chunk(np.zeros((4, 2))), Dots.save_state]
)
def test_nothing_happens_before_the_first_reset(call):
    with pytest.raises(RuntimeError, match="call reset"):
        call(Dots(CONFIG))


def test_a_chunk_of_the_wrong_shape_or_with_nan_is_refused():
    env = Dots(CONFIG)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite"):
        env.step_chunk(np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match=r"must be \[4, 2\], not \[1, 2\]"):
        env.step_chunk(np.zeros((1, 2)))
