"""Small tests on shared cores: one thread for torch, here and in every process that a test starts.

Several processes share the tests, a file at a time (`-n` in the Makefile). Those that start clusters are one pile, so
that one cluster runs at a time; while it waits for its processes, the tests of the other process use the cores.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # or Ray's processes starve beside the other tests
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # before Triton is imported: no GPU, so its kernels run on CPU tensors

import pytest
from hypothesis import settings

settings.register_profile("accerl", deadline=None, max_examples=60)
settings.load_profile("accerl")

STARTS_CLUSTERS = {
    "tests/benchmarks/test_pipeline.py",
    "tests/notebook/test_lab.py",
    "tests/runtime/test_chaos.py",
    "tests/runtime/test_checkpoints.py",
    "tests/runtime/test_cluster_doctor.py",
    "tests/runtime/test_faults.py",
    "tests/runtime/test_intruder.py",
    "tests/runtime/test_namespaces.py",
    "tests/runtime/test_nodes.py",
    "tests/runtime/test_openvla_oft.py",
    "tests/runtime/test_placement.py",
    "tests/runtime/test_ranks.py",
    "tests/runtime/test_replay_restart.py",
    "tests/runtime/test_run.py",
    "tests/runtime/test_scale.py",
    "tests/runtime/test_survival.py",
    "tests/runtime/test_weights_store.py",
    "tests/wm/test_runtime.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: file_of(item.nodeid) not in STARTS_CLUSTERS)  # what waits most is begun first


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "clusters" if (file := file_of(nodeid)) in STARTS_CLUSTERS else file

    config.option.loadscopereorder = False  # keep that order
    return ByFile(config, log)


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]
