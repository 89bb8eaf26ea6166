"""The replay of what was imagined: as the real one, with its own size, and nothing of it kept beyond the run."""

from __future__ import annotations

from accerl.config import ReplayConfig, RunConfig
from accerl.runtime.actors.replay import ReplayActor
from accerl.runtime.actors.role import Wiring


class DreamReplayActor(ReplayActor):
    """Takes what is imagined as it comes: nothing is awaited of its producer, so that the real half sets the pace."""

    kind = "dreams"

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        section = config.imagination
        replay = ReplayConfig(
            capacity_decisions=section.capacity_decisions,
            max_reuse=section.max_reuse,
            min_decisions=1,
            paced=False,
            snapshots=False,
        )
        super().__init__(config.model_copy(update={"replay": replay}), index, wiring)
