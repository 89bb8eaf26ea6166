import subprocess
import sys

import pytest

from accerl.cli import COMMANDS, main
from accerl.quickstart import COMMAND as QUICKSTART

HEAVY = {"torch", "ray", "mujoco", "metaworld", "matplotlib"}


@pytest.fixture(autouse=True)
def on_a_wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_the_overview_lists_every_command(capsys):
    for line in (["--help"], ["-h"], []):
        assert main(line) == 0
        printed = capsys.readouterr().out
        assert all(f"  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS.values(), QUICKSTART], ids=lambda command: command.name)
def test_each_command_explains_itself_its_options_and_gives_examples(command, capsys):
    assert command(["--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ")
    assert command.summary in printed
    for purpose, line in command.examples:
        assert f"# {purpose}" in printed
        assert line in printed
    for name, field in command.options.model_fields.items():
        assert f"--{name}".replace("_", "-") in printed
        assert field.description or field.annotation.__doc__


@pytest.mark.parametrize("command", [*COMMANDS.values(), QUICKSTART], ids=lambda command: command.name)
def test_every_option_in_an_example_exists(command):
    from accerl.cli.options import annotation_of, parse

    for _, line in command.examples:
        start = command.start or f"accerl {command.name}"
        assert line.startswith(start)
        for name in parse(line.removeprefix(start).split(), command.options, command.positional):
            assert annotation_of(command.options, name) is not None, name


def test_help_shows_docstrings_values_and_defaults_of_sections(capsys):
    main(["train", "--help"])
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if "--env.reward" in line]
    assert "success|dense" in found
    assert "the simulator's own reward" in found
    assert found.rstrip().endswith("(success)")


def test_the_quickstarts_help_shows_what_its_recipe_says(capsys):
    from accerl.cli.options import find_file
    from accerl.config import read_file

    recipe = read_file(find_file("quickstart"))
    QUICKSTART(["--help"])
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if "--limits.max-wall-s" in line]
    assert found.rstrip().endswith(f"({recipe['limits']['max_wall_s']})")


@pytest.mark.parametrize("line", ["--help", "train --help", "--version", "status"])
def test_what_only_prints_imports_nothing_heavy(line, tmp_path):
    program = f"import sys; from accerl.cli import main; main({line.split()}); print(*sys.modules, file=sys.stderr)"
    root = str(__file__).partition("/tests/")[0]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        check=True,
    )
    assert not HEAVY & {name.partition(".")[0] for name in ended.stderr.split()}
