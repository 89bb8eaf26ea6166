"""A world model as a folder of safetensors and JSON; nothing is unpickled.

world.json                               of which environment, from what, with which figures
observation.json observation.safetensors
reward.json reward.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from accerl.config import ConfigError
from accerl.files import replaced
from accerl.reading import read_object
from accerl.tensor_files import Digest, write_tensors
from accerl_wm import observation, reward
from accerl_wm.protocols import TrainableObservationModel, TrainableRewardModel
from accerl_wm.world import Dtype, WorldModel

FORMAT = 1
BUILD = {"observation": observation.build, "reward": reward.build}
SHIPPED = Path(__file__).parent / "worlds"


def save(
    folder: Path, observing: TrainableObservationModel, rewarding: TrainableRewardModel, facts: Mapping[str, Any]
) -> None:
    """Write both models and what is to be known of them; a folder that is there is replaced as a whole."""
    with replaced(folder) as temporary:
        for name, model in (("observation", observing), ("reward", rewarding)):
            save_model(temporary, name, model)
        (temporary / "world.json").write_text(json.dumps({"format": FORMAT, **facts}, indent=1))


def save_model(
    folder: Path, name: str, model: TrainableObservationModel | TrainableRewardModel
) -> Mapping[str, Digest]:
    """Write NAME.json and NAME.safetensors into a folder that nobody reads yet; the digest of the latter."""
    (folder / f"{name}.json").write_text(json.dumps(model.config_dict(), indent=1))
    path = folder / f"{name}.safetensors"
    return {path.name: write_tensors(path, model.state_dict())}


def find(folder: Path) -> Path:
    """The folder, or where a world model of that name lies that is shipped with the package."""
    shipped = SHIPPED / folder
    return shipped if shipped.is_dir() and not (folder / "world.json").exists() else folder


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of `world.json`.

    Raises:
        ConfigError: it is no world model, or one of another format.
    """
    folder = find(folder)
    path = folder / "world.json"
    if not path.is_file():
        raise ConfigError(f"world_model: {folder} holds no world.json; train one with `accerl wm train --out {folder}`")
    try:
        facts = read_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"world_model: {folder} is damaged ({error}); train it again") from None
    if facts.pop("format", None) != FORMAT:
        raise ConfigError(f"world_model: {folder} was written in another format; this version reads {FORMAT}")
    return facts


def load(folder: Path, device: torch.device | str = "cpu", dtype: Dtype = "float32") -> WorldModel:
    """Both models, ready to predict; `dtype` as in `WorldModel`.

    Raises:
        ConfigError: a file is missing, unreadable or does not fit.
    """
    read_facts(folder)
    return WorldModel(load_model(folder, "observation", device), load_model(folder, "reward", device), device, dtype)


def load_model(folder: Path, name: Literal["observation", "reward"], device: torch.device | str = "cpu") -> Any:
    """One of the two, ready to predict.

    Raises:
        ConfigError: a file is missing, unreadable or does not fit.
    """
    folder = find(folder)
    try:
        model = BUILD[name](read_object(folder / f"{name}.json"))
        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"world_model: {folder / name} cannot be read ({reason}); train it again") from None
    return model.to(device).train(False)
