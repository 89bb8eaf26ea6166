"""The configuration of a run: frozen, typed, checked before anything starts.

The same object is built in Python, read from TOML (`RunConfig.load`) and changed from the command line
(`accerl.cli`). A field's docstring is its documentation and its `--help`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from accerl.sections import ConfigError as ConfigError
from accerl.sections import Fraction, NonNegative, Positive, PositiveFloat
from accerl.sections import Section as Section
from accerl.sections import merge as merge
from accerl.sections import read_file as read_file
from accerl.sections import suggest as suggest

Mode = Literal["async", "barrier", "one_step_off", "sync"]


class LiberoConfig(Section):
    """Of the LIBERO suites."""

    init_states: Literal["train", "evaluation", "all"] = "train"
    """Which of a task's 50 initial states: the first 30, the last 20, or all, as published evaluations use."""
    settle_steps: NonNegative = 10
    """Environment steps before an episode, in which objects come to rest; not counted."""
    settle_gripper: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """The gripper's action in those steps; -1 opens it."""
    lag: bool = False
    """Observe when robosuite's sampling clock does, 2 ms before the end of a step, to the bit; else at the end."""
    reflections: bool = False
    """Draw them, as LIBERO does, for checkpoints that were trained so; costs up to half of the speed."""
    multisampling: bool = True
    """Smooth edges, as LIBERO does; a picture without takes half the time or two thirds."""
    max_simulations: Positive = 10
    """Tasks that a stepping thread keeps compiled, about 0.9 GB each; another one replaces the least needed in 2 s."""


class EnvConfig(Section):
    """Which simulator and which of its tasks."""

    suite: str = "metaworld"
    """`metaworld`, `libero_spatial`, `libero_object`, `libero_goal`, `libero_10`, `libero_90`, `dots`, `gymnasium`, or
    `package.module:function` of your own that takes (EnvConfig, tasks). The LIBERO suites bring other defaults."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "handle-press-v3",
        "coffee-button-v3",
        "faucet-open-v3",
        "faucet-close-v3",
    )
    """Of the suite; rollouts are spread over them by the task sampler. LIBERO also takes task ids, and `all`."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Height and width of the camera images, pixels."""
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] = ("workspace",)
    """Camera names, in the order in which the policy sees them."""
    chunk_length: Positive = 4
    """Actions decided at once and executed open loop: one decision."""
    steps_per_action: Positive = 2
    """Environment steps for which each action is held."""
    max_decisions: Positive = 12
    """Decisions after which an episode is truncated."""
    max_env_steps: Positive | None = None
    """Environment steps after which an episode is truncated, also inside a chunk; none: `max_decisions` alone."""
    reward: Literal["success", "dense"] = "success"
    """`success`: 1 at success, then the episode ends; `dense`: the simulator's own reward."""
    libero: LiberoConfig = LiberoConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_suite(cls, fields: Any) -> Any:
        suite = str(fields.get("suite", "")) if isinstance(fields, Mapping) else ""
        if suite.startswith("libero_") and ":" not in suite:
            from accerl.envs.libero.suites import with_defaults

            return with_defaults(fields)
        return fields


class PolicyConfig(Section):
    """Which policy, and where it starts."""

    kind: str = "tiny_vla"
    """The architecture: `tiny_vla`, or `package.module:Class` of your own (see `accerl.policies`)."""
    checkpoint: Path | None = None
    """Folder with the weights to start from (written by `accerl clone` or by a run); none: random weights."""
    width: Positive = 192
    """Features a token."""
    num_layers: Positive = 2
    """Transformer blocks."""
    num_heads: Positive = 4
    """Attention heads; must divide `width`."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width: {self.width} is not a multiple of num_heads={self.num_heads}; use a multiple")
        return self


class RolloutConfig(Section):
    """The processes that step environments."""

    num_workers: Positive = 1
    """Worker processes."""
    slots_per_worker: Positive = 16
    """Environments a worker keeps going; while one waits for its action, another one steps."""
    threads_per_worker: Positive = 1
    """Threads that step them; more than 1 only for environments that wait or compute outside Python."""
    segment_decisions: Positive = 64
    """Most decisions in one trajectory; a longer episode is sent in several."""
    episodes_per_round: Positive | None = None
    """Episodes that a global batch is made from where staleness is bounded; none: one for each slot."""
    max_policy_lag: NonNegative | None = None
    """K: bound on the age, in policy versions, of a decision when it is trained on; none: not bounded. Only in
    `mode = "async"`: the other modes have their own."""


class InferenceConfig(Section):
    """The dynamic batching of action requests."""

    num_services: Positive = 1
    """Processes that answer; each request goes to the one with the least to do."""
    batch_size: Positive = 8
    """B: a forward starts when this many requests wait; also the most it takes."""
    max_wait_s: Annotated[float, Field(ge=0)] = 0.01
    """T_max: age of the oldest request at which a forward starts anyway, seconds; where the device was busy
    meanwhile, it starts as soon as that is free."""
    adaptive_wait: bool = True
    """Wait less than `max_wait_s` where a fuller batch would gain less than the waiting costs."""
    buckets: tuple[Positive, ...] = ()
    """Batch sizes up to which a batch is filled with copies, so that shapes repeat (compiled and captured policies)."""
    transport: Literal["zmq", "ray"] = "zmq"
    """Path of the requests: sockets, or calls of Ray actors, which cost 8 to 20 times as much."""
    device: str = "cpu"
    """Torch device."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""


class ReplayConfig(Section):
    """Where trajectories wait for the learner."""

    num_shards: Positive = 1
    """Processes that hold it."""
    capacity_decisions: Positive = 4096
    """Decisions kept over all shards; when full, the oldest used ones go, and an unused one is waited for."""
    max_reuse: Positive = 8
    """Times that a decision may be trained on."""
    min_decisions: Positive = 512
    """Decisions that must have arrived before training starts."""


class TaskConfig(Section):
    """Dynamic weighted resampling of tasks (paper eq. 11)."""

    window: Positive = 100
    """W: episodes of a task over which its failures are counted."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Added to each count, so that no task is ever left out; large: uniform."""


class ObjectiveConfig(Section):
    """What the learner minimises (paper eq. 4-10)."""

    kind: Literal["gipo", "ppo"] = "gipo"
    """`gipo`: Gaussian trust weights; `ppo`: the clipped surrogate."""
    sigma: PositiveFloat = 0.2
    """Width of GIPO's trust weight in log-ratio; inf: plain importance sampling."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's clip range."""
    discount: Fraction = 0.97
    """gamma, a decision."""
    trace: Fraction = 0.9
    """lambda of generalised advantage estimation."""
    time_limit: Literal["bootstrap", "failure"] = "bootstrap"
    """An episode cut by `env.max_decisions`: its value goes on (the paper), or ends there like a failure, for which the
    critic must know the time, as the value head does."""
    normalize_advantages: bool = True
    """Global advantage normalisation (eq. 5-7)."""
    negative_scale: Fraction = 1.0
    """Multiplies negative normalised advantages; 1 is the paper."""
    behaviour_kl: Annotated[float, Field(ge=0)] = 0.0
    """c_kl: coefficient of KL(mu || pi), which holds the policy near those that made the data."""
    reference_kl: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of KL(pi || start), which pulls back where the rewards say nothing; costs a forward an update."""
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    """c_v."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """c_e."""
    value_loss: Literal["mse", "bce"] = "mse"
    """`bce` treats the value as a probability: rewards must sum to at most 1, as `env.reward = "success"` does."""


class LearnerConfig(Section):
    """The training process."""

    batch_decisions: Positive = 512
    """Decisions in an optimizer step (a global batch), at least."""
    micro_batch_decisions: Positive = 1024
    """Most decisions in one forward and backward; more are accumulated."""
    policy_lr: PositiveFloat = 3e-4
    """Learning rate of everything but the value head."""
    value_lr: PositiveFloat = 1e-3
    """Learning rate of the value head."""
    warmup_updates: NonNegative = 15
    """Updates over which the policy's learning rate rises from 0."""
    value_warmup_updates: NonNegative = 20
    """First updates, which train the value head only."""
    final_lr_fraction: Fraction = 0.1
    """The learning rates fall to this share along a cosine over the run's budget (`limits`)."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    """AdamW's."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient norm above which the gradient is scaled down."""
    recompute: Literal["prefetch", "fused", "off"] = "fused"
    """Values for the advantages: a pass of their own, from the training forward itself, or those of the rollout."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay an update of the averaged weights that are evaluated and kept as `policy`; 0: the newest weights."""
    publish_every: Positive = 1
    """Updates between two weight publications."""
    prefetch: Positive = 2
    """Batches made ahead of the learner."""
    checkpoint_every_s: PositiveFloat = 60.0
    """Seconds between checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    device: str = "cpu"
    """Torch device."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""


class DemosConfig(Section):
    """Recording a scripted expert."""

    episodes_per_task: Positive = 25
    """Successful episodes kept of each task."""
    speed: PositiveFloat = 0.7
    """Factor on the expert's actions; below 1 gives slow demonstrations, which leave something to learn."""
    noise: Annotated[float, Field(ge=0)] = 0.3
    """Standard deviation of the Gaussian noise on each action, recorded with it: the cloned policy explores as much."""
    patience: Annotated[float, Field(ge=1)] = 2.0
    """Length of an episode, as a multiple of what a policy is given: a slow expert is recorded to the end."""
    draw_every: Positive = 1
    """Steps from one observation that is kept to the next; actions are all kept. Cloning starts chunks at observations,
    and those of neighbouring steps hardly differ, while drawing them takes most of the time on LIBERO."""
    episodes_per_shard: Positive = 50
    """Episodes in one file."""
    seed: NonNegative = 1000
    """Of the environments and of the noise."""


class CloneConfig(Section):
    """Behaviour cloning."""

    updates: Positive = 400
    """Optimizer steps."""
    batch_size: Positive = 64
    """Observations in a step."""
    lr: PositiveFloat = 5e-4
    """Peak of the one-cycle learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's."""
    shift_pixels: NonNegative = 3
    """Images are moved by up to this many pixels, each at random."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""
    seed: NonNegative = 0
    """Of the weights and the batches."""


class WeightsConfig(Section):
    """The way of new weights from the learner to inference."""

    channel: Literal["store", "group", "shared"] = "store"
    """`store`: Ray's object store, from which members pull; `group`: a broadcast over gloo or NCCL; `shared`: shared
    memory, on one machine only."""
    bucket_mb: Positive = 16
    """Size of a transfer of `group`, MiB."""
    trainable_only: bool = False
    """Send only the parameters that train (LoRA): the others are those of the start."""
    timeout_s: PositiveFloat = 30.0
    """After which a member of `group` that does not answer is left out, seconds."""


class PlacementConfig(Section):
    """Which role runs where."""

    layout: Literal["disaggregated", "colocated", "hybrid"] = "disaggregated"
    """On GPUs: the learner and each service on devices of their own, all on shares of one, or one service beside the
    learner and the others on their own."""
    learner_gpus: Annotated[float, Field(ge=0)] = 1.0
    """GPUs, or a share of one, for a learner on `cuda`."""
    inference_gpus: Annotated[float, Field(ge=0)] = 1.0
    """GPUs, or a share of one, for each service on `cuda`."""
    rollout_gpus: Annotated[float, Field(ge=0)] = 0.0
    """Share of a GPU for each worker, which renders there."""
    rollout_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Cores that Ray keeps for each worker; 0: as many workers as are asked for, wherever they fit."""


class TraceConfig(Section):
    """The timeline of what every process does."""

    enabled: bool = True
    """Keep it; costs some microseconds an entry."""
    max_events: Positive = 20_000
    """Newest entries that are kept of each process."""


class LimitsConfig(Section):
    """When a run ends; the first limit that is reached ends it, and the learning rate's cosine follows the nearest."""

    max_decisions: Positive | None = None
    """Decisions collected."""
    max_updates: Positive | None = None
    """Optimizer steps."""
    max_wall_s: PositiveFloat | None = None
    """Seconds of training, over all resumptions."""


class ClusterConfig(Section):
    """The Ray cluster."""

    address: str | None = None
    """Of a running cluster, `host:port`; none: one is started on this machine for the run."""
    object_store_mb: Annotated[int, Field(ge=80)] = 200
    """Ray's shared memory, when a cluster is started here."""


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
    env: EnvConfig = EnvConfig()
    policy: PolicyConfig = PolicyConfig()
    rollout: RolloutConfig = RolloutConfig()
    inference: InferenceConfig = InferenceConfig()
    replay: ReplayConfig = ReplayConfig()
    tasks: TaskConfig = TaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    learner: LearnerConfig = LearnerConfig()
    limits: LimitsConfig = LimitsConfig()
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
