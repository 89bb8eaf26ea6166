"""Checkpoints beside training: the trainer goes on, requests are answered with states of their own time, a full disk
costs a checkpoint and nothing else.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from accerl import checkpoint, checkpoint_writer
from accerl.checkpoint import Content, list_checkpoints, load_policy, newest_whole
from accerl.checkpoint_writer import CheckpointWriter, NotSaved
from accerl.files import append_line, read_lines
from accerl.generators import generator_states, restore_generators
from accerl.learner import Learner
from accerl.metrics import WINDOW, MetricsWriter, RunMetrics
from accerl.tensor_files import digest, write_tensors
from accerl.types import Episode
from tests.roles.fakes import tiny_policy
from tests.roles.test_checkpoint import BATCH, learner_of


class Writer:
    """A writer of a small learner's checkpoints, whose thread can be held up."""

    def __init__(self, folder: Path, every_s: float = 1e9):
        self.failures: list[str] = []
        self.learner = learner_of(tiny_policy())
        self.writer = CheckpointWriter(folder, 2, True, every_s, self.failures.append)
        self.may_write = threading.Event()
        self.may_write.set()
        self.asked = ThreadPoolExecutor()

    def take(self) -> Callable[[], Content]:
        learner = self.learner
        taken = Content(
            policy_config=learner.policy.config_dict(),
            policy=learner.weights().tensors,
            learner=learner.state_dict(),
            run={},
        )

        def complete() -> Content:
            self.may_write.wait()
            return taken

        return complete

    def request(self) -> Future[Path]:
        """From another thread; returns when it is known to the writer."""
        before = self.writer._asked
        future = self.asked.submit(self.writer.request)
        while self.writer._asked == before:
            pass
        return future


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def one(folder: Path = tmp_path, **options: Any) -> Writer:
        made.append(Writer(folder, **options))
        return made[-1]

    yield one
    for writer in made:
        writer.may_write.set()
        writer.writer.close()
        writer.asked.shutdown()


# --- the thread -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_the_state_of_the_moment_although_training_goes_on(begin, tmp_path: Path):
    one = begin()
    one.learner.update(BATCH)
    before = one.learner.weights().tensors
    moments = one.learner.state_dict()["optimizer"]["state"][0]["exp_avg"].clone()
    one.may_write.clear()
    one.writer.save(one.take)
    one.learner.update(BATCH)
    one.learner.update(BATCH)
    one.may_write.set()
    path = one.writer.finish()
    assert path.name == "step-00000001"
    written = load_policy(path).state_dict()
    assert all(torch.equal(written[name], before[name]) for name in before)
    assert torch.equal(checkpoint.load_checkpoint(path)[0]["optimizer"]["state"][0]["exp_avg"], moments)
    assert not torch.equal(one.learner.policy.state_dict()["action_queries"], before["action_queries"])


def test_a_request_meanwhile_waits_and_gets_the_newest_state(begin):
    one = begin()
    one.may_write.clear()
    first = one.request()
    assert one.writer.is_due()
    one.writer.save(one.take)
    second = one.request()
    assert not one.writer.is_due(), "one is being written"
    one.learner.updates = 7
    one.may_write.set()
    assert first.result().name == "step-00000000"
    while not one.writer.is_due():
        assert not second.done()
    one.writer.save(one.take)
    assert second.result().name == "step-00000007"
    assert not one.writer.is_due()


def test_the_last_save_waits_for_the_one_before(begin, tmp_path: Path):
    one = begin()
    one.may_write.clear()
    one.writer.save(one.take)
    one.learner.updates = 1
    threading.Timer(0.05, one.may_write.set).start()
    one.writer.save(one.take)
    one.writer.finish()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000000", "step-00000001"]


def test_without_requests_one_is_due_after_a_while(begin):
    assert not begin(every_s=1e9).writer.is_due()
    assert begin(every_s=-1.0).writer.is_due()


def test_how_long_the_trainer_was_held_is_reported_once(begin):
    one = begin()
    assert one.writer.report() == {}
    one.writer.save(one.take)
    one.writer.finish()
    assert one.writer.report().keys() == {"checkpoint_held_ms", "checkpoint_write_ms"}
    assert one.writer.report() == {}


def test_a_mistake_in_writing_is_not_taken_for_a_full_disk(begin, monkeypatch):
    one = begin()
    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", lambda *_: 1 / 0)
    one.writer.save(one.take)
    with pytest.raises(ZeroDivisionError):
        one.writer.finish()


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_anything_is_written(begin, tmp_path: Path, monkeypatch):
    one = begin()
    one.writer.save(one.take)
    one.writer.finish()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    monkeypatch.setattr(checkpoint, "replaced", lambda _: pytest.fail("it began to write"))
    one.learner.updates = 1
    request = one.request()
    one.writer.save(one.take)
    with pytest.raises(NotSaved, match=r"no room for it: it takes \d+ MiB, and 1 MiB are free"):
        request.result()
    (failure,) = one.failures
    assert "1 MiB are free" in failure
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]


def test_a_disk_that_fills_up_while_writing_leaves_what_was_there_and_training_goes_on(begin, tmp_path: Path):
    one = begin()
    one.writer.save(one.take)
    one.writer.finish()
    one.learner.update(BATCH)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    try:
        one.writer.save(one.take)
        with pytest.raises(NotSaved, match="File too large"):
            one.writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]
    assert newest_whole(tmp_path).damaged == {}
    one.learner.update(BATCH)
    one.writer.save(one.take)
    assert one.writer.finish().name == "step-00000002", "tried again, with room"
    assert len(one.failures) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_on_a_full_disk_metrics_and_events_are_left_out_and_go_on_with_room(small_disk: Path, capfd):
    writer = MetricsWriter(small_disk)
    writer.write({"decisions": 1, "loss": 0.5})
    append_line(small_disk / "events.jsonl", {"a": 1})
    ballast = fill(small_disk)
    for number in range(2, 300):
        writer.write({"decisions": number, "names": {str(each): float(each) for each in range(40)}})
        append_line(small_disk / "events.jsonl", {"a": "b" * 50})
    assert "the disk is full" in capfd.readouterr().err
    ballast.unlink()
    writer.write({"decisions": 300, "loss": 0.5})
    assert append_line(small_disk / "events.jsonl", {"a": 3})
    writer.close()
    lines = read_lines(small_disk / "metrics.jsonl")
    assert (lines[0]["decisions"], lines[-1]["decisions"]) == (1, 300)
    assert read_lines(small_disk / "events.jsonl")[-1] == {"a": 3}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_of_tensorboard_that_do_not_fit_do_not_end_the_run(small_disk: Path, tmp_path: Path, capfd):
    """Its thread fails, and tells whoever calls next."""
    (tmp_path / "tensorboard").symlink_to(small_disk)
    writer = MetricsWriter(tmp_path)
    ballast = fill(small_disk)
    for number in range(600):
        writer.write({"decisions": number, "names": {str(each): float(each) for each in range(40)}})
    ballast.unlink()
    writer.write({"decisions": 600, "loss": 1.0})
    writer.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 601
    assert capfd.readouterr().err.count("tensorboard: events were not written") == 1
    assert len([path for path in small_disk.iterdir() if path.stat().st_size]) == 2, "another file was begun"


@pytest.mark.parametrize("is_known", [True, False], ids=["known before", "found out while writing"])
def test_a_checkpoint_on_a_full_disk_fails_and_the_next_one_is_written(begin, small_disk: Path, monkeypatch, is_known):
    one = begin(small_disk / "checkpoints")
    one.writer.save(one.take)
    whole = one.writer.finish()
    one.learner.update(BATCH)
    with monkeypatch.context() as patched:
        if not is_known:
            patched.setattr(checkpoint, "_check_room", lambda *_: None)
        ballast = fill(small_disk)
        one.writer.save(one.take)
        with pytest.raises(NotSaved, match=r"no room for it" if is_known else r"No space left on device"):
            one.writer.finish()
    assert newest_whole(small_disk / "checkpoints").folder == whole
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == [whole.name]
    ballast.unlink()
    one.writer.save(one.take)
    assert one.writer.finish().name == "step-00000001"
    assert len(one.failures) == 1


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_tensors_of_every_type_are_read_by_safetensors_and_their_digest_is_that_of_the_file(tmp_path: Path):
    tensors = {
        "double": torch.randn(3, 2, dtype=torch.float64),
        "half": torch.randn(5).bfloat16(),
        "flag": torch.tensor([True, False]),
        "count": torch.arange(7),
        "single": torch.tensor(1.5),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 3).T,
        "byte": torch.arange(3, dtype=torch.uint8),
    }
    written = write_tensors(tmp_path / "a.safetensors", tensors)
    assert written == digest(tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)


def test_random_numbers_go_on_where_they_were():
    states = generator_states()
    drawn = torch.rand(3), np.random.rand(3)
    before = random.random()
    torch.rand(9)
    np.random.rand(9)
    restore_generators(states)
    again = torch.rand(3), np.random.rand(3)
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert random.random() == before


def test_a_score_is_known_once_every_task_was_played_often_enough():
    metrics = RunMetrics(["red", "blue"])

    def play(task: str, successes: int, failures: int) -> None:
        for number in range(successes + failures):
            metrics.add_episode(
                Episode(
                    task=task,
                    success=number < successes,
                    episode_return=0.0,
                    num_decisions=1,
                    num_env_steps=1,
                    policy_version=0,
                    origin="",
                    number=number,
                )
            )

    play("red", 60, WINDOW - 60)
    assert metrics.score(["red", "blue"]) is None
    assert metrics.score(["red"]) == 0.6
    play("blue", 20, WINDOW - 21)
    assert metrics.score(["red", "blue"]) is None
    play("blue", 0, 1)
    assert metrics.score(["red", "blue"]) == pytest.approx(0.4)
    assert metrics.score([]) is None


def test_a_copy_of_the_optimizers_state_does_not_change_with_it():
    learner: Learner = learner_of(tiny_policy())
    learner.update(BATCH)
    state = learner.state_dict()["optimizer"]["state"][0]
    before = state["exp_avg"].clone()
    learner.update(BATCH)
    assert torch.equal(state["exp_avg"], before)
