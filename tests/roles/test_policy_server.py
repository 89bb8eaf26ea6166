"""The policy server with a policy of one number, and the port to it within one loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from accerl.config import InferenceConfig
from accerl.policy_server import LocalClient, PolicyServer, VersionNotKept, stack_requests
from accerl.trace import Tracer
from accerl.types import Decision, DecisionRequest, NoDecision, Observation, ObservationBatch, PolicyOutput, Weights
from tests.roles.fakes import observation, tiny_policy


class OneNumber(nn.Module):
    """A policy whose action and value are its only parameter. `on_act` is called in the middle of each batch."""

    def __init__(self, on_act: Callable[[int], None] = lambda size: None) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.full((), 7.0))
        self.on_act = on_act

    def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
        size = len(observations)
        own = torch.from_numpy(seeds)
        action = self.number * torch.ones(size, 1, 1) + (self.frozen - 7)
        self.on_act(size)
        return PolicyOutput(action, own[:, None].float(), self.number * torch.ones(size), {"seed": own})


def server_of(
    policy: OneNumber, version: int = 0, buckets: tuple[int, ...] = (), tracer: Tracer | None = None
) -> PolicyServer:
    return PolicyServer(policy, InferenceConfig(buckets=buckets), version, tracer)  # pyright: ignore[reportArgumentType]


def answers(server: PolicyServer, *requests: DecisionRequest) -> list[Decision]:
    decisions = server.answer(requests or [request()])
    assert all(isinstance(decision, Decision) for decision in decisions)
    return [decision for decision in decisions if isinstance(decision, Decision)]


def request(seed: int = 0, version: int | None = None, image_size: int = 16) -> DecisionRequest:
    seen = observation(seed)
    cut = Observation(images=seen["images"][:, :image_size], proprio=seen["proprio"], instruction=seen["instruction"])
    return DecisionRequest(observation=cut, episode_step=0, seed=seed, policy_version=version)


def weights(version: int, **tensors: float) -> Weights:
    values = {"number": version, "frozen": 7, **tensors}
    return Weights(version=version, tensors={name: np.float32(value) for name, value in values.items()})


def test_each_request_gets_its_own_row():
    decisions = answers(server_of(OneNumber()), *(request(seed) for seed in (4, 9, 2)))
    assert [decision.log_prob.tolist() for decision in decisions] == [[4.0], [9.0], [2.0]]
    assert [int(decision.blob["seed"]) for decision in decisions] == [4, 9, 2]
    assert all(decision.action.shape == (1, 1) for decision in decisions)


def test_decisions_carry_the_version_that_made_them():
    server = server_of(OneNumber(), version=3)
    assert answers(server)[0].policy_version == server.version == 3
    server.load(weights(5))
    assert server.version == 5
    (decision,) = answers(server)
    assert (decision.policy_version, decision.value) == (5, 5.0)


def test_of_several_versions_loaded_between_two_batches_the_newest_is_used():
    server = server_of(OneNumber())
    for version in (1, 2, 3):
        server.load(weights(version))
    assert [(d.policy_version, d.value) for d in answers(server)] == [(3, 3.0)]
    server.load(weights(4))
    server.load(weights(5))
    assert [(d.policy_version, d.value) for d in answers(server)] == [(5, 5.0)]
    assert [(d.policy_version, d.value) for d in answers(server)] == [(5, 5.0)]


def test_weights_loaded_while_a_batch_runs_are_used_from_the_next_batch_on():
    server: PolicyServer

    def load_meanwhile(size: int) -> None:
        if server.version < 3:
            for version in (1, 2, 3):
                server.load(weights(version))

    server = server_of(OneNumber(load_meanwhile))
    (running,) = answers(server)
    assert (running.policy_version, running.action.item(), running.value) == (0, 0.0, 0.0)
    (following,) = answers(server)
    assert (following.policy_version, following.action.item(), following.value) == (3, 3.0, 3.0)


def test_loading_beside_answering_never_mixes_versions():
    server = server_of(OneNumber())
    ended = threading.Event()

    def keep_loading() -> None:
        version = 0
        while not ended.is_set():
            version += 1
            server.load(weights(version))

    loader = threading.Thread(target=keep_loading)
    loader.start()
    decisions = []
    try:
        while not decisions or decisions[-1].policy_version < 30:
            decisions += answers(server, request(), request())
    finally:
        ended.set()
        loader.join()
    assert all(decision.policy_version == decision.value == decision.action.item() for decision in decisions)


def test_weights_that_do_not_fit_are_refused_by_name_and_what_was_loaded_before_stays():
    server = server_of(OneNumber())
    server.load(weights(1))
    with pytest.raises(ValueError, match="version 2: the policy has no other, some"):
        server.load(weights(2, some=1, other=1))
    assert answers(server)[0].value == server.version == 1


def test_weights_may_leave_out_what_does_not_train():
    server = server_of(OneNumber())
    for version in (1, 2, 3):
        server.load(Weights(version=version, tensors={"number": np.float32(version)}))
        (decision,) = answers(server)
        assert (decision.policy_version, decision.action.item()) == (version, version)


def test_swaps_are_traced(tmp_path: Path):
    tracer = Tracer(tmp_path / "trace.jsonl", "inference-0", 100)
    server = server_of(OneNumber(), tracer=tracer)
    server.load(weights(1))
    assert tracer.totals().keys() == {"load"}
    answers(server)
    answers(server)
    assert tracer.totals().keys() == {"load", "swap"}
    tracer.flush()
    assert (tmp_path / "trace.jsonl").read_text().count('"swap"') == 1


# --- pinned versions --------------------------------------------------------------------------------------------------


def test_a_pinned_version_answers_beside_the_newest_one():
    server = server_of(OneNumber())
    server.load(weights(1))
    assert server.pin() == 1, "the newest, although no batch has used it yet"
    for version in (2, 3, 4):
        server.load(weights(version))
        old, new, again = answers(server, request(5, 1), request(6), request(7, 1))
        assert [(d.policy_version, d.value) for d in (old, new, again)] == [(1, 1), (version, version), (1, 1)]
        assert [d.log_prob.item() for d in (old, new, again)] == [5, 6, 7], "each gets its own row"


def test_a_version_in_use_can_be_asked_for_without_a_pin():
    server = server_of(OneNumber(), version=3)
    assert answers(server, request(version=3))[0].policy_version == 3


def test_a_version_that_is_not_kept_is_refused_and_the_other_requests_are_answered():
    server = server_of(OneNumber(), version=3)
    refused, answered = server.answer([request(version=2), request()])
    assert isinstance(refused, VersionNotKept)
    assert str(refused) == "version 2 of the policy is not kept here; kept: none; newest: 3"
    assert isinstance(answered, Decision)


def test_a_pin_is_kept_until_its_last_user_has_gone():
    server = server_of(OneNumber())
    assert [server.pin(), server.pin()] == [0, 0]
    server.load(weights(1))
    server.unpin(0)
    assert answers(server, request(version=0))[0].value == 0
    server.unpin(0)
    assert isinstance(server.answer([request(version=0)])[0], VersionNotKept)
    with pytest.raises(VersionNotKept):
        server.unpin(0)


def test_pinning_beside_loading_and_answering_keeps_what_it_says():
    server = server_of(OneNumber())
    ended = threading.Event()

    def until_ended(work: Callable[[], object]) -> threading.Thread:
        def repeat() -> None:
            while not ended.is_set():
                work()

        thread = threading.Thread(target=repeat)
        thread.start()
        return thread

    versions = iter(range(1, 10**9))
    others = [until_ended(lambda: server.load(weights(next(versions)))), until_ended(lambda: answers(server))]
    try:
        while server.version < 200:
            version = server.pin()
            (decision,) = answers(server, request(version=version))
            assert decision.policy_version == decision.value == version
            server.unpin(version)
    finally:
        ended.set()
        for thread in others:
            thread.join()


# --- the forward ------------------------------------------------------------------------------------------------------


def test_batches_are_filled_to_their_bucket_and_the_answers_are_the_same():
    sizes: list[int] = []
    filled, bare = server_of(OneNumber(sizes.append), buckets=(1, 4)), server_of(OneNumber())
    for num in (1, 2, 3, 4, 5):
        requests = [request(seed) for seed in range(num)]
        assert [d.log_prob.item() for d in answers(filled, *requests)] == list(range(num))
        assert len(answers(bare, *requests)) == num
    assert sizes == [1, 4, 4, 4, 5]


def test_filling_does_not_change_what_a_real_policy_decides():
    requests = [request(seed) for seed in range(3)]
    filled = PolicyServer(tiny_policy(), InferenceConfig(buckets=(8,))).answer(requests)
    bare = PolicyServer(tiny_policy(), InferenceConfig()).answer(requests)
    for one, other in zip(filled, bare, strict=True):
        assert isinstance(one, Decision)
        assert isinstance(other, Decision)
        assert np.array_equal(one.blob["tokens"], other.blob["tokens"])
        assert np.allclose(one.log_prob, other.log_prob, atol=1e-5)


def test_each_version_gets_a_filled_batch_of_its_own():
    sizes: list[int] = []
    server = server_of(OneNumber(sizes.append), buckets=(2, 4))
    server.pin()
    server.load(weights(1))
    answers(server, request(0), request(1, 0), request(2), request(3))
    assert sizes == [4, 2]


def test_observations_of_different_shapes_get_a_forward_each():
    sizes: list[int] = []
    server = server_of(OneNumber(sizes.append))
    decisions = answers(server, request(4), request(5, image_size=8), request(6))
    assert [decision.log_prob.item() for decision in decisions] == [4, 5, 6]
    assert sizes == [2, 1]


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    requests = [
        DecisionRequest(
            observation=Observation(images=row, proprio=np.zeros(1, np.float32), instruction=""), episode_step=0, seed=0
        )
        for row in rows
    ]
    return stack_requests(requests).images.numpy()


def test_what_arrived_as_a_batch_is_not_copied_again():
    whole = np.arange(4 * 6, dtype=np.uint8).reshape(4, 1, 2, 1, 3)
    assert np.shares_memory(stacked(list(whole)), whole)
    assert np.array_equal(stacked(list(whole)), whole)
    assert np.array_equal(stacked(list(whole[1:3])), whole[1:3])


@pytest.mark.parametrize("order", [(0, 2), (1, 0), (0, 0), (0, 1, 3), (2, 1, 0)])
def test_rows_in_any_order_are_stacked_as_they_are(order):
    whole = np.arange(4 * 6, dtype=np.uint8).reshape(4, 1, 2, 1, 3)
    assert np.array_equal(stacked([whole[row] for row in order]), whole[list(order)])


def test_rows_that_are_not_contiguous_or_not_related_are_stacked_as_they_are():
    whole = np.arange(4 * 12, dtype=np.uint8).reshape(4, 1, 4, 1, 3)
    rows = [row[:, ::2] for row in whole]
    assert np.array_equal(stacked(rows), whole[:, :, ::2])
    strangers = [row.copy() for row in whole]
    assert np.array_equal(stacked(strangers), whole)


# --- in one loop ----------------------------------------------------------------------------------------------------


def test_everything_that_waits_leaves_in_one_batch():
    sizes: list[int] = []
    client = LocalClient(server_of(OneNumber(sizes.append)))

    async def slot(number: int, num_requests: int) -> None:
        for _ in range(num_requests):
            decision = await client.act(request(number))
            assert decision.log_prob.tolist() == [number]

    async def play() -> None:
        await asyncio.gather(slot(1, 3), slot(2, 1), slot(3, 2))

    asyncio.run(play())
    assert sizes == [3, 2, 1]


def test_an_exception_in_the_policy_reaches_every_slot_that_waits():
    def fail(size: int) -> None:
        if size == 2:
            raise ValueError("two")

    client = LocalClient(server_of(OneNumber(fail)))

    async def play() -> None:
        gone = asyncio.create_task(client.act(request()))
        stays = asyncio.create_task(client.act(request()))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(ValueError, match="two"):
            await asyncio.wait_for(stays, 5)
        assert (await client.act(request())).policy_version == 0

    asyncio.run(play())


def test_a_batch_size_limits_each_forward_and_the_oldest_go_first():
    order: list[int] = []

    async def play() -> None:
        client = LocalClient(server_of(OneNumber(sizes.append)), batch_size=2)

        async def slot(number: int) -> None:
            await client.act(request(number))
            order.append(number)

        await asyncio.wait_for(asyncio.gather(*(slot(number) for number in range(5))), 20)

    sizes: list[int] = []
    asyncio.run(play())
    assert sizes == [2, 2, 1]
    assert order == [0, 1, 2, 3, 4]


def test_entering_and_leaving_change_nothing_where_a_batch_waits_for_everybody_anyway():
    async def play() -> None:
        client = LocalClient(server_of(OneNumber()))
        client.enter()
        client.enter()
        client.leave()
        assert (await asyncio.wait_for(client.act(request(3)), 20)).log_prob.item() == 3

    asyncio.run(play())


def test_a_row_that_is_not_finite_is_no_decision_and_the_others_are():
    class Patchy(OneNumber):
        def act(self, observations: ObservationBatch, seeds: np.ndarray) -> PolicyOutput:
            output = super().act(observations, seeds)
            output.value[1] = torch.nan
            output.log_prob[2] = -torch.inf
            return output

    good, first, second = server_of(Patchy(), version=6).answer([request(seed) for seed in (4, 9, 2)])
    assert isinstance(good, Decision) and good.log_prob.tolist() == [4.0]
    assert isinstance(first, NoDecision) and str(first) == "version 6 of the policy gave value that is not finite"
    assert isinstance(second, NoDecision) and "log_prob" in str(second)
