"""Predictions of `accerl plan` against figures worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from accerl.config import ConfigError, EnvConfig, RunConfig, merge
from accerl.envs import make_env
from accerl.plan import Machine, Plan, make_plan
from accerl.plan_memory import GIB, training_flop
from accerl.plan_training import training_ways
from accerl.policies import new_policy
from accerl.policies.costs import Costs, costs_of

DOTS = {"suite": "dots", "tasks": ("red", "blue"), "image_size": 32}
COSTS = Costs(
    parameters=GIB, weight_bytes=2, activation_bytes=GIB // 2, flop=1e12, observation_bytes=1024, trained=GIB
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


def test_ranks_share_the_optimizer_and_with_stage_2_the_gradients():
    machine = Machine(gpus=4)
    for stage, dtype, expected in (
        (1, "float32", 4 + 4 + 8 / 2),
        (2, "float32", 4 + 4 / 2 + 8 / 2),
        (2, "bfloat16", 2 + 2 / 2 + 12 / 2),
    ):
        plan = planned(machine, learner={"num_ranks": 2, "zero_stage": stage, "dtype": dtype})
        assert [load.role for load in plan.loads[:3]] == ["learner", "rank-0", "inference-0"]
        assert [load.place for load in plan.loads[:3]] == ["GPU 0", "GPU 1", "GPU 2"]
        assert [load.gib for load in plan.loads[:2]] == [expected + 8 * 0.5] * 2
    one, two = (planned(machine, learner={"num_ranks": n, "zero_stage": 2}).ceilings["learner"] or 0.0 for n in (1, 2))
    assert two == pytest.approx(2 * one)


def test_additions_need_a_gradient_and_an_optimizer_for_themselves_alone():
    config = RunConfig(**merge({}, {"env": DOTS, **CUDA}))
    few = COSTS._replace(trained=GIB // 64)
    assert make_plan(config, few, Machine(gpus=2)).loads[0].gib == 4 + 12 / 64 + 8 * 0.5
    whole, added = (make_plan(config, costs, Machine(gpus=2)).ceilings["learner"] or 0.0 for costs in (COSTS, few))
    assert added == pytest.approx(1.5 * whole), "no backward to the weights that stay"


def test_the_costs_of_additions_and_of_recomputation_are_those_of_the_policy_that_is_built():
    spec = make_env(EnvConfig(**DOTS)).spec
    spare_memory = {"policy.lora_rank": 4, "learner.gradient_checkpointing": True}
    plain, spare = (costs_of(RunConfig(**merge({}, {"env": DOTS, **each})), spec) for each in ({}, spare_memory))
    assert plain.trained == plain.parameters
    assert spare.trained < plain.trained
    assert spare.parameters > plain.parameters
    assert spare.activation_bytes < plain.activation_bytes


def test_a_frozen_vision_backbone_takes_part_in_nothing_but_the_forward():
    spec = make_env(EnvConfig(**DOTS)).spec
    fields = {"env": DOTS, "policy.kind": "openvla_oft", **CUDA}
    plain, frozen = (
        costs_of(RunConfig(**merge({}, {**fields, "policy.freeze_vision": each})), spec) for each in (False, True)
    )
    assert (plain.frozen, plain.trained) == (0, plain.parameters)
    assert frozen.parameters == plain.parameters
    assert frozen.trained == plain.parameters - frozen.frozen
    learner = RunConfig(**merge({}, fields)).learner
    assert training_flop(learner, plain) == 3 * plain.flop
    assert training_flop(learner, frozen) == pytest.approx(3 * plain.flop - 2 * frozen.frozen_flop)
    assert frozen.activation_bytes < plain.activation_bytes


@pytest.mark.parametrize(("gpus", "gib"), [(1, 110), (2, 62), (4, 38), (8, 26)])
def test_full_fine_tuning_of_the_large_policy_takes_what_was_counted(gpus: int, gib: float):
    config = RunConfig(**merge({}, {"env": DOTS, "policy.kind": "openvla_oft"}))
    full, frozen, lora, _ = training_ways(config, make_env(config.env).spec, Machine(gpus=gpus, gpu_gib=80))
    assert full.static_gib == pytest.approx(gib, rel=0.03)
    assert lora.static_gib < frozen.static_gib < full.static_gib
    assert (full.refusal is None) is (gpus > 1)
    if gpus == 1:
        assert full.refusal is not None and full.refusal.endswith("use 2 GPUs, or policy.lora_rank = 32")
        assert lora.static_gib == pytest.approx(15.4, rel=0.03)
    assert full.recomputed.mib < full.kept.mib
    assert full.recomputed.micro_batch >= full.kept.micro_batch
    assert full.recomputed.per_s == pytest.approx(full.kept.per_s * 3 / 3.78, rel=1e-2)


def test_additions_to_openvla_are_counted_from_its_layers():
    spec = make_env(EnvConfig(**DOTS)).spec
    fields = {"env": DOTS, "policy.kind": "openvla_oft", "policy.lora_rank": 32}
    found = costs_of(RunConfig(**merge({}, fields)), spec)
    # Llama: 32 (4 (4096 + 4096) + 3 (4096 + 11008)); DINOv2: 23 (6 x 1024 + 2 (1024 + 4096)); SigLIP: 26 (...);
    # the projector: 2176 + 8704 + 8704 + 4096 + 4096 + 4096
    expected = 32 * (32_768 + 45_312) + 23 * (6_144 + 10_240) + 26 * (6_912 + 10_912) + 31_872
    assert found.trained == 32 * expected + 256 * 4096, "the head trains as a whole"
    with pytest.raises(ConfigError, match=r"policy.lora_layers"):
        costs_of(RunConfig(**merge({}, {**fields, "policy.lora_layers": ("q_proj",)})), spec)
