"""The learner: with a policy of three numbers and sums by hand, and with a TinyVLA where sizes must not matter."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accerl.config import LearnerConfig, ObjectiveConfig
from accerl.learner import Learner
from accerl.packing import pack, split
from accerl.types import Batch, Blob, Evaluation, ObservationBatch
from tests.roles.fakes import tiny_policy, trajectory


class ThreeNumbers(nn.Module):
    """The same log-prob for every token, the same entropy and the same value everywhere."""

    def __init__(self, log_prob: float = 0.0, value: float = 0.0, entropy: float = 1.0) -> None:
        super().__init__()
        self.log_prob = nn.Parameter(torch.tensor(log_prob))
        self.entropy = nn.Parameter(torch.tensor(entropy))
        self.level = nn.Parameter(torch.tensor(value))
        self.valued: list[int] = []
        """Rows of each call of `value`."""
        self.evaluated: list[int] = []

    def evaluate(self, observations: ObservationBatch, blob: Blob[Tensor]) -> Evaluation:
        self.evaluated.append(len(observations))
        tokens = torch.ones(len(observations), 4)
        return Evaluation(self.log_prob * tokens, self.entropy * tokens, self.level * tokens[:, 0])

    def value(self, observations: ObservationBatch) -> Tensor:
        self.valued.append(len(observations))
        return self.level * torch.ones(len(observations))

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        return iter([self.log_prob, self.entropy])

    def value_parameters(self) -> Iterator[nn.Parameter]:
        return iter([self.level])


LEARNER: dict[str, Any] = {
    "value_warmup_updates": 0,
    "warmup_updates": 0,
    "policy_lr": 1e-12,
    "value_lr": 1e-12,
    "max_grad_norm": 1e9,
}
OBJECTIVE: dict[str, Any] = {"normalization": "off", "sigma": math.inf, "discount": 0.5, "trace": 1.0}


def learner_of(policy: Any, learner: dict[str, Any] | None = None, objective: dict[str, Any] | None = None, **k: Any):
    return Learner(
        policy, LearnerConfig(**LEARNER | (learner or {})), ObjectiveConfig(**OBJECTIVE | (objective or {})), **k
    )


def batch_of(*rewards: float, stored_value: float = 0.0, **fields: Any) -> Batch:
    """Segments of one terminal decision each, made by a policy whose log-probs were 0."""
    parts = [
        trajectory(
            1,
            **{
                "reward": np.array([reward], np.float32),
                "value": np.array([stored_value], np.float32),
                "log_prob": np.zeros((1, 4), np.float32),
                "terminal": True,
            }
            | fields,
        )
        for reward in rewards
    ]
    return pack(parts, chunk_length=2)


def gradients_of(learner: Learner, call: Callable[[], Any]) -> dict[str, Tensor]:
    """Each parameter's gradient of one update: the sums that flowed into it, over the decisions; not clipped."""
    policy = learner.policy
    assert isinstance(policy, nn.Module)
    total: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name, parameter in policy.named_parameters()}
    hooks = [
        parameter.register_hook(lambda gradient, name=name: total[name].add_(gradient))
        for name, parameter in policy.named_parameters()
    ]
    num_decisions = call()["batch_decisions"]
    for hook in hooks:
        hook.remove()
    return {name: gradient / num_decisions for name, gradient in total.items()}


# --- one update by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["prefetch", "fused"])
def test_advantages_are_formed_with_the_newest_critic(recompute):
    # A = r - V = 3 - 0.25 on every token, whatever value was stored
    learner = learner_of(ThreeNumbers(value=0.25), {"recompute": recompute})
    metrics = learner.update(batch_of(3.0, stored_value=1.0))
    assert metrics["policy_loss"] == pytest.approx(-2.75)
    assert metrics["value_loss"] == pytest.approx(2.75**2)


def test_without_recomputation_advantages_come_from_the_stored_values():
    learner = learner_of(ThreeNumbers(value=0.25), {"recompute": "off"})
    metrics = learner.update(batch_of(3.0, stored_value=1.0))
    assert metrics["policy_loss"] == pytest.approx(-2.0)
    assert metrics["value_loss"] == pytest.approx(2.75**2), "the target is A + V = 3"


@pytest.mark.parametrize(("recompute", "valued"), [("prefetch", [4, 2]), ("fused", [2]), ("off", [2])])
def test_each_mode_computes_no_more_values_than_it_needs(recompute, valued):
    policy = ThreeNumbers()
    batch = pack([trajectory(2, terminal=True), trajectory(1), trajectory(1, truncated=True)], chunk_length=2)
    learner_of(policy, {"recompute": recompute}).update(batch)
    assert policy.valued == valued
    assert policy.evaluated == [4]


def test_an_open_segment_bootstraps_with_the_newest_critic():
    # delta = r + .5 * .25 - .25
    learner = learner_of(ThreeNumbers(value=0.25))
    assert learner.update(batch_of(3.0, terminal=False))["policy_loss"] == pytest.approx(-2.875)


def test_gradients_by_hand():
    # A = 2 and -1 at ratio 1: policy gradient -mean(A), value gradient c_v * 2 * mean(V - r), entropy -c_e
    learner = learner_of(ThreeNumbers(), objective={"entropy_coefficient": 0.3, "value_coefficient": 0.5})
    gradients = gradients_of(learner, lambda: learner.update(batch_of(2.0, -1.0)))
    assert gradients["log_prob"].item() == pytest.approx(-0.5)
    assert gradients["level"].item() == pytest.approx(0.5 * 2 * -0.5)
    assert gradients["entropy"].item() == pytest.approx(-0.3)


def test_negative_advantages_can_be_scaled_down():
    learner = learner_of(ThreeNumbers(), objective={"negative_scale": 0.25})
    gradients = gradients_of(learner, lambda: learner.update(batch_of(2.0, -1.0)))
    assert gradients["log_prob"].item() == pytest.approx(-(2 - 0.25) / 2)


E_HALF = math.exp(0.5)
SIGMOID = 1 / (1 + math.exp(1 - E_HALF))


@pytest.mark.parametrize(
    ("objective", "reward", "value"),
    [
        # what stands in place of A, where every ratio is e^.5 = 1.65
        ({"kind": "gipo", "sigma": 0.5}, 2.0, 1.0),  # exp(.5 - .25 / .5)
        ({"kind": "gipo", "sigma": math.inf}, 2.0, E_HALF),
        ({"kind": "gipo", "sigma": 0.5, "kernel": "laplace"}, 2.0, math.exp(-0.5)),
        ({"kind": "gipo", "sigma": 0.5, "sigma_negative": math.inf}, 2.0, 1.0),
        ({"kind": "gipo", "sigma": 0.5, "sigma_negative": math.inf}, -2.0, E_HALF),
        ({"kind": "ppo", "clip": 0.2}, 2.0, 1.2),
        ({"kind": "ppo", "clip": 0.2, "clip_high": 0.3}, 2.0, 1.3),
        ({"kind": "ppo", "clip": 0.2}, -2.0, E_HALF),
        ({"kind": "dual_clip_ppo", "clip": 0.2, "dual_clip": 1.5}, -2.0, 1.5),
        ({"kind": "importance_sampling"}, 2.0, E_HALF),
        ({"kind": "tis", "weight_cap": 1.5}, 2.0, 1.5),
        ({"kind": "mis", "ratio_range": (0.5, 1.5)}, 2.0, 0.0),
        ({"kind": "mis", "ratio_range": (0.5, 1.7)}, 2.0, E_HALF),
        ({"kind": "cispo", "clip_high": 0.4}, 2.0, 1.4),
        ({"kind": "sapo", "temperature": 1.0, "temperature_negative": 2.0}, 2.0, 4 * SIGMOID),
        # at a lag of 2 the proximal policy is half way, and the ratio to it e^.25 = 1.28
        ({"kind": "decoupled_ppo", "clip": 0.2}, 2.0, math.exp(0.25) * 1.2),
        ({"kind": "decoupled_ppo", "clip": 0.3}, 2.0, E_HALF),
        ({"kind": "decoupled_ppo", "clip": 0.2, "weight_cap": 1.1}, 2.0, 1.1 * 1.2),
    ],
)
def test_the_objective_is_the_configured_one(objective, reward, value):
    learner = learner_of(ThreeNumbers(log_prob=0.5), objective=objective)
    learner.version = 2
    assert learner.update(batch_of(reward))["policy_loss"] == pytest.approx(-reward * value)


@pytest.mark.parametrize(("granularity", "log_ratio"), [("token", 0.1), ("action", 0.2), ("chunk", 0.4)])
def test_a_ratio_is_taken_of_what_is_configured(granularity, log_ratio):
    # four tokens of two actions, .1 each
    objective = {"kind": "importance_sampling", "granularity": granularity}
    learner = learner_of(ThreeNumbers(log_prob=0.1), objective=objective)
    metrics = learner.update(batch_of(2.0))
    assert metrics["policy_loss"] == pytest.approx(-2 * math.exp(log_ratio))
    assert metrics["abs_log_ratio_p95"] == pytest.approx(log_ratio)


def test_a_snapshot_is_clipped_around_and_renewed():
    policy = ThreeNumbers(log_prob=0.5)
    objective = {"kind": "decoupled_ppo", "proximal": "snapshot", "proximal_every": 2, "clip": 0.2, "weight_cap": 9.0}
    learner = learner_of(policy, objective=objective)
    losses = []
    for log_prob in (0.5, 1.5, 1.5):
        policy.log_prob.data.fill_(log_prob)
        losses.append(learner.update(batch_of(2.0))["policy_loss"] / -2)
    # to the snapshot of .5 the ratio is 1, then e, which is clipped; the one after two updates is the policy again
    assert losses == pytest.approx([E_HALF, 1.2 * E_HALF, math.exp(1.5)], rel=1e-5)


@pytest.mark.parametrize("recompute", ["prefetch", "fused", "off"])
def test_v_trace_corrects_the_values_by_the_ratio_of_the_decision(recompute):
    # two decisions of reward 0 and 1, V = 0.25, discount 1/2, ratio e^.4 of four tokens, bounded by 1.2 and 0.8:
    # the second corrects by 1.2 * 0.75 = 0.9; the first by 1.2 * (-0.125) + 0.5 * 0.8 * 0.9 = 0.21
    learner = learner_of(
        ThreeNumbers(log_prob=0.1, value=0.25),
        {"recompute": recompute},
        {"advantages": "vtrace", "rho_bar": 1.2, "c_bar": 0.8, "kind": "importance_sampling"},
    )
    two = trajectory(
        2,
        reward=np.array([0, 1], np.float32),
        value=np.full(2, 0.25, np.float32),
        log_prob=np.zeros((2, 4), np.float32),
        terminal=True,
    )
    metrics = learner.update(pack([two], chunk_length=2))
    assert metrics["value_loss"] == pytest.approx((0.9**2 + 0.21**2) / 2)
    advantages = (-0.125 + 0.5 * 0.9) + 0.75
    assert metrics["policy_loss"] == pytest.approx(-math.exp(0.1) * advantages / 2)


def test_the_behaviour_divergence_pulls_back():
    # d/dl (e^l - 1 - l) = e^l - 1
    gradients = []
    for coefficient in (0.0, 2.0):
        learner = learner_of(ThreeNumbers(log_prob=0.5), objective={"behaviour_kl": coefficient})
        gradients.append(gradients_of(learner, lambda of=learner: of.update(batch_of(0.0)))["log_prob"].item())
    assert gradients == pytest.approx([0.0, 2 * (math.exp(0.5) - 1)])


def test_the_reference_divergence_pulls_towards_the_reference():
    # d/d log pi of (r - 1 - log r) with r = pi_0 / pi is 1 - r
    learner = learner_of(
        ThreeNumbers(log_prob=0.5), objective={"reference_kl": 2.0}, reference=ThreeNumbers(log_prob=0.2)
    )
    gradients = gradients_of(learner, lambda: learner.update(batch_of(0.0)))
    assert gradients["log_prob"].item() == pytest.approx(2 * (1 - math.exp(-0.3)), rel=1e-5)


def test_a_value_that_is_a_probability_learns_by_cross_entropy():
    learner = learner_of(ThreeNumbers(value=0.25), objective={"value_loss": "bce"})
    assert learner.update(batch_of(1.0))["value_loss"] == pytest.approx(-math.log(0.25))


def test_tokens_that_were_not_executed_have_no_gradient():
    learner = learner_of(ThreeNumbers(log_prob=0.0))
    batch = batch_of(2.0, -1.0, num_actions=np.array([1], np.int32))
    assert batch.mask.sum() == 4
    gradients = gradients_of(learner, lambda: learner.update(batch))
    # half of each decision was executed, so each counts half: -(2 - 1) / 2 / 2
    assert gradients["log_prob"].item() == pytest.approx(-0.25)


def test_what_is_logged_is_what_happened():
    learner = learner_of(ThreeNumbers(value=0.5))
    learner.version = 7
    batch = batch_of(1.0, 2.0, policy_version=np.array([4], np.int32))
    batch.policy_version[1] = 6
    metrics = learner.update(batch)
    assert (metrics["policy_lag_mean"], metrics["policy_lag_p95"], metrics["policy_lag_max"]) == (2, 3, 3)
    assert metrics["batch_decisions"] == 2
    assert metrics["grad_norm"] == pytest.approx(1.0)
    assert metrics["value_grad_norm"] == pytest.approx(1.0)
    assert metrics["effective_sample_size"] == pytest.approx(1.0)
    assert metrics["value_mean"] == pytest.approx(0.5)
    assert metrics["entropy"] == pytest.approx(1.0)
    assert (learner.version, learner.updates) == (8, 1)


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_decisions", [1, 4])
def test_advantages_are_normalised_over_the_whole_batch(micro_batch_decisions):
    learner = learner_of(
        ThreeNumbers(),
        {"recompute": "prefetch", "micro_batch_decisions": micro_batch_decisions},
        {"normalization": "global", "negative_scale": 0.0},
    )
    # of 0, 0, 0, 4: mean 1, deviation sqrt(3); what is left of the positive part is sqrt(3) / 4
    assert learner.update(batch_of(0, 0, 0, 4))["policy_loss"] == pytest.approx(-math.sqrt(3) / 4)


def test_fused_statistics_lag_by_one_update():
    learner = learner_of(ThreeNumbers(), {"recompute": "fused"}, {"normalization": "global"})
    first, second, third = (learner.update(batch_of(*rewards)) for rewards in ([0, 2], [1, 3], [5, 5]))
    assert first["policy_loss"] == pytest.approx(0.0, abs=1e-6), "there is nothing to lag behind yet"
    assert second["policy_loss"] == pytest.approx(-1.0), "mean 1, deviation 1 of the batch before"
    assert third["policy_loss"] == pytest.approx(-3.0), "mean 2, deviation 1 of the batch before"


def test_each_part_is_normalised_by_its_own_statistics():
    parts = {"micro_batch_decisions": 2, "recompute": "fused"}
    learner = learner_of(ThreeNumbers(), parts, {"normalization": "local", "negative_scale": 0.0})
    # 0, 2 and 0, 6 become -1, 1 each; what is left of the positive part is 1 / 2
    assert learner.update(batch_of(0, 2, 0, 6))["policy_loss"] == pytest.approx(-1 / 2)


# --- values recomputed in the background ------------------------------------------------------------------------------


def test_values_recomputed_in_advance_are_those_that_the_learner_would_compute():
    batch = pack(PARTS, chunk_length=2)
    learner = learner_of(tiny_policy(), {"recompute": "prefetch"})
    beforehand = learner.revalued(batch)
    assert batch.values is None
    assert beforehand.values is not None
    assert (beforehand.values.bootstrap != 0).tolist() == (~batch.terminal).tolist()
    expected = learner_of(tiny_policy(), {"recompute": "prefetch"})
    assert expected.update(batch) == pytest.approx(learner.update(beforehand))
    found = learner.weights().tensors
    for name, tensor in expected.weights().tensors.items():
        torch.testing.assert_close(found[name], tensor)


def test_values_recomputed_in_advance_are_of_the_weights_of_that_moment():
    learner = learner_of(ThreeNumbers(), {"recompute": "prefetch", "value_lr": 0.1})
    before = learner.revalued(batch_of(1, 0))
    learner.update(batch_of(1, 0))
    after = learner.revalued(batch_of(1, 0))
    assert before.values is not None
    assert after.values is not None
    assert not torch.equal(before.values.decision, after.values.decision)


@pytest.mark.parametrize("recompute", ["fused", "off"])
def test_nothing_is_recomputed_in_advance_where_it_is_not_wanted(recompute):
    batch = batch_of(1, 0)
    assert learner_of(ThreeNumbers(), {"recompute": recompute}).revalued(batch) is batch


def test_a_split_batch_keeps_its_recomputed_values():
    learner = learner_of(tiny_policy(), {"recompute": "prefetch"})
    batch = learner.revalued(pack(PARTS, chunk_length=2))
    parts = list(split(batch, 4))
    assert batch.values is not None
    for index, name in enumerate(("decision", "bootstrap")):
        whole = torch.cat([part.values[index] for part in parts if part.values is not None])
        assert torch.equal(whole, batch.values[index]), name


# --- the size of the micro-batches ------------------------------------------------------------------------------------

PARTS = [
    trajectory(3, seed=1),
    trajectory(1, seed=2, terminal=True),
    trajectory(4, seed=3, truncated=True, num_actions=np.array([2, 2, 2, 1], np.int32)),
    trajectory(2, seed=4, terminal=True, num_actions=np.array([2, 1], np.int32)),
    trajectory(2, seed=5),
]


def test_a_batch_is_split_between_segments_only():
    batch = pack(PARTS, chunk_length=2)
    assert [part.lengths.tolist() for part in split(batch, 4)] == [[3, 1], [4], [2, 2]]
    assert [part.lengths.tolist() for part in split(batch, 1)] == [[3], [1], [4], [2], [2]]
    (whole,) = split(batch, 12)
    assert whole is batch


@pytest.mark.parametrize("size", [1, 4, 5, 8])
def test_each_part_of_a_split_batch_is_what_packing_its_segments_gives(size):
    first = 0
    for part in split(pack(PARTS, chunk_length=2), size):
        alone = pack(PARTS[first : first + len(part.lengths)], chunk_length=2)
        first += len(part.lengths)
        for name in ("log_prob", "mask", "behaviour_value", "reward", "policy_version", "lengths", "terminal"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        assert torch.equal(part.blob["tokens"], alone.blob["tokens"])
        assert part.observations.instructions == alone.observations.instructions
        for name in ("images", "proprio", "episode_step"):
            assert torch.equal(getattr(part.observations, name), getattr(alone.observations, name)), name
    assert first == len(PARTS)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("kind", ["gipo", "ppo", "decoupled_ppo", "sapo", "mis"])
def test_the_gradient_does_not_depend_on_how_a_batch_is_split(size, kind):
    objective = {"kind": kind, "normalization": "global", "entropy_coefficient": 0.1, "behaviour_kl": 0.1}
    found = []
    for micro_batch_decisions in (size, 100):
        learner = learner_of(
            tiny_policy(),
            {"recompute": "prefetch", "micro_batch_decisions": micro_batch_decisions},
            objective | {"reference_kl": 0.1},
            reference=tiny_policy(1),
        )
        found.append(gradients_of(learner, lambda of=learner: of.update(pack(PARTS, chunk_length=2))))
    parts, whole = (torch.cat([gradient.flatten() for gradient in gradients.values()]) for gradients in found)
    assert whole.norm() > 0.1
    assert torch.dist(parts, whole) < 1e-5 * whole.norm()


# --- the course of training -------------------------------------------------------------------------------------------


def parameters_of(policy: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def changed(before: dict[str, Tensor], policy: nn.Module) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if not torch.equal(before[name], parameter)}


def test_the_value_warm_up_leaves_the_policy_untouched():
    policy = tiny_policy()
    learner = learner_of(policy, {"value_warmup_updates": 2, "policy_lr": 1e-3, "value_lr": 1e-3, "weight_decay": 0.1})
    of_value = {name for name, _ in policy.named_parameters() if name.startswith("value_head.")}
    before = parameters_of(policy)
    for _ in range(2):
        learner.update(pack(PARTS, chunk_length=2))
    assert changed(before, policy) == of_value
    learner.update(pack(PARTS, chunk_length=2))
    assert changed(before, policy) > of_value


def test_the_learning_rate_by_hand():
    # 2 updates for the critic alone, then 1/4, 2/4, 3/4, 1 of 0.01, times the cosine from 1 to 0.1 over the budget
    learner = learner_of(
        ThreeNumbers(),
        {"policy_lr": 0.01, "value_warmup_updates": 2, "warmup_updates": 4, "final_lr_fraction": 0.1},
    )
    rates = [learner.update(batch_of(1.0))["policy_lr"] for _ in range(7)]
    assert rates == pytest.approx([0, 0, 0.0025, 0.005, 0.0075, 0.01, 0.01])
    decayed = [learner.update(batch_of(1.0), progress)["policy_lr"] for progress in (0.5, 1.0, 1.7, -1.0)]
    assert decayed == pytest.approx([0.0055, 0.001, 0.001, 0.01])


def test_one_step_moves_each_parameter_by_the_learning_rate_of_its_group():
    policy = ThreeNumbers()
    learner = learner_of(policy, {"policy_lr": 0.01, "value_lr": 0.1})
    learner.update(batch_of(2.0), progress=0.0)
    assert policy.log_prob.item() == pytest.approx(0.01, rel=1e-4), "towards a good action"
    assert policy.level.item() == pytest.approx(0.1, rel=1e-4), "towards the return"


def test_new_settings_hold_from_the_next_update_on():
    learner = learner_of(ThreeNumbers(log_prob=0.5))
    assert learner.update(batch_of(2.0))["policy_loss"] == pytest.approx(-2 * math.exp(0.5))
    learner.configure(LearnerConfig(**dict(LEARNER, policy_lr=0.5)), ObjectiveConfig(**dict(OBJECTIVE, sigma=0.5)))
    metrics = learner.update(batch_of(2.0))
    assert metrics["policy_loss"] == pytest.approx(-2.0)
    assert metrics["policy_lr"] == 0.5


# --- what leaves and comes back ---------------------------------------------------------------------------------------


def test_published_weights_are_a_copy_that_fits_the_policy():
    policy = tiny_policy()
    learner = learner_of(policy, {"policy_lr": 1e-2})
    learner.update(pack(PARTS, chunk_length=2))
    weights = learner.weights()
    published = copy.deepcopy(weights.tensors)
    assert weights.version == 1
    tiny_policy(5).load_state_dict(weights.tensors)
    learner.update(pack(PARTS, chunk_length=2))
    assert all(torch.equal(weights.tensors[name], published[name]) for name in published)
    assert not torch.equal(learner.weights().tensors["action_queries"], published["action_queries"])


SNAPSHOT = {"kind": "decoupled_ppo", "proximal": "snapshot", "proximal_every": 4}


@pytest.mark.parametrize(
    ("recompute", "objective"), [("fused", {}), ("prefetch", {}), ("off", {}), ("fused", SNAPSHOT)]
)
def test_a_restored_learner_makes_the_same_next_update_bit_for_bit(recompute, objective):
    settings = {"recompute": recompute, "policy_lr": 1e-3, "value_lr": 1e-3, "value_warmup_updates": 1}
    objective = {"normalization": "global", **objective}
    learner = learner_of(tiny_policy(), settings, objective)
    for progress in (0.0, 0.1, 0.2):
        learner.update(pack(PARTS, chunk_length=2), progress)
    state = copy.deepcopy(learner.state_dict())
    state["moments"] = json.loads(json.dumps(state["moments"]))
    restored = learner_of(tiny_policy(9), settings, objective)
    restored.policy.load_state_dict(learner.policy.state_dict())
    restored.load_state_dict(state)
    assert (restored.version, restored.updates) == (3, 3)
    next_batch = pack(PARTS[::-1], chunk_length=2)
    assert restored.update(next_batch, 0.3) == learner.update(next_batch, 0.3)
    ours, theirs = learner.weights(), restored.weights()
    assert ours.version == theirs.version == 4
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recompute", ["fused", "prefetch", "off"])
def test_a_learner_on_a_gpu_takes_batches_from_the_cpu(recompute):
    learner = learner_of(tiny_policy(), {"recompute": recompute, "device": "cuda", "micro_batch_decisions": 4})
    assert math.isfinite(learner.update(pack(PARTS, chunk_length=2))["policy_loss"])
    assert all(tensor.device.type == "cpu" for tensor in learner.weights().tensors.values())
