"""The suites of LIBERO by name: what is known of them without a simulator, and without LIBERO itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator

import pytest

from accerl.config import ConfigError, EnvConfig, RunConfig
from accerl.envs import check_tasks, make_env
from accerl.envs.libero import installation
from accerl.envs.libero.suites import (
    CAMERAS,
    EVALUATION_STATES,
    SPLITS,
    STEP_LIMITS,
    SUITES,
    TRAIN_STATES,
    init_states,
    task_names,
    tasks_of,
)

BOWL = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
"""Task 0 of `libero_spatial`."""


@pytest.fixture
def without_libero(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    find_spec = importlib.util.find_spec

    def hide(name: str, *args):
        return None if name == "libero" else find_spec(name, *args)

    caches = (installation.benchmark, tasks_of)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    yield
    for cache in caches:
        cache.cache_clear()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suite", "num_tasks"), [*((suite, 10) for suite in SUITES[:4]), ("libero_90", 90)])
def test_a_suite_has_its_tasks_in_the_order_of_their_ids(suite, num_tasks):
    tasks = tasks_of(suite)
    assert len(tasks) == num_tasks
    assert task_names(suite, ("all",)) == tuple(tasks)
    assert task_names(suite, tuple(map(str, range(num_tasks)))) == tuple(tasks)
    assert all(task.suite == suite and task.name == name and task.problem.is_file() for name, task in tasks.items())


def test_a_task_has_its_instruction_and_fifty_initial_states_that_are_split():
    task = tasks_of("libero_spatial")[BOWL]
    assert task.instruction == "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert len(init_states(task)) == 50
    assert sorted((*TRAIN_STATES, *EVALUATION_STATES)) == list(SPLITS["all"]) == list(range(50))


def test_names_and_ids_can_be_mixed_and_none_counts_twice():
    first, second, *_ = tasks_of("libero_spatial")
    assert first == BOWL
    assert task_names("libero_spatial", ("1", first, "0", second)) == (second, first)
    assert task_names("libero_spatial", ("1", "all"))[:2] == (second, first)
    assert len(task_names("libero_spatial", ("1", "all"))) == 10


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [("all", 10), (("all",), 10), (["0", "2"], 2), ([0, 2], 2), ("3", 1), (3, 1), ([BOWL, "1"], 2)],
)
def test_a_configuration_takes_names_ids_or_all_and_holds_names(tasks, expected):
    found = EnvConfig(**{"suite": "libero_spatial", "tasks": tasks}).tasks
    assert len(found) == expected
    assert set(found) <= set(tasks_of("libero_spatial"))


@pytest.mark.parametrize(
    ("suite", "task", "message"),
    [
        ("libero_spatial", "10", "'10' is no task of libero_spatial, nor an id from 0 to 9; give a name, or all"),
        ("libero_90", "90", "'90' is no task of libero_90, nor an id from 0 to 89; give a name, or all"),
        ("libero_spatial", f"{BOWL}s", f"nor an id from 0 to 9; did you mean '{BOWL}'?"),
        ("libero_90", "fly", "nor an id from 0 to 89; give a name, or all"),
        ("libero_spatial", "-1", "nor an id from 0 to 9; give a name, or all"),
    ],
)
def test_an_unknown_task_is_refused_with_what_could_be_meant(suite, task, message):
    with pytest.raises(ConfigError, match=r"^env\.tasks: ") as refused:
        task_names(suite, (task,))
    assert message in str(refused.value)
    with pytest.raises(ConfigError, match=r"^env\.tasks: ") as refused:
        check_tasks(
            EnvConfig(suite="libero_spatial", tasks=(BOWL,)).model_copy(update={"suite": suite, "tasks": (task,)})
        )
    assert message in str(refused.value)


def test_an_id_that_does_not_exist_is_refused_by_its_field_as_soon_as_it_is_read():
    with pytest.raises(ConfigError, match=r"^env\.tasks: '10' is no task of libero_spatial"):
        RunConfig(env={"suite": "libero_spatial", "tasks": ["10"]})  # pyright: ignore[reportArgumentType]


def test_an_unknown_suite_or_camera_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"^env\.suite: 'libero_spatail' is unknown; did you mean 'libero_spatial'\?"):
        RunConfig(env={"suite": "libero_spatail"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"^env\.cameras: 'agentveiw' is unknown; did you mean 'agentview'\?"):
        check_tasks(EnvConfig(suite="libero_spatial", tasks=(BOWL,), cameras=("agentveiw",)))


def test_a_function_of_your_own_may_be_in_a_package_that_is_called_like_a_suite():
    assert EnvConfig(suite="libero_plus.envs:make", tasks=("anything",)).image_size == EnvConfig().image_size


# --- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "max_env_steps", "max_decisions"),
    [
        ("libero_spatial", 220, 28),  # 27.5 chunks of 8
        ("libero_object", 280, 35),
        ("libero_goal", 300, 38),
        ("libero_10", 520, 65),
        ("libero_90", 400, 50),
    ],
)
def test_a_suite_brings_the_defaults_of_openvla_ofts_evaluation(suite, max_env_steps, max_decisions):
    env = EnvConfig(suite=suite)
    assert (env.max_env_steps, env.max_decisions) == (max_env_steps, max_decisions)
    assert (env.chunk_length, env.steps_per_action, env.cameras) == (8, 1, CAMERAS)
    assert env.tasks == tuple(tasks_of(suite))
    assert STEP_LIMITS[suite] == max_env_steps


@pytest.mark.parametrize(
    ("fields", "max_env_steps", "max_decisions"),
    [
        ({"chunk_length": 5}, 220, 44),
        ({"chunk_length": "5", "steps_per_action": 2}, 220, 22),
        ({"max_env_steps": 512}, 512, 64),
        ({"max_env_steps": "64"}, 64, 8),
        ({"max_env_steps": None}, None, 28),
        ({"max_decisions": 3}, 220, 3),
        ({"max_env_steps": None, "max_decisions": 7}, None, 7),
    ],
)
def test_what_is_given_goes_before_the_defaults_and_the_decisions_follow(fields, max_env_steps, max_decisions):
    env = EnvConfig(**{"suite": "libero_spatial", "tasks": (BOWL,), **fields})
    assert (env.max_env_steps, env.max_decisions) == (max_env_steps, max_decisions)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk_length": 0}, "env.chunk_length: input should be greater than 0"),
        ({"chunk_length": "x"}, "env.chunk_length: input should be a valid integer"),
        ({"max_env_steps": "soon"}, "env.max_env_steps: input should be a valid integer"),
        ({"max_env_steps": -1}, "env.max_env_steps: input should be greater than 0"),
        ({"tasks": None}, "env.tasks: input should be a valid tuple"),
        ({"tasks": ()}, "env.tasks: "),
        ({"steps": 3}, "env.steps: unknown key"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_field(fields, message):
    env = {"suite": "libero_spatial", "tasks": [BOWL], **fields}
    with pytest.raises(ConfigError) as refused:
        RunConfig(env=env)  # pyright: ignore[reportArgumentType]
    assert str(refused.value).startswith(message)


def test_other_suites_keep_their_defaults():
    assert EnvConfig().max_env_steps is None
    assert EnvConfig(suite="dots", tasks=("red",)).chunk_length == EnvConfig().chunk_length


# --- without LIBERO ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_libero")
@pytest.mark.parametrize("tasks", ["all", "0"])
def test_without_libero_the_remedy_is_a_command(tasks):
    with pytest.raises(ConfigError) as refused:
        RunConfig(env={"suite": "libero_spatial", "tasks": tasks})  # pyright: ignore[reportArgumentType]
    command = f"{sys.executable} -m pip install 'accerl[libero]'"
    assert str(refused.value) == f"env.suite: LIBERO is not installed; run `{command}`"


@pytest.mark.usefixtures("without_libero")
def test_settings_with_full_names_load_without_libero(tmp_path):
    config = RunConfig(env=EnvConfig(suite="libero_spatial", tasks=(BOWL,), chunk_length=5))
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    loaded = RunConfig.load(tmp_path / "config.json")
    assert loaded == config
    assert (loaded.env.tasks, loaded.env.max_env_steps) == ((BOWL,), 220)
    for refuse in (check_tasks, make_env):
        with pytest.raises(ConfigError, match=r"^env\.suite: LIBERO is not installed; run `"):
            refuse(loaded.env)


def test_all_tasks_are_written_down_by_name_and_come_back(tmp_path):
    config = RunConfig(env=EnvConfig(suite="libero_goal"))
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert "all" not in json.loads((tmp_path / "config.json").read_text())["env"]["tasks"]
    assert RunConfig.load(tmp_path / "config.json") == config
