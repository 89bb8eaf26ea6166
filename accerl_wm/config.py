"""Settings of the world model and of imagination."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from accerl.config import Fraction, Positive, Section


class ImaginationConfig(Section):
    """Training on what a world model makes of the policy's actions."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of the decisions of each batch that are imagined."""
    horizon: Positive = 6
    """H: decisions after which an imagined episode is cut, and the newest critic's value takes over."""
    slots: Positive = 32
    """Imagined episodes side by side: as many frames are predicted in one batch."""
    near_success: Fraction = 0.25
    """Share of the imagined episodes that begin in the last quarter of a real one that succeeded."""
    reward: Literal["success", "potential", "difference"] = "success"
    """Of an imagined decision, with p the probability of success before and p' after it. `success`: 1 where p' reaches
    `threshold`, which ends the episode, as the simulator rewards; `potential`: discount p' - p, which changes no
    optimal policy; `difference`: p' - p (the paper). With the latter two the critic learns what success is worth beyond
    p, and what is real is rewarded by the same model."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability of success from which an imagined episode counts as successful, and ends."""
    capacity_decisions: Positive = 8192
    """Of the replay of imagined trajectories."""
    max_reuse: Positive = 4
    """Times that an imagined decision may be trained on."""
