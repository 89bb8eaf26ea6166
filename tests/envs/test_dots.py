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


def limited(max_env_steps: int | None, **fields) -> Dots:
    """In the middle of a new episode that ends by itself only if the agent goes 0.32 to the right, in 8 steps."""
    settings = {"chunk_length": 4, "steps_per_action": 2, "max_decisions": 3, "max_env_steps": max_env_steps}
    env = Dots(CONFIG.model_copy(update=settings | fields))
    env.reset(seed=0, options={"task": "red"})
    place(env, agent=(0.0, 0.0), red=(2 * RADIUS + 7.5 * SPEED, 0.0), blue=(0.0, -0.8))
    return env


STILL, RIGHT = np.zeros((4, 2)), np.tile([1.0, 0.0], (4, 1))


def test_an_episode_is_cut_inside_a_chunk_at_the_limit_of_environment_steps():
    env = limited(13)
    first, second = env.step_chunk(STILL), env.step_chunk(STILL)
    assert (first.num_env_steps, first.num_actions, first.truncated) == (8, 4, False)
    assert (second.num_env_steps, second.num_actions) == (5, 3)  # the third action is held for one step of two
    assert (second.terminal, second.truncated, second.success) == (False, True, False)
    with pytest.raises(RuntimeError, match="the episode has ended"):
        env.step_chunk(STILL)


@pytest.mark.parametrize("limit", [8, 16, 24])
def test_a_limit_between_two_chunks_cuts_there(limit):
    env = limited(limit)
    results = [env.step_chunk(STILL) for _ in range(limit // 8)]
    assert [result.truncated for result in results] == [False] * (limit // 8 - 1) + [True]
    assert all(result.num_env_steps == 8 for result in results)


def test_whichever_limit_is_reached_first_counts():
    assert [limited(100, max_decisions=1).step_chunk(STILL).truncated for _ in range(2)] == [True, True]
    env = limited(None)
    assert [env.step_chunk(STILL).truncated for _ in range(3)] == [False, False, True]


def test_success_at_the_limit_of_environment_steps_is_success_and_after_it_is_none():
    at_limit, too_late = limited(8).step_chunk(RIGHT), limited(7).step_chunk(RIGHT)
    assert (at_limit.success, at_limit.terminal, at_limit.truncated) == (True, True, False)
    assert (too_late.success, too_late.terminal, too_late.truncated, too_late.num_env_steps) == (False, False, True, 7)


def test_the_steps_of_an_episode_are_counted_anew_after_a_reset():
    env = limited(13)
    env.step_chunk(STILL)
    env.reset(seed=1)
    assert not env.step_chunk(STILL).truncated


def test_a_saved_state_knows_how_many_steps_are_left():
    env, other = limited(13), limited(13)
    env.step_chunk(STILL)
    other.load_state(env.save_state())
    assert other.step_chunk(STILL).num_env_steps == 5
