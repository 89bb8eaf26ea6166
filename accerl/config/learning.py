"""Which policy, and how it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from accerl.config.sections import Fraction, NonNegative, Positive, PositiveFloat, Section


class PolicyConfig(Section):
    """Which policy, and where it starts."""

    kind: str = "tiny_vla"
    """The architecture: `tiny_vla`, `openvla_oft` (from a public checkpoint), `openvla_oft_tiny` (the same, small and
    with random weights), or `package.module:Class` of your own (see `accerl.policies`). `--policy openvla-oft-tiny` is
    short for it."""
    checkpoint: Path | None = None
    """Folder with the weights to start from (written by `accerl clone` or by a run, or OpenVLA-OFT in its public
    layout); none: random weights."""
    norm_stats_key: str | None = None
    """Data set of a public checkpoint whose statistics scale actions and proprioception; none: its only one, or the
    suite's."""
    width: Positive = 192
    """Features a token."""
    num_layers: Positive = 2
    """Transformer blocks."""
    num_heads: Positive = 4
    """Attention heads; must divide `width`."""
    num_basis: Annotated[int, Field(ge=2, le=256)] = 16
    """Smooth functions that TinyVLA's distribution over the 256 bins of an action is made of; more: it can be narrower,
    which precise tasks want, and neighbouring bins know less of each other."""
    lora_rank: NonNegative = 0
    """Train additions of this rank to the linear layers, and the value head, instead of all weights (LoRA); 0: all."""
    lora_alpha: Positive = 16
    """The additions are scaled by lora_alpha / lora_rank."""
    lora_layers: tuple[str, ...] = ()
    """Endings of the names of the layers that get one; none: every linear layer but the heads, which train fully."""
    freeze_vision: bool = False
    """OpenVLA-OFT's vision backbone stays as it is: no gradients, optimizer states or activations are kept for it."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width: {self.width} is not a multiple of num_heads={self.num_heads}; use a multiple")
        return self


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
    micro_batch_size: Positive | None = None
    """Most observations in one forward and backward; more are accumulated; none: all."""
    gradient_checkpointing: bool = False
    """As `learner.gradient_checkpointing`."""
    device: str = "cpu"
    """Torch device. The weights are float32 there, whatever a checkpoint has."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""
    seed: NonNegative = 0
    """Of the weights and the batches."""


class ObjectiveConfig(Section):
    """What the learner minimises (paper eq. 4-10); the equations are in `accerl/rl/objectives.py`."""

    kind: Literal[
        "gipo", "ppo", "dual_clip_ppo", "decoupled_ppo", "importance_sampling", "tis", "mis", "cispo", "sapo"
    ] = "gipo"
    """How far a decision of an older policy is trusted: Gaussian weights (`gipo`), a clip (`ppo`, with a second one
    `dual_clip_ppo`, around a newer policy `decoupled_ppo`), the ratio as it is (`importance_sampling`), truncated
    (`tis`, `cispo`), masked (`mis`), or behind a soft gate (`sapo`)."""
    granularity: Literal["token", "action", "chunk"] = "token"
    """What a ratio is taken of (paper eq. 17): each token, or the product over an action, or over the whole chunk."""
    sigma: PositiveFloat = 0.2
    """Width of GIPO's trust weight in log-ratio; inf: plain importance sampling."""
    sigma_negative: PositiveFloat | None = None
    """The same for negative advantages; none: `sigma`."""
    kernel: Literal["gaussian", "laplace", "cauchy"] = "gaussian"
    """Shape of GIPO's trust weight; only the paper's, `gaussian`, bounds the update for every sigma."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Clip range of the PPO family, and of CISPO above."""
    clip_high: PositiveFloat | None = None
    """Clip range above, where it differs; none: `clip`."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound on the ratio of negative advantages in dual-clip PPO."""
    weight_cap: Annotated[float, Field(ge=1)] = 2.0
    """Bound on the ratio in TIS, and on that of the proximal to the behaviour policy in decoupled PPO."""
    ratio_range: tuple[Fraction, Annotated[float, Field(ge=1)]] = (0.5, 2.0)
    """Ratios outside contribute nothing in MIS."""
    temperature: PositiveFloat = 1.0
    """SAPO's for positive advantages; higher: a narrower gate."""
    temperature_negative: PositiveFloat = 1.05
    """SAPO's for negative ones."""
    proximal: Literal["interpolated", "snapshot"] = "interpolated"
    """What decoupled PPO clips around: the policy one version before the newest, by interpolation, or a copy of the
    weights, renewed every `proximal_every` updates, at the cost of a forward pass."""
    proximal_every: Positive = 4
    """Updates between two copies; 1 would be the policy itself, around which nothing is ever clipped."""
    advantages: Literal["gae", "vtrace", "group"] = "gae"
    """Generalised advantage estimation (eq. 4); V-trace, which corrects the values for who chose the actions; or an
    episode's return against those of its group (GRPO), which wants `rollout.group_size`."""
    group_scale: bool = True
    """Divide by the deviation of the group's returns (GRPO); without, Dr. GRPO."""
    leave_one_out: bool = False
    """Compare with the mean of the others of the group (RLOO)."""
    rho_bar: PositiveFloat = 1.0
    """V-trace's bound on the ratio in a temporal difference."""
    c_bar: PositiveFloat = 1.0
    """V-trace's bound on the ratio in the trace; at most `rho_bar`."""
    discount: Fraction = 0.97
    """gamma, a decision."""
    trace: Fraction = 0.9
    """lambda of generalised advantage estimation, and of V-trace."""
    time_limit: Literal["bootstrap", "failure"] = "bootstrap"
    """An episode cut by `env.max_decisions`: its value goes on (the paper), or ends there like a failure, for which the
    critic must know the time, as the value head does."""
    normalization: Literal["global", "local", "off"] = "global"
    """Of advantages: over the global batch (eq. 5-7), or each micro-batch by its own statistics, as without ranks that
    talk to each other."""
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

    @model_validator(mode="after")
    def _bounds_fit_together(self) -> Self:
        high = self.clip if self.clip_high is None else self.clip_high
        if self.kind == "dual_clip_ppo" and self.dual_clip <= 1 + high:
            raise ValueError(f"dual_clip: {self.dual_clip:g} is not above 1 + clip_high = {1 + high:g}; raise it")
        if self.advantages == "vtrace" and self.c_bar > self.rho_bar:
            raise ValueError(f"c_bar: {self.c_bar:g} is above rho_bar={self.rho_bar:g}; lower it")
        if self.kind == "decoupled_ppo" and self.proximal == "snapshot" and self.proximal_every == 1:
            raise ValueError(
                "proximal_every: with 1 the snapshot is the policy itself, and nothing is clipped; use more"
            )
        return self


class LearnerConfig(Section):
    """The training process."""

    batch_decisions: Positive = 512
    """Decisions in an optimizer step (a global batch), at least."""
    micro_batch_decisions: Positive = 1024
    """Most decisions in one forward and backward; more are accumulated. Where the device has no room for so many, it is
    halved while the run goes on."""
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
    max_skipped_updates: Positive = 5
    """Updates in a row that may be skipped because a loss or gradient is not finite; with this many the run ends."""
    recompute: Literal["prefetch", "fused", "off"] = "fused"
    """Values for the advantages: a pass of their own, in the background, with the newest weights; from the training
    forward itself, with statistics of the update before; or those of the rollout."""
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
    keep_best: bool = True
    """Keep, beside them, the one with the highest success while training, over the last 100 episodes of every task:
    `checkpoints/best`."""
    num_ranks: Positive = 1
    """Training processes, over which each global batch is spread; more than 1 with `zero_stage`."""
    zero_stage: Literal[0, 1, 2] = 0
    """DeepSpeed's ZeRO: 1 spreads the optimizer's states over the ranks, 2 the gradients too; 0: plain torch."""
    gradient_checkpointing: bool = False
    """Keep only what stands between the policy's blocks for the backward pass, and compute the rest again: less memory
    for a forward more."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and gradients; with `bfloat16` the optimizer keeps a float32 copy of what trains."""
    rank_timeout_s: PositiveFloat = 120.0
    """Seconds that a rank waits for the others, before all are started again from the last checkpoint."""
    device: str = "cpu"
    """Torch device."""
    num_threads: Positive = 1
    """Torch threads on a CPU."""

    @model_validator(mode="after")
    def _ranks_fit_together(self) -> Self:
        if not self.zero_stage and self.num_ranks > 1:
            raise ValueError(f"num_ranks: {self.num_ranks} want DeepSpeed; set zero_stage to 1 or 2")
        return self
