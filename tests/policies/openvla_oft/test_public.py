"""A folder in the public layout is a policy for every command; what its files leave open comes from the environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accerl.checkpoint import is_public, load_policy, save_policy
from accerl.cli import main
from accerl.config import ConfigError, EnvConfig, RunConfig, merge
from accerl.envs.dots import Dots
from accerl.policies.openvla_oft import OpenVLAOFT
from accerl.policies.openvla_oft.checkpoint import open_fields
from accerl.runtime.preflight import check, start_policy
from tests.policies.openvla_oft.reference import KEY, statistics

SUITE = "tests.policies.openvla_oft.test_public:arm"
ENV = {"suite": SUITE, "tasks": ("red",), "image_size": 16, "chunk_length": 8, "max_decisions": 3}


class Arm(Dots):
    """`dots` with seven dimensions of action, of which two do something."""

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...] | None = None) -> None:
        super().__init__(config, tasks)
        self.spec = replace(self.spec, action_dim=7)

    def step_chunk(self, actions: Any, on_step: Any = None) -> Any:
        return super().step_chunk(actions[:, :2], on_step)


def arm(config: EnvConfig, tasks: tuple[str, ...]) -> Arm:
    return Arm(config, tasks)


def config(folder: Path, **fields: Any) -> RunConfig:
    own = {"env": ENV, "policy.kind": "openvla_oft", "policy.checkpoint": str(folder)}
    return RunConfig(**merge({}, own | fields))


def test_it_is_told_from_other_folders(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    assert is_public(checkpoints["film"])
    assert not is_public(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"env": {}}))
    assert not is_public(tmp_path)


def test_it_is_evaluated_in_an_environment_that_is_named(checkpoints: dict[str, Path], tmp_path: Path, capsys) -> None:
    line = ["eval", "--policy", str(checkpoints["film"]), "--episodes-per-task", "2", "--out", str(tmp_path / "e.json")]
    assert main(line) == 2
    assert "does not say which environment it is for" in capsys.readouterr().err
    settings = [f"--env={SUITE}", "--env.tasks=red", "--env.max-decisions=2", "--env.chunk-length=8"]
    assert main([*line, *settings, "--env.image-size=16"]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["episodes"] == 2
    assert main([*line, *settings, "--env.chunk-length=4"]) == 2
    assert "made for chunk_length=8, but the environment has 4" in capsys.readouterr().err


@pytest.mark.parametrize("probability", [False, True])
def test_a_run_starts_from_it_with_a_value_head_for_the_environment(
    probability: bool, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    own = config(checkpoints["film"], **{"objective.value_loss": "bce" if probability else "mse"})
    check(own)
    policy: Any = start_policy(own)
    assert isinstance(policy, OpenVLAOFT)
    assert (policy.config.max_decisions, policy.config.value_probability) == (3, probability)
    assert policy.config.gripper == "none"
    save_policy(tmp_path / "start", policy.config_dict(), policy.state_dict())
    again = load_policy(tmp_path / "start")
    assert again.config_dict() == policy.config_dict()


def test_what_the_files_say_goes_before_the_environment(checkpoints: dict[str, Path]) -> None:
    spec = Arm(EnvConfig(**ENV)).spec
    folder = checkpoints["film"]
    assert "num_images" not in open_fields(folder, EnvConfig(**ENV), spec), "its config.json has it"
    assert open_fields(folder, EnvConfig(**ENV), spec, True, "mine")["norm_stats_key"] == "mine"


def test_of_several_data_sets_the_suites_is_taken(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((checkpoints["film"] / "config.json").read_text())
    several = {**statistics(), "other": statistics()[KEY]}
    (tmp_path / "dataset_statistics.json").write_text(json.dumps(several))
    env = EnvConfig(**ENV).model_copy(update={"suite": "libero_spatial"})
    fields = open_fields(tmp_path, env, Arm(EnvConfig(**ENV)).spec)
    assert (fields["norm_stats_key"], fields["gripper"]) == ("libero_spatial", "libero")


def test_what_does_not_fit_is_refused_before_anything_starts(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"^env\.chunk_length: 4 does not fit policy\.checkpoint="):
        check(config(checkpoints["film"], **{"env.chunk_length": 4}))
    with pytest.raises(ConfigError, match=r"^env\.cameras: 1 does not fit policy\.checkpoint=.*num_images=2"):
        check(config(checkpoints["two_images"]))
    with pytest.raises(ConfigError, match=r"^norm_stats_key: 'bridge' is unknown"):
        check(config(checkpoints["film"], **{"policy.norm_stats_key": "bridge"}))
    with pytest.raises(
        ConfigError, match=r"^policy\.checkpoint: openvla_oft begins with a public checkpoint; give its"
    ):
        check(config(checkpoints["film"], **{"policy.checkpoint": None}))
    check(config(checkpoints["film"], **{"policy.kind": "openvla_oft_tiny"}))
