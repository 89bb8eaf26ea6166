"""Files that survive a crash: safetensors and JSON, written to a temporary name, synced, renamed. Nothing is unpickled.

checkpoints/step-00000120/
    policy.json policy.safetensors      what rebuilds the policy
    learner.json learner.safetensors    optimizer, counters
    run.json                            what the other roles need to go on
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accerl.config import ConfigError
from accerl.policies import build_policy
from accerl.protocols import Policy

FORMAT = 1


def save_policy(folder: Path, policy_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `policy.json` and `policy.safetensors` into `folder`, which is replaced as a whole if it exists."""
    with replaced(folder) as temporary:
        _write_policy(temporary, policy_config, tensors)


def load_policy(folder: Path) -> Policy:
    """The policy of a folder written by `save_policy` or of a checkpoint.

    Raises:
        ConfigError: the folder holds no policy, or one that this version cannot build.
    """
    try:
        config = json.loads((folder / "policy.json").read_text())
        tensors = load_file(folder / "policy.safetensors")
    except FileNotFoundError as error:
        raise ConfigError(
            f"policy.checkpoint: {folder} has no {Path(error.filename).name if error.filename else 'policy'}; "
            f"give a folder written by `accerl clone` or RUN/checkpoints/step-N"
        ) from None
    policy = build_policy(config)
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"policy.checkpoint: the weights in {folder} do not fit its policy.json ({reason})") from None
    return policy


def save_checkpoint(
    folder: Path,
    policy_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    learner: Mapping[str, Any],
    run: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `step-N` below `folder`, N being the learner's updates, and remove all but the newest `keep`."""
    target = folder / f"step-{learner['updates']:08d}"
    with replaced(target) as temporary:
        _write_policy(temporary, policy_config, tensors)
        numbers, optimizer = flatten_optimizer(learner["optimizer"])
        save_file(optimizer, temporary / "learner.safetensors")
        content = {"format": FORMAT, **learner, "optimizer": numbers}
        (temporary / "learner.json").write_text(json.dumps(content))
        (temporary / "run.json").write_text(json.dumps(run))
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The learner's state and the run's of one checkpoint; `load_policy` gives the policy.

    Raises:
        ConfigError: a file is missing or of another format.
    """
    try:
        learner = json.loads((folder / "learner.json").read_text())
        run = json.loads((folder / "run.json").read_text())
        tensors = load_file(folder / "learner.safetensors")
    except FileNotFoundError as error:
        raise ConfigError(f"resume: {folder} is not a complete checkpoint ({error})") from None
    if learner.pop("format", None) != FORMAT:
        raise ConfigError(f"resume: {folder} was written in another format; this version reads format {FORMAT}")
    learner["optimizer"] = unflatten_optimizer(learner["optimizer"], tensors)
    return learner, run


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))


class replaced:  # noqa: N801 - reads as a verb: with replaced(folder) as temporary
    """A context that gives a temporary folder and puts it, synced, in the place of `folder` when nothing was raised."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        for path in (*self._temporary.iterdir(), self._temporary):
            sync(path)
        old = self._folder.with_name(f".{self._folder.name}.{os.getpid()}.old")
        if self._folder.exists():
            self._folder.rename(old)
        self._temporary.rename(self._folder)
        sync(self._folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, content: str, mode: int = 0o644) -> None:
    """Replace a text file so that a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A torch optimizer's state as JSON and named tensors."""
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    return {"param_groups": state["param_groups"]}, tensors


def unflatten_optimizer(numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}


def _write_policy(folder: Path, policy_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    (folder / "policy.json").write_text(json.dumps({"format": FORMAT, **policy_config}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "policy.safetensors")
