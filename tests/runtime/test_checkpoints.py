"""Checkpoints of runs on Ray: beside training, on a full disk, damaged, and gone on from by other ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from accerl.checkpoint import list_checkpoints, load_checkpoint, newest_whole
from accerl.runtime.run import Run
from tests.runtime.conftest import launching
from tests.runtime.test_run import StartRun, processes_of, wait_for
from tests.runtime.test_survival import process_of

SMALL = {"replay.snapshots": False, "trace.enabled": False}
LONGER_THAN_A_START_S = 5.0


def updates(run: Run) -> int:
    return run.status().get("updates", 0)


def goes_on(run: Run, by: int = 3) -> None:
    before = updates(run)
    wait_for(run, lambda status: status.get("updates", 0) >= before + by and status["state"] == "running")


@pytest.mark.slow
def test_a_damaged_checkpoint_and_other_ranks_do_not_keep_a_run_from_going_on(start_run: StartRun) -> None:
    run = start_run()
    wait_for(run, lambda status: status.get("updates", 0) >= 3)
    run.set(sigma=0.5, policy_lr=1e-4)
    whole = run.checkpoint()
    goes_on(run)
    newest = run.checkpoint()
    assert whole != newest
    assert newest_whole(newest.parent).folder == newest
    goes_on(run)
    assert any(line.get("checkpoint_held_ms", 0) > 0 for line in run.metrics())
    for process in processes_of(run):
        process.kill()
    wait_for(run, lambda status: status["state"] == "dead")
    tensors = newest / "learner.safetensors"
    data = bytearray(tensors.read_bytes())
    data[len(data) // 2] ^= 16
    tensors.write_bytes(data)
    (newest.parent / ".step-00000099.1.tmp").mkdir()

    ranks = {"learner.num_ranks": 2, "learner.zero_stage": 2, "learner.policy_lr": 2e-4}
    resumed = start_run(ranks, resume=True)
    wait_for(resumed, lambda status: status.get("updates", 0) >= 1)
    said = [incident["what"] for incident in resumed.incidents()]
    assert f"{newest.name} is damaged (learner.safetensors: checksum); going on from {whole.name}" in said
    assert not (newest.parent / ".step-00000099.1.tmp").exists()
    assert resumed.status()["knobs"] == {"objective": {"sigma": 0.5}}, "policy_lr was given anew"
    event = resumed.events()[-1]
    assert (event["set"], event["to"], event["by"]) == ("sigma", 0.5, f"resumed from {whole.name}")
    before = load_checkpoint(whole)[0]
    saved = load_checkpoint(resumed.checkpoint())[0]
    assert saved["updates"] > before["updates"]
    assert saved["optimizer"]["state"][0]["step"] == saved["updates"]
    resumed.stop()

    again = start_run(resume=True)  # one process again
    wait_for(again, lambda status: status.get("updates", 0) > saved["updates"])
    again.stop()
    last = load_checkpoint(again.checkpoints()[-1])[0]
    assert last["optimizer"]["state"][0]["step"] == last["updates"] > saved["updates"]


@pytest.fixture
def run_on_a_small_disk(start: Path, tmp_path: Path) -> Iterator[Run]:
    """A run whose folder is on a file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with launching(start, tmp_path) as start_run:
            run = start_run(SMALL)
            wait_for(run, lambda status: status.get("updates", 0) >= 3)
            yield run
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_full_disk_costs_a_run_its_checkpoints_and_nothing_else(run_on_a_small_disk: Run) -> None:
    run = run_on_a_small_disk
    before = run.checkpoint()
    ballast = run.folder.parent / "ballast"
    fill(ballast, leaves=2**16)
    with pytest.raises(RuntimeError, match="the checkpoint was not written"):
        run.checkpoint()
    fill(ballast, leaves=0)
    with pytest.raises(RuntimeError, match="no room for it"):
        run.checkpoint()
    assert newest_whole(before.parent).folder == before
    health = run.health()
    wait_until(run, health["version"] + 5)
    os.kill(process_of(run, "controller"), signal.SIGKILL)
    time.sleep(LONGER_THAN_A_START_S)
    ballast.unlink()
    goes_on(run)
    saved = run.checkpoint()
    assert saved != before
    assert newest_whole(before.parent).folder == saved
    (taken_over,) = [each for each in run.incidents() if each["role"] == "controller"]
    assert taken_over["action"] == "another one has taken over"
    (incident, *_) = [each for each in run.incidents() if "not written" in each["what"]]
    assert incident["action"].startswith("training goes on; free space there, the next one is tried in ")
    run.stop()
    assert run.status()["state"] == "finished"
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["decisions"] for line in lines] == sorted(line["decisions"] for line in lines)


@pytest.mark.slow
def test_an_end_that_could_not_be_saved_is_said(run_on_a_small_disk: Run) -> None:
    run = run_on_a_small_disk
    before = run.checkpoint()
    goes_on(run)
    fill(ballast := run.folder.parent / "ballast", leaves=2**18)
    run.stop()
    status = run.status()
    assert status["state"] == "failed"
    assert "no room for it" in status["reason"]
    assert "free space and resume it, it goes on from the one before" in status["reason"]
    assert list_checkpoints(before.parent)[-1] == before
    ballast.unlink()


def test_a_run_without_a_whole_checkpoint_says_so_and_does_not_begin_again(start_run: StartRun) -> None:
    run = start_run()
    wait_for(run, lambda status: status.get("updates", 0) >= 2)
    run.stop()
    for path in run.checkpoints():
        (path / "policy.safetensors").write_bytes(b"")
    again = start_run(resume=True)
    assert again.wait(60) == "failed"
    assert "no checkpoint in" in again.status()["reason"]
    assert "policy.safetensors: 0 bytes instead of" in again.status()["reason"]


def fill(path: Path, leaves: int) -> None:
    """Take all of a disk but so much."""
    free = os.statvfs(path.parent)
    with path.open("ab", buffering=0) as file:
        wanted = free.f_bavail * free.f_frsize - leaves
        while wanted > 0:
            try:
                wanted -= file.write(bytes(min(wanted, 2**16)))
            except OSError:
                return


def wait_until(run: Run, version: int) -> None:
    """What the run's files say is out of date on a full disk: it is asked."""
    while run.health()["version"] < version:
        assert run.status()["state"] != "failed"
