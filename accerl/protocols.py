"""The ports between the roles: every arrow that may cross a process, and what plugs in at either end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from accerl.types import (
    BatchRule,
    Blob,
    ChunkResult,
    Decision,
    DecisionRequest,
    EnvSpec,
    Episode,
    EpisodePlan,
    Evaluation,
    Observation,
    ObservationBatch,
    PolicyOutput,
    Trajectory,
    Weights,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accerl.policy_server import PolicyServer


@runtime_checkable
class Env(Protocol):
    """A simulator or robot: gymnasium's API, one decision at a time.

    `accerl.envs.conformance.check_env` runs any implementation against these promises.
    """

    @property
    def spec(self) -> EnvSpec: ...

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode of `options["task"]` (default: the first task). The same seed gives the same episode.

        Raises:
            ValueError: the task is not one of `spec.tasks`.
        """
        ...

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        """Execute actions [chunk, action] in [-1, 1] until they or the episode end; render once, at the end.

        Args:
            actions: clipped to [-1, 1].
            on_step: called after every environment step, for films and privileged recordings.
        """
        ...

    def render(self, size: int) -> np.ndarray:
        """The first camera's view now, uint8 [size, size, 3]."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class StatefulEnv(Env, Protocol):
    """An environment that can be put back to where it was, which MuJoCo can and a robot cannot."""

    def save_state(self) -> dict[str, np.ndarray]: ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> Observation:
        """Continue from `state`; the same actions then give the same results."""
        ...


class AsyncEnv(Protocol):
    """An environment that waits for others instead of computing, so that many wait at once: `Env` with coroutines."""

    @property
    def spec(self) -> EnvSpec: ...

    async def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]: ...

    async def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult: ...

    def close(self) -> None: ...


class Expert(Protocol):
    """A scripted demonstrator with access to the simulator's state."""

    def __call__(self, env: Any) -> np.ndarray:
        """The next action [action] in [-1, 1]."""
        ...


class Policy(Protocol):
    """A VLA. Nothing outside it knows that actions are categories, or denoised, or anything else."""

    @property
    def num_tokens(self) -> int:
        """Log-probs of one decision; a multiple of the chunk length, or 1."""
        ...

    def check_env(self, spec: EnvSpec) -> None:
        """Raises ValueError naming the difference if the policy was not built for such an environment."""
        ...

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        """Choose actions. Row i depends on observation i and seeds[i] only; a negative seed means greedy."""
        ...

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        """Log-prob, entropy and value of stored decisions under the present parameters, with gradients."""
        ...

    def value(self, observations: ObservationBatch) -> Tensor:
        """Values [batch] of the observations."""
        ...

    def imitation_loss(self, observations: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        """How badly it predicts demonstrated actions [batch, chunk, action]; `mask` [batch, chunk] says which count."""
        ...

    def policy_parameters(self) -> Iterator[nn.Parameter]: ...

    def value_parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def to(self, device: Any) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds the policy without its weights; JSON-compatible."""
        ...


class PolicyClient(Protocol):
    """rollout -> inference."""

    async def act(self, request: DecisionRequest) -> Decision:
        """Raises `NoDecision` if what the policy gives is not finite."""
        ...

    def enter(self) -> None:
        """One more slot plays an episode: where inference runs in lockstep, a batch waits for its request too."""
        ...

    def leave(self) -> None:
        """One slot less does."""
        ...


class TrajectorySink(Protocol):
    """rollout -> replay."""

    async def put(self, trajectory: Trajectory) -> None:
        """Returns when the replay has taken ownership; waits while it is full of unused decisions.

        Raises:
            TrajectoryRefused: it cannot be trained on.
        """
        ...


class TrajectorySource(Protocol):
    """replay -> prefetch. `batch` is the version of the parameters that the batch at hand will be trained on."""

    def sample(self, num_decisions: int, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        """Segments with at least `num_decisions` decisions in all; empty if that many were not there in time."""
        ...

    def rule(self, batch: int, timeout_s: float) -> BatchRule:
        """What the batch is made of; returns when that, or what there is to take, may have changed, or in time."""
        ...

    def take(self, num_decisions: int, rule: BatchRule, batch: int, timeout_s: float) -> Sequence[Trajectory]:
        """Segments for the batch, as they came, about `num_decisions` and all that `rule` wants; maybe none."""
        ...

    def confirm(self, batch: int) -> None:
        """Every batch up to this one was trained on. Never waits."""
        ...


class ImaginedSource(Protocol):
    """imagination -> learner, beside `accerl.runtime.inline`."""

    @property
    def share(self) -> float:
        """Of the decisions of a batch."""
        ...

    def observe(self, trajectory: Trajectory) -> None:
        """A real one, to learn and to start from."""
        ...

    def sample(self, num_decisions: int, batch: int, server: PolicyServer) -> Sequence[Trajectory]:
        """Imagined segments with at least so many decisions in all, by the policy that `server` has."""
        ...


class TaskSource(Protocol):
    """tasks -> rollout, and the outcome back."""

    async def next_episode(self) -> EpisodePlan | None:
        """What a slot plays next; None: nothing more."""
        ...

    async def report(self, episode: Episode) -> None: ...

    async def fail(self, plan: EpisodePlan, error: Exception) -> None:
        """The environment raised in this episode, and will be replaced; or the episode is spoiled (`EpisodeSpoiled`),
        and the environment goes on. Raises if this is not to be borne.
        """
        ...


class WeightPublisher(Protocol):
    """learner -> weights."""

    def publish(self, weights: Weights) -> None:
        """Make `weights` the latest version. Never waits for a receiver."""
        ...


class WeightSource(Protocol):
    """weights -> inference."""

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        """The newest weights if their version is above `after`, within `timeout_s`; else None."""
        ...
