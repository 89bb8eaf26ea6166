"""Guards of the learner: what is not finite is skipped and kept, what has no room is made in smaller parts."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accerl.anomalies import Anomalies
from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.guards import Broken, GaveUp, Guard, NonFiniteWeights, is_out_of_memory, require_finite
from accerl.learner import Learner
from accerl.packing import pack, split
from accerl.policies.tiny_vla import TinyVLA
from accerl.types import Batch, Blob, Evaluation, ObservationBatch
from tests.roles.fakes import tiny_policy, trajectory

LEARNER: dict[str, Any] = {"policy_lr": 1e-3, "value_lr": 1e-3, "value_warmup_updates": 0, "warmup_updates": 3}
MODES = ("fused", "prefetch", "off")


class Tight(TinyVLA):
    """On a device that has room for so many rows of a forward with gradients."""

    rows: int | None = None
    tried: list[int]

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        if torch.is_grad_enabled():
            self.tried.append(len(observations))
            if self.rows is not None and len(observations) > self.rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().evaluate(observations, blob)


def tight_policy(rows: int | None = None) -> Tight:
    made: Any = tiny_policy()
    made.__class__ = Tight
    made.rows, made.tried = rows, []
    return made


def learner_of(policy: Any = None, guard: Guard | None = None, **fields: Any) -> Learner:
    objective = ObjectiveConfig(kind="decoupled_ppo", proximal="snapshot", proximal_every=2)
    return Learner(policy or tiny_policy(), LearnerConfig(**LEARNER | fields), objective, guard=guard)


def batch(seed: int = 0, num: int = 6, **fields: Any) -> Batch:
    return pack([trajectory(3, seed=10 * seed + n, episode=n, **fields) for n in range(num)], chunk_length=2)


def spoiled(seed: int = 0) -> Batch:
    """The third of six segments has a reward that is no number."""
    parts = [trajectory(3, seed=10 * seed + n, episode=n, origin=f"rollout-1.0/{n}/7") for n in range(6)]
    parts[2].reward[1] = np.nan
    return pack(parts, chunk_length=2)


def state_of(learner: Learner) -> dict[str, Any]:
    state = {**learner.state_dict(), "policy": learner.weights().tensors}
    return copy.deepcopy({name: value for name, value in state.items() if name != "version"})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# --- not finite -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", MODES)
def test_a_skipped_update_changes_nothing_but_the_version_and_the_next_is_as_without_it(recompute, dtype):
    learner, other = (learner_of(recompute=recompute, dtype=dtype) for _ in range(2))
    for each in (learner, other):
        each.update(batch(1))
        each.update(batch(2))
    before = state_of(learner)
    metrics = learner.update(spoiled())
    assert metrics == {"batch_decisions": 0.0, "skipped_updates": 1.0, "skipped_decisions": 18.0}
    assert same(state_of(learner), before)
    assert (learner.version, learner.updates) == (3, 2)
    assert not learner.has_parts
    other.skip()
    for each in (learner, other):
        each.update(batch(3))
    assert same(state_of(learner), state_of(other))


def test_a_first_batch_that_is_not_finite_leaves_no_statistics_to_lag_behind():
    learner = learner_of(recompute="fused")
    learner.update(spoiled())
    assert learner.state_dict()["moments"] is None
    learner.update(batch(1))
    fresh = learner_of(recompute="fused")
    fresh.skip()
    fresh.update(batch(1))
    assert same(state_of(learner), state_of(fresh))


def test_a_gradient_that_is_not_finite_is_found_where_the_loss_is_finite(tmp_path: Path):
    policy = tiny_policy()
    parameter = next(policy.value_parameters())
    hook = parameter.register_hook(lambda gradient: gradient * torch.inf)
    learner = learner_of(policy, Guard(Anomalies(tmp_path)))
    before = state_of(learner)
    learner.update(batch(1))
    assert same(state_of(learner), before)
    assert json.loads((tmp_path / "version-00000000.json").read_text())["parts"][0]["not_finite"] == ["gradient"]
    hook.remove()
    assert "skipped_updates" not in learner.update(batch(1))


def test_the_batch_is_kept_with_where_it_came_from(tmp_path: Path):
    said: list[tuple[str, str]] = []
    learner = learner_of(guard=Guard(Anomalies(tmp_path), lambda *each: said.append(each)), micro_batch_decisions=6)
    learner.update(batch(1))
    learner.update(spoiled(2))
    facts = json.loads((tmp_path / "version-00000001.json").read_text())
    assert len(facts["parts"]) == 1, "of the three parts the one whose advantages are not finite"
    first, second = facts["parts"][0]["segments"]
    assert (first["origin"], first["task"], first["episode"]) == ("rollout-1.0/2/7", "red", 2)
    assert (first["not_finite"], second["not_finite"]) == (["reward"], [])
    assert first["policy_versions"] == [0, 0]
    tensors = load_file(tmp_path / "version-00000001.safetensors")
    assert torch.equal(tensors["0/reward"].isnan().nonzero(), torch.tensor([[1]]))
    assert torch.equal(tensors["0/blob.tokens"], spoiled(2).blob["tokens"][6:12])
    ((what, action),) = said
    assert "version 1" in what and "version-00000001.safetensors" in what and "skipped, 1 in a row" in action


def test_updates_that_are_skipped_one_after_the_other_end_the_run_and_the_reason_names_the_file(tmp_path: Path):
    learner = learner_of(guard=Guard(Anomalies(tmp_path)), max_skipped_updates=3)
    for seed in (1, 2):
        learner.update(spoiled(seed))
    learner.update(batch(1))
    for seed in (3, 4):
        learner.update(spoiled(seed))
    with pytest.raises(
        GaveUp, match=r"3 updates in a row.*max_skipped_updates.*version-00000005\.safetensors"
    ) as found:
        learner.update(spoiled(5))
    assert found.value.is_whole
    assert (learner.version, learner.updates) == (6, 1)


def test_a_step_that_spoils_the_parameters_is_an_error_before_anybody_has_them():
    learner = learner_of(value_lr=1e38, policy_lr=1e38, warmup_updates=0)
    with pytest.raises(NonFiniteWeights, match="not published"):
        for seed in range(3):
            learner.update(batch(seed))


def test_a_policy_that_is_not_finite_is_not_begun_with():
    policy = tiny_policy()
    next(policy.policy_parameters()).data.view(-1)[3] = math.nan
    with pytest.raises(NonFiniteWeights):
        learner_of(policy)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_is_found_among_all(value, dtype):
    parameters = [nn.Parameter(torch.full((5, 7), 3e38, dtype=dtype)) for _ in range(3)]
    require_finite(parameters)
    parameters[1].data[4, 6] = value
    with pytest.raises(NonFiniteWeights):
        require_finite(parameters)


def test_only_the_newest_batches_are_kept(tmp_path: Path):
    anomalies = Anomalies(tmp_path, keep=2)
    for number in range(4):
        anomalies.save(f"version-{number}", "why", [Broken(batch(), ["loss"])])
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {f"version-{number}.{kind}" for number in (2, 3) for kind in ("safetensors", "json")}


def test_a_disk_that_takes_nothing_costs_the_file_and_not_the_run(tmp_path: Path):
    (tmp_path / "anomalies").write_text("in the way")
    said: list[str] = []
    learner = learner_of(guard=Guard(Anomalies(tmp_path / "anomalies"), lambda what, action: said.append(what)))
    learner.update(spoiled())
    assert "could not be saved" in said[0]
    assert "skipped_updates" not in learner.update(batch(1))


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", MODES)
def test_an_update_that_has_no_room_is_made_as_smaller_micro_batches_would_have_made_it(recompute):
    said: list[tuple[str, str]] = []
    tight = tight_policy()
    learner = learner_of(tight, Guard(tell=lambda *each: said.append(each)), recompute=recompute)
    small = learner_of(recompute=recompute, micro_batch_decisions=4)
    for each in (learner, small):
        each.update(batch(1, num=1))
    tight.rows = 5
    metrics, expected = learner.update(batch(2)), small.update(batch(2))
    assert metrics == {**expected, "micro_batch_decisions": 4.0}
    assert same(state_of(learner), state_of(small))
    assert [what for what, _ in said] == [f"out of memory with {n} decisions in a micro-batch" for n in (18, 9)]
    tight.tried.clear()
    learner.update(batch(3))
    assert max(tight.tried) <= 5, "what had no room once is not tried again"


def test_parts_that_came_one_by_one_are_all_made_again():
    tight = tight_policy()
    learner, other = learner_of(tight, recompute="fused"), learner_of(recompute="fused")
    for each in (learner, other):
        each.update(batch(0))
    tight.rows = 8
    for part in (batch(1, num=2), batch(2, num=4)):
        learner.accumulate(part)
        for smaller in split(part, 6):
            other.accumulate(smaller)
    metrics = learner.step()
    other.step()
    assert (metrics["micro_batch_decisions"], metrics["batch_decisions"]) == (6, 18)
    assert same(state_of(learner), state_of(other))


def test_one_segment_that_has_no_room_ends_the_run_with_the_remedies():
    learner = learner_of(tight_policy(rows=2), recompute="prefetch")
    learner.accumulate(batch(1))
    with pytest.raises(GaveUp, match=r"one segment of 3 decisions.*gradient_checkpointing.*lora_rank.*accerl plan"):
        learner.step()


def test_values_for_which_there_is_no_room_ahead_of_time_are_left_to_the_learner(monkeypatch):
    policy = tiny_policy()
    learner = learner_of(policy, recompute="prefetch")
    assert learner.revalued(batch(1)).values is not None
    with monkeypatch.context() as patched:
        patched.setattr(policy, "value", lambda observations: out_of_memory())
        kept = learner.revalued(batch(1))
        assert kept.values is None
    assert "skipped_updates" not in learner.update(kept)


def out_of_memory() -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"))
    policy = tiny_policy()
    learner = learner_of(policy, recompute="prefetch")
    monkeypatch.setattr(policy, "evaluate", lambda observations, blob: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        learner.update(batch(1))
