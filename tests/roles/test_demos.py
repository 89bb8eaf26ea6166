"""Recording an expert on `dots`, and the files of a data set."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from accerl.config import ConfigError, DemosConfig, EnvConfig
from accerl.demos import Demonstration, load, record, save, single_action
from accerl.envs import make_env, make_expert
from accerl.lerobot.recordings import open_recording

DOTS = EnvConfig(
    suite="dots", tasks=("red", "blue"), image_size=16, chunk_length=4, steps_per_action=2, max_decisions=6
)
CONFIG = DemosConfig(episodes_per_task=2, speed=0.8, noise=0.1, episodes_per_shard=3)


def recorded(config: DemosConfig = CONFIG, env: EnvConfig = DOTS) -> list[Demonstration]:
    single = single_action(env, config)
    recording = make_env(single)
    return record(recording, make_expert(single, recording, speed=config.speed, noise=config.noise), config)


def same(first: Demonstration, second: Demonstration) -> bool:
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(Demonstration)]
    return all(
        np.array_equal(one, other) and getattr(one, "dtype", 0) == getattr(other, "dtype", 0) for one, other in pairs
    )


def test_an_episode_is_recorded_action_by_action_with_the_patience_that_was_asked_for():
    single = single_action(DOTS, DemosConfig(patience=1.5))
    assert (single.chunk_length, single.max_decisions) == (1, 36)
    assert single.model_copy(update={"chunk_length": 4, "max_decisions": 6}) == DOTS
    limited = DOTS.model_copy(update={"max_env_steps": 21})
    assert single_action(limited, DemosConfig(patience=2.0)).max_env_steps == 42


def test_as_many_successes_of_each_task_are_kept_as_were_asked_for():
    demonstrations = recorded()
    assert [d.task for d in demonstrations] == ["red", "red", "blue", "blue"]
    assert [d.instruction for d in demonstrations] == [f"go to the {d.task} dot" for d in demonstrations]


def test_the_recorded_actions_lead_from_each_observation_to_the_next():
    for episode in recorded():
        length = len(episode.action)
        assert episode.images.shape == (length, 1, 16, 16, 3)
        assert episode.images.dtype == np.uint8
        assert episode.action.dtype == episode.proprio.dtype == np.float32
        moved = np.diff(episode.proprio, axis=0)
        assert np.allclose(moved, 2 * 0.04 * episode.action[:-1], atol=1e-6)


def test_the_last_observation_shows_the_success_that_ended_the_episode():
    for episode in recorded():
        assert episode.last_images is not None and episode.last_proprio is not None
        assert episode.last_images.shape == episode.images.shape[1:]
        moved = episode.last_proprio - episode.proprio[-1]
        assert 0 < np.abs(moved).max() <= 2 * 0.04 + 1e-6  # at most one action further
        assert not np.array_equal(episode.last_images, episode.images[-1])


def test_a_data_set_without_last_observations_is_read_without(tmp_path: Path):
    save(tmp_path, [replace(d, last_images=None, last_proprio=None) for d in recorded()], DOTS, CONFIG)
    assert all(d.last_images is None and d.last_proprio is None for d in load(tmp_path)[0])


def test_observations_of_every_few_steps_come_back_from_their_shards(tmp_path: Path):
    config = CONFIG.model_copy(update={"draw_every": 3})
    thin = recorded(config)
    for kept, full in zip(thin, recorded(), strict=True):
        assert np.array_equal(kept.action, full.action)
        assert np.array_equal(kept.images, full.images[::3])
        assert np.array_equal(kept.proprio, full.proprio[::3])
    save(tmp_path, thin, DOTS, config)
    loaded, _ = load(tmp_path)
    assert all(same(one, other) for one, other in zip(thin, loaded, strict=True))


def test_the_same_seed_records_the_same_demonstrations_and_no_episode_twice():
    first, second = recorded(), recorded()
    assert all(same(one, other) for one, other in zip(first, second, strict=True))
    assert len({tuple(episode.proprio[0]) for episode in first}) == 4
    assert not same(first[0], recorded(CONFIG.model_copy(update={"seed": 7}))[0])


def test_failed_episodes_are_reported_and_not_kept():
    told: list[tuple[str, bool]] = []
    single = single_action(DOTS, CONFIG).model_copy(update={"tasks": ("red",)})
    env = make_env(single)
    expert = make_expert(single, env, noise=0.1)
    failing = iter([True, False, True, False])

    def sometimes(env) -> np.ndarray:
        if env._loop.num_decisions == 0:
            sometimes.fails = next(failing)
        return np.zeros(2) if sometimes.fails else expert(env)

    kept = record(env, sometimes, CONFIG, lambda task, success: told.append((task, success)))
    assert told == [("red", False), ("red", True), ("red", False), ("red", True)]
    assert len(kept) == 2


def test_failures_are_kept_where_they_count_and_given_to_those_who_ask(tmp_path: Path):
    config = CONFIG.model_copy(update={"keep_failures": True})
    env = make_env(single_action(DOTS, config))
    expert = make_expert(DOTS, env, noise=0.1)
    number = iter(range(100))

    def sometimes(env) -> np.ndarray:
        if env._loop.num_decisions == 0:
            sometimes.fails = next(number) % 2 == 0
        return np.zeros(2) if sometimes.fails else expert(env)

    kept = record(env, sometimes, config)
    assert [demonstration.success for demonstration in kept] == [False, True] * len(DOTS.tasks)
    save(tmp_path, kept, DOTS, config)
    assert [each.success for each in load(tmp_path)[0]] == [True] * len(DOTS.tasks)
    exported = open_recording(tmp_path)
    assert len(exported.episodes) == len(list(exported.play())) == len(DOTS.tasks)
    assert all(same(one, other) for one, other in zip(load(tmp_path, failures=True)[0], kept, strict=True))


def test_an_expert_that_hardly_ever_succeeds_is_given_up():
    env = make_env(single_action(DOTS, CONFIG))
    told: list[bool] = []
    with pytest.raises(RuntimeError, match=r"demos.speed, demos.noise: the expert solved red in 0 of 12 episodes"):
        record(env, lambda env: np.zeros(2), CONFIG, lambda task, success: told.append(success))
    assert told == [False] * 12


# --- files ------------------------------------------------------------------------------------------------------------


def test_demonstrations_come_back_from_their_shards_as_they_were(tmp_path: Path):
    demonstrations = recorded()
    save(tmp_path / "data", demonstrations, DOTS, CONFIG)
    assert len(list((tmp_path / "data").glob("*.safetensors"))) == 2
    restored, env = load(tmp_path / "data")
    assert env == DOTS
    assert all(same(one, other) for one, other in zip(restored, demonstrations, strict=True))


def test_saving_again_replaces_the_data_set(tmp_path: Path):
    demonstrations = recorded()
    save(tmp_path, demonstrations, DOTS, CONFIG)
    save(tmp_path, demonstrations[:1], DOTS, CONFIG)
    restored, _ = load(tmp_path)
    assert len(restored) == 1 and same(restored[0], demonstrations[0])


def test_a_folder_without_a_complete_data_set_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data: .* holds no dataset.json; record one with `accerl demos --out"):
        load(tmp_path)
    save(tmp_path, recorded(), DOTS, CONFIG)
    index = tmp_path / "dataset.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 99}))
    with pytest.raises(ConfigError, match="has format 99, this version reads 1"):
        load(tmp_path)


def test_the_gripper_is_not_scaled_and_dots_has_none(tmp_path: Path):
    for suite, mask in (("dots", [True, True]), ("metaworld", [True, False])):
        save(tmp_path, recorded()[:1], DOTS.model_copy(update={"suite": suite}), CONFIG)
        assert json.loads((tmp_path / "dataset.json").read_text())["statistics"]["action"]["mask"] == mask
