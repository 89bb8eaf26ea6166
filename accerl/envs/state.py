"""Random generators as arrays, for `StatefulEnv.save_state`."""

from __future__ import annotations

import json

import numpy as np


def pack_random(random: np.random.Generator) -> np.ndarray:
    """The state of a generator made by `np.random.default_rng`, as uint8."""
    return np.frombuffer(json.dumps(random.bit_generator.state).encode(), np.uint8)


def unpack_random(state: np.ndarray) -> np.random.Generator:
    random = np.random.default_rng()
    random.bit_generator.state = json.loads(state.tobytes())
    return random
