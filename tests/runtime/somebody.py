"""An actor whose process imports nothing but Ray."""

from __future__ import annotations

from typing import Any

import ray


class Somebody:
    """In the place of every role: says which devices it was given."""

    def __init__(self, *_: Any):
        self._gpus = ray.get_runtime_context().get_accelerator_ids()["GPU"]

    async def health(self) -> list[str]:
        return self._gpus
