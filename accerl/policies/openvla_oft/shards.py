"""Tensors of safetensors shards into a network without memory, one at a time, and back; differences refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from accerl.config import ConfigError
from accerl.files import within
from accerl.policies.openvla_oft.config import ACTION_TOKENS, OpenVLAOFTConfig
from accerl.policies.openvla_oft.model import OpenVLAModel
from accerl.policies.vocabulary import whole
from accerl.reading import read_object

HEAD = "language_model.lm_head.weight"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def list_shards(folder: Path) -> list[Path]:
    """Files with the weights, in order.

    Raises:
        ConfigError: one is missing, or not in the folder.
    """
    index = folder / INDEX
    names = _named(index) if index.exists() else [SINGLE]
    paths = [within(folder, name) for name in names]
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"policy.checkpoint: {folder} has no {path.name}; give a complete checkpoint in safetensors"
            )
    return paths


def _named(index: Path) -> list[str]:
    try:
        return sorted(set(read_object(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"policy.checkpoint: {index} is damaged ({error}); get it again") from None


def never_contributes(name: str, config: OpenVLAOFTConfig) -> bool:
    """Whether a public tensor is of a part that the network does without."""
    for tower, sizes in zip(("featurizer", "fused_featurizer"), config.vision, strict=True):
        prefix = f"vision_backbone.{tower}."
        unused = (f"blocks.{sizes.depth - 1}.", "norm.weight", "norm.bias", "attn_pool.")
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(unused):
            return True
    return False


def elsewhere(name: str) -> bool:
    """Whether a tensor of the network has a file of its own beside the shards."""
    film = name.startswith("vision_backbone.") and name.split(".")[-2] in ("scale", "shift")
    return film or name.startswith("proprio_projector.")


class Filling:
    """A network on the meta device, on its way to having memory and values.

    Args:
        device: where its tensors go, each as it is read.
        dtype: of the tensors; None: as they are stored.
    """

    def __init__(self, model: OpenVLAModel, config: OpenVLAOFTConfig, device: Any, dtype: torch.dtype | None):
        self.model, self.config, self.device, self.dtype = model, config, torch.device(device), dtype
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._filled: set[str] = set()

    def take_shards(self, shards: Iterable[Path]) -> None:
        """Raises ConfigError: there are other tensors than the network's and those that never contribute."""
        shards = list(shards)
        names = [name for shard in shards for name in _names(shard)]
        self._compare(names, {name for name in self._shapes if not elsewhere(name)}, "the shards")
        for shard in shards:
            with safe_open(shard, "pt", device=str(self.device)) as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if name in self._shapes:
                        self._put(name, self._read(file, name))

    def take(self, tensors: Mapping[str, Tensor], part: str, origin: str) -> None:
        """Those of a file of its own for the parameters below `part`; they replace what shards gave."""
        self._compare(tensors, {name for name in self._shapes if name.startswith(f"{part}.")}, origin)
        for name, tensor in tensors.items():
            if name in self._shapes:
                self._put(name, tensor)

    def complete(self, randomly: bool) -> None:
        """What no file gave: rotary frequencies; with `randomly` linear layers too.

        Raises:
            ConfigError: there is more.
        """
        missing = sorted(self._shapes.keys() - self._filled)
        if missing and not randomly:
            raise ConfigError(
                f"policy.checkpoint: no file has {_some(missing)}; leave out proprio_dim or film, or give "
                f"any_head=True to start fine-tuning with random ones"
            )
        like = self.model.projector.fc1.weight.dtype
        for layer in {name.rpartition(".")[0] for name in missing}:
            linear = self.model.get_submodule(layer).to_empty(device=self.device).to(like)
            linear.reset_parameters()  # pyright: ignore[reportCallIssue]
        self.model.language_model.model.rotary_emb.to_empty(device=self.device)

    def _compare(self, found: Collection[str], expected: Collection[str], origin: str) -> None:
        missing = sorted(set(expected) - set(found))
        unknown = sorted(name for name in set(found) - set(expected) if not never_contributes(name, self.config))
        if missing or unknown:
            absent = f"{origin} should have {_some(missing)}; " if missing else ""
            extra = f"{origin} should not have {_some(unknown)}; " if unknown else ""
            raise ConfigError(f"policy.checkpoint: {absent}{extra}give a checkpoint of this architecture")

    def _read(self, file: Any, name: str) -> Tensor:
        part = file.get_slice(name)
        if name == HEAD and self.config.slimmed and part.get_shape()[0] == self.config.llama().vocab_size:
            return part[ACTION_TOKENS.start : ACTION_TOKENS.stop]
        return file.get_tensor(name)

    def _put(self, name: str, tensor: Tensor) -> None:
        if tuple(tensor.shape) != self._shapes[name]:
            raise ConfigError(
                f"policy.checkpoint: {name} is {list(tensor.shape)}, config.json makes it {list(self._shapes[name])}"
            )
        module, _, leaf = name.rpartition(".")
        copied = tensor.to(self.device, self.dtype or tensor.dtype, copy=True)  # of a shard it may be a view
        trains = self.model.get_parameter(name).requires_grad
        setattr(self.model.get_submodule(module), leaf, nn.Parameter(copied, requires_grad=trains))
        self._filled.add(name)


def write_shards(own: Mapping[str, Tensor], config: OpenVLAOFTConfig, old: Path, new: Path) -> None:
    """The shards of `old` with a network's tensors in the place of theirs, into `new`, one shard in memory at a time.

    Raises:
        ConfigError: `old` is of another architecture.
    """
    size = 0
    shards = list_shards(old)
    written = {name for shard in shards for name in _names(shard)}
    if missing := sorted(name for name in own.keys() - written if not elsewhere(name)):
        raise ConfigError(f"source: {old} lacks {_some(missing)}; give a checkpoint of the same architecture")
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensors[name] = _written(name, file.get_tensor(name), own, config)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        save_file(tensors, new / shard.name, metadata={"format": "pt"})
    if (old / INDEX).exists():
        index = {**json.loads((old / INDEX).read_text()), "metadata": {"total_size": size}}
        (new / INDEX).write_text(json.dumps(index, indent=2))


def _written(name: str, stored: Tensor, own: Mapping[str, Tensor], config: OpenVLAOFTConfig) -> Tensor:
    if name not in own:
        return stored.contiguous()
    tensor = own[name].cpu().contiguous()
    if name == HEAD and config.slimmed:
        tensor = whole(tensor, ACTION_TOKENS, stored)
    if tensor.shape != stored.shape:
        raise ConfigError(f"source: its {name} is {list(stored.shape)}, the policy's {list(tensor.shape)}")
    return tensor


def _names(shard: Path) -> list[str]:
    with safe_open(shard, "pt") as file:
        return list(file.keys())


def _some(names: list[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
