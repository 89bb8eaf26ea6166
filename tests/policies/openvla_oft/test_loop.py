"""A small OpenVLA-OFT goes through the roles of the main job in place of TinyVLA."""

from __future__ import annotations

import math

import pytest
import torch

from accerl.config import RunConfig, merge
from accerl.envs import make_env
from accerl.policies import new_policy
from accerl.runtime.inline import InlineRun
from tests.runtime.test_inline import SMALL

POLICY = {"policy.kind": "openvla_oft_tiny", "policy.width": 32, "policy.num_heads": 2}


@pytest.mark.parametrize("recompute", ["fused", "prefetch"])
def test_a_lockstep_run_updates_it_with_ratios_of_one(recompute):
    config = RunConfig(**merge({}, SMALL | POLICY | {"learner.recompute": recompute, "limits.max_updates": 3}))
    torch.manual_seed(0)
    policy = new_policy(config.policy, make_env(config.env).spec, ["go to the red dot", "go to the blue dot"], True)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    updates = []
    run = InlineRun(config, policy, lambda: make_env(config.env), on_update=updates.append)
    run.run()
    assert len(updates) == 3
    assert all(math.isfinite(value) for metrics in updates for value in metrics.values())
    after = run.learner.policy.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("model."))
    assert any(not torch.equal(after[name], before[name]) for name in before if name.startswith("value_head."))
    assert updates[0]["abs_log_ratio_max"] < 1e-5, "the first batch was acted and evaluated under the same parameters"
