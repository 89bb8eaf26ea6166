"""Weights through Ray's object store: members pull the newest version, and anyone may come, go or come back.

learner ── ray.put, in large buckets ──► object store ──► inference, inference, …
   └── references ──► controller ── publication number, references ──┘
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError
from torch import Tensor

from accerl.types import Weights
from accerl.weight_buckets import ChecksumError, Layout, PackedWeights, bucket_slices, checksum, verify
from accerl.weights import ReceiveStatistics

BUCKET_BYTES = 256 * 2**20
"""Large enough for the store's own copying threads, small enough for a store that is not empty."""
TRANSFER_TIMEOUT_S = 60.0
ATTEMPTS = 2
"""To pull one version; then the next one is waited for."""


class StoreSender:
    """Its process owns the objects; the controller holds the references to the newest version."""

    def __init__(self, controller: Any, bucket_bytes: int = BUCKET_BYTES):
        self._controller = controller
        self._bucket_bytes = bucket_bytes

    def prepare(self, packed: PackedWeights) -> None:
        packed.checksums(self._bucket_bytes)

    def send(self, packed: PackedWeights) -> None:
        parts = bucket_slices(packed.layout.num_bytes, self._bucket_bytes)
        references: list[ray.ObjectRef[Any]] = [ray.put(packed.flat[part].numpy()) for part in parts]
        manifest = {
            "version": packed.version,
            "layout": packed.layout.to_json(),
            "info": packed.info,
            "bucket_bytes": self._bucket_bytes,
            "checksums": packed.checksums(self._bucket_bytes),
        }
        published = self._controller.publish.remote(packed.version, [ray.put(manifest), *references])
        ray.get(published, timeout=TRANSFER_TIMEOUT_S)

    def is_behind(self) -> bool:
        return False  # a member that has joined pulls by itself

    def close(self) -> None:
        """Nothing to end: the newest version stays until this process ends."""


class StoreSource:
    """A version is known by its publication number, which goes on counting when a restarted learner starts again from
    an older version.
    """

    def __init__(self, controller: Any):
        self.statistics = ReceiveStatistics()
        self._controller = controller
        self._publication = 0
        self._flat: Tensor | None = None

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        """The newest weights that were not given yet; its tensors are valid until the next call."""
        answer = ray.get(self._controller.latest.remote(self._publication, timeout_s), timeout=timeout_s + 30)
        if answer is None:
            return None
        self._publication, _, references = answer
        for _ in range(ATTEMPTS):
            try:
                return self._pull(references).weights()
            except ChecksumError as error:
                self.statistics.num_mismatches += 1
                self.statistics.last_fault = str(error)
            except (ObjectLostError, GetTimeoutError) as error:
                self.statistics.num_retries += 1
                self.statistics.last_fault = f"publication {self._publication}: {error}"
                return None  # the learner died with them; it publishes again when it is back
        return None

    def close(self) -> None:
        """Nothing to end."""

    def _pull(self, references: Sequence[ray.ObjectRef[Any]]) -> PackedWeights:
        """Copy and check one bucket after the other, so that nothing of the store stays pinned."""
        ray.wait([*references], num_returns=len(references), timeout=0)  # begins to fetch all of them
        manifest: Mapping[str, Any] = ray.get(references[0], timeout=TRANSFER_TIMEOUT_S)
        layout = Layout.from_json(manifest["layout"])
        if self._flat is None or self._flat.numel() != layout.num_bytes:
            self._flat = layout.empty()
        parts = bucket_slices(layout.num_bytes, manifest["bucket_bytes"])
        for number, (part, reference) in enumerate(zip(parts, references[1:], strict=True)):
            bucket: Any = ray.get(reference, timeout=TRANSFER_TIMEOUT_S)
            self._flat.numpy()[part] = bucket
            del bucket
            verify(checksum(self._flat[part]), manifest["checksums"][number], manifest["version"], number)
        self.statistics.num_received += 1
        return PackedWeights(version=manifest["version"], layout=layout, flat=self._flat, info=manifest["info"])
