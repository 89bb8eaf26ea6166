"""The tiny checkpoints of the reference, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.policies.openvla_oft.reference import CASES, GOLDEN, write_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of the case; not to be written to."""
    folder = tmp_path_factory.mktemp("public")
    return {name: write_checkpoint(folder / name, case) for name, case in CASES.items()}
