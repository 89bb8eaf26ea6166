"""Looking on: trajectories go from the shards to whoever asks, past the controller and at the asker's pace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from accerl.recent import Cursor, Seen, Source
from accerl.types import Trajectory

ANSWERS_WITHIN_S = 10.0


class Watch:
    """Asks the shards of a run. Lives in the side process of a handle, which is a driver of the cluster."""

    def __init__(self, controller: Any):
        self._controller = controller

    def watch(self, cursor: Cursor, num: int, source: Source | None) -> Seen:
        """At most `num` trajectories of each source, the newest; a shard that does not answer is left out."""
        real, imagined = ray.get(self._controller.shards.remote(), timeout=ANSWERS_WITHIN_S)
        shards: dict[Source, Mapping[str, Any]] = {"real": real, "imagined": imagined}
        found: list[Trajectory] = []
        moved = dict(cursor)
        for each in shards if source is None else (source,):
            answers = self._ask(shards[each], cursor, num)
            moved |= {name: count for name, (count, _) in answers.items()}
            found += [trajectory for _, part in answers.values() for trajectory in part][-num:]
        return Seen(moved, found)

    @staticmethod
    def _ask(shards: Mapping[str, Any], cursor: Cursor, num: int) -> dict[str, tuple[int, list[Trajectory]]]:
        share = -(-num // max(1, len(shards)))
        asked = {name: shard.recent.remote(share, cursor.get(name, 0)) for name, shard in shards.items()}
        answers = {}
        for name, reference in asked.items():
            try:
                answers[name] = ray.get(reference, timeout=ANSWERS_WITHIN_S)
            except (RayActorError, GetTimeoutError):
                continue
        return answers
