"""A run in which everything goes wrong once goes on, learns from the rest, and accounts for all of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from accerl.config import RunConfig, merge
from accerl.envs import make_env
from accerl.guards import GaveUp
from accerl.policies.tiny_vla import TinyVLA
from accerl.policy_server import PolicyServer
from accerl.runtime.inline import InlineRun
from accerl.types import Batch, Blob, Evaluation, ObservationBatch, PolicyOutput, Trajectory
from tests.runtime.test_inline import SMALL, untrained


class Unlucky(TinyVLA):
    """Has no room for more than 20 rows with gradients, once it is told so."""

    is_tight = False

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        if self.is_tight and torch.is_grad_enabled() and len(observations) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().evaluate(observations, blob)


class Troubled(InlineRun):
    """Spoils the third delivery, the policy's sixtieth decision, the second update's rewards, and has no room after."""

    def __init__(self, config: RunConfig, **options: Any):
        policy: Any = untrained(config.env)
        policy.__class__ = Unlucky
        super().__init__(config, policy, lambda: make_env(config.env), **options)
        self.delivered = Counter[int]()
        """Decisions of each episode that were offered."""
        self._num = 0
        update = self.learner.update

        def troubled(batch: Batch, progress: float = 0.0) -> dict[str, float]:
            if self.learner.version == 1:
                reward = batch.reward.clone()
                reward[5] = torch.nan
                batch = replace(batch, reward=reward)
            policy.is_tight = self.learner.version >= 2
            return update(batch, progress)

        self.learner.update = troubled

    async def put(self, trajectory: Trajectory) -> None:
        self._num += 1
        if self._num == 3:
            trajectory = replace(trajectory, proprio=np.full_like(trajectory.proprio, np.nan))
        await super().put(trajectory)
        self.delivered[trajectory.episode] += trajectory.num_decisions


def troubled(overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> Troubled:
    config = RunConfig(**merge({}, SMALL | {"replay.max_reuse": 1, "limits.max_updates": 5} | overrides))
    acted = 0
    act = TinyVLA.act

    def acting(self: TinyVLA, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        nonlocal acted
        output = act(self, observations, seeds)
        before, acted = acted, acted + len(seeds)
        if before < 60 <= acted:
            output.value[59 - before] = torch.nan
        return output

    monkeypatch.setattr(Unlucky, "act", acting)
    return Troubled(config, **options)


@pytest.mark.parametrize("overrides", [{}, {"rollout.max_policy_lag": 2, "inference.batch_size": 3}, {"mode": "sync"}])
def test_a_run_goes_on_through_a_batch_a_trajectory_a_decision_and_a_device_that_fail(overrides, monkeypatch, tmp_path):
    updates: list[dict[str, float]] = []
    run = troubled(overrides, monkeypatch, on_update=updates.append, anomalies=tmp_path)
    start = {name: tensor.clone() for name, tensor in run.learner.policy.state_dict().items()}
    run.run()

    skipped = [update for update in updates if "skipped_updates" in update]
    assert (run.learner.updates, len(skipped), run.refused_trajectories) == (5, 1, 1)
    assert run.learner.version == len(updates) == 6
    assert "micro_batch_decisions" not in updates[0] and updates[-1]["micro_batch_decisions"] <= 20
    after = run.learner.policy.state_dict()
    assert not torch.equal(after["action_queries"], start["action_queries"]), "it has learnt from the others"
    assert all(tensor.isfinite().all() for tensor in after.values() if tensor.is_floating_point())

    whats = [what for what, _ in run.incidents]
    for text in ("proprio is not finite", "gave value that is not finite", "update of version 1", "out of memory"):
        assert any(text in what for what in whats), text
    (saved,) = tmp_path.glob("*.json")
    (part,) = json.loads(saved.read_text())["parts"]
    assert [each["not_finite"] for each in part["segments"] if each["not_finite"]] == [["reward"]]

    replay, trained = run.replay, sum(update["batch_decisions"] for update in updates)
    assert replay.discarded_decisions == replay.aged_decisions == 0
    assert sum(run.delivered.values()) == replay.pushed_decisions
    assert trained + skipped[0]["skipped_decisions"] == replay.used_decisions
    assert replay.pushed_decisions == replay.used_decisions + replay.unused_decisions
    assert len({episode.number for episode in run.episodes}) == len(run.episodes), "none counts twice"
    numbers = {episode.number for episode in run.episodes}
    assert numbers == set(range(len(numbers))), "those that were spoiled have been played again"
    assert run.admission.in_flight == 0


def test_a_run_whose_every_update_is_spoiled_ends_and_says_why(tmp_path: Path):
    config = RunConfig(**merge({}, SMALL | {"learner.max_skipped_updates": 2}))
    run = InlineRun(config, untrained(config.env), lambda: make_env(config.env), anomalies=tmp_path)
    accumulate = run.learner.accumulate
    run.learner.accumulate = lambda batch, counts=True: accumulate(
        replace(batch, reward=batch.reward * torch.nan), counts
    )
    with pytest.RaisesGroup(pytest.RaisesExc(GaveUp, match=r"2 updates in a row.*version-00000001\.safetensors")):
        run.run()


def test_a_run_whose_policy_gives_nothing_finite_ends_and_names_the_version(monkeypatch):
    config = RunConfig(**merge({}, SMALL))
    run = InlineRun(config, untrained(config.env), lambda: make_env(config.env))
    server: PolicyServer = run._server
    for parameter in server._active.value_parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ExceptionGroup) as found:
        run.run()
    assert found.group_contains(Exception, match="version 0 of the policy gave value that is not finite")
    assert run.replay.pushed_decisions == 0, "nothing of it was acted on"
