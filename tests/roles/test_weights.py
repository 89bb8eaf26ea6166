from __future__ import annotations

import threading

from accerl.types import Weights
from accerl.weights import WeightChannel


def test_there_is_nothing_before_the_first_publication():
    assert WeightChannel().latest(after=-1, timeout_s=0) is None


def test_a_slow_receiver_skips_versions():
    channel = WeightChannel()
    for version in (1, 2, 3):
        channel.publish(Weights(version=version, tensors={}))
    newest = channel.latest(after=0, timeout_s=0)
    assert newest is not None and newest.version == 3
    assert channel.latest(after=3, timeout_s=0) is None


def test_a_receiver_is_woken_by_the_publication_it_waits_for():
    channel = WeightChannel()
    received: list[Weights | None] = []
    receiver = threading.Thread(target=lambda: received.append(channel.latest(after=1, timeout_s=30)))
    receiver.start()
    channel.publish(Weights(version=1, tensors={}))
    assert receiver.is_alive(), "version 1 is not above 1"
    channel.publish(Weights(version=2, tensors={"a": 5}))
    receiver.join(timeout=10)
    assert [weights and weights.version for weights in received] == [2]
