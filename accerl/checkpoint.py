"""Files that survive a crash: safetensors and JSON, written to a temporary name, synced, renamed. Nothing is unpickled.

checkpoints/step-00000120/
    policy.json policy.safetensors      what rebuilds the policy
    learner.json learner.safetensors    optimizer, counters
    proximal.safetensors                what decoupled PPO clips around, if that is a snapshot
    run.json                            what the other roles need to go on
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accerl.config import ConfigError
from accerl.files import replaced
from accerl.policies import restore_policy
from accerl.protocols import Policy

FORMAT = 1
PROXIMAL = "proximal.safetensors"


def save_policy(folder: Path, policy_config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `policy.json` and `policy.safetensors` into `folder`, which is replaced as a whole if it exists."""
    with replaced(folder) as temporary:
        _write_policy(temporary, policy_config, tensors)


def is_public(folder: Path) -> bool:
    """Whether a folder is a checkpoint of OpenVLA in its public layout."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") == "openvla"


def load_policy(folder: Path, open_fields: Mapping[str, Any] | None = None) -> Policy:
    """The policy of a folder written by `save_policy`, of a run's checkpoint, or of a public OpenVLA checkpoint.

    Args:
        open_fields: what the files of a public checkpoint leave open, as `openvla_oft.checkpoint.open_fields` gives it.

    Raises:
        ConfigError: the folder holds no policy, or one that this version cannot build.
    """
    if is_public(folder):
        from accerl.policies.openvla_oft import OpenVLAOFT

        return OpenVLAOFT.from_pretrained(folder, **(open_fields or {}))
    try:
        config = json.loads((folder / "policy.json").read_text())
        tensors = load_file(folder / "policy.safetensors")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"policy.checkpoint: {folder} has no {Path(error.filename).name if error.filename else 'policy'}; "
            f"give a folder written by `accerl clone`, RUN/checkpoints/step-N or a public OpenVLA checkpoint"
        ) from None
    try:
        return restore_policy(config, tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"policy.checkpoint: the weights in {folder} do not fit its policy.json ({reason})") from None


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
        if (proximal := content.pop("proximal", None)) is not None:
            save_file(proximal, temporary / PROXIMAL)
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
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"resume: {folder} is not a complete checkpoint ({error})") from None
    if learner.pop("format", None) != FORMAT:
        raise ConfigError(f"resume: {folder} was written in another format; this version reads format {FORMAT}")
    learner["optimizer"] = unflatten_optimizer(learner["optimizer"], tensors)
    learner["proximal"] = load_file(folder / PROXIMAL) if (folder / PROXIMAL).exists() else None
    return learner, run


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))


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
