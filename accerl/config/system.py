"""The processes of a run: how many, where, and what runs between them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from accerl.config.sections import Fraction, NonNegative, Positive, PositiveFloat, Section

MOST_COMPILED = 8
"""Shapes of one function that torch.compile keeps, before it gives up."""


class RolloutConfig(Section):
    """The processes that step environments."""

    num_workers: Positive = 1
    """Worker processes."""
    slots_per_worker: Positive = 16
    """Environments a worker keeps going; while one waits for its action, another one steps."""
    threads_per_worker: Positive = 1
    """Threads that step them; more than 1 only for environments that wait or compute outside Python."""
    hang_s: PositiveFloat = 120.0
    """Longest that an environment may take to be made, to reset or to play a chunk, seconds. Then its process is
    replaced and its task counted as after an error: three in a row, and the task is given up. Not where roles and
    environments share one process (`accerl.runtime.inline`)."""
    segment_decisions: Positive = 64
    """Most decisions in one trajectory; a longer episode is sent in several."""
    episodes_per_round: Positive | None = None
    """Episodes that a global batch is made from where staleness is bounded; none: one for each slot."""
    group_size: Positive = 1
    """Episodes in a row that start from the same initial state, each with noise of its own."""
    keep_state: bool = False
    """Keep the simulator's state with every trajectory, some kilobytes each, so that it can be played again: for films,
    audits of a world model, and the simulator as one."""
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
    compile: bool = False
    """Compile the policy's network with torch.compile, once for each of `buckets`, which it wants."""
    cuda_graphs: bool = False
    """Capture the network's forward on a GPU once for each of `buckets`, which it wants, and replay it from then on:
    the processor starts one graph instead of each kernel."""
    transport: Literal["zmq", "ray"] = "zmq"
    """Path of the requests: sockets, or calls of Ray actors, which cost 8 to 20 times as much."""
    device: str = "cpu"
    """Torch device."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""

    @model_validator(mode="after")
    def _shapes_repeat(self) -> Self:
        name = "cuda_graphs" if self.cuda_graphs else "compile"
        if self.cuda_graphs and not self.device.startswith("cuda"):
            raise ValueError(f"cuda_graphs: device={self.device!r} has none; use device='cuda', or leave it out")
        if (self.cuda_graphs or self.compile) and max(self.buckets, default=0) < self.batch_size:
            raise ValueError(
                f"buckets: {name} wants the sizes that batches are filled up to, the largest at least "
                f"batch_size={self.batch_size}; use ({self.batch_size},)"
            )
        if self.compile and len(self.buckets) > MOST_COMPILED:
            raise ValueError(f"buckets: {len(self.buckets)} are too many to compile; use at most {MOST_COMPILED}")
        return self


class ReplayConfig(Section):
    """Where trajectories wait for the learner."""

    num_shards: Positive = 1
    """Processes that hold it."""
    capacity_decisions: Positive = 4096
    """Decisions kept over all shards; when full, the oldest used ones go; where all are unused, what comes
    waits."""
    max_unused: Positive | None = None
    """Decisions over all shards that may wait to be trained on for the first time; at that many the workers wait. Keeps
    what is trained on young where the learner takes less than is collected, as with imagination; none: all that fit."""
    order: Literal["least_used", "fifo", "ring"] = "least_used"
    """Which decisions are trained on next. `least_used`: those that were used the fewest times, among equals at random
    (with `max_reuse = 1` as they come). `fifo`: each once, as they came, for which `max_reuse` must be 1. `ring`: a
    decision at random, all alike, and the whole segment around it; when full, the oldest is overwritten whether or not
    it was used, which counts as discarded. That is what most published systems do, for comparison."""
    max_reuse: Positive = 8
    """Times that a decision may be trained on; a ring without such a limit: a large number."""
    paced: bool = True
    """A batch waits for its share of fresh decisions: one in `max_reuse`. Without, a learner that is faster than the
    simulation trains on the same decisions `max_reuse` times in a row, and then waits until there are as many new
    ones."""
    min_decisions: Positive = 512
    """Decisions that must have arrived before training starts."""
    max_age_versions: NonNegative | None = None
    """Versions that a decision may be behind the newest one to be trained on; a segment goes with its oldest decision.
    What was never used goes too, and is counted as aged; none: nothing goes unused."""
    success_share: Fraction | None = None
    """Share of a batch's decisions from episodes that succeeded, as far as there are enough of both; none: no matter.
    It changes the distribution that is trained on: what is estimated is not the return of the policy that plays, but of
    one that succeeds this often. Success is known when an episode ends: until then its segments count as not
    successful, and for good those that lie in another shard than its end, or were used up before it."""
    memory_mb: Positive | None = None
    """Of images in a shard's memory, MiB; beyond it those that are least likely to be used next are in files, in the
    run's folder; none: all are in memory."""
    snapshots: bool = True
    """Write what comes into a shard to its node's disk before it is answered for, and all that it holds whenever a
    checkpoint is written. A shard that is restarted has lost nothing; a run that is resumed goes on with what they held
    at its checkpoint, unless staleness is bounded; `max_reuse` holds all the same. Costs the disk up to twice what the
    replay holds."""

    @property
    def streams(self) -> bool:
        """Decisions are trained on once, as they come, so that no batch has to be waited for."""
        return self.max_reuse == 1 and self.order != "ring" and self.success_share is None

    @model_validator(mode="after")
    def _order_fits(self) -> Self:
        if self.order == "fifo" and self.max_reuse > 1:
            raise ValueError(
                f"max_reuse: {self.max_reuse} does not fit order='fifo', which uses a decision once; use 1, or "
                f"order='least_used'"
            )
        if self.order == "fifo" and self.success_share is not None:
            raise ValueError(
                "success_share: chooses among the decisions, which order='fifo' gives as they came; leave it out, or "
                "use order='least_used' with max_reuse=1"
            )
        return self


class TaskConfig(Section):
    """Dynamic weighted resampling of tasks (paper eq. 11)."""

    window: Positive = 100
    """W: episodes of a task over which its failures are counted."""
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Added to each count, so that no task is ever left out; large: uniform."""


class WeightsConfig(Section):
    """The way of new weights from the learner to inference."""

    channel: Literal["store", "group", "shared"] = "store"
    """`store`: Ray's object store, from which members pull; `group`: a broadcast over gloo or NCCL, whose members are
    not authenticated (SECURITY.md); `shared`: shared memory, on one machine only."""
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


class SupervisionConfig(Section):
    """When a process counts as hung. It is replaced then, as one that has ended is, and its stacks are kept."""

    answer_s: PositiveFloat = 60.0
    """Longest that a process may not answer, seconds. One that was stopped from outside is replaced after three."""
    stall_s: PositiveFloat = 900.0
    """Longest that the learner, a rank or an inference service may work on one batch, seconds."""
    start_s: PositiveFloat = 600.0
    """Longest that a process may take to come up, seconds: it imports its libraries and loads its model."""


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
