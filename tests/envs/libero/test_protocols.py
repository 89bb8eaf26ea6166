"""What others fix when they evaluate on LIBERO, and when a figure is not honest."""

from __future__ import annotations

import json

import pytest

from accerl.config import ConfigError, EnvConfig
from accerl.envs.libero.protocols import PROTOCOLS, describe, leakage
from accerl.envs.libero.suites import SUITES

LIMITS = {
    "openvla-oft": {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    },
    "simplevla-rl": dict.fromkeys(SUITES, 512),
    "rlinf": dict.fromkeys(SUITES, 512),
}


def env_of(suite: str = "libero_spatial", **fields) -> EnvConfig:
    return EnvConfig(**{"suite": suite, "tasks": ("full_name",), **fields})


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("name", LIMITS)
def test_a_protocol_limits_the_environment_steps_and_no_chunk_is_lost(name, suite):
    limit = LIMITS[name][suite]
    for chunk_length, steps_per_action in ((1, 1), (8, 1), (5, 2)):
        env = PROTOCOLS[name].apply(env_of(suite, chunk_length=chunk_length, steps_per_action=steps_per_action))
        a_chunk = chunk_length * steps_per_action
        assert env.max_env_steps == limit
        assert (env.max_decisions - 1) * a_chunk < limit <= env.max_decisions * a_chunk


@pytest.mark.parametrize(("name", "steps"), [("openvla-oft", 10), ("simplevla-rl", 10), ("rlinf", 15)])
def test_a_protocol_plays_all_initial_states_after_some_steps_of_rest(name, steps):
    libero = PROTOCOLS[name].apply(env_of(libero={"settle_steps": 3, "init_states": "train"})).libero
    assert (libero.init_states, libero.settle_steps, libero.settle_gripper) == ("all", steps, -1.0)
    assert PROTOCOLS[name].episodes_per_task == 50


def test_what_the_policy_sees_and_does_at_once_is_left_to_it():
    env = env_of(image_size=224, cameras=("frontview",), chunk_length=5, libero={"lag": True, "reflections": True})
    changed = PROTOCOLS["openvla-oft"].apply(env)
    for field in ("suite", "tasks", "image_size", "cameras", "chunk_length", "steps_per_action", "reward"):
        assert getattr(changed, field) == getattr(env, field)
    assert changed.libero.lag and changed.libero.reflections


def test_protocols_are_for_libero_only():
    with pytest.raises(ConfigError, match=r"^protocol: 'rlinf' is for LIBERO, not for env.suite='dots'; leave it out"):
        PROTOCOLS["rlinf"].apply(EnvConfig(suite="dots", tasks=("red",)))


def test_a_figure_is_printed_with_its_conditions():
    env = env_of(libero={"init_states": "evaluation", "settle_steps": 5})
    own = describe(env, None)
    assert (own["protocol"], own["init_states"], own["max_env_steps"]) == ("held-out initial states", "30 to 49", 220)
    assert (own["suite"], own["settle_steps"], own["settle_gripper"]) == ("libero_spatial", 5, -1.0)
    assert (own["observations"], own["reflections"], own["chunk_length"]) == ("fresh", False, 8)
    assert json.loads(json.dumps(own)) == own
    theirs = describe(PROTOCOLS["rlinf"].apply(env), "rlinf")
    assert (theirs["protocol"], theirs["init_states"], theirs["max_env_steps"]) == ("rlinf", "0 to 49", 512)
    assert describe(env_of(libero={"lag": True}), None)["observations"] == "2 ms late"


def test_initial_states_of_the_training_are_not_called_held_out():
    told = describe(env_of(libero={"init_states": "train"}), None)
    assert (told["protocol"], told["init_states"]) == ("none", "0 to 29")


@pytest.mark.parametrize(
    ("evaluated", "trained", "seen"),
    [
        ("evaluation", "train", None),
        ("evaluation", None, None),
        ("all", None, None),
        ("train", "evaluation", None),
        ("all", "train", "30 of the 50"),
        ("train", "train", "30 of the 30"),
        ("evaluation", "all", "20 of the 20"),
        ("all", "evaluation", "20 of the 50"),
    ],
)
def test_evaluating_where_a_policy_was_trained_is_warned_of(evaluated, trained, seen):
    warning = leakage(evaluated, trained)
    if seen is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(f"leakage: the policy was trained on {seen} initial states")
