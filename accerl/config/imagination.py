"""Imagination: a share of each batch comes from a world model. The models are `accerl_wm`'s, an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from accerl.config.sections import Fraction, NonNegative, Positive, PositiveFloat, Section


class ImaginationConfig(Section):
    """Training on what a world model makes of the policy's actions."""

    enabled: bool = False
    """Imagine; `--imagination` is short for it."""
    world_model: Path | None = None
    """Folder made by `accerl wm train`."""
    demos: tuple[Path, ...] = ()
    """Data sets made by `accerl demos`, to start from and to go on learning from beside what is collected."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the decisions of each batch that are imagined."""
    horizon: Positive = 6
    """H: decisions after which an imagined episode is cut, and the newest critic's value takes over."""
    slots: Positive = 32
    """Imagined episodes side by side in a process: as many frames are predicted in one batch."""
    near_success: Fraction = 0.25
    """Share of the imagined episodes that begin in the last quarter of a real one that succeeded."""
    reward: Literal["success", "potential", "difference"] = "success"
    """Of an imagined decision, with p the probability of success before and p' after it. `success`: 1 where p' reaches
    `threshold`, which ends the episode, as the simulator rewards; `potential`: discount p' - p, which changes no
    optimal policy; `difference`: p' - p (the paper). With the latter two the critic learns what success is worth beyond
    p, and what is real is rewarded by the same model."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability of success from which an imagined episode counts as successful, and ends. The higher it is, the surer
    a policy has to be, and the harder to fool is the model."""
    capacity_decisions: Positive = 8192
    """Of the replay of imagined trajectories."""
    max_reuse: Positive = 4
    """Times that an imagined decision may be trained on."""
    num_workers: Positive = 1
    """Processes that imagine, each with the policy on its device."""
    placement: Literal["colocated", "pooled"] = "colocated"
    """`colocated`: each of them has both models too, and predicts for itself; `pooled`: the observation model and the
    reward model are services of their own that batch what all of them ask, for models that are large."""
    num_services: Positive = 1
    """Of each model, where they are pooled."""
    service_batch: Positive = 64
    """Questions that leave as one batch from a pooled service, and the most a batch takes."""
    service_wait_s: Annotated[float, Field(ge=0)] = 0.002
    """Age of the oldest question at which a batch leaves an idle service in any case."""
    device: str = "cpu"
    """Torch device of imagination and of the training of the models."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """Share of a GPU that each of these processes takes."""
    num_threads: Positive = 1
    """Torch threads of each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of what the models compute when they predict; weights, training and the policy stay float32. `bfloat16` is faster
    on GPUs and on processors with AMX."""
    frames_mb: Positive = 512
    """Of real frames that each of them keeps; the oldest go."""
    frames_on_disk: bool = False
    """Real images lie in the run's folder, in memory only as far as the system has room for them."""
    observation_updates: Annotated[float, Field(ge=0)] = 0.2
    """Updates of the observation model for each real decision that comes in; 0: it stays as it is."""
    reward_updates: Annotated[float, Field(ge=0)] = 0.5
    """Updates of the reward model for each real decision that comes in; 0: it stays as it is."""
    lr: PositiveFloat = 3e-4
    """Learning rate of both while the run goes on."""
    publish_updates: Positive = 20
    """Updates of a model after which imagination gets its new weights."""
    audited_episodes: Positive = 50
    """Newest real episodes, their actions imagined again, by which the gate judges the models."""
    trusted: Fraction = 0.8
    """Share of them that must end as they did for all of `share` and `horizon`; below, half of the horizon is left."""
    distrusted: Fraction = 0.65
    """Share of them below which nothing is imagined until the models are better."""
    seed: NonNegative = 0
    """Of starts and training, beside the run's."""
