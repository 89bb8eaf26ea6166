"""Ray gives up a node that is slow to come up; a run tries again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from accerl.runtime import cluster

SLOW = Exception("The current node timed out during startup. This could happen because ...")


def test_a_node_that_did_not_come_up_in_time_is_cleared_away_and_started_again():
    left: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(left) < cluster.STARTS:
            raise SLOW

    cluster._start_patiently(start)
    *given_up, kept = left
    assert [process.wait(10) for process in given_up] == [-9] * (cluster.STARTS - 1)
    assert kept.poll() is None
    kept.kill()
    kept.wait()


@pytest.mark.parametrize(("error", "attempts"), [(SLOW, cluster.STARTS), (ValueError("no such address"), 1)])
def test_what_does_not_help_is_raised(error: Exception, attempts: int):
    made: list[None] = []

    def start() -> None:
        made.append(None)
        raise error

    with pytest.raises(type(error)):
        cluster._start_patiently(start)
    assert len(made) == attempts
