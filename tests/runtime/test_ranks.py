"""One learner on several ranks over Ray: it trains, and goes on when one of them dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from accerl.checkpoint import load_checkpoint, load_policy
from accerl.runtime.run import Run
from tests.runtime.conftest import launching
from tests.runtime.test_run import START_WITHIN_S, StartRun, processes_of, wait_for

RANKS = {"learner.num_ranks": 2, "learner.zero_stage": 2, "learner.micro_batch_decisions": 64}


def test_two_ranks_train_one_policy(start_run: StartRun, start: Path) -> None:
    run = start_run({**RANKS, "limits.max_updates": 14})
    assert run.wait(START_WITHIN_S + 60) == "finished"
    line = run.metrics()[-1]
    assert (line["updates"], line["discarded_decisions"]) == (14, 0)
    assert line["batch_decisions"] >= 256
    learner, _ = load_checkpoint(run.checkpoints()[-1])
    assert learner["updates"] == 14
    moments = [state["exp_avg"] for state in learner["optimizer"]["state"].values()]
    assert all(moment.abs().sum() > 0 for moment in moments[:3]), "gathered from both ranks"
    before, after = (load_policy(folder).state_dict() for folder in (start, run.checkpoints()[-1]))
    assert not torch.equal(before["action_queries"], after["action_queries"])


def test_low_rank_additions_train_on_ranks_and_only_they_are_sent(start_run: StartRun, start: Path) -> None:
    additions = {"policy.lora_rank": 2, "weights.trainable_only": True, "learner.gradient_checkpointing": True}
    run = start_run({**RANKS, **additions, "limits.max_updates": 14})
    assert run.wait(START_WITHIN_S + 60) == "finished"
    assert run.metrics()[-1]["discarded_decisions"] == 0
    before = {f"base.{name}": tensor for name, tensor in load_policy(start).state_dict().items()}
    after = load_policy(run.checkpoints()[-1]).state_dict()
    own = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if "lora_" not in name}
    assert own.keys() == before.keys()
    changed = {name for name, tensor in own.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("base.value_head.") for name in changed)
    assert any(tensor.abs().sum() > 0 for name, tensor in after.items() if "lora_B" in name)
    assert run.metrics()[-1]["run_policy_lag_max"] < 14, "inference did not get what was trained"


@pytest.fixture(scope="module")
def robust_run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One whose ranks are killed in turn."""
    with launching(start, tmp_path_factory.mktemp("robust")) as start_run:
        run = start_run({**RANKS, "learner.checkpoint_every_s": 1, "learner.rank_timeout_s": 20})
        wait_for(run, lambda status: status.get("updates", 0) >= 3 and bool(run.checkpoints()))
        yield run


@pytest.mark.parametrize("role", ["RankActor", "LearnerActor"])
def test_a_killed_rank_is_replaced_and_the_run_goes_on_from_its_checkpoint(robust_run: Run, role: str) -> None:
    run, num_incidents = robust_run, len(robust_run.incidents())
    victim = next(process for process in processes_of(run) if f"ray::{role}" in " ".join(process.cmdline()))
    before = run.status()["updates"]
    victim.kill()
    wait_for(run, lambda status: len(run.incidents()) > num_incidents)
    wait_for(run, lambda status: status.get("updates", 0) >= before + 5)
    incidents = run.incidents()[num_incidents:]
    assert {incident["action"] for incident in incidents} == {"restarted"}
    assert "learner-0" in {incident["role"] for incident in incidents}
