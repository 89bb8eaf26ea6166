"""A run in one process that was cut off goes on as if it had not been, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from accerl.checkpoint import list_checkpoints
from accerl.config import ConfigError
from accerl.runtime.inline import InlineRun
from tests.runtime.inline_halves import EVERY, VARIANTS, Killed, made

CUT_AFTER = 10
"""Updates; between two checkpoints."""


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_to(folder: Path, name: str, cut_after: int | None = None) -> InlineRun:
    def count(_: dict[str, float]) -> None:
        if run.learner.updates == cut_after:
            raise Killed

    run = made(name, count)
    run.save_into(folder, EVERY)
    run.run()
    return run


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant, cut off here and gone on with in another process."""
    root = tmp_path_factory.mktemp("cut")
    for name in VARIANTS:
        with pytest.raises(ExceptionGroup) as raised:
            run_to(root / name, name, CUT_AFTER)
        assert raised.group_contains(Killed)
        updates = int(list_checkpoints(root / name)[-1].name.removeprefix("step-"))
        assert EVERY <= updates < CUT_AFTER, "there is something to go on from, and something to do again"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-m", "tests.runtime.inline_halves", root], check=True, env=environment)
    return root


@pytest.mark.parametrize("name", VARIANTS)
def test_another_process_goes_on_to_the_same_parameters(gone_on: Path, tmp_path: Path, name: str) -> None:
    torch.rand(3)  # what other tests have drawn does not matter
    straight = run_to(tmp_path, name)
    assert straight.learner.updates >= 14
    assert same(straight.learner.weights().tensors, load_file(gone_on / f"{name}.safetensors"))


def test_what_is_drawn_after_a_resumption_is_what_would_have_been_drawn(tmp_path: Path) -> None:
    """The generators of the process, the task sampler's, the replay's, and the episodes' numbers."""
    name = next(iter(VARIANTS))
    straight = run_to(tmp_path / "straight", name)
    after = torch.rand(2), np.random.rand(2), random.random()
    with pytest.raises(ExceptionGroup):
        run_to(tmp_path / "cut", name, CUT_AFTER)
    for draw in (torch.rand, np.random.rand):
        draw(9)
    resumed = run_to(tmp_path / "cut", name)
    assert torch.equal(after[0], torch.rand(2))
    assert resumed.tasks.state_dict() == straight.tasks.state_dict()
    assert resumed.admission.content() == straight.admission.content()
    ours, others = resumed.replay.content().facts(), straight.replay.content().facts()
    assert ours == others
    played = [(episode.number, episode.task, episode.success, episode.policy_version) for episode in straight.episodes]
    again = [(episode.number, episode.task, episode.success, episode.policy_version) for episode in resumed.episodes]
    assert played[-len(again) :] == again


def test_a_run_that_was_told_to_stop_stops_at_a_checkpoint(tmp_path: Path) -> None:
    name = "weights that come late"
    run = made(name, lambda _: run.stop() if run.learner.updates == 2 else None)
    run.save_into(tmp_path, EVERY)
    run.run()
    (path,) = list_checkpoints(tmp_path)
    assert EVERY <= run.learner.updates < 14
    resumed = made(name)
    assert resumed.save_into(tmp_path, EVERY) == path
    assert resumed.learner.updates == run.learner.updates


def test_in_lockstep_checkpoints_change_nothing(tmp_path: Path) -> None:
    """A round ends with nothing under way; elsewhere, what is at hand is played to its end before others start."""
    without, with_some = made("lockstep"), run_to(tmp_path, "lockstep")
    without.run()
    assert same(without.learner.weights().tensors, with_some.learner.weights().tensors)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup):
        run_to(tmp_path, "low-rank additions", CUT_AFTER)
    with pytest.raises(ConfigError, match=r"resume: .* is of a run with other settings"):
        made("groups").save_into(tmp_path, EVERY)


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(tmp_path: Path, capsys) -> None:
    name = "groups"
    straight = run_to(tmp_path, name)
    last, newest = list_checkpoints(tmp_path)
    segment = next((newest / "replay").glob("*.safetensors"))
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    resumed = made(name)
    assert resumed.save_into(tmp_path, EVERY) == last
    told = capsys.readouterr().out
    assert told == (f"{newest.name} is damaged (replay/{segment.name}: checksum); going on from {last.name}\n")
    resumed.run()
    assert same(straight.learner.weights().tensors, resumed.learner.weights().tensors)
