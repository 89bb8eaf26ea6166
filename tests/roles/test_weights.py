"""The flat buffer and its checksums, and the publisher between a trainer and a sender that may be slow or broken."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from accerl.types import Weights
from accerl.weight_buckets import (
    ALIGNMENT,
    BLOCK_WORDS,
    ChecksumError,
    Layout,
    PackedWeights,
    SpareBuffers,
    bucket_slices,
    checksum,
    pack,
    verify,
)
from accerl.weights import BackgroundPublisher

DTYPES = [
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
WAIT_S = 30.0


def random_bytes(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num,), dtype=torch.uint8, generator=generator)


def same_bits(one: Tensor, other: Tensor) -> bool:
    as_bytes = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


# --- the flat buffer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (5,), (3, 7), (2, 1, 9)], ids=str)
def test_a_tensor_of_any_type_and_shape_comes_out_as_it_went_in(dtype: torch.dtype, shape: tuple[int, ...]):
    values = torch.randint(0, 2, (3, *shape)).to(dtype)
    tensors = {"before": values[0], "it": values[1], "after": values[2]}
    packed = pack(Weights(version=7, tensors=tensors))
    given = packed.weights()
    assert given.version == 7 and list(given.tensors) == list(tensors)
    assert all(same_bits(given.tensors[name], tensors[name]) for name in tensors)


def test_a_tensor_that_is_not_contiguous_keeps_its_values():
    grid = torch.arange(24.0).view(4, 6)
    tensors = {"transposed": grid.t(), "column": grid[:, 2], "strided": grid[::2, ::3]}
    given = pack(Weights(version=0, tensors=tensors)).weights().tensors
    assert all(torch.equal(given[name], tensors[name]) for name in tensors)


def test_arrays_are_taken_as_well_as_tensors():
    given = pack(Weights(version=0, tensors={"array": np.arange(6, dtype=np.float32).reshape(2, 3)})).weights()
    assert torch.equal(given.tensors["array"], torch.arange(6.0).view(2, 3))


def test_what_is_no_tensor_is_refused_by_name():
    with pytest.raises(TypeError, match="settings"):
        Layout.of({"settings": {"a": 1}})


def test_tied_weights_are_sent_once_and_stay_tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    model["head"].weight = model["embedding"].weight  # type: ignore[assignment]
    packed = pack(Weights(version=0, tensors=model.state_dict()))
    given = packed.weights().tensors
    assert packed.layout.num_bytes == 50 * 8 * 4
    assert given["head.weight"].data_ptr() == given["embedding.weight"].data_ptr()
    assert torch.equal(given["head.weight"], model.state_dict()["head.weight"])


def test_parts_of_one_memory_that_are_not_the_same_tensor_are_not_tied():
    whole = torch.arange(6.0)
    given = pack(Weights(version=0, tensors={"whole": whole, "start": whole[:2], "matrix": whole.view(2, 3)})).weights()
    assert given.tensors["start"].tolist() == [0, 1] and given.tensors["matrix"].shape == (2, 3)


def test_a_layout_goes_through_json():
    tensors = {"a": torch.zeros(3, dtype=torch.bfloat16), "b": torch.tensor(1), "c": torch.zeros(0, 4)}
    layout = Layout.of(tensors)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_layout_that_names_no_type_of_tensors_is_refused():
    layout = Layout.from_json({"num_bytes": 64, "entries": [["a", "load", [1], 0]]})
    with pytest.raises(ValueError, match="load"):
        layout.views(layout.empty())


@given(st.integers(0, 50), st.integers(1, 20))
def test_buckets_follow_each_other_to_the_end(num_units: int, bucket_units: int):
    data = list(range(num_units * ALIGNMENT))
    parts = list(bucket_slices(len(data), bucket_units * ALIGNMENT))
    assert [byte for part in parts for byte in data[part]] == data
    assert all(len(data[part]) == bucket_units * ALIGNMENT for part in parts[:-1])


def test_buckets_must_keep_to_the_alignment():
    with pytest.raises(ValueError, match="multiple"):
        list(bucket_slices(1000, 100))


# --- checksums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [64, 8 * BLOCK_WORDS, 3 * 8 * BLOCK_WORDS + 192])
@pytest.mark.parametrize("place", [0.0, 0.4, 0.999])
@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_changes_the_checksum(num_bytes: int, place: float, bit: int):
    data = random_bytes(num_bytes)
    before = checksum(data)
    data[int(place * num_bytes)] ^= 1 << bit
    assert checksum(data) != before


def test_exchanged_blocks_change_the_checksum():
    data = random_bytes(4 * 8 * BLOCK_WORDS).view(4, -1)
    assert checksum(data.view(-1)) != checksum(data[[1, 0, 2, 3]].reshape(-1))


def test_a_lost_end_changes_the_checksum():
    data = random_bytes(2 * 8 * BLOCK_WORDS)
    torn = data.clone()
    torn[-64:] = 0
    assert checksum(torn) != checksum(data)


def test_the_checksum_is_the_sum_of_words_over_a_crc_of_block_sums():
    words = torch.tensor([1, 2, -3, 2**62, 2**62, 2**62, 2**62, 5])  # by hand: 5 modulo 2^64
    assert checksum(words.view(torch.uint8)) >> 32 == 5


def test_an_empty_bucket_has_a_checksum():
    assert checksum(torch.zeros(0, dtype=torch.uint8)) == checksum(torch.zeros(0, dtype=torch.uint8))


def test_a_mismatch_names_version_and_bucket():
    verify(5, 5, version=3, bucket=2)
    with pytest.raises(ChecksumError, match="version 3, bucket 2"):
        verify(5, 6, version=3, bucket=2)


# --- the publisher --------------------------------------------------------------------------------------------------


class GatedSender:
    """Takes a copy of what it is sent when `gate` is opened, one permit each."""

    def __init__(self, is_open: bool = True, fails: bool = False):
        self.sent: list[tuple[int, dict[str, Tensor], dict]] = []
        self.gate = threading.Semaphore(10_000 if is_open else 0)
        self.started = threading.Semaphore(0)
        self.fails = fails
        self.behind = 0
        self.is_closed = False
        self.is_prepared = threading.Event()
        self.is_prepared.set()

    def prepare(self, packed: PackedWeights) -> None:
        assert self.is_prepared.wait(WAIT_S)
        packed.checksums(2**20)

    def send(self, packed: PackedWeights) -> None:
        self.started.release()
        assert self.gate.acquire(timeout=WAIT_S)
        if self.fails:
            raise OSError("the network is down")
        tensors = {name: tensor.clone() for name, tensor in packed.weights().tensors.items()}
        self.sent.append((packed.version, tensors, packed.info))

    def is_behind(self) -> bool:
        self.behind -= self.behind > 0
        return self.behind > 0

    def close(self) -> None:
        self.is_closed = True


class SlowTensor:
    """Of a mapping whose tensors can only be read once `go` is set."""

    def __init__(self, go: threading.Event):
        self.go = go
        self.value = torch.zeros(4)

    def state_dict(self) -> dict[str, Tensor]:
        assert self.go.wait(WAIT_S)
        return {"value": self.value}


@pytest.fixture
def publisher_of():
    made: list[BackgroundPublisher] = []

    def make(sender: GatedSender, **options: bool) -> BackgroundPublisher:
        made.append(BackgroundPublisher(sender, **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


Make = Callable[..., BackgroundPublisher]


def test_every_version_arrives_as_it_was_when_it_was_published(publisher_of: Make):
    sender = GatedSender()
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    expected = []
    for version in range(5):
        publisher.before_step()
        with torch.no_grad():
            policy.weight.fill_(version)
        publisher.publish(policy, version)
        assert publisher.flush(WAIT_S)
        expected.append((version, float(version)))
    assert [(version, tensors["weight"].mean().item()) for version, tensors, _ in sender.sent] == expected
    assert publisher.statistics.num_sent == publisher.statistics.num_published == 5
    assert publisher.statistics.num_skipped == 0


def test_the_trainer_may_step_while_the_sender_hangs(publisher_of: Make):
    sender = GatedSender(is_open=False)
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    for version in range(6):
        publisher.before_step()
        with torch.no_grad():
            policy.weight.fill_(version)
        publisher.publish(policy, version)
        if version == 0:
            assert sender.started.acquire(timeout=WAIT_S)
    publisher.before_step()
    assert sender.sent == []
    for _ in range(2):
        sender.gate.release()
    assert publisher.flush(WAIT_S)
    assert [version for version, _, _ in sender.sent] == [0, 5], "the first one and the newest"
    assert all((tensors["weight"] == version).all() for version, tensors, _ in sender.sent)
    assert publisher.statistics.num_skipped == 4


def test_the_trainer_may_step_while_the_copy_is_prepared(publisher_of: Make):
    sender = GatedSender()
    sender.is_prepared.clear()
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    publisher.publish(policy, 0)
    publisher.before_step()
    assert not publisher.flush(timeout_s=0.05)
    assert sender.sent == []
    sender.is_prepared.set()
    assert publisher.flush(WAIT_S)
    assert [version for version, *_ in sender.sent] == [0]


def test_before_step_waits_for_the_copy(publisher_of: Make):
    go = threading.Event()
    sender = GatedSender()
    publisher = publisher_of(sender)
    source = SlowTensor(go)
    publisher.publish(source, 1)  # type: ignore[arg-type]
    may_step = threading.Event()
    trainer = threading.Thread(target=lambda: (publisher.before_step(), may_step.set()))
    trainer.start()
    assert not may_step.wait(0.1)
    go.set()
    assert may_step.wait(WAIT_S)
    trainer.join()


def test_publishing_returns_before_the_parameters_are_read(publisher_of: Make):
    go = threading.Event()
    publisher = publisher_of(GatedSender())
    publisher.publish(SlowTensor(go), 1)  # type: ignore[arg-type]
    assert not publisher.flush(0.0)
    go.set()
    assert publisher.flush(WAIT_S)


def test_a_step_without_before_step_is_noticed(publisher_of: Make, monkeypatch: pytest.MonkeyPatch):
    sender = GatedSender()
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    fill = SpareBuffers.fill

    def fill_while_the_trainer_steps(*arguments):
        filled = fill(*arguments)
        with torch.no_grad():
            policy.bias.add_(1)
        return filled

    monkeypatch.setattr(SpareBuffers, "fill", fill_while_the_trainer_steps)
    publisher.publish(policy, 4)
    with pytest.raises(RuntimeError, match=r"version 4 .* before_step"):
        publisher.flush(WAIT_S)
    assert sender.sent == []


def test_an_error_of_the_sender_is_raised_at_the_next_publication(publisher_of: Make):
    sender = GatedSender(is_open=False, fails=True)
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    publisher.publish(policy, 1)
    publisher.before_step()
    sender.gate.release()
    with pytest.raises(RuntimeError, match="the network is down") as caught:
        publisher.flush(WAIT_S)
    assert isinstance(caught.value.__cause__, OSError)
    sender.fails = False
    sender.gate.release()
    publisher.publish(policy, 2)
    assert publisher.flush(WAIT_S)
    assert [version for version, _, _ in sender.sent] == [2], "it goes on afterwards"


def test_publish_raises_what_went_wrong_before(publisher_of: Make):
    publisher = publisher_of(GatedSender())
    publisher.publish({"a": "no tensor"}, 1)  # type: ignore[dict-item]
    publisher.before_step()
    with pytest.raises(RuntimeError, match="neither a tensor nor an array"):
        publisher.publish(nn.Linear(3, 2), 2)


def test_only_trained_parameters_are_sent_when_asked(publisher_of: Make):
    sender = GatedSender()
    publisher = publisher_of(sender, trainable_only=True)
    policy = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    policy[0].requires_grad_(False)
    publisher.publish(policy, 1)
    assert publisher.flush(WAIT_S)
    ((_, tensors, info),) = sender.sent
    assert set(tensors) == {"1.weight", "1.bias", "2.weight", "2.bias"}, "neither frozen ones nor buffers"
    assert info == {"trainable_only": True}


def test_both_names_of_a_tied_trained_parameter_are_sent(publisher_of: Make):
    sender = GatedSender()
    publisher = publisher_of(sender, trainable_only=True)
    policy = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    policy["b"].weight = policy["a"].weight  # type: ignore[assignment]
    publisher.publish(policy, 1)
    assert publisher.flush(WAIT_S)
    assert set(sender.sent[0][1]) == {"a.weight", "b.weight"}


def test_nothing_to_train_is_an_error_rather_than_an_empty_version(publisher_of: Make):
    publisher = publisher_of(GatedSender(), trainable_only=True)
    publisher.publish(nn.Linear(3, 2).requires_grad_(False), 1)
    with pytest.raises(RuntimeError, match="requires_grad"):
        publisher.flush(WAIT_S)


def test_a_receiver_that_is_behind_gets_the_last_version_again_although_the_trainer_went_on(publisher_of: Make):
    sender = GatedSender()
    publisher = publisher_of(sender)
    policy = nn.Linear(3, 2)
    with torch.no_grad():
        policy.weight.fill_(1)
    publisher.publish(policy, 1)
    publisher.before_step()
    assert publisher.flush(WAIT_S)
    with torch.no_grad():
        policy.weight.fill_(2)
    for _ in range(2):
        sender.started.acquire(timeout=0)
    sender.behind = 2
    assert sender.started.acquire(timeout=WAIT_S)
    publisher.close()
    assert [version for version, _, _ in sender.sent] == [1, 1]
    assert (sender.sent[-1][1]["weight"] == 1).all()


def test_closing_sends_the_newest_version_and_closes_the_sender():
    sender = GatedSender()
    publisher = BackgroundPublisher(sender)
    publisher.publish(nn.Linear(3, 2), 9)
    publisher.close()
    assert [version for version, _, _ in sender.sent] == [9]
    assert sender.is_closed


def test_closing_says_when_the_newest_version_does_not_get_through():
    sender = GatedSender(is_open=False)
    publisher = BackgroundPublisher(sender)
    publisher.publish(nn.Linear(3, 2), 9)
    with pytest.raises(TimeoutError, match="newest weights"):
        publisher.close(timeout_s=0.2)
    sender.gate.release()


def test_the_layout_may_change_between_two_versions(publisher_of: Make):
    sender = GatedSender()
    publisher = publisher_of(sender)
    for version, size in enumerate([3, 30, 2]):
        publisher.publish({"a": torch.full((size,), float(version))}, version)
        publisher.before_step()
        assert publisher.flush(WAIT_S)
    assert [tensors["a"].tolist() for _, tensors, _ in sender.sent] == [[0.0] * 3, [1.0] * 30, [2.0] * 2]
