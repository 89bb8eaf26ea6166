"""Times of emulated devices, and the episodes that take them: what the runtime sleeps and the simulation counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from accerl.config import ConfigError, Fraction, PositiveFloat, Section, suggest

STEP_LIMITS = {"spatial": 220, "object": 280, "goal": 300, "long": 520}
"""Environment steps after which an episode has failed: OpenVLA-OFT's protocol on LIBERO's suites."""
SHORTEST = 80
"""Environment steps of the quickest success."""

Seconds = Annotated[float, Field(ge=0)]


class Emulation(Section):
    """Times of the devices, at `time_scale = 1` those of LIBERO and of OpenVLA-OFT 7B with two images on H100s."""

    step_s: PositiveFloat = 0.025
    """Mean of an environment step, rendered once a decision only: 20 ms in the spatial suite, 25 ms in the long one."""
    step_spread: Seconds = 0.3
    """Standard deviation of the logarithm of a decision's environment time: the slowest of 200 takes
    2.2 times the mean, as was measured where a Meta-World arm touches things (1.9 and 2.4)."""
    soft_reset_s: tuple[Seconds, Seconds] = (0.02, 0.05)
    """Bounds of a reset that only puts the objects back."""
    hard_reset_s: tuple[Seconds, Seconds] = (1.4, 2.0)
    """Bounds of a reset that builds the scene anew."""
    hard_reset_share: Fraction = 0.05
    """Resets that are hard."""
    success_rate: Fraction = 0.7
    """Episodes that succeed, somewhere between `SHORTEST` and the limit of their suite."""
    forward_base_s: Seconds = 0.0
    """a: of a forward of any size. A line through the 11, 89 and 715 ms of 1, 8 and 64 rows starts at 0."""
    forward_s: PositiveFloat = 0.0112
    """b: of each row of a forward on one GPU: 8.82 TFLOP at 790 TFLOP/s."""
    train_s: PositiveFloat = 0.0447
    """Of each decision of an update on one GPU: four forwards, as activations are computed twice (checkpointing)."""
    inference_gpus: PositiveFloat = 1.0
    """GPUs of each inference service, over which it splits a batch; below 1 a share of one."""
    learner_gpus: PositiveFloat = 1.0
    """GPUs over which an update is split, likewise."""
    time_scale: PositiveFloat = 1.0
    """Factor on every time."""
    meters: Path | None = None
    """Folder where every process writes down how long its devices were busy (`benchmarks.meter`)."""

    @classmethod
    def load(cls, path: Path) -> Emulation:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1))

    def act_s(self, num_rows: int) -> float:
        """Time of a forward of one service: a + b rows, of the GPU that gets the most rows."""
        gpus = self.inference_gpus
        rows = num_rows / gpus if gpus < 1 else math.ceil(num_rows / gpus)
        return self.time_scale * (self.forward_base_s / min(gpus, 1.0) + self.forward_s * rows)

    def evaluate_s(self, num_rows: int) -> float:
        """Time of forward and backward of so many decisions of an update."""
        return self.time_scale * self.train_s * num_rows / self.learner_gpus

    def value_s(self, num_rows: int) -> float:
        """Time of a forward on the learner's GPUs."""
        return self.time_scale * (self.forward_base_s + self.forward_s * num_rows / self.learner_gpus)


class Script(NamedTuple):
    """What an episode does, whatever acts in it; times are those of `time_scale = 1`."""

    num_env_steps: int
    success: bool
    reset_s: float
    chunk_s: np.ndarray
    """Of each decision that is executed to its last step."""


def script(emulation: Emulation, suite: str, seed: int, chunk_length: int = 8) -> Script:
    """The episode of `seed` in a suite of `STEP_LIMITS`."""
    random = np.random.default_rng(seed)
    limit = STEP_LIMITS[suite]
    success = bool(random.random() < emulation.success_rate)
    num_env_steps = int(random.integers(SHORTEST, limit + 1)) if success else limit
    bounds = emulation.hard_reset_s if random.random() < emulation.hard_reset_share else emulation.soft_reset_s
    spread = emulation.step_spread
    factors = np.exp(spread * random.standard_normal(-(-num_env_steps // chunk_length)) - spread**2 / 2)
    return Script(
        num_env_steps=num_env_steps,
        success=success,
        reset_s=float(random.uniform(*bounds)),
        chunk_s=emulation.step_s * chunk_length * factors,
    )


def task_names(path: Path | None = None, suites: Iterable[str] = STEP_LIMITS) -> tuple[str, ...]:
    """Names for `env.tasks`: the suites, each with the file that every process reads its `Emulation` from."""
    return tuple(suites) if path is None else tuple(f"{suite}@{path.resolve()}" for suite in suites)


def emulation_of(tasks: Iterable[str]) -> Emulation:
    """What `task_names` put into the names; the defaults if that was nothing.

    Raises:
        ConfigError: an unknown suite, or names that disagree.
    """
    parts = [task.partition("@") for task in tasks]
    for suite, _, _ in parts:
        if suite not in STEP_LIMITS:
            raise ConfigError(f"env.tasks: unknown suite {suite!r}; {suggest(suite, list(STEP_LIMITS))}")
    files = {file for _, _, file in parts}
    if len(files) > 1:
        raise ConfigError(f"env.tasks: one emulation a run, not {sorted(files)}; name one file")
    (file,) = files
    return Emulation.load(Path(file)) if file else Emulation()
