"""Trajectories as safetensors files: the sample of them that a run keeps in `trajectories/`."""

from __future__ import annotations

import errno
import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from accerl.config import ConfigError
from accerl.types import Trajectory

FORMAT = 1
EACH_DECISION = (
    "log_prob",
    "value",
    "reward",
    "num_actions",
    "num_env_steps",
    "policy_version",
    "action",
    "success_probability",
)
"""Arrays of a trajectory with a row for each decision, beside `blob`."""


def owned(trajectory: Trajectory) -> Trajectory:
    """A copy whose arrays belong to it, where those of an argument lie in shared memory and pin it."""
    values = {field.name: getattr(trajectory, field.name) for field in fields(Trajectory) if field.name != "blob"}
    arrays = {name: np.array(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return replace(trajectory, **arrays, blob={name: np.array(value) for name, value in trajectory.blob.items()})


def save(path: Path, trajectory: Trajectory) -> None:
    """Write one trajectory; a reader never sees a part of it.

    Raises:
        OSError: the disk did not take it; nothing of it is left there.
    """
    values = {field.name: getattr(trajectory, field.name) for field in fields(Trajectory) if field.name != "blob"}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    blob = {f"blob.{name}": value for name, value in trajectory.blob.items()}
    facts = {name: value for name, value in values.items() if name not in arrays}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in (arrays | blob).items()},
            temporary,
            metadata={"format": str(FORMAT), "facts": json.dumps(facts)},
        )
        temporary.rename(path)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from None


def load(path: Path) -> Trajectory:
    """The trajectory of a file.

    Raises:
        OSError: there is no such file.
        ConfigError: the file is damaged, or of another format.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if metadata.get("format") != str(FORMAT):
            raise ConfigError(f"trajectory: {path} has format {metadata.get('format')}, this version reads {FORMAT}")
        blob = {name.removeprefix("blob."): arrays.pop(name) for name in list(arrays) if name.startswith("blob.")}
        return Trajectory(**arrays, **json.loads(metadata["facts"]), blob=blob)
    except ConfigError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"trajectory: {path} is damaged ({error})") from None


def facts(path: Path) -> dict[str, Any]:
    """What a file says of its trajectory beside the arrays: task, success, whether it was imagined, ..."""
    with safe_open(path, framework="np") as file:
        return json.loads((file.metadata() or {}).get("facts", "{}"))


def joined(first: Trajectory, second: Trajectory) -> Trajectory:
    """Two segments of one episode, the second where the first one stops.

    Raises:
        ValueError: they do not follow one another.
    """
    if (first.origin, first.episode, first.episode_step[-1]) != (
        second.origin,
        second.episode,
        second.episode_step[0],
    ):
        raise ValueError(f"{second.origin}, decision {second.episode_step[0]}, does not follow {first.origin}")
    values = {field.name: getattr(second, field.name) for field in fields(Trajectory) if field.name != "blob"}
    for name in ("images", "proprio", "episode_step"):
        values[name] = np.concatenate([getattr(first, name)[:-1], values[name]])
    for name in EACH_DECISION:
        before = getattr(first, name)
        values[name] = None if before is None or values[name] is None else np.concatenate([before, values[name]])
    blob = {name: np.concatenate([first.blob[name], array]) for name, array in second.blob.items()}
    return Trajectory(**{**values, "state": first.state}, blob=blob)


class TrajectorySample:
    """Keeps every `every`-th trajectory in a folder, at most `keep` of them, the newest."""

    def __init__(self, folder: Path, every: int = 50, keep: int = 64):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._every = every
        self._keep = keep
        self._seen = 0
        self._written = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)

    def offer(self, trajectory: Trajectory) -> None:
        """Count a trajectory and perhaps write it; not where the disk is full."""
        self._seen += 1
        if (self._seen - 1) % self._every:
            return
        name = f"{trajectory.origin.replace('/', '_')}-{int(trajectory.episode_step[0])}.safetensors"
        try:
            save(self._folder / name, trajectory)
        except OSError as error:
            print(f"{self._folder / name} was not written ({error.strerror})", file=sys.stderr, flush=True)
            return
        self._written.append(self._folder / name)
        while len(self._written) > self._keep:
            self._written.pop(0).unlink(missing_ok=True)
