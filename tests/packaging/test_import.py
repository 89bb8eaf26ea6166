"""`import accerl` is quick, and Ray stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"ray", "transformers", "mujoco", "torch", "deepspeed"}
KNOW_RAY = ("accerl/runtime/", "accerl_wm/runtime/", "accerl_wm/runtime.py")


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded once `statement` has run."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_accerl_loads_nothing_heavy():
    loaded = modules_after("import accerl")
    assert "accerl" in loaded
    assert not HEAVY & loaded


def test_the_check_above_notices_a_heavy_import():
    assert "mujoco" in modules_after("import accerl, mujoco")


def test_a_process_that_plays_or_replays_loads_no_torch():
    """Nor by the controller's handle that it has: Ray imports what a handle is of."""
    roles = ("accerl.runtime.actors.rollout", "accerl.runtime.actors.replay", "accerl.runtime.controller")
    loaded = modules_after(f"import {', '.join(roles)}")
    assert "ray" in loaded
    assert not {"torch", "transformers", "deepspeed"} & loaded


def imported_modules(source: str) -> set[str]:
    """Top-level modules that `source` imports anywhere, also inside functions or by a literal name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                found.add(module.partition(".")[0])
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import os, ray.util.queue as queue",
        "from ray import remote",
        "def f():\n    from ray.util import placement_group",
        "import importlib\nray = importlib.import_module('ray.util')",
        "if TYPE_CHECKING:\n    import ray",
    ],
)
def test_every_way_to_import_ray_is_seen(source):
    assert "ray" in imported_modules(source)


@pytest.mark.parametrize("source", ["from . import ray", "import rayon", "ray = 'ray'"])
def test_other_names_are_not_taken_for_ray(source):
    assert "ray" not in imported_modules(source)


def test_only_the_runtimes_import_ray():
    sources = [path for package in ("accerl", "accerl_wm", "accerl_ext") for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 10
    strangers = [
        name
        for path in sources
        if not (name := path.relative_to(ROOT).as_posix()).startswith(KNOW_RAY)
        and "ray" in imported_modules(path.read_text(encoding="utf-8"))
    ]
    assert strangers == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("accerl/rollout.py", False),
        ("accerl_wm/imagination.py", False),
        ("tests/test_rollout.py", False),
        ("accerl/runtime/cluster.py", True),
        ("accerl_wm/runtime/pool.py", True),
        ("accerl_wm/runtime.py", True),
    ],
)
def test_ruff_bans_ray_outside_the_runtimes(name, allowed):
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", name, "-"]
    result = subprocess.run(command, cwd=ROOT, input="import ray\n", capture_output=True, text=True)
    assert result.returncode == (0 if allowed else 1), result.stdout + result.stderr
    assert ("TID251" in result.stdout) is not allowed
