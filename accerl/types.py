"""Everything that travels between the roles: one type for each arrow of the picture in `accerl/__init__.py`.

Axes: `time` decisions of a segment, `token` tokens of a decision, `chunk` actions of a decision. An *environment step*
is one simulator step; a *decision* is one policy query, which yields one chunk of actions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64, UInt8

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray
T = TypeVar("T")
Blob: TypeAlias = dict[str, T]
"""What a policy stores beside a decision to re-evaluate it later; opaque to everything but that policy."""


class Observation(TypedDict):
    """What a policy sees of one environment at one decision."""

    images: UInt8[Array, "camera height width 3"]
    proprio: Float32[Array, " proprio"]
    instruction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSpec:
    """The fixed facts of an environment; a policy must be built for the same ones."""

    tasks: tuple[str, ...]
    num_cameras: int
    image_size: int
    """Height and width of each image, pixels."""
    proprio_dim: int
    action_dim: int
    chunk_length: int
    """Actions in a decision."""
    steps_per_action: int
    """Environment steps for which each action is held."""
    max_decisions: int
    """Decisions after which an episode is truncated."""
    max_env_steps: int | None = None
    """Environment steps after which it is truncated, also inside a chunk."""


class ChunkResult(NamedTuple):
    """What one decision did to the environment."""

    observation: Observation
    reward: float
    """Summed over the environment steps of the chunk."""
    terminal: bool
    """The episode ended in an absorbing state: no value beyond it."""
    truncated: bool
    """The episode was cut by a limit: its value goes on, so it bootstraps."""
    success: bool
    num_actions: int
    """Actions of the chunk that were executed; fewer than `chunk_length` when the episode ended inside it."""
    num_env_steps: int
    cut: bool = False
    """Nothing ended, but nothing more is played: the horizon of an imagination. Its value goes on, so it bootstraps."""
    success_probability: float | None = None
    """That a reward model gives to what is seen now; None: the simulator knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodePlan:
    """tasks -> rollout: the next episode of a slot."""

    task: str
    seed: int | None = None
    """Of the environment and of the sampling noise; None: the worker's own sequence."""
    noise: int | None = None
    """Seed of the sampling noise alone, for episodes that start alike and go on differently; None: `seed`."""
    greedy: bool = False
    instruction: str | None = None
    """Given to the policy in place of the environment's own."""
    start: int | None = None
    """Which of the environment's fixed initial states, where it has some; None: the seed chooses."""
    number: int = -1
    """Of the episode in its run; -1 outside of one."""
    policy_version: int | None = None
    """Play it with this version, which inference has been told to keep; None: always the newest."""
    is_imagined: bool = False
    """A world model stands in for the simulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRequest:
    """rollout -> inference: one environment asks for its next chunk of actions."""

    observation: Observation
    episode_step: int
    """Decisions taken in this episode so far."""
    seed: int
    """Of this decision's sampling noise, so that an action does not depend on its batch; negative: greedy."""
    policy_version: int | None = None
    """Answered by this version, which the server has been told to keep; None: by the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """inference -> rollout: the answer to a `DecisionRequest`."""

    action: Float32[Array, "chunk action"]
    """In [-1, 1]."""
    log_prob: Float32[Array, " token"]
    value: float
    blob: Blob[Array]
    policy_version: int


class EpisodeSpoiled(Exception):  # noqa: N818 - it says what happened
    """An episode cannot go on, or cannot be used; nothing is wrong with its environment."""


class NoDecision(EpisodeSpoiled):
    """inference -> rollout, in the place of a decision: what the policy gave is not finite."""


class TrajectoryRefused(EpisodeSpoiled):
    """replay -> rollout: this is no trajectory of such a run, and is not trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """rollout -> replay: consecutive decisions of one environment, possibly under several policy versions."""

    task: str
    instruction: str
    images: UInt8[Array, "time+1 camera height width 3"]
    """The last one is the observation that bootstraps."""
    proprio: Float32[Array, "time+1 proprio"]
    episode_step: Int32[Array, " time+1"]
    blob: Blob[Array]
    """Each array [time, ...]."""
    log_prob: Float32[Array, "time token"]
    """Of the chosen tokens, under the policy that chose them."""
    value: Float32[Array, " time"]
    """Of the critic that acted; learning recomputes it."""
    reward: Float32[Array, " time"]
    num_actions: Int32[Array, " time"]
    num_env_steps: Int32[Array, " time"]
    policy_version: Int32[Array, " time"]
    terminal: bool
    truncated: bool
    success: bool
    """The episode succeeded; False as well while it is still going on."""
    origin: str
    """Worker, slot and episode that made it."""
    episode: int = -1
    """Number of its `EpisodePlan`."""
    advantage: float | None = None
    """Of the whole episode against the others of its group; None: the critic's are used."""
    action: Float32[Array, "time chunk action"] | None = None
    """What was executed, for those to whom `blob` says nothing, such as world models."""
    state: UInt8[Array, " byte"] | None = None
    """The simulator's at the first decision, where `rollout.keep_state` asks for it, as `accerl.envs.state` packs it:
    `action` plays the segment again from there."""
    is_imagined: bool = False
    """A world model stood in for the simulator."""
    success_probability: Float32[Array, " time"] | None = None
    """Of what each decision led to, by a reward model; None: the simulator knows."""

    @property
    def num_decisions(self) -> int:
        return len(self.reward)

    @property
    def ended(self) -> bool:
        """Its last decision ended the episode."""
        return self.terminal or self.truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """rollout -> tasks and metrics: a finished episode in numbers."""

    task: str
    success: bool
    episode_return: float
    num_decisions: int
    num_env_steps: int
    policy_version: int
    """Of its last decision."""
    origin: str
    number: int = -1
    """Of its `EpisodePlan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationBatch:
    """Stacked observations, as a policy takes them."""

    images: UInt8[Tensor, "batch camera height width 3"]
    proprio: Float32[Tensor, "batch proprio"]
    instructions: list[str]
    episode_step: Int64[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.instructions)

    def __getitem__(self, rows: slice) -> ObservationBatch:
        return ObservationBatch(
            images=self.images[rows],
            proprio=self.proprio[rows],
            instructions=self.instructions[rows],
            episode_step=self.episode_step[rows],
        )


class PolicyOutput(NamedTuple):
    """What `Policy.act` gives for a batch of observations."""

    action: Float32[Tensor, "batch chunk action"]
    log_prob: Float32[Tensor, "batch token"]
    value: Float32[Tensor, " batch"]
    blob: Blob[Tensor]


class Evaluation(NamedTuple):
    """What `Policy.evaluate` gives for stored decisions; carries gradients."""

    log_prob: Float32[Tensor, "batch token"]
    entropy: Float32[Tensor, "batch token"]
    value: Float32[Tensor, " batch"]


class FreshValues(NamedTuple):
    """Of the newest critic."""

    decision: Float[Tensor, " decision"]
    bootstrap: Float[Tensor, " segment"]
    """Of the observation after each segment, 0 where that is terminal; on the CPU."""


class Origin(NamedTuple):
    """Where a segment of a batch came from; as the fields of its `Trajectory`."""

    origin: str
    task: str
    episode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """prefetch -> learner: segments packed end to end, ragged, no padding.

    Row r of `observations` belongs to decision r for r < decisions; the rows after that are the observations that
    bootstrap the segments which did not end in a terminal state, in the order of the segments.
    """

    observations: ObservationBatch
    blob: Blob[Tensor]
    log_prob: Float32[Tensor, "decision token"]
    mask: Bool[Tensor, "decision token"]
    """False for the tokens of actions that were never executed."""
    behaviour_value: Float32[Tensor, " decision"]
    reward: Float32[Tensor, " decision"]
    policy_version: Int64[Tensor, " decision"]
    lengths: Int64[Tensor, " segment"]
    terminal: Bool[Tensor, " segment"]
    chunk_length: int
    """Actions in a decision."""
    group_advantage: Float32[Tensor, " decision"] | None = None
    """Of the decision's episode against its group; None: the critic's are used."""
    values: FreshValues | None = None
    """Recomputed when the batch was made; None: the learner does that."""
    origins: tuple[Origin, ...] = ()
    """Of each segment, for those who look into it; empty: not known."""

    @property
    def num_decisions(self) -> int:
        return len(self.reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """admission -> prefetch: what the next batch is made of, and whether it may end with what is there."""

    episodes_below: int | None = None
    """Only of episodes with a smaller number."""
    needs_all: bool = False
    """The batch is all that the fields above admit, whatever `learner.batch_decisions` says."""
    oldest_version: int | None = None
    """Unused decisions of older versions belong to this batch too: for the next one they would be too old."""
    is_complete: bool = True
    """Nothing that must be in this batch is still being played."""
    is_starved: bool = False
    """Nothing more can come before this batch was trained on, so it takes what is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """learner -> weights -> inference: the parameters of one policy version."""

    version: int
    tensors: dict[str, Any]
    """Name to array or tensor."""
    info: dict[str, Any] = field(default_factory=dict)
