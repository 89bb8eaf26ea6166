"""A whole run: every section, and which settings cannot work together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from accerl.config.environment import DemosConfig, EnvConfig
from accerl.config.imagination import ImaginationConfig
from accerl.config.learning import CloneConfig, LearnerConfig, ObjectiveConfig, PolicyConfig
from accerl.config.sections import NonNegative, Section, merge, read_file
from accerl.config.system import (
    ClusterConfig,
    InferenceConfig,
    LimitsConfig,
    PlacementConfig,
    ReplayConfig,
    RolloutConfig,
    SupervisionConfig,
    TaskConfig,
    TraceConfig,
    WeightsConfig,
)

Mode = Literal["async", "barrier", "one_step_off", "sync"]
KernelChoice = Literal["auto", "torch", "ext"]


class RunConfig(Section):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Folder of the run below `root`."""
    root: Path = Path("runs")
    """Folder that holds the runs."""
    mode: Mode = "async"
    """Who waits for whom. `async`: nobody; `barrier`: rollout for each update; `sync`: so, and in lockstep: every
    environment for the slowest one at every step; `one_step_off`: in lockstep, one round ahead of the learner."""
    seed: NonNegative = 0
    """Of weights, environments, sampling and batches."""
    kernels: KernelChoice = "auto"
    """Of `accerl_ext`: `auto`: wherever they work, `torch`: none, `ext`: those for the CPU, or the run is refused."""
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    inference: InferenceConfig = InferenceConfig()
    replay: ReplayConfig = ReplayConfig()
    tasks: TaskConfig = TaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    learner: LearnerConfig = LearnerConfig()
    imagination: ImaginationConfig = ImaginationConfig()
    limits: LimitsConfig = LimitsConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    weights: WeightsConfig = WeightsConfig()
    placement: PlacementConfig = PlacementConfig()
    trace: TraceConfig = TraceConfig()
    cluster: ClusterConfig = ClusterConfig()
    demos: DemosConfig = DemosConfig()
    """Of `accerl demos`; here, so that one file holds a whole recipe. Training does not read it."""
    clone: CloneConfig = CloneConfig()
    """Of `accerl clone`, likewise."""

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def num_slots(self) -> int:
        """Environments over all workers."""
        return self.rollout.num_workers * self.rollout.slots_per_worker

    @property
    def max_policy_lag(self) -> int | None:
        """K: bound on a decision's age when it is trained on, in policy versions; None: not bounded."""
        match self.mode:
            case "sync" | "barrier":
                return 0
            case "one_step_off":
                return 1
            case _:
                return self.rollout.max_policy_lag

    @property
    def is_lockstep(self) -> bool:
        """All environments step together, and none starts an episode before all have ended theirs."""
        return self.mode in ("sync", "one_step_off")

    @property
    def episodes_per_round(self) -> int:
        """Episodes that a global batch is made from where staleness is bounded."""
        return self.rollout.episodes_per_round or self.num_slots

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        """Read a `.toml` or `.json` file and lay `overrides` (dotted names to values) over it.

        Raises:
            ConfigError: the file is missing or unreadable, or its content does not fit.
        """
        return cls(**merge(read_file(path), overrides or {}))

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        for wrong, message in self._conflicts():
            if wrong:
                raise ValueError(message)
        return self

    def _conflicts(self) -> list[tuple[bool, str]]:
        replay, learner, objective, limits = self.replay, self.learner, self.objective, self.limits
        longest = min(self.rollout.segment_decisions, self.env.max_decisions)
        surely_held = max(0, replay.num_shards * (replay.capacity_decisions // replay.num_shards - longest + 1))
        surely_needed = max(learner.batch_decisions, replay.min_decisions) + replay.num_shards * longest
        lag = self.max_policy_lag
        outstanding = 0 if lag is None else (lag + 1) * self.episodes_per_round * self.env.max_decisions
        return [
            (
                self.mode != "async" and self.rollout.max_policy_lag is not None,
                f"rollout.max_policy_lag: mode={self.mode!r} has its own bound; leave it out, or use mode='async'",
            ),
            (
                lag is not None and learner.publish_every > lag + 1,
                f"learner.publish_every: {learner.publish_every} leaves inference further behind than the lag of {lag} "
                f"allows, so that no episode could start; use at most {(lag or 0) + 1}",
            ),
            (
                outstanding > replay.capacity_decisions,
                f"replay.capacity_decisions: {replay.capacity_decisions} is below the {outstanding} decisions that may "
                f"wait at once with a lag of {lag}, rollout.episodes_per_round={self.episodes_per_round} and "
                f"env.max_decisions={self.env.max_decisions}; raise it",
            ),
            (
                objective.value_loss == "bce" and self.env.reward == "dense",
                "objective.value_loss: 'bce' needs returns in [0, 1], not those of env.reward='dense'; use 'mse'",
            ),
            *self._conflicts_of_groups(longest),
            *self._conflicts_of_the_replay(lag),
            *self._conflicts_of_imagination(lag),
            (
                self.inference.batch_size > self.num_slots,
                f"inference.batch_size: {self.inference.batch_size} can never fill from rollout.num_workers * "
                f"rollout.slots_per_worker = {self.num_slots} slots; use at most that",
            ),
            (
                replay.min_decisions > surely_held,
                f"replay.min_decisions: {replay.min_decisions} is above the {surely_held} decisions that fit into "
                f"replay.capacity_decisions={replay.capacity_decisions} in segments of up to {longest}, so training "
                f"would never start; lower it",
            ),
            (
                replay.max_unused is not None and replay.max_unused < surely_needed,
                f"replay.max_unused: {replay.max_unused} would have the workers wait before the first batch is there; "
                f"use at least {surely_needed}",
            ),
            (
                learner.batch_decisions > surely_held,
                f"learner.batch_decisions: {learner.batch_decisions} is above the {surely_held} decisions that fit "
                f"into replay.capacity_decisions={replay.capacity_decisions} in segments of up to {longest}, so no "
                f"batch could be made; raise the capacity",
            ),
            (
                limits.max_decisions is not None and limits.max_decisions < replay.min_decisions,
                f"limits.max_decisions: {limits.max_decisions} ends the run before replay.min_decisions="
                f"{replay.min_decisions} lets training start; raise it",
            ),
            (
                limits.max_updates is not None and limits.max_updates <= learner.value_warmup_updates,
                f"limits.max_updates: {limits.max_updates} ends the run inside learner.value_warmup_updates="
                f"{learner.value_warmup_updates}, so the policy would never train; raise it",
            ),
        ]

    def _conflicts_of_the_replay(self, lag: int | None) -> list[tuple[bool, str]]:
        """A bound on staleness already says which decisions a batch is made of, and that none is dropped."""
        replay = self.replay
        bound = f"rollout.max_policy_lag={lag}" if self.mode == "async" else f"mode={self.mode!r}"
        return [
            (
                lag is not None and replay.order == "ring",
                f"replay.order: 'ring' overwrites unused decisions, which {bound} waits for; use 'least_used'",
            ),
            (
                lag is not None and replay.max_age_versions is not None,
                f"replay.max_age_versions: {replay.max_age_versions} would drop unused decisions, which {bound} waits "
                f"for, and that bounds their age already; leave one of them out",
            ),
            (
                lag is not None and replay.success_share is not None,
                f"replay.success_share: {replay.success_share} cannot choose, as {bound} says what a batch is made of; "
                f"leave it out",
            ),
        ]

    def _conflicts_of_imagination(self, lag: int | None) -> list[tuple[bool, str]]:
        imagination, replay = self.imagination, self.replay
        on = imagination.enabled
        batch = round(imagination.share * self.learner.batch_decisions)
        return [
            (
                on and imagination.world_model is None,
                "imagination.world_model: is missing; train one with `accerl wm train`",
            ),
            (
                on and lag is not None,
                "rollout.max_policy_lag: bounds the age of what is real only; leave it out, and mode='async', to "
                "imagine",
            ),
            (
                on and self.objective.advantages == "group",
                "objective.advantages: 'group' compares episodes from one initial state, which imagined ones are not; "
                "use 'gae'",
            ),
            (
                on and self.weights.channel == "group",
                "weights.channel: 'group' has no place for the processes that imagine; use 'shared' or 'store'",
            ),
            (
                on and replay.streams,
                "replay.max_reuse: 1 trains on decisions as they come, so that no share of a batch can be kept; use 2 "
                "or more",
            ),
            (
                on and imagination.capacity_decisions < batch + imagination.horizon,
                f"imagination.capacity_decisions: {imagination.capacity_decisions} cannot hold the {batch} imagined "
                f"decisions of a batch; raise it",
            ),
            (
                on and imagination.placement == "colocated" and imagination.num_services > 1,
                f"imagination.num_services: {imagination.num_services} needs imagination.placement='pooled'; where "
                "models are colocated, raise imagination.num_workers",
            ),
            (
                on and imagination.distrusted > imagination.trusted,
                f"imagination.distrusted: {imagination.distrusted} is above imagination.trusted="
                f"{imagination.trusted}; lower it",
            ),
        ]

    def _conflicts_of_groups(self, longest: int) -> list[tuple[bool, str]]:
        size, compares = self.rollout.group_size, self.objective.advantages == "group"
        return [
            (
                compares and size == 1,
                "rollout.group_size: 1 leaves nothing for objective.advantages='group' to compare; use 4 or 8",
            ),
            (
                compares and longest < self.env.max_decisions,
                f"rollout.segment_decisions: {self.rollout.segment_decisions} cuts episodes of up to "
                f"env.max_decisions={self.env.max_decisions}, which objective.advantages='group' wants whole; raise it",
            ),
            (
                compares and self.rollout.max_policy_lag is not None,
                "rollout.max_policy_lag: cuts episodes that get old, which objective.advantages='group' wants whole; "
                "leave it out",
            ),
            (
                compares and self.replay.num_shards > 1,
                "replay.num_shards: a group must come together in one shard for objective.advantages='group'; use 1",
            ),
            (
                self.mode != "async" and self.episodes_per_round % size > 0,
                f"rollout.episodes_per_round: {self.episodes_per_round} is no multiple of rollout.group_size={size}; "
                f"use one",
            ),
        ]
