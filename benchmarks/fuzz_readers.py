"""Everything that reads what somebody else may have written: a specimen that is well, and the call that reads it."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accerl import checkpoint, demos, lerobot, trajectories
from accerl.cli import main
from accerl.cli.options import RunOptions, build, from_file, parse
from accerl.config import ConfigError, ReplayConfig, RunConfig, read_file
from accerl.files import read_lines
from accerl.manifest import Damaged
from accerl.plugins import find_object
from accerl.replay import Replay, snapshot
from accerl.runtime import wire
from accerl.runtime.cluster import Connection
from accerl.runtime.run import Run
from accerl.types import Decision, DecisionRequest, Trajectory

SETTINGS: dict[str, Any] = {
    "env": {"suite": "dots", "tasks": ["red", "blue"], "image_size": 16, "max_decisions": 6, "chunk_length": 2},
    "demos": {"speed": 1.0, "episodes_per_shard": 2, "episodes_per_task": 2},
    "policy": {"width": 8, "num_layers": 1, "num_heads": 2},
    "clone": {"updates": 1, "batch_size": 2, "num_threads": 1},
}
TOML = b"""name = "first"
seed = 3
[env]
suite = "dots"
tasks = ["red", "blue"]
image_size = 16
[learner]
policy_lr = 1e-4
betas = [0.9, 0.95]
[limits]
max_updates = 100
max_wall_s = inf
"""


LEROBOT_FILE = "chunk-000/file-000.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One that is tried."""

    name: str
    file: str
    """That is changed, in the folder of the specimen."""
    read: Callable[[Path], Any]
    """Gets the folder."""
    declared: tuple[type[Exception], ...] = (ConfigError,)
    """Errors that its documentation names."""
    specimen: str = ""
    """Folder below the specimens; its files are there when one of them is changed."""
    is_text: bool = False


def readers(specimens: Path) -> list[Reader]:
    """All of them; makes the specimens."""
    make_specimens(specimens)
    both = (ConfigError, ValueError, OSError)
    return [
        Reader(name="config.toml", specimen="config", file="run.toml", read=_config("run.toml"), is_text=True),
        Reader(name="config.json", specimen="config", file="run.json", read=_config("run.json"), is_text=True),
        Reader(name="command line", specimen="config", file="line", read=_line, is_text=True),
        Reader(name="plugin", specimen="config", file="plugin", read=_plugin, is_text=True),
        Reader(name="data set's index", specimen="data", file="dataset.json", read=demos.load, is_text=True),
        Reader(name="data set's shard", specimen="data", file="shard-00000.safetensors", read=demos.load),
        Reader(name="policy.json", specimen="policy", file="policy.json", read=checkpoint.load_policy, is_text=True),
        Reader(name="policy's weights", specimen="policy", file="policy.safetensors", read=checkpoint.load_policy),
        Reader(
            name="manifest",
            specimen="checkpoint",
            file="checkpoint.json",
            read=checkpoint.check_whole,
            declared=(Damaged,),
            is_text=True,
        ),
        Reader(name="learner.json", specimen="loose", file="learner.json", read=_checkpoint, is_text=True),
        Reader(name="learner's tensors", specimen="loose", file="learner.safetensors", read=_checkpoint),
        Reader(name="run.json", specimen="loose", file="run.json", read=_checkpoint, is_text=True),
        Reader(name="status.json", specimen="run", file="status.json", read=_status, is_text=True),
        Reader(name="lines", specimen="run", file="metrics.jsonl", read=_lines, is_text=True),
        Reader(name="connection.json", specimen="run", file="connection.json", read=_connection, is_text=True),
        Reader(name="trajectory", specimen="replay", file="t.safetensors", read=_trajectory, declared=both),
        Reader(
            name="replay's state", specimen="snapshot", file="state.json", read=_snapshot, declared=both, is_text=True
        ),
        Reader(
            name="replay's journal",
            specimen="snapshot",
            file="journal.jsonl",
            read=_snapshot,
            declared=both,
            is_text=True,
        ),
        Reader(
            name="requests",
            specimen="wire",
            file="requests",
            read=_frames("requests", wire.decode_requests),
            declared=(ValueError,),
        ),
        Reader(
            name="answers",
            specimen="wire",
            file="answers",
            read=_frames("answers", wire.decode_answers),
            declared=(ValueError,),
        ),
        Reader(name="LeRobot's info", specimen="lerobot", file="meta/info.json", read=lerobot.read, is_text=True),
        Reader(name="LeRobot's tasks", specimen="lerobot", file="meta/tasks.parquet", read=lerobot.read),
        Reader(name="LeRobot's episodes", specimen="lerobot", file=f"meta/episodes/{LEROBOT_FILE}", read=lerobot.read),
        Reader(name="LeRobot's rows", specimen="lerobot", file=f"data/{LEROBOT_FILE}", read=lerobot.read),
        Reader(name="world.json", specimen="world", file="world.json", read=_world, is_text=True),
        Reader(name="observation.json", specimen="world", file="observation.json", read=_world, is_text=True),
        Reader(name="reward's weights", specimen="world", file="reward.safetensors", read=_world),
    ]


def make_specimens(folder: Path) -> None:
    """What the commands write, at its smallest."""
    config = folder / "config"
    config.mkdir(parents=True)
    (config / "run.toml").write_bytes(TOML)
    (config / "run.json").write_text(RunConfig(**read_file(config / "run.toml")).model_dump_json())
    (config / "line").write_text("--env dots --env.tasks red,blue --learner.policy-lr 1e-4 --no-trace.enabled --seed 3")
    (config / "plugin").write_text("accerl.demos:FORMAT")
    settings = folder / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    small = "--held-out 0.5 --widths 8,8,8 --observation.updates 1 --reward.updates 1"
    with redirect_stdout(io.StringIO()):
        assert main(["demos", "--config", str(settings), "--out", str(folder / "data")]) == 0
        clone = ["clone", "--config", str(settings), "--data", str(folder / "data"), "--out", str(folder / "policy")]
        assert main(clone) == 0
        assert (
            main(["wm", "train", "--demos", str(folder / "data"), "--out", str(folder / "world"), *small.split()]) == 0
        )
    lerobot.write(folder / "data", folder / "lerobot", fps=10)
    _make_checkpoint(folder)
    (folder / "policy" / "checkpoint.json").unlink()  # without checksums everything depends on what is in the files
    _make_run(folder / "run")
    _make_replay(folder)
    _make_messages(folder / "wire")


def _make_checkpoint(folder: Path) -> None:
    policy = checkpoint.load_policy(folder / "policy")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    learner = {"updates": 3, "version": 3, "optimizer": optimizer.state_dict(), "generators": {}}
    content = checkpoint.Content(
        policy_config=policy.config_dict(),
        policy=policy.state_dict(),
        learner=learner,
        run={"decisions": 3, "score": 0.5},
    )
    checkpoint.save_checkpoint(folder / "all", content, keep=1).rename(folder / "checkpoint")
    (folder / "loose").mkdir()
    for path in (folder / "checkpoint").iterdir():
        if path.name != "checkpoint.json":
            (folder / "loose" / path.name).write_bytes(path.read_bytes())


def _make_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(RunConfig(root=folder.parent, name=folder.name).model_dump_json())
    status = {"state": "running", "reason": "", "host": "here", "host_pid": 1, "updated": time.time(), "updates": 3}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text(
        '{"time": 1.0, "updates": 3}\n{"time": 2.0, "success_by_task": {"red": 0.5}}\n'
    )
    here = {"host": socket.gethostname(), "host_pid": 1}
    Connection(address="a:1", controller="run/controller", token_path="/t", **here).save(folder)


def trajectory(episode: int) -> Trajectory:
    """Two decisions of an episode."""
    per_decision = np.zeros(2, np.float32)
    return Trajectory(
        task="red",
        instruction="go",
        origin="rollout-0.0",
        episode=episode,
        images=np.zeros((3, 1, 8, 8, 3), np.uint8),
        proprio=np.zeros((3, 4), np.float32),
        episode_step=np.arange(3, dtype=np.int32),
        blob={"tokens": np.zeros((2, 8), np.int64)},
        log_prob=np.zeros((2, 8), np.float32),
        value=per_decision,
        reward=per_decision,
        num_actions=np.full(2, 2, np.int32),
        num_env_steps=np.full(2, 2, np.int32),
        policy_version=np.zeros(2, np.int32),
        terminal=True,
        truncated=False,
        success=True,
    )


def _make_replay(folder: Path) -> None:
    (folder / "replay").mkdir()
    trajectories.save(folder / "replay" / "t.safetensors", trajectory(0))
    replay = Replay(ReplayConfig(capacity_decisions=16, min_decisions=1))
    for episode in range(3):
        assert replay.push(trajectory(episode))
    replay.sample(2, 0)
    (folder / "snapshot").mkdir()
    snapshot.write(folder / "snapshot", replay.content())
    lines = [{"event": "used", "batch": 0, "segments": [0]}, {"event": "confirmed", "batch": 0, "segments": [0]}]
    (folder / "snapshot" / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _make_messages(folder: Path) -> None:
    folder.mkdir()
    observation: Any = {
        "images": np.zeros((1, 8, 8, 3), np.uint8),
        "proprio": np.zeros(4, np.float32),
        "instruction": "go",
    }
    request = DecisionRequest(observation=observation, episode_step=0, seed=1, policy_version=None)
    decision = Decision(
        action=np.zeros((2, 4), np.float32),
        log_prob=np.zeros(8, np.float32),
        value=0.5,
        blob={"tokens": np.zeros(8, np.int64)},
        policy_version=3,
    )
    (folder / "requests").write_bytes(_joined(wire.encode_requests([1, 2], [request, request])))
    (folder / "answers").write_bytes(_joined(wire.encode_answers([1], [decision], 0)[0]))


def _joined(frames: Sequence[Any]) -> bytes:
    return b"\0\0frame\0\0".join(bytes(frame) for frame in frames)


def _frames(name: str, decode: Callable[[list[bytes]], Any]) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        decode((folder / name).read_bytes().split(b"\0\0frame\0\0"))

    return read


def _config(name: str) -> Callable[[Path], Any]:
    return lambda folder: RunConfig(**read_file(folder / name))


def _line(folder: Path) -> None:
    values = parse((folder / "line").read_text(errors="replace").split(), RunOptions)
    build(RunOptions, from_file(RunOptions, values), values)


def _plugin(folder: Path) -> None:
    find_object((folder / "plugin").read_text(errors="replace"), "env.suite", ["dots"])


def _checkpoint(folder: Path) -> None:
    checkpoint.load_checkpoint(folder)


def _status(folder: Path) -> None:
    Run(folder).status()


def _lines(folder: Path) -> None:
    read_lines(folder / "metrics.jsonl")


def _connection(folder: Path) -> None:
    Connection.load(folder)


def _trajectory(folder: Path) -> None:
    trajectories.load(folder / "t.safetensors")


def _snapshot(folder: Path) -> None:
    snapshot.read(folder, max_reuse=2)


def _world(folder: Path) -> None:
    from accerl_wm import store

    store.load(folder)
