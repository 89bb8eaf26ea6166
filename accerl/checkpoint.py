"""Files that survive a crash: safetensors and JSON, written to a temporary name, synced, renamed. Nothing is unpickled.

checkpoints/step-00000120/
    policy.json policy.safetensors      what rebuilds the policy
    learner.json learner.safetensors    optimizer, counters, random numbers
    proximal.safetensors                what decoupled PPO clips around, if that is a snapshot
    run.json                            what the other roles need to go on
    checkpoint.json                     sizes and checksums of these, and how well the policy did
checkpoints/best -> step-00000090       the one with the highest running success
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accerl.config import ConfigError
from accerl.files import discard, replaced, set_aside, sweep
from accerl.guards import not_finite
from accerl.manifest import Damaged, read_manifest, verify, write_manifest
from accerl.policies import restore_policy
from accerl.protocols import Policy
from accerl.reading import read_json, read_object
from accerl.tensor_files import Digest, num_bytes, read_tensors, write_tensors
from accerl.types import Weights

FORMAT = 1
PROXIMAL = "proximal.safetensors"
POLICY = ("policy.json", "policy.safetensors")
LEARNER = ("learner.json", "learner.safetensors", "run.json")
BEST = "best"
SPARE_BYTES = 2**20
"""Beside the tensors: JSON, and what a file system needs for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All of a checkpoint in host memory, where nobody changes it any more."""

    policy_config: Mapping[str, Any]
    policy: Mapping[str, Tensor]
    learner: Mapping[str, Any]
    """`Learner.state_dict`, and what else its process needs; JSON-compatible but for `optimizer` and `proximal`."""
    run: Mapping[str, Any]
    """JSON-compatible; `score` is the running success, or None while that is not known well enough."""
    more: Callable[[Path], None] | None = None
    """Writes further files into the folder."""

    @property
    def num_bytes(self) -> int:
        _, optimizer = flatten_optimizer(self.learner["optimizer"])
        return num_bytes(self.policy) + num_bytes(optimizer) + num_bytes(self.learner.get("proximal") or {})


class Newest(NamedTuple):
    """Where a run goes on from."""

    folder: Path | None
    """None: it has no checkpoint yet."""
    damaged: Mapping[Path, str]
    """Newer ones that cannot be used, and why."""

    def report(self) -> list[str]:
        """A sentence for each of the damaged ones."""
        then = "" if self.folder is None else f"; going on from {self.folder.name}"
        return [f"{path.name} is damaged ({reason}){then}" for path, reason in self.damaged.items()]


def save_policy(folder: Path, policy_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `policy.json` and `policy.safetensors` into `folder`, which is replaced as a whole if it exists."""
    with replaced(folder) as temporary:
        write_manifest(temporary, _write_policy(temporary, policy_config, tensors))


def is_public(folder: Path) -> bool:
    """Whether a folder is a checkpoint of OpenVLA in its public layout."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        return read_object(path).get("model_type") == "openvla"
    except ValueError:
        return False


def load_policy(folder: Path, open_fields: Mapping[str, Any] | None = None) -> Policy:
    """The policy of a folder written by `save_policy`, of a run's checkpoint, or of a public OpenVLA checkpoint.

    Args:
        open_fields: what the files of a public checkpoint leave open, as `openvla_oft.checkpoint.open_fields` gives it.

    Raises:
        ConfigError: the folder holds no policy, a damaged one, or one that this version cannot build.
    """
    if is_public(folder):
        from accerl.policies.openvla_oft import OpenVLAOFT

        return OpenVLAOFT.from_pretrained(folder, **(open_fields or {}))
    for name in POLICY:
        if not (folder / name).is_file():
            raise ConfigError(
                f"policy.checkpoint: {folder} has no {name}; give a folder written by `accerl clone`, "
                f"RUN/checkpoints/step-N or a public OpenVLA checkpoint"
            )
    try:
        verify(folder, POLICY)
        config = read_object(folder / POLICY[0])
        tensors = read_tensors(folder / POLICY[1])
        if tensors and (bad := not_finite(**tensors)):
            raise ValueError(f"{bad[0]} is not finite")
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.checkpoint: {folder} is damaged ({error}); use another one") from None
    if config.pop("format", FORMAT) != FORMAT:
        raise ConfigError(f"policy.checkpoint: {folder} was written in another format; this version reads {FORMAT}")
    try:
        return restore_policy(config, tensors)
    except ConfigError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"policy.checkpoint: the weights in {folder} do not fit its policy.json ({reason})") from None


def save_checkpoint(folder: Path, content: Content, keep: int, keep_best: bool = True) -> Path:
    """Write `step-N` below `folder`, N being the learner's updates, and let go of all but the newest `keep` and the
    best.

    Raises:
        OSError: there is no room for it, which is known before anything is written, or the disk did not take it; what
            was there before is there still, and nothing else.
    """
    target = folder / f"step-{content.learner['updates']:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, content.num_bytes + SPARE_BYTES)
    with replaced(target) as temporary:
        digests = _write_policy(temporary, content.policy_config, content.policy)
        numbers, optimizer = flatten_optimizer(content.learner["optimizer"])
        digests["learner.safetensors"] = write_tensors(temporary / "learner.safetensors", optimizer)
        learner = {"format": FORMAT, **content.learner, "optimizer": numbers}
        if (proximal := learner.pop("proximal", None)) is not None:
            digests[PROXIMAL] = write_tensors(temporary / PROXIMAL, proximal)
        (temporary / "learner.json").write_text(json.dumps(learner))
        (temporary / "run.json").write_text(json.dumps(content.run))
        if content.more is not None:
            content.more(temporary)
        facts = {"updates": learner["updates"], "time": time.time(), "score": content.run.get("score")}
        write_manifest(temporary, digests, facts)
    _let_go(folder, keep, keep_best)
    return target


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The learner's state and the run's of one checkpoint; `load_policy` gives the policy.

    Raises:
        ConfigError: a file is missing, damaged or of another format.
    """
    names = (*LEARNER, PROXIMAL) if (folder / PROXIMAL).exists() else LEARNER
    for name in LEARNER:
        if not (folder / name).is_file():
            raise ConfigError(f"resume: {folder} is not a complete checkpoint ({name} is missing)")
    try:
        verify(folder, names)
        learner = read_json(folder / "learner.json")
        run = read_json(folder / "run.json")
        tensors = read_tensors(folder / "learner.safetensors")
        proximal = read_tensors(folder / PROXIMAL) if PROXIMAL in names else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"resume: {folder} is damaged ({error}); use another one") from None
    if not isinstance(learner, dict) or learner.pop("format", None) != FORMAT:
        raise ConfigError(f"resume: {folder} was written in another format; this version reads format {FORMAT}")
    try:
        learner["optimizer"] = unflatten_optimizer(learner["optimizer"], tensors)
        _check_counters(learner, run)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"resume: {folder} is damaged (learner.json: {error}); use another one") from None
    return {**learner, "proximal": proximal}, run


def list_checkpoints(folder: Path) -> list[Path]:
    """Those below `folder` that were finished, oldest first; `newest_whole` says which of them is undamaged."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir())


def newest_whole(folder: Path) -> Newest:
    """The newest checkpoint whose files are all as they were written.

    Raises:
        ConfigError: there are some, but none that is whole.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(list_checkpoints(folder)):
        try:
            check_whole(path)
        except Damaged as reason:
            damaged[path] = str(reason)
        else:
            return Newest(path, damaged)
    if damaged:
        reasons = "; ".join(Newest(None, damaged).report())
        raise ConfigError(f"resume: no checkpoint in {folder} is whole ({reasons}); remove the folder to begin again")
    return Newest(None, damaged)


def newest_weights(folder: Path) -> Weights | None:
    """The policy of the newest checkpoint that is whole; None: there is none, or it is just being replaced."""
    try:
        found = newest_whole(folder).folder
        if found is None:
            return None
        version = int(read_object(found / "learner.json")["version"])
        return Weights(version=version, tensors=dict(read_tensors(found / "policy.safetensors")))
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return None


def check_whole(folder: Path) -> None:
    """Raises Damaged if a file of a checkpoint is missing or not what was written."""
    listed = read_manifest(folder).get("files", ())
    more = (PROXIMAL,) if (folder / PROXIMAL).exists() else ()
    verify(folder, dict.fromkeys((*POLICY, *LEARNER, *more, *listed)))


def recover(folder: Path) -> Newest:
    """As `newest_whole`, for the run itself, before it goes on: what a killed writer left is removed, and damaged ones
    become `damaged-step-N`, so that the run can write them again and nobody else takes them.
    """
    sweep(folder)
    newest = newest_whole(folder)
    for path in newest.damaged:
        set_aside(path)
    return newest


def best_checkpoint(folder: Path) -> Path | None:
    """The one with the highest running success, of equals the newest; None: of none it is known."""
    scores: dict[Path, float] = {}
    for path in list_checkpoints(folder):
        try:
            score = read_manifest(path).get("score")
        except Damaged:
            continue
        if isinstance(score, int | float):
            scores[path] = score
    return max(scores, key=lambda path: (scores[path], path), default=None)


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
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}


def _write_policy(folder: Path, policy_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Digest]:
    (folder / POLICY[0]).write_text(json.dumps({"format": FORMAT, **policy_config}))
    return {POLICY[1]: write_tensors(folder / POLICY[1], tensors)}


def _check_counters(learner: Mapping[str, Any], run: Any) -> None:
    for name in ("version", "updates"):
        if not isinstance(learner[name], int):
            raise ValueError(f"{name} is {learner[name]!r}")
    if not isinstance(run, dict):
        raise ValueError("run.json holds no object")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        told = f"no room for it: it takes {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free"
        raise OSError(errno.ENOSPC, told, str(folder))


def _let_go(folder: Path, keep: int, keep_best: bool) -> None:
    written = list_checkpoints(folder)
    best = best_checkpoint(folder) if keep_best else None
    if best is not None:
        link = folder / f".{BEST}.{os.getpid()}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(best.name)
        link.replace(folder / BEST)
    for old in written[:-keep]:
        if old != best:
            discard(old)
