"""The object store: one cluster in a process of its own, whose members tell what they got."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.runtime.weights_store_run", str(tmp_path_factory.mktemp("cluster"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def whole(version: int) -> dict[str, Any]:
    return {"version": version, "values": [float(version)], "info": {"note": "é"}}


def test_versions_arrive_whole_and_each_once(observed: dict[str, Any]):
    assert observed["before"] is None
    assert [observed[f"version {number}"] for number in (1, 2, 3)] == [whole(1), whole(2), whole(3)]
    assert observed["nothing new"] is None


def test_a_member_that_comes_late_pulls_the_version_at_hand(observed: dict[str, Any]):
    assert observed["late"] == whole(3)


def test_a_restarted_learner_may_start_again_from_an_older_version(observed: dict[str, Any]):
    assert observed["restarted learner"] == whole(2)


def test_weights_that_died_with_their_learner_are_not_waited_for(observed: dict[str, Any]):
    assert observed["lost"] is None
    assert observed["after the loss"] == whole(5)
    assert observed["faults"]["retries"] == 1 and "publication 5" in observed["faults"]["last"]


def test_a_flipped_bit_is_counted_and_never_handed_over(observed: dict[str, Any]):
    assert observed["flipped"] is None and observed["flipped again"] is None
    assert observed["after the flip"] == whole(7)
    assert observed["mismatches"]["mismatches"] == 2, "pulled twice, then the next version is waited for"
    assert "version 6, bucket 0" in observed["mismatches"]["last"]
    assert observed["mismatches"]["received"] == 2
