"""Compiled and captured networks answer as the plain one does, and are refused where they cannot work."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from accerl.config import ConfigError, InferenceConfig
from accerl.policies.lora import LowRankPolicy
from accerl.policies.openvla_oft import OpenVLAOFT
from accerl.policies.openvla_oft.graphs import GraphedForward
from accerl.policy_server import PolicyServer
from accerl.types import Decision, DecisionRequest, Observation, Weights
from tests.policies.openvla_oft.fakes import SEEDS, observations, tiny_policy
from tests.roles.fakes import tiny_policy as tiny_vla

TEXTS = ("go to the red dot", "go to the blue dot over there", "go", "go to the dot that is not red, but blue")
PLACES = 48
"""Of a prompt; the policy has as many as its own instructions take, unless told otherwise."""
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")]


def requests(num: int, shift: int = 0) -> list[DecisionRequest]:
    generator = np.random.default_rng(shift)
    return [
        DecisionRequest(
            observation=Observation(
                images=generator.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8),
                proprio=generator.uniform(-1, 1, 2).astype(np.float32),
                instruction=TEXTS[(row + shift) % len(TEXTS)],
            ),
            episode_step=row,
            seed=row + shift,
        )
        for row in range(num)
    ]


def answers(server: PolicyServer, asked: list[DecisionRequest]) -> np.ndarray:
    """Log-probs and values, [request, number]."""
    decisions = server.answer(asked)
    assert all(isinstance(each, Decision) for each in decisions)
    return np.array([[*each.log_prob, each.value] for each in decisions if isinstance(each, Decision)])


def served(policy: OpenVLAOFT, **fields: Any) -> PolicyServer:
    return PolicyServer(copy.deepcopy(policy), InferenceConfig(batch_size=4, buckets=(2, 4), **fields))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts what torch.compile compiles, which then runs as it is."""
    counter = CompileCounter()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def test_a_compiled_server_compiles_once_a_bucket_whatever_the_prompts(counter: CompileCounter) -> None:
    policy = tiny_policy(prompt_length=PLACES)
    plain, compiled = served(policy), served(policy, compile=True)
    weights = Weights(version=1, tensors={name: 1.1 * tensor for name, tensor in policy.state_dict().items()})
    for version in range(2):  # the second is answered by the other copy of the weights
        for num in (1, 2, 3, 4):
            first = answers(compiled, requests(num))
            np.testing.assert_allclose(first, answers(plain, requests(num)), atol=1e-5)
        before = counter.frame_count
        assert before <= 2 * (1 + version)
        for shift in range(1, 5):
            for num in (2, 4):
                answers(compiled, requests(num, shift))
        assert counter.frame_count == before, "a prompt of another length was compiled again"
        for server in (plain, compiled):
            server.load(weights)


def test_compiling_leaves_the_names_of_the_weights(counter: CompileCounter) -> None:
    policy = tiny_policy(prompt_length=PLACES)
    names = list(policy.state_dict())
    policy.compile_network()
    assert list(policy.state_dict()) == names
    assert counter.frame_count == 0
    policy.act(observations(2), SEEDS[:2])
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cuda_graphs": True}, "cuda_graphs: device='cpu' has none; use device='cuda', or leave it out"),
        ({"compile": True}, "buckets: compile wants the sizes that batches are filled up to, the largest at least "),
        ({"compile": True, "buckets": (1, 2)}, "batch_size=8; use (8,)"),
        ({"cuda_graphs": True, "device": "cuda", "buckets": (4,)}, "buckets: cuda_graphs wants the sizes"),
        ({"compile": True, "buckets": tuple(range(1, 10))}, "buckets: 9 are too many to compile; use at most 8"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        InferenceConfig(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^inference\.compile: TinyVLA has no compile_network\(\); leave it out$"):
        PolicyServer(tiny_vla(), InferenceConfig(compile=True, buckets=(8,)))


@pytest.mark.parametrize("lora", [False, True])
def test_nothing_is_captured_without_a_gpu(lora: bool) -> None:
    policy: Any = (
        LowRankPolicy(tiny_policy(prompt_length=PLACES), rank=2, alpha=2) if lora else tiny_policy(prompt_length=PLACES)
    )
    with pytest.raises(
        ConfigError, match=r"^inference\.cuda_graphs: the policy is on cpu, not on a GPU; leave it out$"
    ):
        policy.capture_network()


def test_a_captured_forward_refuses_gradients_and_a_copy_has_no_graphs() -> None:
    model = tiny_policy(prompt_length=PLACES).model
    graphed = GraphedForward(model)
    prompts: Any = None
    with pytest.raises(RuntimeError, match=r"no gradients; call it in torch\.inference_mode\(\)"):
        graphed(prompts, torch.zeros(1), None)
    graphed._captured[()] = prompts
    memo: dict[int, Any] = {}
    copied = copy.deepcopy((graphed, model), memo)
    assert copied[0].num_graphs == 0
    assert copied[0]._forward is copied[1], "it runs the copy of the network"


class TestOnAGPU:
    """Not run yet: no session had a GPU."""

    pytestmark = GPU

    @pytest.mark.parametrize("compiled", [False, True])
    def test_captured_answers_are_those_of_the_plain_network_under_new_weights_too(self, compiled: bool) -> None:
        policy = tiny_policy(prompt_length=PLACES)
        plain, captured = (
            served(policy, device="cuda"),
            served(policy, device="cuda", cuda_graphs=True, compile=compiled),
        )
        for version in range(1, 5):
            for shift in range(3):
                for num in (1, 2, 3, 4):
                    asked = requests(num, shift)
                    np.testing.assert_allclose(answers(captured, asked), answers(plain, asked), atol=1e-3)
            scaled = {name: (1 + version / 10) * tensor for name, tensor in policy.state_dict().items()}
            for server in (plain, captured):
                server.load(Weights(version=version, tensors=scaled))
        assert captured._active._graphs.num_graphs == 2  # pyright: ignore[reportAttributeAccessIssue]

    def test_a_prediction_is_not_overwritten_by_the_next_one(self) -> None:
        policy = tiny_policy(prompt_length=PLACES).to("cuda")
        policy.capture_network()
        with torch.inference_mode():
            first = policy._predict(observations(2))
            kept = first.logits.clone()
            policy._predict(observations(2, seed=1))
        assert torch.equal(first.logits, kept)
