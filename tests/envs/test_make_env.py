import subprocess
import sys

import pytest

from accerl.config import ConfigError, EnvConfig
from accerl.envs import check_tasks, make_env, make_expert
from accerl.envs.dots import Dots


def own_suite(config: EnvConfig, tasks: tuple[str, ...]) -> Dots:
    return Dots(config, tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "metaword"}, "env.suite: 'metaword' is unknown; did you mean 'metaworld'?"),
        ({"suite": "os:system"}, "env.suite: 'os:system' is part of Python; name an object of a package of yours"),
        ({"suite": "no_such_package:make"}, "env.suite: cannot import 'no_such_package'"),
        ({"suite": f"{__name__}:mistyped"}, f"env.suite: '{__name__}' has no 'mistyped'"),
        ({"suite": "accerl.config:__doc__"}, "env.suite: 'accerl.config:__doc__' is no function of (EnvConfig, tasks)"),
        ({"tasks": ("faucet-opne-v3",)}, "env.tasks: unknown task 'faucet-opne-v3'; did you mean 'faucet-open-v3'?"),
        ({"cameras": ("workspac",)}, "env.cameras: unknown camera 'workspac'; did you mean 'workspace'?"),
        ({"suite": "dots"}, "env.tasks: unknown task 'handle-press-v3'; known: blue, red"),
        ({"suite": "gymnasium", "tasks": ("CartPol-v1",)}, "env.tasks: unknown task 'CartPol-v1'; did you mean"),
    ],
)
def test_a_wrong_field_is_named_in_one_line_by_check_tasks_and_by_make_env(changes, message):
    config = EnvConfig(**changes)
    for refuse in (check_tasks, make_env):
        with pytest.raises(ConfigError) as caught:
            refuse(config)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_what_can_be_made_passes_the_check():
    check_tasks(EnvConfig())
    check_tasks(EnvConfig(suite="dots", tasks=("red",)))
    check_tasks(EnvConfig(suite="gymnasium", tasks=("CartPole-v1",)))
    check_tasks(EnvConfig(suite=f"{__name__}:own_suite", tasks=("anything",)))


def test_a_function_of_the_user_is_called_with_the_config_and_the_tasks():
    env = make_env(EnvConfig(suite=f"{__name__}:own_suite", tasks=("red", "blue")), ("blue",))
    assert isinstance(env, Dots)
    assert env.spec.tasks == ("blue",)


def test_a_suite_without_expert_says_so():
    config = EnvConfig(suite=f"{__name__}:own_suite", tasks=("red",))
    with pytest.raises(ConfigError, match=r"env.suite: .* has no scripted expert"):
        make_expert(config, make_env(config))


def test_importing_the_package_and_checking_tasks_imports_no_simulator():
    program = (
        "import sys; from accerl.config import EnvConfig; from accerl.envs import check_tasks;"
        "check_tasks(EnvConfig());"
        "print([name for name in ('mujoco', 'metaworld', 'gymnasium', 'torch') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
