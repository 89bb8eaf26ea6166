"""Imagination in the asynchronous runtime: its roles, as `accerl.runtime.extra` finds them.

                        ┌─► observation-0 ── weights ─┬─► reward-0
 rollout ─ trajectories ┼─► reward-0 ────── weights ──┤
                        └─► imagination-i ◄───────────┴─ policy's weights
                                 └─ imagined trajectories ─► dreams-0 ─► learner

Nobody waits for anybody: each takes the newest weights that are there, and a full replay of dreams is all that holds
imagination up.
"""

from __future__ import annotations

from collections.abc import Mapping

from accerl.config import EnvConfig, RunConfig
from accerl.runtime.extra import ExtraKind
from accerl_wm import store
from accerl_wm.fit import check_fit


def roles(config: RunConfig) -> Mapping[str, ExtraKind]:
    """Raises ConfigError if the world model is not there, or was made for other observations."""
    from accerl_wm.runtime.dreams import DreamReplayActor
    from accerl_wm.runtime.imagining import ImaginationActor
    from accerl_wm.runtime.trainers import ObservationActor, RewardActor

    section = config.imagination
    assert section.world_model is not None
    facts = store.read_facts(section.world_model)
    check_fit(EnvConfig(**facts["env"]), config.env, "imagination.world_model", "the world model's", "the run's")
    kinds = {
        "dreams": ExtraKind(DreamReplayActor, 1, is_replay=True),
        "imagination": ExtraKind(ImaginationActor, section.num_workers, section.gpus, observes=True),
    }
    if section.observation_updates:
        kinds["observation"] = ExtraKind(ObservationActor, 1, section.gpus, observes=True)
    if section.reward_updates:
        kinds["reward"] = ExtraKind(RewardActor, 1, section.gpus, observes=True)
    return kinds
