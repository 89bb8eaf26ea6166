"""The state of a `StatefulEnv`: random generators as arrays in it, and all of it as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

FACTS = "facts"
"""Beside the arrays: what is no number, and the shapes of all that is."""


def pack_random(random: np.random.Generator) -> np.ndarray:
    """The state of a generator made by `np.random.default_rng`, as uint8."""
    return np.frombuffer(json.dumps(random.bit_generator.state).encode(), np.uint8)


def unpack_random(state: np.ndarray) -> np.random.Generator:
    random = np.random.default_rng()
    random.bit_generator.state = json.loads(state.tobytes())
    return random


def pack_state(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """What `StatefulEnv.save_state` gave, as uint8: safetensors, with the sentences among it as JSON."""
    words = {name: str(value) for name, value in state.items() if value.dtype.kind == "U"}
    numbers = {name: np.ascontiguousarray(value) for name, value in state.items() if name not in words}
    shapes = {name: value.shape for name, value in state.items() if name not in words}  # contiguous arrays have an axis
    facts = json.dumps({"words": words, "shapes": shapes}).encode()
    return np.frombuffer(safetensors.numpy.save({**numbers, FACTS: np.frombuffer(facts, np.uint8)}), np.uint8)


def unpack_state(packed: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse."""
    arrays = safetensors.numpy.load(packed.tobytes())
    facts: dict[str, Any] = json.loads(arrays.pop(FACTS).tobytes())
    numbers = {name: value.reshape(facts["shapes"][name]) for name, value in arrays.items()}
    return {**numbers, **{name: np.array(word) for name, word in facts["words"].items()}}
