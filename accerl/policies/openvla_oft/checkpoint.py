r"""Public checkpoints: reading them shard by shard onto a device, and writing them so that upstream code loads them.

config.json  dataset_statistics.json           sizes, statistics; what upstream has no place for, under "accerl"
model-0000N-of-0000M.safetensors  …index.json  vision_backbone.*  projector.*  language_model.*
proprio_projector--*_checkpoint.pt             if it looks at proprioception
vision_backbone--*_checkpoint.pt               if it has FiLM
value_head.safetensors                         ours; a public checkpoint has none, and starts with a random one
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accerl.config import ConfigError, EnvConfig
from accerl.files import replaced
from accerl.policies.openvla_oft import film, shards
from accerl.policies.openvla_oft.config import EXTRAS, OpenVLAOFTConfig, from_public
from accerl.reading import read_object
from accerl.types import EnvSpec

if TYPE_CHECKING:
    from accerl.policies.openvla_oft.policy import OpenVLAOFT

P = TypeVar("P", bound="OpenVLAOFT")
PROPRIO, VISION = "proprio_projector", "vision_backbone"
STATISTICS, VALUE_HEAD = "dataset_statistics.json", "value_head.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".bin", ".gguf", ".index.json")
REMEDY = (
    "use one of discrete action tokens decoded in parallel, as in SimpleVLA-RL's SFT collection "
    "(Haozhan72/Openvla-oft-SFT-libero-spatial-traj1 and its siblings); any_head=True takes the weights all the same, "
    "for supervised fine-tuning to start from"
)


def load(
    kind: type[P],
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    any_head: bool = False,
    **chosen: Any,
) -> P:
    """A policy with the weights of a public checkpoint.

    The network is made without memory, and each tensor goes to its place on `device` as it is read, so that the host
    holds one shard at most. Exactly the tensors that never contribute are left out: each tower's last block, final norm
    and attention pooling, and of the head the rows that `slimmed` does without.

    Args:
        source: a folder, or an id on the Hugging Face hub.
        dtype: of the weights; None: as they are stored. The value head is float32.
        any_head: take weights that were trained for another head, which act badly until they are fine-tuned; parts
            that the checkpoint lacks (proprioception, FiLM) are then random.
        chosen: fields of `OpenVLAOFTConfig` that the files cannot say or that are to differ, such as `num_images=2`.

    Raises:
        ConfigError: a regression or autoregressive checkpoint, one whose tensors differ from the network's (by name),
            or one without the statistics of `norm_stats_key`.
    """
    folder = find(source)
    if not any_head:
        _refuse_other_heads(folder, str(source))
    config, proprio, vision = _config_of(folder, str(source), chosen)
    with torch.device("meta"):
        policy = kind(config)
    filling = shards.Filling(policy.model, config, device, dtype)
    filling.take_shards(shards.list_shards(folder))
    if config.film and vision is not None:
        filling.take(film.from_file(vision), VISION, f"{VISION}--*_checkpoint.pt")
    if config.proprio_dim and proprio is not None:
        named = {f"{PROPRIO}.{name}": tensor for name, tensor in proprio.items()}
        filling.take(named, PROPRIO, f"{PROPRIO}--*_checkpoint.pt")
    filling.complete(randomly=any_head)
    policy.renew_value_head(device)
    if (folder / VALUE_HEAD).exists():
        try:
            policy.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"value_pooling, max_decisions: {VALUE_HEAD} was made for others ({reason})") from None
    return policy


def save(policy: OpenVLAOFT, folder: Path, source: str | Path | None = None) -> None:
    """Write a policy in the public layout.

    What the policy does not hold is taken from `source`, as it is there: the rows of the head that are not action
    tokens, and the blocks, norms and pooling that never contribute. Upstream code then loads the folder strictly. Zeros
    would not do: upstream takes the most probable token of the whole vocabulary, and a logit of 0 may well be that.
    Tokenizer, code and other small files are copied along; a tokenizer that was trained here is written.

    Args:
        source: folder or hub id; None: the checkpoint that the policy came from.

    Raises:
        ConfigError: there is no source, or it does not fit.
    """
    origin = source if source is not None else policy.config.checkpoint
    if origin is None:
        raise ConfigError(
            "source: this policy did not come from a public checkpoint; give one of the same sizes, from which the "
            "head's other rows and the unused blocks are taken"
        )
    old = find(origin)
    stored = policy.model.projector.fc1.weight.dtype
    config = policy.config.model_copy(update={"dtype": str(stored).removeprefix("torch.")})
    own = {name: tensor.detach() for name, tensor in policy.model.state_dict().items()}
    with replaced(folder) as new:
        for path in old.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES):
                shutil.copyfile(path, new / path.name)
        shards.write_shards(own, config, old, new)
        if config.film:
            torch.save(film.to_file(own, _film_of(old)), new / f"{VISION}--accerl_checkpoint.pt")
        if config.proprio_dim:
            named = {name.removeprefix(f"{PROPRIO}."): own[name].cpu() for name in own if name.startswith(PROPRIO)}
            torch.save(named, new / f"{PROPRIO}--accerl_checkpoint.pt")
        values = {name: tensor.cpu().contiguous() for name, tensor in policy.value_head.state_dict().items()}
        save_file(values, new / VALUE_HEAD)
        _write_json(new / "config.json", config.to_public(_read_json(old / "config.json")))
        statistics = _read_json(old / STATISTICS) if (old / STATISTICS).exists() else {}
        key = config.norm_stats_key
        _write_json(new / STATISTICS, {**statistics, key: {**statistics.get(key, {}), **config.norm_stats}})
        if not isinstance(config.tokenizer, str):
            policy.tokenizer.save_pretrained(str(new))


def open_fields(
    folder: Path, env: EnvConfig, spec: EnvSpec, value_probability: bool = True, norm_stats_key: str | None = None
) -> dict[str, Any]:
    """Fields that the files of a checkpoint leave open, as the environment has them in which it is to act.

    Args:
        norm_stats_key: goes before what the files say; None, and there are several data sets: the suite's.
    """
    public = _read_json(folder / "config.json")
    statistics = _read_json(folder / STATISTICS) if (folder / STATISTICS).exists() else {}
    said = public.get(EXTRAS, {})
    fields: dict[str, Any] = {
        "num_images": spec.num_cameras,
        "max_decisions": spec.max_decisions,
        "gripper": "libero" if env.suite.startswith("libero_") else "none",
        "value_probability": value_probability,
    }
    if len({**public.get("norm_stats", {}), **statistics}) > 1:
        fields["norm_stats_key"] = env.suite
    fields = {name: value for name, value in fields.items() if name not in said}
    return fields if norm_stats_key is None else {**fields, "norm_stats_key": norm_stats_key}


def describe(folder: Path, **chosen: Any) -> OpenVLAOFTConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        ConfigError: as `load`, as far as it is known without the weights.
    """
    _refuse_other_heads(folder, str(folder))
    return _config_of(folder, str(folder), chosen)[0]


def find(source: str | Path) -> Path:
    """The folder of a checkpoint, downloaded into huggingface_hub's cache if it is a hub id.

    Raises:
        ConfigError: it is neither.
    """
    if (folder := Path(source)).is_dir():
        return folder
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(str(source), ignore_patterns=["*.bin", "*.gguf"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"policy.checkpoint: {source} is no folder, and not on the hub ({reason:.200})") from None


def _config_of(
    folder: Path, source: str, chosen: dict[str, Any]
) -> tuple[OpenVLAOFTConfig, dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """Of a checkpoint, with the tensors that have files of their own: the proprioception's and FiLM's."""
    public = _read_json(folder / "config.json")
    proprio, vision = (_read_component(folder, part) for part in (PROPRIO, VISION))
    found: dict[str, Any] = {"checkpoint": str(folder.resolve()) if Path(source).is_dir() else source}
    if proprio is not None:
        found["proprio_dim"] = proprio["fc1.weight"].shape[1]
    if vision is not None:
        found["film"] = True
    statistics = _read_json(folder / STATISTICS) if (folder / STATISTICS).exists() else {}
    return from_public(public, statistics, **{**found, **chosen}), proprio, vision


def _refuse_other_heads(folder: Path, source: str) -> None:
    """By what the files give away: weights do not tell whether they were trained with a causal mask."""
    for part, head in (("noisy_action_projector", "a diffusion head"), ("action_head", "an L1-regression head")):
        if found := sorted(folder.glob(f"*{part}*checkpoint*")):
            raise ConfigError(f"policy.checkpoint: {source} has {head} ({found[0].name}); {REMEDY}")
    code = folder / "modeling_prismatic.py"
    one_by_one = code.exists() and "NUM_ACTIONS_CHUNK" not in code.read_text()
    if one_by_one or re.fullmatch(r"openvla/openvla-(v01-)?7b.*", source):
        raise ConfigError(f"policy.checkpoint: {source} is autoregressive, one action token after the other; {REMEDY}")


def _read_component(folder: Path, part: str) -> dict[str, Tensor] | None:
    """The tensors of `part--*_checkpoint.pt`, without the prefix that data-parallel training leaves; None: no file.

    Raises:
        ConfigError: there are several; one holds more than tensors.
    """
    found = sorted(folder.glob(f"{part}*checkpoint*"))
    if len(found) > 1:
        raise ConfigError(f"policy.checkpoint: {folder} has {len(found)} files {part}*checkpoint*; keep one")
    if not found:
        return None
    try:
        content = torch.load(found[0], map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError:
        raise ConfigError(f"policy.checkpoint: {found[0]} holds more than tensors, which is not read") from None
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _film_of(folder: Path) -> dict[str, Tensor]:
    content = _read_component(folder, VISION)
    if content is None:
        raise ConfigError(f"source: {folder} has no {VISION}--*_checkpoint.pt, whose unused block a FiLM policy needs")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except OSError as error:
        raise ConfigError(f"policy.checkpoint: cannot read {path} ({error.strerror}); give a checkpoint") from None
    except ValueError as error:
        raise ConfigError(f"policy.checkpoint: {path} is damaged ({error}); get it again") from None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))
