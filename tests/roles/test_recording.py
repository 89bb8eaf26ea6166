"""Recording in worker processes, on `dots`: what was cut off goes on, and what was tampered with is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accerl.config import ConfigError, DemosConfig, EnvConfig
from accerl.demos import Demonstration, load, save
from accerl.envs.dots import Dots
from accerl.episode_pool import Incident, PoolConfig
from accerl.recording import clear, draw_images, physics_of, play_episodes, read_recorded
from accerl.statistics import summarize

DOTS = EnvConfig(
    suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=4, steps_per_action=2, max_decisions=6
)
CONFIG = DemosConfig(episodes_per_task=3, speed=0.8, noise=0.1, episodes_per_shard=4)
POOL = PoolConfig(num_workers=2)


class Calls:
    """What a recording reports."""

    def __init__(self) -> None:
        self.episodes: list[str] = []
        self.shards: list[str] = []
        self.incidents: list[Incident] = []


def record(folder: Path, config: DemosConfig = CONFIG, env: EnvConfig = DOTS, pool: PoolConfig = POOL) -> Calls:
    """Both passes."""
    calls = Calls()
    recorded = play_episodes(folder, env, config, pool, calls.episodes.append, calls.incidents.append)
    draw_images(folder, env, config, recorded, pool, calls.shards.append, calls.incidents.append)
    return calls


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written(folder: Path) -> dict[str, int]:
    """Files and when they were written."""
    return {name: (folder / name).stat().st_mtime_ns for name in content(folder)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete recording, not to be changed."""
    folder = tmp_path_factory.mktemp("original")
    calls = record(folder)
    assert sorted(calls.episodes) == ["blue"] * 3 + ["red"] * 3
    assert sorted(calls.shards) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert calls.incidents == []
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the complete recording."""
    for name, data in content(original).items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "data"


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_a_recording_is_a_data_set_of_successful_episodes(original):
    demonstrations, env = load(original)
    assert env == DOTS
    assert [demonstration.task for demonstration in demonstrations] == ["red"] * 3 + ["blue"] * 3
    for episode in demonstrations:
        assert episode.instruction == f"go to the {episode.task} dot"
        assert episode.images.shape == (len(episode.action), 1, 16, 16, 3)
        assert (episode.images.dtype, episode.action.dtype, episode.proprio.dtype) == (np.uint8, np.float32, np.float32)
        assert np.allclose(np.diff(episode.proprio, axis=0), 2 * 0.04 * episode.action[:-1], atol=1e-6)
    assert len({tuple(episode.proprio[0]) for episode in demonstrations}) == 6


def test_the_index_tells_each_episode_and_the_statistics(original):
    index = json.loads((original / "dataset.json").read_text())
    demonstrations, _ = load(original)
    assert [len(shard["episodes"]) for shard in index["shards"]] == [4, 2]
    episodes = [episode for shard in index["shards"] for episode in shard["episodes"]]
    assert [episode["length"] for episode in episodes] == [len(episode.action) for episode in demonstrations]
    assert len({episode["seed"] for episode in episodes}) == 6
    statistics = index["statistics"]
    actions = np.concatenate([episode.action for episode in demonstrations])
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (len(actions), 6)
    assert statistics["action"] == summarize(actions, mask=statistics["action"]["mask"])
    assert statistics["proprio"] == summarize(np.concatenate([episode.proprio for episode in demonstrations]))


def test_each_episode_keeps_the_states_before_its_actions(original):
    for path in sorted((original / "episodes").iterdir()):
        recorded, arrays = read_recorded(path), load_file(path)
        assert len(arrays["states"]) == len(arrays["action"]) == recorded.length
        assert arrays["states"].dtype == np.float64
        moved = np.diff(arrays["states"][:, 2:4], axis=0)  # a count, whether it has ended, then the agent
        assert np.allclose(moved, 2 * 0.04 * arrays["action"][:-1], atol=1e-6)


@pytest.mark.parametrize("every", [2, 5])
def test_observations_can_be_drawn_every_few_steps_and_are_the_same_ones(every, original, tmp_path):
    record(tmp_path / "data", CONFIG.model_copy(update={"draw_every": every}))
    for thin, full in zip(load(tmp_path / "data")[0], load(original)[0], strict=True):
        assert thin.every == every
        assert np.array_equal(thin.action, full.action)
        assert np.array_equal(thin.images, full.images[::every])
        assert np.array_equal(thin.proprio, full.proprio[::every])


def test_the_recording_does_not_depend_on_the_number_of_workers(original, tmp_path):
    record(tmp_path, pool=PoolConfig(num_workers=1))
    assert content(tmp_path) == content(original)


def test_an_expert_that_fails_is_tried_again_with_other_noise(tmp_path):
    config = CONFIG.model_copy(update={"speed": 0.5, "noise": 1.5, "patience": 1.0})
    recorded = play_episodes(tmp_path, DOTS, config, POOL)
    assert len(recorded) == 6
    assert max(episode.tried for episode in recorded) > 1
    assert all(episode.start == int(episode.path.stem[-5:]) + episode.tried - 1 for episode in recorded)


def test_a_failure_that_counts_is_kept_and_not_tried_again(tmp_path):
    changes = {"speed": 0.5, "noise": 1.5, "patience": 1.0, "keep_failures": True}
    record(tmp_path, config=CONFIG.model_copy(update=changes))
    found = [demonstration.success for demonstration in load(tmp_path, failures=True)[0]]
    assert set(found) == {True, False}
    assert len(load(tmp_path)[0]) == sum(found)
    assert all(read_recorded(path).tried == 1 for path in (tmp_path / "episodes").glob("*.safetensors"))


def test_an_expert_that_never_succeeds_is_given_up_with_a_remedy(tmp_path):
    config = CONFIG.model_copy(update={"speed": 0.01, "noise": 0.0, "episodes_per_task": 1})
    with pytest.raises(RuntimeError, match=r"^(red|blue): raised: .* failed 20 times in a row; raise demos.speed or"):
        play_episodes(tmp_path, DOTS, config, POOL)


# --- what is there is not made again ----------------------------------------------------------------------------------


def test_a_complete_recording_is_left_as_it_is(folder):
    before = written(folder)
    calls = record(folder)
    assert sorted(calls.episodes) == ["blue"] * 3 + ["red"] * 3
    assert sorted(calls.shards) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert {name for name, time in written(folder).items() if time != before[name]} == {"dataset.json"}


@pytest.mark.parametrize(
    "lost",
    [
        ("episodes/000-00001.safetensors",),
        ("shard-00000.json", "shard-00000.safetensors"),
        ("shard-00001.json",),
        ("episodes/001-00002.safetensors", "shard-00001.json", "shard-00001.safetensors", "dataset.json"),
    ],
)
def test_what_is_missing_is_made_again_and_nothing_else(lost, folder, original):
    for name in lost:
        (folder / name).unlink()
    before = written(folder)
    record(folder)
    assert content(folder) == content(original)
    shards = {name.replace(".json", ".safetensors") for name in lost if name.startswith("shard")}
    made = {name for name, time in written(folder).items() if before.get(name) != time}
    assert made == {*lost, *shards, "dataset.json"}


def test_a_recording_that_is_interrupted_goes_on(original, tmp_path):
    told: list[str] = []

    def interrupt(task: str) -> None:
        told.append(task)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_episodes(tmp_path, DOTS, CONFIG, POOL, interrupt)
    there = set((tmp_path / "episodes").glob("*.safetensors"))
    assert 2 <= len(there) < 6
    before = {path: path.stat().st_mtime_ns for path in there}
    record(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in there} == before
    assert {name: data for name, data in content(tmp_path).items() if not name.endswith(".part")} == content(original)


@pytest.mark.parametrize(
    ("env", "config"),
    [
        (DOTS.model_copy(update={"image_size": 32}), CONFIG),
        (DOTS, CONFIG.model_copy(update={"noise": 0.2})),
        (DOTS, CONFIG.model_copy(update={"episodes_per_task": 4})),
    ],
)
def test_other_settings_are_refused(env, config, folder):
    before = content(folder)
    with pytest.raises(ConfigError, match=r"out: .* holds a recording with other settings; add --overwrite or give"):
        play_episodes(folder, env, config, POOL)
    assert content(folder) == before


def test_a_data_set_that_was_recorded_in_one_process_is_refused(tmp_path, original):
    demonstrations, _ = load(original)
    save(tmp_path, demonstrations, DOTS, CONFIG)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"out: .* holds a data set; add --overwrite"):
        play_episodes(tmp_path, DOTS, CONFIG, POOL)
    assert content(tmp_path) == before


def test_shards_of_another_recording_are_not_taken_for_its_own(tmp_path, original):
    demonstrations: list[Demonstration] = load(original)[0]
    save(tmp_path, demonstrations[::-1], DOTS, CONFIG)
    (tmp_path / "dataset.json").unlink()  # as if it had been interrupted
    record(tmp_path)
    assert content(tmp_path) == content(original)


def test_clearing_removes_the_recording_and_nothing_else(folder):
    (folder / "notes.txt").write_text("mine")
    clear(folder)
    assert content(folder) == {"notes.txt": b"mine"}
    clear(folder / "nowhere")


# --- what was played is what was recorded -----------------------------------------------------------------------------


def test_a_state_that_is_not_the_recorded_one_is_found(folder):
    path = folder / "episodes" / "001-00001.safetensors"
    recorded, arrays = read_recorded(path), load_file(path)
    arrays["states"][2, 4] += 1e-6
    fields = {"task": "blue", "instruction": recorded.instruction, "seed": recorded.seed, "start": recorded.start}
    fields |= {"length": recorded.length, "tried": recorded.tried}
    save_file(arrays, path, metadata={"episode": json.dumps(fields)})
    (folder / "shard-00001.json").unlink()
    with pytest.raises(RuntimeError, match=r"001-00001.safetensors: at step 2 the state differs by 1.0e-06"):
        record(folder)
    assert not (folder / "shard-00001.json").exists()


def test_physics_are_all_numbers_of_a_simulator_other_than_mujoco():
    env = Dots(DOTS)
    env.reset(seed=0)
    state = env.save_state()
    assert physics_of(env).tolist() == [0, 0, *state["agent"], *state["goals"].ravel()]


def test_the_state_of_mujoco_is_taken_where_there_is_one():
    class Fake:
        def save_state(self):
            return {"physics": np.arange(3.0), "task": np.array("x"), "number": np.array(1)}

    fake: Any = Fake()
    assert physics_of(fake).tolist() == [0.0, 1.0, 2.0]
