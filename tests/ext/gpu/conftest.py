"""Each test runs on a GPU, and on the CPU in Triton's interpreter, wherever there is one or the other."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
WITHOUT = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed; pip install --no-deps triton")


@pytest.fixture(
    params=[
        pytest.param(
            "cpu", marks=[WITHOUT, pytest.mark.skipif(not INTERPRETS, reason="TRITON_INTERPRET=1 is not set")]
        ),
        pytest.param(
            "cuda",
            marks=[
                WITHOUT,
                pytest.mark.gpu,
                pytest.mark.skipif(not HAS_GPU or INTERPRETS, reason="wants a GPU, and no TRITON_INTERPRET=1"),
            ],
        ),
    ]
)
def device(request) -> torch.device:
    return torch.device(request.param)
