"""The file in shared memory: between threads for what can be staged, between processes for what is killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from accerl.runtime import weights_shared
from accerl.runtime.weights_shared import SharedSender, SharedSource
from accerl.types import Weights
from accerl.weight_buckets import PackedWeights, pack

WAIT_S = 30.0
NUM_FLOATS = 500_000


def version_of(number: int, num_floats: int = 1000) -> PackedWeights:
    """Every float is the version's number."""
    tensors = {"a": torch.full((num_floats,), float(number)), "b": torch.full((3,), number, dtype=torch.bfloat16)}
    return pack(Weights(version=number, tensors=tensors, info={"note": "é"}))


def number_in(weights: Weights | None) -> float:
    """The number that all floats have; fails if they are of several versions."""
    assert weights is not None
    values = torch.cat([tensor.float().view(-1) for tensor in weights.tensors.values()])
    assert values.min() == values.max(), f"torn: {values.min()} to {values.max()}"
    return values[0].item()


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path("/dev/shm") / f"accerl-test-{os.getpid()}-weights"
    yield path
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


def test_versions_arrive_with_their_info_each_once(path: Path):
    sender, source = SharedSender(path), SharedSource(path)
    assert source.latest(-1, timeout_s=0.0) is None, "before the sender"
    for number in (1, 2, 3):
        sender.send(version_of(number))
        weights = source.latest(-1, WAIT_S)
        assert number_in(weights) == number and weights is not None
        assert weights.version == number and weights.info == {"note": "é"}
        assert source.latest(-1, timeout_s=0.0) is None
    assert source.statistics.num_received == 3


def test_only_the_newest_of_several_versions_is_read(path: Path):
    sender, source = SharedSender(path), SharedSource(path)
    for number in range(5):
        sender.send(version_of(number))
    assert number_in(source.latest(-1, WAIT_S)) == 4
    assert source.latest(-1, timeout_s=0.0) is None


def test_a_reader_is_woken_by_the_version_it_waits_for(path: Path):
    source = SharedSource(path)
    received: list[Weights | None] = []
    reader = threading.Thread(target=lambda: received.append(source.latest(-1, WAIT_S)))
    reader.start()
    SharedSender(path).send(version_of(8))
    reader.join()
    assert [number_in(weights) for weights in received] == [8]


def test_the_file_is_for_this_user_only_and_removed_at_the_end(path: Path):
    sender = SharedSender(path)
    sender.send(version_of(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sender.close()
    assert not path.exists()


def test_the_last_version_can_be_read_although_the_sender_has_closed(path: Path):
    sender, source = SharedSender(path), SharedSource(path)
    sender.send(version_of(1))
    assert number_in(source.latest(-1, WAIT_S)) == 1
    sender.send(version_of(2))
    sender.close()
    assert number_in(source.latest(-1, WAIT_S)) == 2
    assert source.latest(-1, timeout_s=0.0) is None
    SharedSender(path).send(version_of(3))
    assert number_in(source.latest(-1, WAIT_S)) == 3, "a new file"


def test_larger_weights_replace_the_file_and_are_found(path: Path):
    sender, source = SharedSender(path), SharedSource(path)
    for number, size in enumerate([1000, 300_000, 10], start=1):
        sender.send(version_of(number, size))
        weights = source.latest(-1, WAIT_S)
        assert number_in(weights) == number and weights is not None and len(weights.tensors["a"]) == size


def test_many_small_tensors_leave_the_place_for_their_names(path: Path):
    tensors = {f"layer.{number}.weight": torch.full((2,), float(number)) for number in range(5000)}
    SharedSender(path).send(pack(Weights(version=1, tensors=tensors)))
    weights = SharedSource(path).latest(-1, WAIT_S)
    assert weights is not None and all(torch.equal(weights.tensors[name], tensors[name]) for name in tensors)


def test_a_second_sender_is_refused(path: Path):
    first = SharedSender(path)
    first.send(version_of(1))
    with pytest.raises(RuntimeError, match="another learner"):
        SharedSender(path).send(version_of(2))
    assert number_in(SharedSource(path).latest(-1, WAIT_S)) == 1


def test_a_foreign_file_is_not_used(path: Path):
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(RuntimeError, match="no weights"):
        SharedSender(path).send(version_of(1))
    with pytest.raises(RuntimeError, match="no weights"):
        SharedSource(path).latest(-1, 0.0)


def test_too_little_shared_memory_is_said_at_once(path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="MiB of shared memory"):
        SharedSender(path).send(version_of(1))
    assert list(path.parent.glob(f"{path.name}*")) == []


def flip(path: Path, value: float) -> None:
    """Another bit in the first float that has this value."""
    data = np.memmap(path, np.uint8, "r+")
    floats = data[: len(data) // 4 * 4].view(np.float32)
    (places,) = np.nonzero(floats == value)
    data[4 * places[0]] ^= 1


def test_a_flipped_bit_is_counted_and_never_handed_over(path: Path):
    sender, source = SharedSender(path), SharedSource(path)
    sender.send(version_of(7, 10_000))
    flip(path, 7.0)
    assert source.latest(-1, timeout_s=0.3) is None
    assert source.statistics.num_mismatches == weights_shared.ATTEMPTS, "read again, then the next one is waited for"
    assert "version 7, bucket 0" in source.statistics.last_fault
    sender.send(version_of(8, 10_000))
    assert number_in(source.latest(-1, WAIT_S)) == 8
    assert source.statistics.num_received == 1


def test_a_version_that_is_written_over_while_it_is_read_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights_shared, "BUCKET_BYTES", 4096)
    sender, source = SharedSender(path), SharedSource(path)
    sender.send(version_of(1, 100_000))
    checksum = weights_shared.checksum
    more = iter([2, 3])

    def publish_meanwhile(bucket: torch.Tensor) -> int:
        monkeypatch.setattr(weights_shared, "checksum", checksum)
        for number in more:
            sender.send(version_of(number, 100_000))
        return checksum(bucket)

    monkeypatch.setattr(weights_shared, "checksum", publish_meanwhile)
    assert number_in(source.latest(-1, WAIT_S)) == 3
    assert source.statistics.num_retries == 1 and source.statistics.num_mismatches == 0


WRITER = f"""
import sys, torch
from pathlib import Path
from accerl.runtime.weights_shared import SharedSender
from accerl.types import Weights
from accerl.weight_buckets import pack
sender = SharedSender(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    sender.send(pack(Weights(version=number, tensors={{"a": torch.full(({NUM_FLOATS},), float(number))}})))
    number += 1
"""


def test_a_reader_beside_a_busy_sender_that_is_killed_twice_never_sees_a_torn_version(path: Path):
    source = SharedSource(path)
    for incarnation, (start, num_reads) in enumerate([(600_000, 15), (1, 15), (300_000, 15)]):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)])
        try:
            deadline = time.monotonic() + WAIT_S
            numbers: list[float] = []
            while len(numbers) < num_reads:
                assert time.monotonic() < deadline
                weights = source.latest(-1, 1.0)
                if weights is not None and start <= weights.version < start + 100_000:
                    assert number_in(weights) == weights.version
                    numbers.append(number_in(weights))
            assert numbers == sorted(numbers)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        if incarnation == 1:
            source = SharedSource(path)  # a reader that was started again finds it as well
            assert number_in(source.latest(-1, WAIT_S)) >= start, "the last whole version outlives its sender"
    assert source.statistics.num_mismatches == 0
