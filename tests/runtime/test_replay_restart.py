"""A replay shard whose process is killed, and a run that is resumed, begin with what was there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accerl.runtime.run import Run
from tests.runtime.test_run import processes_of, wait_for

StartRun = Callable[..., Run]
LOOKS = 8
HELD = ("replay_decisions", "replay_unused", "replay_lent", "discarded_decisions")


def test_a_killed_shard_comes_back_with_what_it_held(start_run: StartRun) -> None:
    run = start_run({"rollout.slots_per_worker": 8})
    wait_for(run, lambda status: status.get("updates", 0) >= 3)
    run.pause()
    before = settled(run)
    wait_for(run, lambda _: is_saved(run))
    victim = next(process for process in processes_of(run) if "ray::ReplayActor" in " ".join(process.cmdline()))
    victim.kill()
    wait_for(run, lambda _: bool(run.incidents()))
    wait_for(run, lambda _: run.health()["num_shards"] == 1 and "replay_decisions" in run.health())
    assert settled(run) == before
    assert before["replay_decisions"] > 256 and before["replay_lent"] > 0
    run.resume()
    updates = run.status()["updates"]
    wait_for(run, lambda status: status["updates"] >= updates + 3)
    assert [incident["action"] for incident in run.incidents()] == ["restarted"]


def test_a_resumed_run_begins_with_what_its_replay_held(start_run: StartRun) -> None:
    run = start_run({"rollout.slots_per_worker": 8, "replay.memory_mb": 1})
    wait_for(run, lambda status: status.get("updates", 0) >= 3)
    run.stop()
    assert [path.name for path in (run.folder / "replay" / "shard-0").iterdir()] == [snapshots(run)[0].name]
    last = state(run)

    resumed = start_run({"rollout.slots_per_worker": 8, "replay.memory_mb": 1}, resume=True)
    wait_for(resumed, lambda status: status["state"] == "running")
    first = state(resumed)
    assert first["sums"]["pushed_decisions"] >= last["sums"]["pushed_decisions"] >= 256
    assert numbers(first) >= {each["number"] for each in last["segments"] if each["is_held"]}


def settled(run: Run) -> dict[str, Any]:
    """What lies in the replay of a paused run, once that has stayed the same for longer than a batch has parts."""
    same: list[dict[str, Any]] = []
    while len(same) < LOOKS:
        run.checkpoint()  # after the part of a batch at hand
        health = run.health()
        now = {name: health[name] for name in HELD}
        is_settled = not health["episodes_in_flight"] and all(now == before for before in same)
        same = [*same, now] if is_settled else []
    return same[0]


def is_saved(run: Run) -> bool:
    """The newest snapshot has all that was played; one may have been under way when the run was paused."""
    run.checkpoint()
    try:
        return state(run)["sums"]["pushed_decisions"] == run.health()["decisions"]
    except (FileNotFoundError, IndexError):  # there is none yet, or another has just taken its place
        return False


def snapshots(run: Run) -> list[Path]:
    return sorted((run.folder / "replay" / "shard-0").glob("snapshot-*"))


def state(run: Run) -> dict[str, Any]:
    return json.loads((snapshots(run)[-1] / "state.json").read_text())


def numbers(content: dict[str, Any]) -> set[int]:
    return {each["number"] for each in content["segments"]}
