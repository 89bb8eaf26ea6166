from pathlib import Path

import pytest

from accerl.cli.options import build, from_file, parse
from accerl.cli.train import TrainOptions
from accerl.config import EnvConfig, ObjectiveConfig, RunConfig


def options(line: str) -> TrainOptions:
    values = parse(line.split(), TrainOptions)
    return build(TrainOptions, from_file(TrainOptions, values), values)


@pytest.mark.parametrize(
    ("line", "section", "field", "value"),
    [
        ("--learner.policy-lr 1e-4", "learner", "policy_lr", 1e-4),
        ("--learner.policy_lr=1e-4", "learner", "policy_lr", 1e-4),
        ("--learner.policy-lr 1 --learner.policy-lr 2", "learner", "policy_lr", 2.0),
        ("--learner.betas 0.8,0.9", "learner", "betas", (0.8, 0.9)),
        ("--env.tasks faucet-open-v3,faucet-close-v3", "env", "tasks", ("faucet-open-v3", "faucet-close-v3")),
        ("--env.tasks=faucet-open-v3", "env", "tasks", ("faucet-open-v3",)),
        ("--limits.max-updates 50", "limits", "max_updates", 50),
        ("--limits.max-updates none", "limits", "max_updates", None),
        ("--objective.sigma inf", "objective", "sigma", float("inf")),
        ("--objective.group-scale false", "objective", "group_scale", False),
        ("--no-objective.group-scale", "objective", "group_scale", False),
        ("--objective.leave-one-out --seed 1", "objective", "leave_one_out", True),
        ("--policy.checkpoint a-b_c/d", "policy", "checkpoint", Path("a-b_c/d")),
    ],
)
def test_an_option_sets_its_field(line, section, field, value):
    assert getattr(getattr(options(line), section), field) == value


def test_naming_a_suite_takes_the_place_of_the_whole_section(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('seed = 3\n[env]\nsuite = "dots"\ntasks = ["red"]\nimage_size = 32\n')
    assert options(f"--config {file}").env.image_size == 32
    for line in ("--env metaworld", "--env=metaworld"):
        found = options(f"--config {file} {line}")
        assert (found.seed, found.env) == (3, EnvConfig())


@pytest.mark.parametrize("line", ["--env dots --env.tasks red", "--env.tasks red --env dots"])
def test_fields_of_the_environment_are_set_after_its_suite_wherever_they_stand(line):
    assert options(line).env == EnvConfig(suite="dots", tasks=("red",))


@pytest.mark.parametrize(("line", "tasks"), [("--env libero_spatial", 10), ("--env libero_goal --env.tasks 1,7", 2)])
def test_a_suite_of_libero_brings_its_tasks_and_limits(line, tasks):
    pytest.importorskip("libero", reason="needs accerl[libero]")
    found = options(f"{line} --env.libero.init-states all").env
    assert found.suite == line.split()[1]
    assert len(found.tasks) == tasks
    assert not any(task.isdecimal() for task in found.tasks)
    assert (found.chunk_length, found.libero.init_states) == (8, "all")
    assert found.max_env_steps == {"libero_spatial": 220, "libero_goal": 300}[found.suite]


def test_a_switch_needs_no_value_and_an_optional_value_may_be_left_out():
    assert options("--detach").detach is True
    assert options("--resume").resume is True
    assert options("--resume --detach").resume is True
    assert options("--resume runs/a").resume == "runs/a"
    assert options("").resume is False


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("seed = 3\n[learner]\npolicy_lr = 0.5\nvalue_lr = 0.5")
    found = options(f"--config {file} --learner.policy-lr 0.1")
    assert (found.seed, found.learner.policy_lr, found.learner.value_lr) == (3, 0.1, 0.5)
    assert found.rollout == RunConfig().rollout


def test_a_recipe_is_found_by_its_name():
    recipe = Path(__file__).parents[2] / "accerl" / "recipes" / "quickstart.toml"
    assert options("--config quickstart").run_config() == RunConfig.load(recipe)


def test_what_a_run_writes_down_can_be_given_as_its_file_again(tmp_path):
    config = RunConfig(seed=4, objective=ObjectiveConfig(sigma=float("inf")))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert options(f"--config {tmp_path / 'config.json'}").run_config() == config
