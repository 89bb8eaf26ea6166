"""Environments that take their process with them: it is replaced, and the task is given up in the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accerl.calls import LostCall
from accerl.config import TaskConfig
from accerl.runtime.failures import Failures
from accerl.runtime.run import Run
from accerl.runtime.supervisor import Incidents
from accerl.tasks import TaskSampler

START_WITHIN_S = 120.0

StartRun = Callable[..., Run]

DEADLY = {"env.suite": "tests.runtime.fragile:deadly", "rollout.slots_per_worker": 8, "rollout.hang_s": 3}
STACKS = "; stacks in logs/rollout-0.crash.log"


def test_tasks_that_hang_or_crash_are_given_up_and_the_run_goes_on(start_run: StartRun) -> None:
    run = start_run({**DEADLY, "env.tasks": ("red", "hang", "seize", "crash"), "limits.max_updates": 25})
    assert run.wait(START_WITHIN_S + 180) == "finished"
    line = run.metrics()[-1]
    assert (line["updates"], line["discarded_decisions"]) == (25, 0)
    assert set(line["quarantined"]) == {"hang", "seize", "crash"}
    for task, reason in {
        "hang": "no answer within 3 s: the environment hung",
        "seize": "no answer within 3 s: the environment hung",
        "crash": "the end of its process inside the environment: Segmentation fault",
    }.items():
        actions = [each["action"] for each in run.incidents() if each["what"] == f"{task}: {reason}{STACKS}"]
        assert actions == ["restarted", "restarted", "task put into quarantine after 3 failures"]
    others = {each["what"] for each in run.incidents() if STACKS not in each["what"]}
    assert others == {"its process ended"}
    stacks = (run.folder / "logs" / "rollout-0.crash.log").read_text()
    assert stacks.count("No answer of an environment within 3 s") == 3
    assert stacks.count("Timeout (0:00:03)!") == 3
    assert stacks.count("Fatal Python error: Segmentation fault") == 3
    assert "in step_chunk" in stacks


def test_a_run_whose_only_task_crashes_fails_and_says_why(start_run: StartRun) -> None:
    run = start_run({**DEADLY, "env.tasks": ("crash",), "rollout.num_workers": 2, "rollout.threads_per_worker": 2})
    assert run.wait(START_WITHIN_S) == "failed"
    reason = "every task is in quarantine, the last one for the end of its process inside the environment: Segmentation"
    assert run.status()["reason"].startswith(reason)


class Scene:
    """Failures of two tasks, and whether they have ended the run."""

    def __init__(self, folder) -> None:
        self.ended = False
        self.tasks = TaskSampler(("red", "blue"), TaskConfig())
        self.incidents = Incidents(folder)
        self.failures = Failures(self.tasks, self.incidents, self._end)

    def lose(self, task: str | None, is_proven: bool = False, together: bool = False) -> None:
        """A process has ended, after those before were told of, or `together` with them."""
        ended_at = 0.001 if together else float("inf")
        self.failures.add_lost("rollout-0", LostCall(task=task, reason="fate", is_proven=is_proven), ended_at)

    def _end(self) -> None:
        self.ended = True


def test_what_no_restart_mends_ends_the_run_and_the_first_reason_stays(tmp_path):
    scene = Scene(tmp_path)
    scene.failures.give_up("5 updates in a row were not finite")
    scene.failures.give_up("every task is in quarantine")
    assert scene.ended
    assert scene.failures.fatal == "5 updates in a row were not finite"


def test_three_ends_of_processes_one_after_the_other_put_a_task_into_quarantine(tmp_path):
    scene = Scene(tmp_path)
    for _ in range(3):
        assert scene.tasks.quarantined == ()
        scene.lose("red")
    assert scene.tasks.quarantined == ("red",)
    assert not scene.ended
    for _ in range(3):
        scene.lose("blue")
    assert scene.ended
    assert scene.failures.fatal == "every task is in quarantine, the last one for fate"


def test_processes_that_are_killed_together_count_once(tmp_path):
    scene = Scene(tmp_path)
    scene.lose("red")
    for _ in range(5):
        scene.lose("red", together=True)
    assert (scene.tasks.quarantined, scene.incidents.count) == ((), 1)


def test_processes_that_hang_or_crash_together_count_each(tmp_path):
    scene = Scene(tmp_path)
    scene.lose("red")
    for _ in range(2):
        scene.lose("red", is_proven=True, together=True)
    assert scene.tasks.quarantined == ("red",)


@pytest.mark.parametrize(("played", "together"), [(False, False), (True, False), (False, True)])
def test_where_environments_cannot_be_made_three_times_and_nothing_is_played_the_run_ends(tmp_path, played, together):
    scene = Scene(tmp_path)
    scene.lose(None)
    scene.lose(None)
    if played:
        scene.failures.add_played()
    scene.lose(None, is_proven=True, together=together)
    assert scene.ended == (not played and not together)
    assert bool(scene.failures.fatal) == scene.ended
    assert scene.tasks.quarantined == ()
