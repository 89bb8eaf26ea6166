"""The weight channel that `weights.channel` names: its sending and its receiving end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from accerl.config import RunConfig
from accerl.protocols import WeightSource
from accerl.weights import WeightSender


def make_sender(config: RunConfig, controller: Any) -> WeightSender:
    """For the learner."""
    weights = config.weights
    match weights.channel:
        case "store":
            from accerl.runtime.weights_store import StoreSender

            return StoreSender(controller)
        case "shared":
            from accerl.runtime.weights_shared import SharedSender

            return SharedSender(shared_path(config))
        case "group":
            from accerl.runtime.weights_group import GroupSender, RayBoard

            host = ray.util.get_node_ip_address()
            backend = backend_of(config.learner.device)
            return GroupSender(RayBoard(controller), weights.bucket_mb, weights.timeout_s, host, backend)


def make_source(config: RunConfig, controller: Any, member: str) -> WeightSource:
    """For the service `member`."""
    weights = config.weights
    match weights.channel:
        case "store":
            from accerl.runtime.weights_store import StoreSource

            return StoreSource(controller)
        case "shared":
            from accerl.runtime.weights_shared import SharedSource

            return SharedSource(shared_path(config))
        case "group":
            from accerl.runtime.weights_group import GroupSource, RayBoard

            device = config.inference.device
            return GroupSource(RayBoard(controller), member, weights.timeout_s, device, backend_of(device))


def shared_path(config: RunConfig) -> Path:
    """File in shared memory; it belongs to the run's folder and to nobody else's."""
    import hashlib

    digest = hashlib.sha256(str(config.folder.resolve()).encode()).hexdigest()[:16]
    return Path("/dev/shm") / f"accerl-{config.name}-{digest}-weights"


def backend_of(device: str) -> str:
    return "nccl" if device.startswith("cuda") else "gloo"
