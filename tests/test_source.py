"""What no module may do with what comes from a file or the network: have it executed, or unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WALKED = ("accerl", "accerl_wm", "accerl_ext", "benchmarks", "tutorials")
UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pandas"}
"""Modules that turn bytes into code or objects of any kind."""
SERVERS = {"multiprocessing.connection.Listener", "multiprocessing.connection.Client"}
SERVERS |= {"multiprocessing.managers.BaseManager", "multiprocessing.managers.SyncManager"}
"""They unpickle what comes over a socket. Pipes between a process and its children are nobody else's."""
EXECUTES = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "builtins.eval"}
LOADS = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "np.load": ("allow_pickle", False),
}
"""Functions that unpickle unless told otherwise, or when told to, and what they must be told."""
SAFE_BY_DEFAULT = {"numpy.load", "np.load"}
ALLOWED = {
    ("accerl/policies/openvla_oft/checkpoint.py", "pickle"): "the name of the error that weights_only=True raises",
    (
        "benchmarks/weight_peers.py",
        "multiprocessing.managers.BaseManager",
    ): "between its own processes, with a key that they inherit",
    ("accerl/runtime/cluster_doctor.py", "cloudpickle"): "says that a module is to be sent along; reads nothing",
}
"""With the reason."""


def dangers(source: str) -> Iterator[str]:
    """Names of what a module should not do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from _forbidden(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _forbidden([node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Call):
            yield from _dangers_of(node)


def _forbidden(modules: Iterator[str] | list[str]) -> Iterator[str]:
    found = set()
    for module in modules:
        found |= UNPICKLES & set(module.split("."))
        if module in SERVERS:
            found.add(module)
    yield from found


def _dangers_of(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    told = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in EXECUTES:
        yield name
    if name in LOADS:
        keyword, wanted = LOADS[name]
        if told.get(keyword, str(wanted) if name in SAFE_BY_DEFAULT else None) != str(wanted):
            yield name
    if told.get("shell", "False") != "False":
        yield "shell"
    if name.startswith("yaml.") and name not in ("yaml.safe_load", "yaml.safe_dump", "yaml.dump"):
        yield name
    if name.endswith((".extractall", ".unpack_archive")) and told.get("filter") != "'data'":
        yield name.rpartition(".")[2]


def test_nothing_that_is_read_is_executed_or_unpickled():
    files = [path for folder in WALKED for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    found = {
        (str(path.relative_to(ROOT)), danger) for path in files for danger in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED), "name new ones in ALLOWED with the reason, remove those that are gone"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from ray import cloudpickle", ["cloudpickle"]),
        ("from multiprocessing.connection import Listener", ["multiprocessing.connection.Listener"]),
        ("from multiprocessing.connection import Connection, wait", []),
        ("eval(text)", ["eval"]),
        ("os.system(text)", ["os.system"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path)", []),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("yaml.load(text, yaml.Loader)", ["yaml.load"]),
        ("yaml.safe_load(text)", []),
        ("subprocess.run(text, shell=True)", ["shell"]),
        ("archive.extractall(folder)", ["extractall"]),
        ("archive.extractall(folder, filter='data')", []),
        ("policy.eval(); re.compile(text)", []),
    ],
)
def test_the_danger_is_seen(source: str, expected: list[str]):
    assert list(dangers(source)) == expected
