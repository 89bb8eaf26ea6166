"""Imagination in the asynchronous runtime: its roles, as `accerl.runtime.extra` finds them.

                        ┌─► observation-0 ── weights ─┬─► reward-0
 rollout ─ trajectories ┼─► reward-0 ────── weights ──┤
                        └─► imagination-i ◄───────────┴─ policy's weights
                                 └─ imagined trajectories ─► dreams-0 ─► learner

With `imagination.placement = "pooled"` the models are in services, `predictor-i` and `judge-i`, which take the weights
and answer all imaginations (`pool`).

Nobody waits for anybody: each takes the newest weights that are there, and a full replay of dreams is all that holds
imagination up.
"""

from __future__ import annotations

from collections.abc import Mapping

from accerl.config import RunConfig
from accerl.runtime.extra import ExtraKind


def roles(config: RunConfig) -> Mapping[str, ExtraKind]:
    """What imagination adds to a run."""
    from accerl_wm.runtime.dreams import DreamReplayActor
    from accerl_wm.runtime.imagining import ImaginationActor
    from accerl_wm.runtime.pool import JudgeActor, PredictorActor
    from accerl_wm.runtime.trainers import ObservationActor, RewardActor

    section = config.imagination
    kinds = {
        "dreams": ExtraKind(DreamReplayActor, 1, is_replay=True),
        "imagination": ExtraKind(ImaginationActor, section.num_workers, section.gpus, observes=True),
    }
    if section.placement == "pooled":
        kinds["predictor"] = ExtraKind(PredictorActor, section.num_services, section.gpus)
        kinds["judge"] = ExtraKind(JudgeActor, section.num_services, section.gpus)
    if section.observation_updates:
        kinds["observation"] = ExtraKind(ObservationActor, 1, section.gpus, observes=True)
    if section.reward_updates:
        kinds["reward"] = ExtraKind(RewardActor, 1, section.gpus, observes=True)
    return kinds
