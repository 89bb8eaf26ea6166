"""Files that are not what they should be: each is refused in one line that names it and what to do, and nothing of the
user's is lost. Wrong settings and command lines are in cli/test_errors.py, LeRobot's in test_lerobot_refusals.py."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from accerl.cli import main
from accerl.config import ConfigError, RunConfig
from accerl.runtime.cluster import Connection
from accerl.runtime.run import Run

SETTINGS: dict[str, Any] = {
    "env": {"suite": "dots", "tasks": ["red", "blue"], "image_size": 16, "max_decisions": 20, "chunk_length": 2},
    "demos": {"speed": 1.0, "noise": 0.1, "episodes_per_shard": 3, "episodes_per_task": 3},
    "policy": {"width": 16, "num_layers": 1, "num_heads": 2},
    "clone": {"updates": 1, "batch_size": 8, "num_threads": 1},
}
SHARD = "shard-00000.safetensors"
Edit = Callable[[Path], Any]


def json_with(name: str, **changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def json_without(name: str, key: str) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return edit


def in_first_shard(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "dataset.json"
        content = json.loads(path.read_text())
        content["shards"][0].update(changes)
        path.write_text(json.dumps(content))

    return edit


def in_first_episode(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "dataset.json"
        content = json.loads(path.read_text())
        content["shards"][0]["episodes"][0].update(changes)
        path.write_text(json.dumps(content))

    return edit


def content(name: str, data: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(data)


def missing(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def tensors(name: str, change: Callable[[dict[str, np.ndarray]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        arrays = load_file(folder / name)
        change(arrays)
        save_file(arrays, folder / name)

    return edit


def tensor(name: str, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    return tensors(name, lambda arrays: arrays.update({key: np.ascontiguousarray(change(arrays[key]))}))


def unsigned(*edits: Edit) -> Edit:
    """The policy as an older version wrote it, without checksums, so that what is in the files is all there is."""

    def edit(folder: Path) -> None:
        (folder / "checkpoint.json").unlink()
        for each in edits:
            each(folder)

    return edit


def not_finite(arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            arrays[name] = np.full_like(array, np.nan)


DATA: list[tuple[str, Edit, str]] = [
    # what is wrong, how it is made, and a part of the message
    ("no index", missing("dataset.json"), "record one with `accerl demos --out data`"),
    ("empty index", content("dataset.json", b""), "dataset.json is not JSON"),
    ("half an index", content("dataset.json", b'{"format": 1'), "dataset.json is not JSON"),
    ("index of bytes", content("dataset.json", b"\xff\xfe"), "dataset.json is not JSON"),
    ("index of a list", content("dataset.json", b"[]"), "holds no object"),
    ("index too deep", content("dataset.json", b"[" * 200_000), "is nested too deeply"),
    ("other format", json_with("dataset.json", format=9), "has format 9, this version reads 1"),
    ("no shards", json_without("dataset.json", "shards"), "shards: is required"),
    ("shards of a number", json_with("dataset.json", shards=3), "shards: "),
    ("empty shards", json_with("dataset.json", shards=[]), "at least 1"),
    ("no environment", json_with("dataset.json", env=None), "env: "),
    ("unknown setting", json_with("dataset.json", env={"siute": "dots"}), "did you mean 'suite'?"),
    ("no settings", json_without("dataset.json", "demos"), "demos: is required"),
    ("bad interval", json_with("dataset.json", demos={"draw_every": 0}), "demos.draw_every: "),
    ("file above", in_first_shard(file="../settings.json"), "shards.0.file: "),
    ("file at a root", in_first_shard(file="/etc/passwd"), "shards.0.file: "),
    ("hidden file", in_first_shard(file=".shard.safetensors"), "shards.0.file: "),
    ("file that is not there", in_first_shard(file="shard-9.safetensors"), "shard-9.safetensors is damaged"),
    ("no episodes", in_first_shard(episodes=[]), "shards.0.episodes: "),
    ("length of nothing", in_first_episode(length=0), "episodes.0.length: "),
    ("length too long", in_first_episode(length=10**9), "rows"),
    ("length of a word", in_first_episode(length="long"), "episodes.0.length: "),
    ("task of a number", in_first_episode(task=3), "episodes.0.task: "),
    ("instruction of a list", in_first_episode(instruction=["go"]), "episodes.0.instruction: "),
    ("no shard", missing(SHARD), f"{SHARD} is damaged"),
    ("empty shard", cut(SHARD, 0), f"{SHARD} is damaged"),
    ("half a shard", cut(SHARD, 700), f"{SHARD} is damaged"),
    ("shard of words", content(SHARD, b"not tensors at all"), f"{SHARD} is damaged"),
    ("no pictures", tensors(SHARD, lambda arrays: arrays.pop("images")), "images is missing"),
    ("pictures of floats", tensor(SHARD, "images", lambda a: a.astype(np.float32)), "images is F32"),
    ("lost frames", tensor(SHARD, "images", lambda a: a[1:]), "images is U8"),
    ("lost actions", tensor(SHARD, "action", lambda a: a[1:]), "action is F32"),
    ("flat actions", tensor(SHARD, "action", lambda a: a[:, 0]), "2 dimensions"),
    ("actions of doubles", tensor(SHARD, "action", lambda a: a.astype(np.float64)), "action is F64"),
    ("last row missing", tensor(SHARD, "last_proprio", lambda a: a[1:]), "last_proprio is F32"),
    ("action not finite", tensor(SHARD, "action", lambda a: a * np.nan), "action of episode 0 is not finite"),
    ("proprio not finite", tensor(SHARD, "proprio", lambda a: a + np.inf), "proprio of episode 0 is not finite"),
    ("other sizes", tensor(SHARD, "images", lambda a: a[:, :, :8]), "mixes episodes of"),
    ("other actions", tensor(SHARD, "action", lambda a: a[:, :1]), "mixes episodes of"),
]
POLICY: list[tuple[str, Edit, str]] = [
    ("no policy.json", missing("policy.json"), "holds none; give a folder made by `accerl clone`"),
    ("no weights", missing("policy.safetensors"), "has no policy.safetensors"),
    ("changed settings", content("policy.json", b"{}"), "policy.json: 2 bytes"),
    ("half the weights", cut("policy.safetensors", 1000), "policy.safetensors: 1000 bytes"),
    ("no manifest's files", content("checkpoint.json", b"[]"), "it names no files"),
    ("settings of a list", unsigned(content("policy.json", b"[1]")), "holds no object"),
    ("other format", unsigned(json_with("policy.json", format=7)), "was written in another format"),
    ("unknown kind", unsigned(json_with("policy.json", kind="nothing")), "policy.kind: 'nothing' is unknown"),
    ("kind of the system", unsigned(json_with("policy.json", kind="os:system")), "'os:system' is part of Python"),
    ("kind that is no class", unsigned(json_with("policy.json", kind="accerl.demos:FORMAT")), "is no class"),
    ("negative width", unsigned(json_with("policy.json", width=-4)), "does not fit this version"),
    ("endless width", unsigned(json_with("policy.json", width=10**9)), "does not fit this version"),
    ("unknown setting", unsigned(json_with("policy.json", wide=4)), "does not fit this version"),
    ("weights of words", unsigned(content("policy.safetensors", b"no weights")), "is damaged"),
    ("one weight fewer", unsigned(tensors("policy.safetensors", lambda a: a.popitem())), "Missing key"),
    ("one weight more", unsigned(tensors("policy.safetensors", lambda a: a.update(b=a["words.weight"]))), "Unexpected"),
    ("not finite", unsigned(tensors("policy.safetensors", not_finite)), "is not finite"),
]
WORLD: list[tuple[str, Edit, str]] = [
    ("no world.json", missing("world.json"), "train one with `accerl wm train --out world`"),
    ("half a world.json", cut("world.json", 20), "world.json is not JSON"),
    ("world.json of a list", content("world.json", b"[]"), "holds no object"),
    ("other format", json_with("world.json", format=2), "was written in another format"),
    ("no model", missing("observation.json"), "observation cannot be read"),
    ("model of a list", content("reward.json", b"[]"), "holds no object"),
    ("unknown kind", json_with("observation.json", kind="guess"), "kind: 'guess' is unknown"),
    ("no weights", missing("reward.safetensors"), "reward cannot be read"),
    ("half the weights", cut("observation.safetensors", 100), "observation cannot be read"),
    ("one weight fewer", tensors("observation.safetensors", lambda a: a.popitem()), "observation cannot be read"),
]
CLONE = "clone --config settings.json --data data --out out"
EVAL = "eval --policy policy --env dots --env.tasks red --env.image-size 16 --env.chunk-length 2 --episodes-per-task 1"
DREAM = "wm eval --world-model world --demos data --held-out 0.5 --out found.json"
CASES = [
    *((f"data: {name}", CLONE, "data", edit, part) for name, edit, part in DATA),
    *((f"policy: {name}", EVAL, "policy", edit, part) for name, edit, part in POLICY),
    *((f"world: {name}", DREAM, "world", edit, part) for name, edit, part in WORLD),
]


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a policy and a world model as the commands make them."""
    folder = tmp_path_factory.mktemp("specimens")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        (folder / "settings.json").write_text(json.dumps(SETTINGS))
        assert main(["demos", "--config", "settings.json", "--out", "data"]) == 0
        assert main(["clone", "--config", "settings.json", "--data", "data", "--out", "policy"]) == 0
        small = "--held-out 0.5 --widths 8,8,8 --observation.updates 1 --reward.updates 1"
        assert main(f"wm train --demos data --out world {small}".split()) == 0
    return folder


@pytest.fixture
def here(specimens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of them, in which commands are given."""
    shutil.copytree(specimens, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert main(line.split()) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("accerl: error: ")
    return message


@pytest.mark.parametrize(
    ("line", "kind", "edit", "part"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_one_line(
    line: str, kind: str, edit: Edit, part: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(here / kind)
    message = refused(line, capsys)
    assert part in message
    assert {path.name for path in here.iterdir()} == {"data", "policy", "settings.json", "world"}, "something was begun"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (CLONE.replace("--out out", "--out settings.json --overwrite"), "out: settings.json is a file"),
        (CLONE.replace("--out out", "--out data"), "out: data holds other files, which would be lost"),
        (CLONE.replace("--out out", "--out . --overwrite"), "out: . holds other files, which would be lost"),
        (CLONE.replace("--out out", "--out policy"), "out: policy holds a policy; add --overwrite"),
        ("wm train --demos data --out policy --overwrite", "out: policy holds other files"),
        ("wm train --demos data --out world", "out: world holds a world model; add --overwrite"),
        ("wm train --demos data --out new", "held_out: 0.1 of 6 episodes leaves none to be held out"),
        ("wm train --demos data --out new --held-out 1", "held_out: 1.0 of 6 episodes leaves none to learn from"),
        (EVAL.replace("length 2", "length 3"), "made for chunk_length=2, but the environment has 3"),
        (EVAL.replace("size 16", "size 24"), "made for image_size=16, but the environment has 24"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_replaced(
    line: str, part: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert part in refused(line, capsys)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


# --- the folder of a run ----------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One that has ended."""
    monkeypatch.chdir(tmp_path)
    config = RunConfig(root=Path("runs"), name="run")
    (config.folder / "logs").mkdir(parents=True)
    (config.folder / "config.json").write_text(config.model_dump_json())
    status = {"state": "finished", "reason": "", "updates": 3, "updated": time.time()}
    (config.folder / "status.json").write_text(json.dumps(status))
    (config.folder / "metrics.jsonl").write_text('{"time": 1.0, "wall_s": 1.0, "decisions": 4, "updates": 3}\n')
    return Run(config.folder)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"state": 3}', b"running", b"\xff\xfe"], ids=repr)
def test_a_run_whose_state_is_damaged_is_dead_and_can_be_resumed(
    data: bytes, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.folder / "status.json").write_bytes(data)
    assert run.status()["state"] == "dead"
    assert "status.json is damaged" in run.status()["reason"]
    assert main(["status", "run"]) == 0
    assert "no checkpoint yet" in refused("train --resume run", capsys)


@pytest.mark.parametrize("name", ["metrics.jsonl", "incidents.jsonl", "events.jsonl"])
@pytest.mark.parametrize(
    "line", [b"nope", b"[3]", b"\xff\xfe", b"", b"[" * 200_000], ids=["nope", "[3]", "ff", "", "[["]
)
def test_a_damaged_line_is_named(line: bytes, name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / name).write_bytes(b'{"time": 1.0, "role": "a", "what": "b", "action": "c"}\n' + line + b"\n")
    message = refused("report run --out report.html", capsys)
    assert f"line 2 of runs/run/{name} is damaged; remove that line" in message
    assert not Path("report.html").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": "a:1"}', "nope"])
def test_a_damaged_connection_file_is_named(text: str, run: Run) -> None:
    path = run.folder / "connection.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"connection\.json is damaged"):
        Connection.load(run.folder)
