"""Which device each role gets, on a cluster that says it had three GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from accerl.config import ConfigError, RunConfig, merge
from accerl.replay.snapshot import Checkpoint
from accerl.runtime import placement
from accerl.runtime.actors.role import Wiring
from accerl.runtime.placement import Roles, shared_gpus, total_gpus
from tests.runtime.somebody import Somebody


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2,
        num_gpus=3,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


def config_of(**overrides: Any) -> RunConfig:
    fields = {"learner.device": "cuda", "inference.device": "cuda", "inference.num_services": 2}
    return RunConfig(**merge({}, fields | overrides))


def devices(config: RunConfig, start: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Of each role."""
    (start / "policy.json").write_text(json.dumps({"kind": "tiny_vla"}))
    monkeypatch.setattr(placement, "BUILT_IN", dict.fromkeys(placement.BUILT_IN, Somebody))
    roles = Roles(config, Wiring.new(None, start, start, Checkpoint(version=0, first_episode=0)))
    try:
        return {name: ray.get(actor.health.remote(), timeout=60) for name, actor in roles.named()}
    finally:
        roles.kill()


def test_disaggregated_roles_have_devices_of_their_own(cluster, tmp_path, monkeypatch):
    given = devices(config_of(), tmp_path, monkeypatch)
    assert {name for name, gpus in given.items() if gpus} == {"learner-0", "inference-0", "inference-1"}
    assert sorted(gpu for gpus in given.values() for gpu in gpus) == ["0", "1", "2"]


def test_colocated_roles_share_one_device(cluster, tmp_path, monkeypatch):
    shares = {"placement.layout": "colocated", "placement.learner_gpus": 0.5, "placement.inference_gpus": 0.25}
    given = devices(config_of(**shares), tmp_path, monkeypatch)
    assert len({tuple(given[name]) for name in ("learner-0", "inference-0", "inference-1")}) == 1
    assert len(given["learner-0"]) == 1


def test_in_the_hybrid_layout_one_service_is_beside_the_learner(cluster, tmp_path, monkeypatch):
    shares = {"placement.layout": "hybrid", "placement.learner_gpus": 0.5, "placement.inference_gpus": 0.5}
    given = devices(config_of(**shares), tmp_path, monkeypatch)
    assert given["learner-0"] == given["inference-0"]
    assert given["inference-1"] and given["inference-1"] != given["learner-0"]


def test_too_few_devices_are_refused_with_what_is_asked_for(cluster, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"needs 5 GPUs \(learner 1, 4 services of 1.*cluster has 3"):
        devices(config_of(**{"inference.num_services": 4}), tmp_path, monkeypatch)


def test_on_processors_no_device_is_asked_for():
    config = config_of(**{"learner.device": "cpu", "inference.device": "cpu", "placement.layout": "colocated"})
    assert total_gpus(config) == shared_gpus(config) == 0
