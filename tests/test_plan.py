"""Predictions of `accerl plan` against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from accerl.config import EnvConfig, RunConfig
from accerl.envs import make_env
from accerl.plan import GIB, Machine, Plan, make_plan
from accerl.policies import new_policy
from accerl.policies.costs import Costs, costs_of

DOTS = {"suite": "dots", "tasks": ("red", "blue"), "image_size": 32}
COSTS = Costs(
    parameters=GIB, weight_bytes=2, activation_bytes=GIB // 2, flop=1e12, observation_bytes=1024
)  # 16 GiB to train, 4 GiB to infer
CUDA = {"inference": {"device": "cuda"}, "learner": {"device": "cuda", "micro_batch_decisions": 8}}


def planned(machine: Machine, **sections: dict[str, Any]) -> Plan:
    merged = {name: {**CUDA.get(name, {}), **sections.get(name, {})} for name in {*CUDA, *sections}}
    return make_plan(RunConfig(**{"env": EnvConfig(**DOTS), **merged}), COSTS, machine)


def places(plan: Plan) -> dict[str, str]:
    return {load.role: load.place for load in plan.loads}


def test_the_learner_needs_sixteen_bytes_a_parameter_and_its_activations():
    plan = planned(Machine(gpus=2, gpu_gib=80))
    learner, inference, replay = plan.loads
    assert learner.gib == 16 + 8 * 0.5
    assert inference.gib == 4
    assert replay.gib == 4096 / 2**20
    assert plan.largest_micro_batch == 8 + (80 - 20) * 2
    assert plan.refusals == []


def test_images_that_do_not_fit_in_the_replay_s_memory_are_on_disk():
    config = {"capacity_decisions": 2**20, "num_shards": 2, "memory_mb": 256}
    replay = planned(Machine(gpus=2, gpu_gib=80), replay=config).loads[2]
    assert (replay.gib, replay.parts) == (0.5, "2 shards x 256 MiB, 1.0 GiB on disk")


def test_copies_of_the_weights_are_counted():
    plan = planned(Machine(gpus=2), learner={"average_decay": 0.9}, objective={"reference_kl": 0.1})
    assert plan.loads[0].gib == 16 + 2 * 2 + 8 * 0.5


def test_where_roles_stand_follows_the_layout():
    machine = Machine(gpus=4)
    two = {"num_services": 2}
    assert places(planned(machine, inference=two))["inference-1"] == "GPU 2"
    halves = {"learner_gpus": 0.5, "inference_gpus": 0.25, "layout": "colocated"}
    assert set(places(planned(machine, inference=two, placement=halves)).values()) == {"GPU 0", "host"}
    hybrid = {"learner_gpus": 0.5, "inference_gpus": 0.5, "layout": "hybrid"}
    assert places(planned(machine, inference={"num_services": 3}, placement=hybrid)) == {
        "learner": "GPU 0",
        "inference-0": "GPU 0",
        "inference-1": "GPU 1",
        "inference-2": "GPU 1",
        "replay": "host",
    }


def test_what_does_not_fit_is_said_with_its_remedy():
    small = planned(Machine(gpus=2, gpu_gib=17))
    assert small.refusals == [
        "GPU 0: 20.0 GiB do not fit into 17; use learner.micro_batch_decisions of at most 2",
    ]
    shared = {"learner_gpus": 0.5, "inference_gpus": 0.5, "layout": "colocated"}
    together = planned(Machine(gpus=1, gpu_gib=18), placement=shared)
    assert "layout = 'disaggregated'" in together.refusals[0]
    assert "use learner.micro_batch_decisions" not in planned(Machine(gpus=2, gpu_gib=8)).refusals[0]
    assert planned(Machine(gpus=1)).refusals[0].startswith("gpus: the run needs 2, and there are 1; lower inference")


def test_ceilings_are_operations_over_the_reached_peak():
    machine = Machine(gpus=2, gpu_tflops=800, efficiency=0.5)
    plan = planned(machine, replay={"max_reuse": 4}, learner={"recompute": "fused"})
    assert plan.ceilings == {"simulation": None, "inference": 400.0, "learner": pytest.approx(400 / 3 / 4)}
    assert plan.collected_per_s == pytest.approx(400 / 3 / 4)
    extra_pass = planned(machine, replay={"max_reuse": 4}, learner={"recompute": "prefetch"})
    assert extra_pass.ceilings["learner"] == pytest.approx(400 / 4 / 4)


def test_nothing_is_predicted_for_a_processor_but_memory():
    config = RunConfig(env=EnvConfig(**DOTS))
    plan = make_plan(config, COSTS, Machine(memory_gib=8))
    assert plan.collected_per_s is None and plan.largest_micro_batch is None
    assert plan.refusals == [
        "host: 276.0 GiB do not fit into 8; most of it is learner's: lower learner.micro_batch_decisions, or take a "
        "smaller policy"
    ]


def test_a_policy_of_any_kind_is_counted_by_building_it():
    config = RunConfig(env=EnvConfig(**DOTS))
    spec = make_env(config.env).spec
    costs = costs_of(config, spec)
    policy = new_policy(config.policy, spec, ["red", "blue"], False)
    parameters = [*policy.policy_parameters(), *policy.value_parameters()]
    assert costs.parameters == sum(parameter.numel() for parameter in parameters)
    wide = config.model_copy(update={"policy": config.policy.model_copy(update={"width": 384})})
    assert 3 < costs_of(wide, spec).flop / costs.flop < 4
    assert 1.5 < costs_of(wide, spec).activation_bytes / costs.activation_bytes < 2
    assert costs.observation_bytes == 32 * 32 * 3 + spec.proprio_dim * 4
