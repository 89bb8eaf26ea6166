import gc
import threading

import numpy as np
import pytest

from accerl.config import EnvConfig
from accerl.envs import make_env, make_expert, metaworld_simulator
from accerl.envs.metaworld import MetaWorld
from accerl.envs.metaworld_simulator import ALL_V3_ENVIRONMENTS, Simulator
from accerl.envs.metaworld_tasks import INSTRUCTIONS
from accerl.types import ChunkResult

CONFIG = EnvConfig(image_size=32)
TASKS = CONFIG.tasks


def still(env: MetaWorld) -> np.ndarray:
    return np.zeros((env.spec.chunk_length, 4), np.float32)


def same(one: ChunkResult, other: ChunkResult) -> bool:
    left, right = one.observation, other.observation
    arrays = all(np.array_equal(left[name], right[name]) for name in ("images", "proprio"))
    return arrays and one[1:] == other[1:]


def play_expert(env: MetaWorld, expert, seed: int, task: str) -> list[ChunkResult]:
    env.reset(seed=seed, options={"task": task})
    results = []
    while not results or not (results[-1].terminal or results[-1].truncated):
        results.append(env.step_chunk(expert(env)[None]))
    return results


@pytest.fixture(scope="module")
def single() -> MetaWorld:
    """One action a decision, as demonstrations are recorded; as many steps as the default episode has."""
    return MetaWorld(CONFIG.model_copy(update={"chunk_length": 1, "max_decisions": 48}))


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_at_least_nine_of_ten_episodes(single, task):
    expert = make_expert(CONFIG, single)
    episodes = [play_expert(single, expert, seed, task) for seed in range(10)]
    assert sum(episode[-1].success for episode in episodes) >= 9
    for episode in episodes:
        assert sum(result.reward for result in episode) == float(episode[-1].success)


def test_a_slow_and_noisy_expert_is_seeded_and_takes_longer(single):
    def steps(seed: int) -> int:
        expert = make_expert(CONFIG, single, speed=0.5, noise=0.3, seed=seed)
        return sum(result.num_env_steps for result in play_expert(single, expert, 0, "handle-press-v3"))

    best = sum(r.num_env_steps for r in play_expert(single, make_expert(CONFIG, single), 0, "handle-press-v3"))
    assert steps(seed=1) == steps(seed=1)
    assert steps(seed=1) > best


def test_success_ends_the_chunk_in_the_middle(single):
    """The actions of a solved episode, given as one chunk with four more that must not be executed."""
    expert = make_expert(CONFIG, single)
    single.reset(seed=0, options={"task": "coffee-button-v3"})
    episode = [expert(single)]
    while not single.step_chunk(episode[-1][None]).success:
        episode.append(expert(single))
    env = MetaWorld(CONFIG.model_copy(update={"chunk_length": len(episode) + 4, "max_decisions": 1}))
    env.reset(seed=0, options={"task": "coffee-button-v3"})
    result = env.step_chunk(np.concatenate([episode, np.ones((4, 4))]))
    assert (result.success, result.terminal, result.truncated, result.reward) == (True, True, False, 1.0)
    assert result.num_actions == len(episode)
    assert 2 * len(episode) - 1 <= result.num_env_steps <= 2 * len(episode)


def test_different_seeds_and_unseeded_resets_give_different_goals():
    env = MetaWorld(CONFIG)
    positions = []
    for seed in (0, 1, None, None):
        env.reset(seed=seed)
        positions.append(env.privileged[4:7])
    assert len({tuple(position) for position in positions}) == 4


def test_unseeded_episodes_continue_the_stream_of_the_last_seed():
    def third_episode() -> np.ndarray:
        env = MetaWorld(CONFIG)
        for seed in (7, None, None):
            observation, _ = env.reset(seed=seed, options={"task": "faucet-open-v3"})
        return observation["images"]

    assert np.array_equal(third_episode(), third_episode())


def test_the_first_image_shows_the_objects_where_they_will_be():
    """Meta-World's own reset moves objects without updating what is seen; here one idle step must change nothing."""
    env = MetaWorld(CONFIG.model_copy(update={"chunk_length": 1, "steps_per_action": 1}))
    before = env.reset(seed=2, options={"task": "faucet-open-v3"})[0]["images"].astype(int)
    seen = env.privileged[4:7]
    after = env.step_chunk(still(env)).observation["images"].astype(int)
    assert np.allclose(seen, env.privileged[4:7], atol=1e-3)
    assert np.abs(after - before).mean() < 1.0


def test_environments_that_share_a_model_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, (3, 4, 4))
    alone, one, other = MetaWorld(CONFIG), MetaWorld(CONFIG), MetaWorld(CONFIG)
    options = {"task": "faucet-close-v3"}
    alone.reset(seed=1, options=options)
    expected = [alone.step_chunk(chunk) for chunk in chunks]
    one.reset(seed=1, options=options)
    other.reset(seed=2, options=options)
    for chunk, result in zip(chunks, expected, strict=True):
        other.step_chunk(-chunk)
        other.render(48)
        assert same(one.step_chunk(chunk), result)


@pytest.mark.parametrize(
    "task", ["basketball-v3", "assembly-v3", "peg-insert-side-v3", "faucet-open-v3", "sweep-into-v3"]
)
def test_a_loaded_state_continues_exactly_in_another_environment(task):
    config = CONFIG.model_copy(update={"tasks": (task,), "reward": "dense"})
    chunks = np.random.default_rng(1).uniform(-1, 1, (6, 4, 4))
    env, other = MetaWorld(config), MetaWorld(config)
    env.reset(seed=3)
    for chunk in chunks[:3]:
        env.step_chunk(chunk)
    state = env.save_state()
    expected = [env.step_chunk(chunk) for chunk in chunks[3:]]
    other.load_state(state)
    assert all(same(other.step_chunk(chunk), result) for chunk, result in zip(chunks[3:], expected, strict=True))
    assert np.array_equal(other.reset()[0]["images"], env.reset()[0]["images"])


def test_a_state_of_another_task_is_refused():
    env = MetaWorld(CONFIG)
    env.reset(seed=0, options={"task": "faucet-open-v3"})
    with pytest.raises(ValueError, match="unknown task 'faucet-open-v3'"):
        MetaWorld(CONFIG, ("coffee-button-v3",)).load_state(env.save_state())


def test_the_dense_reward_is_a_tenth_of_the_simulators_and_an_action_is_held():
    env = MetaWorld(CONFIG.model_copy(update={"reward": "dense", "steps_per_action": 3}))
    env.reset(seed=5)
    simulator, rewards, actions = env._simulator, [], []
    inner = simulator._env.step

    def recording(action):
        result = inner(action)
        actions.append(action)
        rewards.append(result[1])
        return result

    simulator._env.step = recording
    result = env.step_chunk(np.linspace(-1, 1, 16).reshape(4, 4))
    assert result.reward == pytest.approx(0.1 * sum(rewards))
    assert result.num_env_steps == len(actions) == 12
    assert np.array_equal(actions[0], actions[2])
    assert not np.array_equal(actions[2], actions[3])


def test_proprioception_follows_the_hand_and_the_gripper():
    env = MetaWorld(CONFIG)
    start = env.reset(seed=0)[0]["proprio"]
    moved = env.step_chunk(np.tile([1.0, 0.0, 1.0, 1.0], (4, 1))).observation["proprio"]
    assert moved[0] > start[0] + 0.02, "to the right"
    assert moved[2] > start[2] + 0.02, "upwards"
    assert moved[3] < start[3], "closing"
    assert np.abs(moved).max() <= 1.0


def test_a_film_shows_what_the_policy_sees_and_the_arm_besides():
    env = MetaWorld(CONFIG)
    image = env.reset(seed=0)[0]["images"][0].astype(float)
    film = env.render(320).astype(float)
    small = film.reshape(32, 10, 32, 10, 3).mean(axis=(1, 3))
    difference = np.abs(small - image).max(axis=2)
    assert film.shape == (320, 320, 3)
    assert np.median(difference) < 12, "the same scene"
    assert (difference[:12] > 60).sum() > 20, "with the arm at the top"


def test_every_camera_gives_its_own_view_and_every_free_one_sees_the_hand_move():
    cameras = ("workspace", "opposite", "overhead", "corner2", "gripperPOV")
    env = MetaWorld(CONFIG.model_copy(update={"cameras": cameras}))
    before = env.reset(seed=0)[0]["images"]
    after = env.step_chunk(np.tile([1.0, 1.0, -1.0, 0.0], (4, 1))).observation["images"]
    assert len({image.tobytes() for image in before}) == len(cameras)
    for camera, one, other in zip(cameras, before, after, strict=True):
        assert not np.array_equal(one, other), f"{camera} sees nothing move"


def test_each_task_has_its_own_sentence():
    assert set(INSTRUCTIONS) == set(ALL_V3_ENVIRONMENTS)
    assert len(set(INSTRUCTIONS.values())) == 50


def test_opposite_tasks_of_one_scene_look_alike():
    """Meta-World marks the goal with a dot, which would give the task away, so it must not be drawn."""
    opened, closed = Simulator("faucet-open-v3"), Simulator("faucet-close-v3")
    opened.reset(np.random.default_rng(0))
    marks = opened.save_state()["model.site_pos"]
    state = {name: value for name, value in opened.save_state().items() if name in ("physics", "model.body_pos")}
    closed.load_state({**closed.save_state(), **state})
    assert not np.array_equal(marks, closed.save_state()["model.site_pos"])
    images = [simulator.render("workspace", 64, film=False) for simulator in (opened, closed)]
    assert np.array_equal(images[0], images[1])


def test_the_mark_is_drawn_where_the_instruction_speaks_of_it():
    simulator = Simulator("reach-v3")
    before = simulator.render("workspace", 64, film=False)
    state = simulator.save_state()
    simulator.load_state({**state, "model.site_pos": state["model.site_pos"] + 0.05})
    assert "the mark" in INSTRUCTIONS["reach-v3"]
    assert not np.array_equal(simulator.render("workspace", 64, film=False), before)


def test_threads_have_views_of_their_own_and_a_dead_one_disturbs_nobody():
    env = MetaWorld(CONFIG)
    expected = env.reset(seed=4)[0]["images"]
    seen = []

    def work() -> None:
        """Leaves without closing."""
        own = MetaWorld(CONFIG)
        seen.append(own.reset(seed=4)[0]["images"])
        own.render(64)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert len(seen) == 2
    assert all(np.array_equal(images, expected) for images in [*seen, env.reset(seed=4)[0]["images"]])


def test_closing_one_environment_leaves_the_others_their_views_and_it_can_start_again():
    one, other = MetaWorld(CONFIG), MetaWorld(CONFIG)
    expected = one.reset(seed=4)[0]["images"]
    other.reset(seed=4)
    other.render(64)
    other.close()
    assert np.array_equal(one.reset(seed=4)[0]["images"], expected)
    with pytest.raises(RuntimeError, match="call reset"):
        other.step_chunk(still(other))
    assert np.array_equal(other.reset(seed=4)[0]["images"], expected)


def test_make_env_gives_the_chosen_tasks_only():
    env = make_env(CONFIG, ("faucet-open-v3",))
    assert env.spec.tasks == ("faucet-open-v3",)
    with pytest.raises(ValueError, match="unknown task 'coffee-button-v3'"):
        env.reset(options={"task": "coffee-button-v3"})


@pytest.mark.parametrize(("task", "is_reused"), [("faucet-open-v3", True), ("handle-press-v3", False)])
def test_the_hand_is_raised_in_simulation_once_where_that_changes_nothing(task, is_reused, monkeypatch):
    def play(same: float) -> tuple[np.ndarray, float]:
        monkeypatch.setattr(metaworld_simulator, "SAME", same)
        simulator = metaworld_simulator.Simulator(task)
        seen = []
        for seed in range(3):
            simulator.reset(np.random.default_rng(seed))
            seconds = simulator._env.data.time
            seen.append(simulator.privileged)
            for action in np.random.default_rng(seed).uniform(-1, 1, (12, 4)).astype(np.float32):
                simulator.step(action)
                seen.append(simulator.privileged)
        monkeypatch.setattr(simulator._env, "do_simulation", lambda *_: pytest.fail("simulated"))
        try:
            simulator.reset(np.random.default_rng(0))
        except pytest.fail.Exception:
            assert same < 0 or not is_reused
        else:
            assert same > 0 and is_reused
        simulator.close()
        return np.array(seen), seconds

    (reusing, reusing_s), (simulating, simulating_s) = play(metaworld_simulator.SAME), play(-1.0)
    assert np.array_equal(reusing, simulating)
    assert reusing_s == simulating_s
