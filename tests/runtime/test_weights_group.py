"""Broadcasts over gloo: between threads for what can be staged, between processes for what is killed or stopped."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from accerl.runtime import bucket_group, weights_group
from accerl.runtime.group_board import Epoch, GroupBoard
from accerl.runtime.group_source import GroupSource
from accerl.runtime.weights_group import GroupSender
from accerl.types import Weights
from accerl.weight_buckets import PackedWeights, pack
from accerl.weights import BackgroundPublisher
from tests.runtime.weights_peer import AUTHKEY, BoardManager

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
NUM_FLOATS = 1_000_000


def version_of(number: int, num_floats: int = NUM_FLOATS) -> PackedWeights:
    """Every float is the version's number; four buckets of 1 MiB."""
    tensors = {"a": torch.full((num_floats,), float(number)), "b": torch.full((3,), number, dtype=torch.bfloat16)}
    return pack(Weights(version=number, tensors=tensors, info={"note": "é"}))


def number_in(weights: Weights | None) -> float:
    """The number that all floats have; fails if they are of several versions."""
    assert weights is not None
    values = torch.cat([tensor.float().view(-1) for tensor in weights.tensors.values()])
    assert values.min() == values.max(), f"mixed: {values.min()} to {values.max()}"
    return values[0].item()


Sources = Callable[..., GroupSource]


@pytest.fixture
def board() -> GroupBoard:
    return GroupBoard()


@pytest.fixture
def sender(board: GroupBoard) -> Iterator[GroupSender]:
    sender = GroupSender(board, bucket_mb=1, timeout_s=5.0)
    yield sender
    sender.close()


@pytest.fixture
def source(board: GroupBoard) -> Iterator[Sources]:
    """Makes members and waits until they have joined; they leave at the end."""
    made: list[GroupSource] = []

    def make(name: str, **options) -> GroupSource:
        made.append(GroupSource(board, name, timeout_s=5.0, **options))
        wait_for(lambda: name in board.members())
        return made[-1]

    yield make
    for member in made:
        member.close()


def wait_for(is_true: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / 0.01)):
        if is_true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


# --- the board ------------------------------------------------------------------------------------------------------


def test_epochs_go_on_counting_for_a_sender_that_was_started_again(board: GroupBoard):
    assert [board.open("a", 1), board.open("b", 2)] == [1, 2]
    assert board.join("inference-0", "x") == Epoch(2, "b", 2)


def test_a_member_that_was_started_again_takes_the_place_of_the_old_one(board: GroupBoard):
    board.join("inference-0", "old")
    board.join("inference-0", "new")
    board.leave("inference-0", "old")
    assert board.members() == {"inference-0": "new"}
    board.leave("inference-0")
    assert board.members() == {}


# --- one process ----------------------------------------------------------------------------------------------------


def test_every_member_gets_every_version(sender: GroupSender, source: Sources):
    members = [source("inference-0"), source("inference-1")]
    for number in (1, 2, 3):
        sender.send(version_of(number))
        for member in members:
            weights = member.latest(-1, WAIT_S)
            assert number_in(weights) == number and weights is not None
            assert weights.version == number and weights.info == {"note": "é"}
            assert member.latest(-1, timeout_s=0.0) is None
    assert not sender.is_behind()


def test_sending_to_nobody_ends_at_once(sender: GroupSender):
    sender.send(version_of(1))
    assert not sender.is_behind()


def test_a_slow_receiver_finds_the_newest_version_and_keeps_the_one_it_reads(sender: GroupSender, source: Sources):
    member = source("inference-0")
    sender.send(version_of(1))
    held = member.latest(-1, WAIT_S)
    for number in (2, 3, 4):
        sender.send(version_of(number))
    assert number_in(held) == 1, "nothing is written into what the receiver holds"
    assert number_in(member.latest(-1, WAIT_S)) == 4
    assert member.latest(-1, timeout_s=0.0) is None


def test_the_sizes_of_the_weights_may_change(sender: GroupSender, source: Sources):
    member = source("inference-0")
    for number, size in enumerate([10, 2_000_000, 1], start=1):
        sender.send(version_of(number, size))
        assert number_in(member.latest(-1, WAIT_S)) == number


def test_a_member_that_joins_gets_the_version_at_hand_and_the_others_do_not_get_it_twice(
    board: GroupBoard, source: Sources
):
    publisher = BackgroundPublisher(GroupSender(board, bucket_mb=1, timeout_s=5.0))
    first = source("inference-0")
    publisher.publish({"a": torch.ones(1000)}, 1)
    assert publisher.flush(WAIT_S)
    assert number_in(first.latest(-1, WAIT_S)) == 1
    second = source("inference-1")
    assert number_in(second.latest(-1, WAIT_S)) == 1, "although the trainer publishes nothing"
    assert first.latest(-1, timeout_s=0.0) is None
    publisher.publish({"a": torch.full((1000,), 2.0)}, 2)
    assert number_in(first.latest(-1, WAIT_S)) == number_in(second.latest(-1, WAIT_S)) == 2
    publisher.close()


def test_a_member_may_leave(board: GroupBoard, sender: GroupSender, source: Sources):
    first, second = source("inference-0"), source("inference-1")
    sender.send(version_of(1))
    second.close()
    assert set(board.members()) == {"inference-0"}
    sender.send(version_of(2))
    assert number_in(first.latest(-1, WAIT_S)) == 2


def test_a_restarted_learner_may_start_again_from_an_older_version(board: GroupBoard, source: Sources):
    member = source("inference-0")
    first = GroupSender(board, bucket_mb=1, timeout_s=5.0)
    first.send(version_of(9))
    assert number_in(member.latest(-1, WAIT_S)) == 9
    first.close()
    second = GroupSender(board, bucket_mb=1, timeout_s=5.0)
    second.send(version_of(5))
    assert number_in(member.latest(after=9, timeout_s=WAIT_S)) == 5
    second.close()


def test_a_flipped_bit_is_counted_never_handed_over_and_sent_again(
    sender: GroupSender, source: Sources, monkeypatch: pytest.MonkeyPatch
):
    member, other = source("inference-0"), source("inference-1")
    sender.send(version_of(1))
    assert number_in(member.latest(-1, WAIT_S)) == number_in(other.latest(-1, WAIT_S)) == 1
    checksum = bucket_group.checksum
    flips = iter([True])

    def flip_once(bucket: torch.Tensor) -> int:
        if threading.current_thread() is member._thread and next(flips, False):
            bucket[5] ^= 1
        return checksum(bucket)

    monkeypatch.setattr(bucket_group, "checksum", flip_once)
    sender.send(two := version_of(2))
    assert member.latest(-1, timeout_s=0.2) is None
    assert member.statistics.num_mismatches == 1 and "version 2, bucket 0" in member.statistics.last_fault
    assert number_in(other.latest(-1, WAIT_S)) == 2
    assert sender.is_behind()
    sender.send(two)
    assert number_in(member.latest(-1, WAIT_S)) == 2
    assert other.latest(-1, timeout_s=0.0) is None
    assert not sender.is_behind()


def test_a_member_whose_bytes_are_always_wrong_is_not_sent_the_same_version_for_ever(
    sender: GroupSender, source: Sources, monkeypatch: pytest.MonkeyPatch
):
    member = source("inference-0")
    checksum = bucket_group.checksum

    def flip(bucket: torch.Tensor) -> int:
        return checksum(bucket) ^ (threading.current_thread() is member._thread)

    monkeypatch.setattr(bucket_group, "checksum", flip)
    one = version_of(1)
    num_sent = 0
    while num_sent == 0 or sender.is_behind():
        sender.send(one)
        num_sent += 1
        assert num_sent < 10
    assert num_sent > 1 and member.statistics.num_mismatches == num_sent
    monkeypatch.setattr(bucket_group, "checksum", checksum)
    sender.send(version_of(2))
    assert number_in(member.latest(-1, WAIT_S)) == 2


def test_another_backend_than_the_learners_is_refused(sender: GroupSender, source: Sources):
    source("inference-0", backend="nccl")
    with pytest.raises(ValueError, match="inference-0 receives over nccl, the learner sends over gloo"):
        sender.send(version_of(1))


def test_a_member_that_fails_several_times_in_a_row_says_why(
    sender: GroupSender, source: Sources, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RuntimeError("no cable")

    monkeypatch.setattr(GroupSource, "_receive_epoch", fail)
    monkeypatch.setattr(weights_group, "HELLO_S", 0.1)
    member = source("inference-0")
    with pytest.raises(RuntimeError, match="no cable"):
        for number in range(20):
            sender.send(version_of(number))
            member.latest(-1, timeout_s=0.5)


# --- several processes ----------------------------------------------------------------------------------------------


class Peer:
    """A process of `weights_peer.py`."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "tests.runtime.weights_peer", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._received: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def version(self) -> int:
        """The next one that it received; -1 if it was not whole."""
        return self._received.get(timeout=WAIT_S)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            version, least, greatest = map(float, line.split())
            self._received.put(int(version) if version == least == greatest else -1)


@pytest.fixture
def peer(board: GroupBoard) -> Iterator[Callable[..., Peer]]:
    """Starts processes around `board`."""
    BoardManager.register("board", callable=lambda: board)
    server = BoardManager(("127.0.0.1", 0), AUTHKEY).get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert isinstance(server.address, tuple)
    port = str(server.address[1])
    started: list[Peer] = []

    def start(role: str, what: str, timeout_s: float = 3.0) -> Peer:
        started.append(Peer(role, port, str(timeout_s), what))
        wait_for(lambda: role == "send" or what in board.members())
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_member_that_is_killed_or_comes_later_does_not_disturb_the_others(
    board: GroupBoard, peer: Callable[..., Peer]
):
    publisher = BackgroundPublisher(GroupSender(board, bucket_mb=1, timeout_s=3.0))
    parameters = {"a": torch.zeros(20_000_000)}

    def publish(number: int) -> None:
        publisher.before_step()
        parameters["a"].fill_(number)
        publisher.publish(parameters, number)

    stays, dies = peer("receive", "inference-0"), peer("receive", "inference-1")
    publish(1)
    assert stays.version() == dies.version() == 1
    for number in range(2, 6):  # published while the sender is busy: the kill falls into a broadcast
        publish(number)
        if number == 4:
            dies.kill()
    while (version := stays.version()) != 5:
        assert 1 < version < 5
    comes = peer("receive", "inference-2")
    assert comes.version() == 5, "the version at hand"
    again = peer("receive", "inference-1")
    assert again.version() == 5
    publish(6)
    assert stays.version() == comes.version() == again.version() == 6
    publisher.close()


def test_a_member_that_hangs_is_left_out_and_comes_back(board: GroupBoard, peer: Callable[..., Peer]):
    sender = GroupSender(board, bucket_mb=1, timeout_s=2.0)
    stays, hangs = (peer("receive", f"inference-{number}", timeout_s=2.0) for number in range(2))
    sender.send(version_of(1, 20_000_000))
    assert stays.version() == hangs.version() == 1
    hangs.signal(signal.SIGSTOP)
    sender.send(version_of(2, 20_000_000))
    assert stays.version() == 2
    assert set(board.members()) == {"inference-0"}
    sender.send(version_of(3, 20_000_000))
    assert stays.version() == 3
    hangs.signal(signal.SIGCONT)
    wait_for(sender.is_behind)
    sender.send(version_of(4, 20_000_000))
    assert stays.version() == hangs.version() == 4
    sender.close()


def test_members_outlive_a_learner_that_is_killed(peer: Callable[..., Peer]):
    member = peer("receive", "inference-0")
    first = peer("send", "1000")
    assert [member.version() >= 1000 for _ in range(3)] == [True] * 3
    first.kill()
    peer("send", "1")
    while (version := member.version()) >= 1000:
        pass
    assert 1 <= version < 1000
