"""Meta-World without cameras, and a policy for it: for studies in which pictures add nothing but cost.

privileged state [39] ─┬─► MLP ─► action tokens: 256 bins a dimension, all decoded at once
instruction ───────────┴─► MLP with the time ─► value
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accerl.config import EnvConfig, PolicyConfig
from accerl.envs.metaworld import MetaWorld
from accerl.policies.action_tokens import sample_tokens, soft_labels, to_actions, to_tokens
from accerl.policies.tiny_vla import radial_basis
from accerl.rl.tokens import chosen, log_prob_and_entropy
from accerl.types import Blob, ChunkResult, EnvSpec, Evaluation, Observation, ObservationBatch, PolicyOutput

STATE_DIM, ACTION_DIM = 39, 4
IMAGE_SIZE = 16
"""Of pictures that there are none of."""
NUM_BINS, NUM_BASIS, LABEL_WIDTH = 256, 16, 6.0
SMALLEST_DEVIATION = 1e-2
"""Of a coordinate of the state that hardly changes."""


class StateMetaWorld:
    """`MetaWorld` without a camera, whose `proprio` is the whole state that its scripted experts see."""

    def __init__(self, config: EnvConfig, tasks: Sequence[str]):
        self._env = MetaWorld(config.model_copy(update={"cameras": (), "image_size": IMAGE_SIZE}), tuple(tasks))
        self.spec = replace(self._env.spec, proprio_dim=STATE_DIM)

    @property
    def task(self) -> str:
        return self._env.task

    @property
    def privileged(self) -> np.ndarray:
        return self._env.privileged

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self._env.reset(seed=seed, options=options)
        return self._with_state(observation), info

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        result = self._env.step_chunk(actions, on_step)
        return result._replace(observation=self._with_state(result.observation))

    def render(self, size: int) -> np.ndarray:
        return self._env.render(size)

    def close(self) -> None:
        self._env.close()

    def _with_state(self, observation: Observation) -> Observation:
        return {**observation, "proprio": self.privileged.astype(np.float32)}


class StatePolicy(nn.Module):
    """Two MLPs, a policy's and a critic's; the same action tokens as `TinyVLA`."""

    def __init__(
        self, instructions: Sequence[str], chunk_length: int, max_decisions: int, width: int, probability: bool = True
    ):
        super().__init__()
        self.instructions = tuple(instructions)
        self.chunk_length, self.max_decisions, self.width = chunk_length, max_decisions, width
        self.probability = probability
        self.num_tokens = chunk_length * ACTION_DIM
        known = STATE_DIM + len(self.instructions)
        self.actor = nn.Sequential(
            nn.Linear(known, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)
        )
        self.action_head = nn.Linear(width, self.num_tokens * NUM_BASIS)
        self.critic = nn.Sequential(
            nn.Linear(known + 1, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )
        nn.init.normal_(self.action_head.weight, std=0.01)
        nn.init.zeros_(self.action_head.bias)
        self.basis: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("basis", radial_basis(NUM_BASIS, NUM_BINS), persistent=False)
        self.register_buffer("mean", torch.zeros(STATE_DIM))
        self.register_buffer("deviation", torch.ones(STATE_DIM))

    @classmethod
    def for_env(cls, spec: EnvSpec, instructions: Iterable[str], config: PolicyConfig) -> StatePolicy:
        return cls(sorted(set(instructions)), spec.chunk_length, spec.max_decisions, config.width)

    def scale_to(self, states: Tensor) -> None:
        """Let states [row, 39] such as these have mean 0 and deviation 1."""
        self.mean.copy_(states.mean(0))
        self.deviation.copy_(states.std(0).clamp(min=SMALLEST_DEVIATION))

    def check_env(self, spec: EnvSpec) -> None:
        if spec.chunk_length != self.chunk_length:
            raise ValueError(f"made for chunk_length={self.chunk_length}, but the environment has {spec.chunk_length}")

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        log_probs = self._log_probs(observations)
        tokens = sample_tokens(log_probs, seeds)
        action = to_actions(tokens, NUM_BINS).view(-1, self.chunk_length, ACTION_DIM)
        blob = {"tokens": tokens.to(torch.int16)}
        return PolicyOutput(action, chosen(log_probs, tokens), self.value(observations), blob)

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        log_prob, entropy = log_prob_and_entropy(self._log_probs(observations), blob["tokens"].long())
        return Evaluation(log_prob, entropy, self.value(observations))

    def value(self, observations: ObservationBatch) -> Tensor:
        time = observations.episode_step.float() / self.max_decisions
        value = self.critic(torch.cat([self._known(observations), time[:, None]], dim=1)).squeeze(-1)
        return torch.sigmoid(value) if self.probability else value

    def imitation_loss(self, observations: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        labels = soft_labels(to_tokens(actions, NUM_BINS).flatten(1), NUM_BINS, LABEL_WIDTH)
        cross_entropy = -(labels * self._log_probs(observations)).sum(-1).view(*mask.shape, -1).mean(-1)
        return torch.where(mask, cross_entropy, 0.0).sum() / mask.sum()

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.actor.parameters()
        yield from self.action_head.parameters()

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return self.critic.parameters()

    def config_dict(self) -> dict[str, Any]:
        return {
            "kind": "benchmarks.state_observations:StatePolicy",
            "instructions": list(self.instructions),
            "chunk_length": self.chunk_length,
            "max_decisions": self.max_decisions,
            "width": self.width,
            "probability": self.probability,
        }

    def _known(self, observations: ObservationBatch) -> Tensor:
        """The state, scaled, and which instruction it is, one-hot."""
        state = ((observations.proprio - self.mean) / self.deviation).clamp(-5, 5)
        index = torch.tensor([self.instructions.index(text) for text in observations.instructions])
        return torch.cat([state, nn.functional.one_hot(index, len(self.instructions))], dim=1)

    def _log_probs(self, observations: ObservationBatch) -> Tensor:
        logits = self.action_head(self.actor(self._known(observations))).view(-1, self.num_tokens, NUM_BASIS)
        return torch.log_softmax(logits @ self.basis, dim=-1)
