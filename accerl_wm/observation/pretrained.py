"""A Cosmos 2 video-to-world model from a local folder: safetensors only, nothing fetched, nothing unpickled.

FOLDER/transformer   config.json, *.safetensors   CosmosTransformer3DModel
FOLDER/vae           config.json, *.safetensors   AutoencoderKLWan

FOLDER is what diffusers' `save_pretrained` writes, or a model of the hub's cache, where `revision` says which snapshot.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from safetensors import SafetensorError, safe_open

from accerl.config import ConfigError
from accerl.reading import read_object

GIB = 2**30
HASHED_BYTES = 2**20
"""Of each file: its header and the first of its weights."""
CLASSES = {"transformer": "CosmosTransformer3DModel", "vae": "AutoencoderKLWan"}


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Both networks, frozen."""

    transformer: CosmosTransformer3DModel
    vae: AutoencoderKLWan
    takes_padding: bool
    """The last channel that the transformer takes is the padding mask."""
    fingerprint: str
    """Of the weights' files."""


def load(folder: Path, revision: str | None, dtype: torch.dtype) -> Pretrained:
    """Read both networks into the processor's memory: the transformer as `dtype`, the small autoencoder as float32.

    diffusers scales the transformer's padding mask with torchvision. The mask of a whole picture is zero, whatever its
    size, so the transformer is built to take it as one more channel of its input, with the same weights.

    Raises:
        ConfigError: the folder is not there, holds other classes or other files, or memory does not suffice.
    """
    found = snapshot(folder, revision)
    transformer, vae = (_read_config(found / part, name) for part, name in CLASSES.items())
    _check_kind(found, transformer, vae)
    check_memory(folder, revision, dtype, "cpu")
    takes_padding = bool(transformer.get("concat_padding_mask", True))
    changes = {"concat_padding_mask": False, "in_channels": transformer["in_channels"] + 1} if takes_padding else {}
    loaded = Pretrained(
        transformer=_read(CosmosTransformer3DModel, found / "transformer", dtype, **changes),
        vae=_read(AutoencoderKLWan, found / "vae", torch.float32),
        takes_padding=takes_padding,
        fingerprint=_fingerprint(found),
    )
    loaded.transformer.requires_grad_(False)
    loaded.vae.requires_grad_(False)
    return loaded


def snapshot(folder: Path, revision: str | None) -> Path:
    """The folder itself, or the snapshot of a revision if it is a model of the hub's cache.

    Raises:
        ConfigError: it is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"cosmos.pretrained: {folder} is no folder; download the model and give its folder")
    if not (folder / "snapshots").is_dir():
        if revision is not None:
            raise ConfigError(f"cosmos.revision: {folder} holds one model without revisions; leave it out")
        return folder
    name = revision or "main"
    reference = folder / "refs" / name
    found = folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else name)
    if not found.is_dir():
        there = ", ".join(sorted(path.name for path in (folder / "snapshots").iterdir())) or "none"
        raise ConfigError(f"cosmos.revision: {folder} has no {name}; there are {there}")
    return found


def check_memory(folder: Path, revision: str | None, dtype: torch.dtype, device: str) -> None:
    """Refuse weights that a device has no room for.

    Raises:
        ConfigError: with both sizes.
    """
    found = snapshot(folder, revision)
    needed = _num_weights(found / "transformer") * dtype.itemsize + _num_weights(found / "vae") * 4
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"cosmos.pretrained: the weights of {folder} take {needed / GIB:.1f} GiB as {str(dtype)[6:]}, {device} has "
            f"{free / GIB:.1f} GiB free; take bfloat16, a smaller model or a larger device"
        )


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"cosmos.pretrained: {path} is missing; give the folder of a Cosmos 2 video-to-world model")
    try:
        config = read_object(path)
    except ValueError as error:
        raise ConfigError(f"cosmos.pretrained: {path} is damaged ({error}); get it again") from None
    if (other := config.get("_class_name")) != name:
        raise ConfigError(
            f"cosmos.pretrained: {folder} holds {other}, not {name}; give a Cosmos 2 video-to-world model"
        )
    return config


def _check_kind(folder: Path, transformer: dict[str, Any], vae: dict[str, Any]) -> None:
    latent = vae["z_dim"]
    if transformer["in_channels"] != latent + 1 or transformer["out_channels"] != latent:
        raise ConfigError(
            f"cosmos.pretrained: the transformer of {folder} takes {transformer['in_channels']} channels, not the "
            f"{latent} of the autoencoder and one that says what is given; take a video-to-world model"
        )
    if transformer.get("use_crossattn_projection") or transformer.get("img_context_dim_in"):
        raise ConfigError(f"cosmos.pretrained: {folder} is of Cosmos 2.5, which is not supported; take Cosmos 2")
    if transformer["patch_size"][0] != 1:
        raise ConfigError(
            f"cosmos.pretrained: {folder} joins frames to patches; take a model with a patch_size of 1, …"
        )


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"cosmos.pretrained: {folder} has no *.safetensors; other formats are not read")
    return files


def _num_weights(folder: Path) -> int:
    """From the headers alone."""
    total = 0
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"cosmos.pretrained: {path} cannot be read ({error}); download it again") from None
    return total


def _read(network: Any, folder: Path, dtype: torch.dtype, **changes: Any) -> Any:
    try:
        loaded, report = network.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
            **changes,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cosmos.pretrained: {folder} cannot be read ({reason}); download it again") from None
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ConfigError(f"cosmos.pretrained: {folder} lacks or has too much {wrong[0]}; download it again")
    return loaded


def _fingerprint(folder: Path) -> str:
    found = hashlib.sha256()
    for part in CLASSES:
        for path in _weight_files(folder / part):
            found.update(f"{part}/{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                found.update(file.read(HASHED_BYTES))
    return found.hexdigest()[:16]
