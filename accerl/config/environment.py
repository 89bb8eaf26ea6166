"""Which environment, and the demonstrations of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from accerl.config.sections import NonNegative, Positive, PositiveFloat, Section


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


class DemosConfig(Section):
    """Recording a scripted expert."""

    episodes_per_task: Positive = 25
    """Successful episodes kept of each task."""
    keep_failures: bool = False
    """Failed episodes are kept and count too: a world model learns from them, cloning leaves them out."""
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
