"""Devices whose times are emulated by sleeping, so that the real runtime can be measured without GPUs and simulators.

`emulated_env` and `EmulatedPolicy` are named by a run's configuration; everything between them is real:

    emulation.save(folder / "emulation.json")
    RunConfig(
        env={"suite": "benchmarks.emulation:emulated_env", "tasks": task_names(folder / "emulation.json"), ...},
        policy={"kind": "benchmarks.emulation:EmulatedPolicy"},
    )

An episode's length and the time of each of its steps follow from its task and seed alone (`devices.script`), so that
every way of running them does the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accerl.config import EnvConfig, PolicyConfig
from accerl.envs.decision import DecisionLoop, Step, chosen_task
from accerl.policies.action_tokens import sample_tokens
from accerl.types import (
    Blob,
    ChunkResult,
    EnvSpec,
    Evaluation,
    Observation,
    ObservationBatch,
    PolicyOutput,
)
from benchmarks.devices import Emulation, emulation_of, script
from benchmarks.meter import Meter

ACTION_DIM, PROPRIO_DIM = 7, 8
NUM_BINS = 16
FORWARD_SHARE = 0.25
"""Of the time of an update: then activations are computed again (checkpointing), and gradients in twice that time."""
POOL = 8
"""Random images that are handed out again and again, as copies."""


def emulated_env(config: EnvConfig, tasks: tuple[str, ...]) -> EmulatedEnv:
    """For `env.suite`."""
    return EmulatedEnv(config, tasks)


class EmulatedEnv:
    """Episodes that follow their `script` and sleep as long as the simulator would compute.

    A decision sleeps once, when its observation is made; how long depends on the steps that were executed.
    """

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...]) -> None:
        self._emulation = emulation_of(tasks)
        self.spec = EnvSpec(
            tasks=tuple(tasks),
            num_cameras=len(config.cameras),
            image_size=config.image_size,
            proprio_dim=PROPRIO_DIM,
            action_dim=ACTION_DIM,
            chunk_length=config.chunk_length,
            steps_per_action=config.steps_per_action,
            max_decisions=config.max_decisions,
        )
        self._task = self.spec.tasks[0]
        self._loop = DecisionLoop(self.spec)
        self._random = np.random.default_rng()
        self._steps = self._slept_steps = self._seed = 0
        self._meter = Meter.of(self._emulation.meters, "env")

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._task = chosen_task(self.spec, options)
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._seed = int(self._random.integers(2**31)) if seed is None else seed
        chunk_steps = self.spec.chunk_length * self.spec.steps_per_action
        self._script = script(self._emulation, self._task.partition("@")[0], self._seed, chunk_steps)
        self._steps = self._slept_steps = 0
        self._loop.start()
        self._sleep(self._script.reset_s, num_decisions=0)
        return self._observation(), {"task": self._task}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        return self._loop.run(actions, self._step, self._observe, on_step)

    def render(self, size: int) -> np.ndarray:
        self._loop.check_started()
        nearest = np.arange(size) * self.spec.image_size // size
        return self._image()[0][nearest][:, nearest]

    def close(self) -> None:
        self._loop = DecisionLoop(self.spec)

    def _step(self, action: np.ndarray) -> Step:
        self._steps += 1
        ended = self._steps == self._script.num_env_steps
        success = ended and self._script.success
        return Step(float(success), terminal=ended, truncated=False, success=success)

    def _observe(self) -> Observation:
        executed = self._steps - self._slept_steps
        chunk_s = float(self._script.chunk_s[self._loop.num_decisions - 1])
        self._slept_steps = self._steps
        self._sleep(chunk_s * executed / (self.spec.chunk_length * self.spec.steps_per_action), num_decisions=1)
        return self._observation()

    def _observation(self) -> Observation:
        proprio = np.zeros(PROPRIO_DIM, np.float32)
        proprio[:2] = self._steps / self._script.num_env_steps, 1.0
        suite = self._task.partition("@")[0]
        return Observation(images=self._image().copy(), proprio=proprio, instruction=f"do a task of the {suite} suite")

    def _image(self) -> np.ndarray:
        images = image_pool(self.spec.num_cameras, self.spec.image_size)
        return images[(self._seed + self._loop.num_decisions) % POOL]

    def _sleep(self, seconds: float, num_decisions: int) -> None:
        seconds *= self._emulation.time_scale
        time.sleep(seconds)
        self._meter.add(seconds, num_decisions)


class EmulatedPolicy(nn.Module):
    """A few real parameters, real tokens, log-probs and gradients, and the time of a 7B model.

    Args:
        emulation: an `Emulation`, or its fields.
    """

    def __init__(
        self, image_size: int, num_cameras: int, chunk_length: int, emulation: Emulation | Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.emulation = emulation if isinstance(emulation, Emulation) else Emulation(**emulation)
        self.image_size, self.num_cameras, self.chunk_length = image_size, num_cameras, chunk_length
        self.num_tokens = chunk_length * ACTION_DIM
        self.action_head = nn.Linear(PROPRIO_DIM, self.num_tokens * NUM_BINS)
        self.value_head = nn.Linear(PROPRIO_DIM, 1)

    @classmethod
    def for_env(cls, spec: EnvSpec, instructions: Iterable[str], config: PolicyConfig) -> EmulatedPolicy:
        """An untrained one, with the times that the tasks' names lead to."""
        return cls(spec.image_size, spec.num_cameras, spec.chunk_length, emulation_of(spec.tasks))

    def check_env(self, spec: EnvSpec) -> None:
        for field in ("image_size", "num_cameras", "chunk_length"):
            if getattr(self, field) != getattr(spec, field):
                raise ValueError(f"policy.kind: made for {field}={getattr(self, field)}, not {getattr(spec, field)}")

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        with _Busy(self.emulation, "inference", self.emulation.act_s(len(observations)), len(observations)):
            log_probs = self._log_probs(observations.proprio)
            tokens = sample_tokens(log_probs, seeds)
            action = (2 * tokens + 1).float() / NUM_BINS - 1
            return PolicyOutput(
                action.view(-1, self.chunk_length, ACTION_DIM),
                log_probs.gather(-1, tokens[..., None]).squeeze(-1),
                self._values(observations.proprio),
                {"tokens": tokens.to(torch.int16)},
            )

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        size = len(observations)
        seconds = self.emulation.evaluate_s(size)
        backward = _Busy(self.emulation, "learner", (1 - FORWARD_SHARE) * seconds, size)
        with _Busy(self.emulation, "learner", FORWARD_SHARE * seconds, 0):
            features = _BackwardEnds.apply(observations.proprio.clone().requires_grad_(), backward)
            log_probs = self._log_probs(features)
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            chosen = log_probs.gather(-1, blob["tokens"].long()[..., None]).squeeze(-1)
            return Evaluation(_BackwardBegins.apply(chosen, backward), entropy, self._values(features))

    def value(self, observations: ObservationBatch) -> Tensor:
        with _Busy(self.emulation, "learner", self.emulation.value_s(len(observations)), 0):
            return self._values(observations.proprio)

    def imitation_loss(self, observations: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("there is nothing to imitate in an emulated environment")

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        return self.action_head.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return self.value_head.parameters()

    def config_dict(self) -> dict[str, Any]:
        return {
            "kind": f"{__name__}:EmulatedPolicy",
            "image_size": self.image_size,
            "num_cameras": self.num_cameras,
            "chunk_length": self.chunk_length,
            "emulation": self.emulation.model_dump(mode="json"),
        }

    def _log_probs(self, features: Tensor) -> Tensor:
        logits = self.action_head(features).view(-1, self.num_tokens, NUM_BINS)
        return torch.log_softmax(logits, dim=-1)

    def _values(self, features: Tensor) -> Tensor:
        return self.value_head(features).squeeze(-1)


class _Busy:
    """A block that takes `seconds`, of which the emulated device is busy for all that the block does not compute."""

    def __init__(self, emulation: Emulation, kind: str, seconds: float, num_decisions: int) -> None:
        self._meter = Meter.of(emulation.meters, kind)
        self._seconds = seconds
        self._num_decisions = num_decisions

    def __enter__(self) -> None:
        self._until = time.monotonic() + self._seconds

    def __exit__(self, *_: object) -> None:
        time.sleep(max(0.0, self._until - time.monotonic()))
        self._meter.add(self._seconds, self._num_decisions)


class _BackwardBegins(torch.autograd.Function):
    """The identity; from when a gradient comes through it the device is busy with the backward pass."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, backward: _Busy) -> Tensor:
        ctx.backward = backward
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.backward.__enter__()
        return gradient, None


class _BackwardEnds(torch.autograd.Function):
    """The identity, on the input of everything; a gradient comes through it when all others are there."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, backward: _Busy) -> Tensor:
        ctx.backward = backward
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.backward.__exit__()
        return gradient, None


@lru_cache
def image_pool(num_cameras: int, image_size: int) -> np.ndarray:
    """Random images [pool, camera, height, width, 3], the same in every process."""
    shape = (POOL, num_cameras, image_size, image_size, 3)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
