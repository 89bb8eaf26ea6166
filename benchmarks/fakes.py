"""An environment without physics and a policy that hardly computes: what remains is the runtime itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accerl.config import EnvConfig, PolicyConfig
from accerl.envs.decision import chosen_task
from accerl.policies.action_tokens import sample_tokens
from accerl.rl.tokens import chosen, log_prob_and_entropy
from accerl.types import Blob, ChunkResult, EnvSpec, Evaluation, Observation, ObservationBatch, PolicyOutput

ACTION_DIM, PROPRIO_DIM, NUM_BINS = 7, 8, 256
PATCH = 28
FRAMES = 16
"""Random frames that are shown in turn."""


def fake_env(config: EnvConfig, tasks: tuple[str, ...]) -> FakeEnv:
    """For `env.suite`."""
    return FakeEnv(config, tasks)


class FakeEnv:
    """Random frames at no cost, success at random; an episode lasts `max_decisions` at most."""

    def __init__(self, config: EnvConfig, tasks: tuple[str, ...]) -> None:
        self.spec = EnvSpec(
            tasks=tasks,
            num_cameras=len(config.cameras),
            image_size=config.image_size,
            proprio_dim=PROPRIO_DIM,
            action_dim=ACTION_DIM,
            chunk_length=config.chunk_length,
            steps_per_action=config.steps_per_action,
            max_decisions=config.max_decisions,
        )
        shape = (FRAMES, len(config.cameras), config.image_size, config.image_size, 3)
        self._frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._task = chosen_task(self.spec, options)
        self._generator = np.random.default_rng(seed)
        self._step = 0
        return self._observe(), {}

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        self._step += 1
        success = bool(self._generator.random() < 0.02)
        return ChunkResult(
            self._observe(),
            reward=float(success),
            terminal=success,
            truncated=not success and self._step == self.spec.max_decisions,
            success=success,
            num_actions=len(actions),
            num_env_steps=len(actions) * self.spec.steps_per_action,
        )

    def render(self, size: int) -> np.ndarray:
        return np.zeros((size, size, 3), np.uint8)

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        return Observation(
            images=self._frames[self._step % FRAMES].copy(),
            proprio=np.zeros(PROPRIO_DIM, np.float32),
            instruction=self._task,
        )


class FakePolicy(nn.Module):
    """Patches of the image averaged, two layers of `hidden` features, a categorical for each action dimension."""

    def __init__(self, chunk_length: int = 8, hidden: int = 256):
        super().__init__()
        self.chunk_length, self.hidden = chunk_length, hidden
        self.num_tokens = chunk_length * ACTION_DIM
        self.body = nn.Sequential(nn.Linear(PATCH * PATCH * 3, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.action_head = nn.Linear(hidden, self.num_tokens * NUM_BINS)
        self.value_head = nn.Linear(hidden, 1)

    @classmethod
    def for_env(cls, spec: EnvSpec, instructions: Iterable[str], config: PolicyConfig) -> FakePolicy:
        return cls(chunk_length=spec.chunk_length)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "benchmarks.fakes:FakePolicy", "chunk_length": self.chunk_length, "hidden": self.hidden}

    def check_env(self, spec: EnvSpec) -> None:
        if spec.image_size % PATCH:
            raise ValueError(f"env.image_size: {spec.image_size} is no multiple of {PATCH}")

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        features = self._features(observations)
        log_probs = self._log_probs(features)
        tokens = sample_tokens(log_probs, seeds)
        action = (tokens.float() * (2 / (NUM_BINS - 1)) - 1).view(-1, self.chunk_length, ACTION_DIM)
        value = self.value_head(features).squeeze(-1)
        return PolicyOutput(action, chosen(log_probs, tokens), value, {"tokens": tokens.to(torch.int16)})

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        features = self._features(observations)
        log_prob, entropy = log_prob_and_entropy(self._log_probs(features), blob["tokens"].long())
        return Evaluation(log_prob, entropy, self._value(features))

    def value(self, observations: ObservationBatch) -> Tensor:
        return self._value(self._features(observations))

    def imitation_loss(self, observations: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError("it measures the runtime; it is not cloned")

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.body.parameters()
        yield from self.action_head.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.value_head.parameters()

    def _features(self, observations: ObservationBatch) -> Tensor:
        images = observations.images[:, 0]
        batch, size, _, _ = images.shape
        grid = size // PATCH
        rows = images.reshape(batch, grid, -1).float().mean(dim=1)  # first one axis, then the other: five times faster
        patches = rows.view(batch, PATCH, grid, -1).mean(dim=2) / 255
        return self.body(patches.flatten(1))

    def _log_probs(self, features: Tensor) -> Tensor:
        logits = self.action_head(features).view(len(features), self.num_tokens, NUM_BINS)
        return torch.log_softmax(logits, dim=-1)

    def _value(self, features: Tensor) -> Tensor:
        return self.value_head(features.detach()).squeeze(-1)
