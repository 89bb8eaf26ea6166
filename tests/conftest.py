"""Small tests on shared cores: one thread for torch, here and in every process that a test starts.

Several processes share the tests, a file at a time (`-n` in the Makefile). Those that start clusters are one pile, so
that one cluster runs at a time; while it waits for its processes, the tests of the other process use the cores.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # or Ray's processes starve beside the other tests

import pytest
from hypothesis import settings

settings.register_profile("accerl", deadline=None, max_examples=60)
settings.load_profile("accerl")

STARTS_CLUSTERS = ("tests/runtime/",)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "clusters" if nodeid.startswith(STARTS_CLUSTERS) else nodeid.partition("::")[0]

    return ByFile(config, log)
