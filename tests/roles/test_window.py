"""When a batch is due, with a clock set by hand."""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
import pytest

from accerl.config import InferenceConfig
from accerl.window import RequestQueue, Waiting, Window


class Scene:
    """A queue and what is in it; requests are numbers."""

    def __init__(self, batch_size: int = 4, max_wait_s: float = 10.0, **fields: Any):
        self.queue = RequestQueue(Window(batch_size=batch_size, max_wait_s=max_wait_s, **fields))

    def arrive(self, now_s: float, *requests: int, client: str = "") -> Scene:
        self.queue.add([Waiting(now_s, request, None, lambda *_: None, client) for request in requests], now_s)
        return self

    def remaining(self, now_s: float, device_was_busy: bool = False) -> float:
        return self.queue.remaining_s(now_s, device_was_busy)

    def take(self) -> list[int]:
        return [entry.request for entry in self.queue.take()]


def test_without_requests_nothing_is_ever_due():
    assert Scene().remaining(5, device_was_busy=True) == math.inf


def test_a_batch_is_due_when_b_wait():
    scene = Scene(batch_size=2).arrive(0, 1)
    assert scene.remaining(0) == 10
    assert scene.arrive(1, 2).remaining(1) == 0


def test_the_window_counts_from_the_oldest_request():
    scene = Scene().arrive(3, 1).arrive(9, 2)
    assert scene.remaining(9) == 4
    assert scene.remaining(14) < 0
    scene.take()
    assert scene.arrive(20, 3).remaining(20) == 10, "and then from the oldest that is left"


def test_behind_a_busy_device_there_is_no_window():
    assert Scene().arrive(0, 1).remaining(0, device_was_busy=True) == 0


def test_b_is_a_cap_and_the_oldest_go_first():
    scene = Scene(batch_size=2).arrive(0, 1, 2, 3).arrive(1, 4, 5)
    assert [scene.take(), scene.take(), len(scene.queue)] == [[1, 2], [3, 4], 1]


def test_an_adaptive_window_waits_for_the_next_request_only_as_long_as_it_gains():
    scene = Scene(batch_size=16, max_wait_s=100, adaptive=True)
    for now in range(0, 40, 2):
        scene.arrive(now, 1)
        scene.queue.take()
    scene.queue.learn(4, 6.5)  # the fixed part of a forward, as far as is known
    assert scene.arrive(40, 1).remaining(40) == 2, "6.5 > 2 * 2"
    assert scene.remaining(41) == 1
    assert scene.remaining(42.5) < 0, "it did not come"
    assert scene.arrive(42, 2).remaining(42) == 2, "6.5 > 3 * 2"
    assert scene.arrive(44, 3).remaining(44) == 0, "6.5 < 4 * 2"


def test_an_adaptive_window_is_never_longer_than_t_max():
    scene = Scene(batch_size=16, max_wait_s=3, adaptive=True)
    for now in range(0, 40, 2):
        scene.arrive(now, 1)
        scene.queue.take()
    scene.queue.learn(4, 100.0)
    assert scene.arrive(40, 1).remaining(40) == 2
    assert scene.arrive(42, 2).remaining(42) == 1


def test_an_adaptive_window_does_not_count_on_more_requests_than_fit():
    scene = Scene(batch_size=3, max_wait_s=100, adaptive=True)
    for now in range(0, 40, 2):
        scene.arrive(now, 1, 2, 3)
        scene.queue.take()
    scene.queue.learn(3, 4.5)
    # 2 wait and 1 more fits: 4.5 < 3 * 2, although 3 that come at once would be worth the wait
    assert scene.arrive(40, 1, 2).remaining(40) == 0


def test_before_anything_is_known_an_adaptive_window_is_t_max():
    scene = Scene(adaptive=True)
    assert scene.arrive(0, 1).remaining(1) == 9
    scene.queue.take()
    assert scene.arrive(20, 1).remaining(20) == 10, "no forward is known"
    scene.queue.take()
    scene.queue.learn(1, 0.001)
    assert scene.arrive(40, 1).remaining(40) == 0


def decisions_per_s(window: Window, num_slots: int, step_s: float, fixed_s: float, each_s: float) -> float:
    """Of slots that step for exponential times and ask one device, in a simulation."""
    generator = np.random.default_rng(0)
    queue = RequestQueue(window)
    arrivals = [(generator.exponential(step_s), slot) for slot in range(num_slots)]
    now, num = 0.0, 0

    def arrive_until(end: float) -> None:
        while arrivals and arrivals[0][0] <= end:
            arrived, slot = heapq.heappop(arrivals)
            queue.add([Waiting(arrived, slot, None, lambda *_: None, "")], arrived)

    heapq.heapify(arrivals)
    while num < 1500:
        device_was_busy = len(queue) > 0
        while (remaining := queue.remaining_s(now, device_was_busy)) > 0:
            now = min(now + remaining + 1e-9, arrivals[0][0] if arrivals else math.inf)
            arrive_until(now)
        batch = queue.take()
        forward_s = fixed_s + each_s * len(batch)
        queue.learn(len(batch), forward_s)
        now += forward_s
        num += len(batch)
        for entry in batch:
            heapq.heappush(arrivals, (now + generator.exponential(step_s), entry.request))
        arrive_until(now)
    return num / now


@pytest.mark.parametrize(
    ("num_slots", "step_s", "fixed_s", "each_s"),
    [(8, 0.2, 0.01, 0.001), (2, 0.1, 0.1, 0.0), (4, 0.3, 0.1, 0.0), (16, 0.1, 0.1, 0.0), (32, 0.02, 0.01, 0.002)],
)
def test_an_adaptive_window_keeps_up_with_the_better_of_no_window_and_t_max(num_slots, step_s, fixed_s, each_s):
    none, fixed, adaptive = (
        decisions_per_s(Window(batch_size=8, max_wait_s=wait_s, adaptive=adaptive), num_slots, step_s, fixed_s, each_s)
        for wait_s, adaptive in ((0.0, False), (0.05, False), (0.05, True))
    )
    assert adaptive > 0.97 * max(none, fixed)


def test_a_window_that_is_not_adaptive_can_cost_much():
    none, fixed = (
        decisions_per_s(Window(batch_size=8, max_wait_s=wait_s), 8, 0.2, 0.01, 0.001) for wait_s in (0.0, 0.05)
    )
    assert fixed < 0.95 * none


# --- lockstep ---------------------------------------------------------------------------------------------------------


def test_in_lockstep_a_batch_waits_for_every_slot_of_every_client_and_takes_them_all():
    scene = Scene(batch_size=2, max_wait_s=0, lockstep=True)
    scene.queue.expect("a", 2)
    scene.queue.expect("b", 1)
    scene.arrive(0, 1, 2, client="a")
    assert scene.remaining(1, device_was_busy=True) == 29
    assert scene.arrive(2, 3, client="b").remaining(2) == 0
    assert scene.take() == [1, 2, 3]


def test_in_lockstep_one_client_cannot_stand_in_for_another():
    scene = Scene(lockstep=True)
    scene.queue.expect("a", 1)
    scene.queue.expect("b", 1)
    assert scene.arrive(0, 1, 2, client="a").remaining(0) > 0


def test_in_lockstep_a_slot_that_left_is_not_waited_for():
    scene = Scene(lockstep=True)
    scene.queue.expect("a", 2)
    scene.arrive(0, 1, client="a")
    assert scene.remaining(0) > 0
    scene.queue.expect("a", 1)
    assert scene.remaining(0) == 0


def test_in_lockstep_each_batch_wants_new_requests():
    scene = Scene(lockstep=True)
    scene.queue.expect("a", 2)
    assert scene.arrive(0, 1, 2, client="a").take() == [1, 2]
    assert scene.arrive(1, 3, client="a").remaining(1) > 0
    assert scene.arrive(2, 4, client="a").remaining(2) == 0


def test_in_lockstep_what_does_not_come_for_too_long_is_given_up():
    scene = Scene(lockstep=True, patience_s=5)
    scene.queue.expect("a", 1)
    scene.queue.expect("dead", 2)
    scene.arrive(0, 1, client="a").arrive(1, 2, client="dead")
    assert scene.remaining(4) == 1
    assert scene.remaining(6) < 0
    assert scene.take() == [1, 2]
    scene.arrive(7, 3, client="a").arrive(7, 4, client="dead")
    assert scene.remaining(7) == 0, "one slot of it was still there"
    scene.queue.expect("dead", 2)
    assert scene.remaining(7) > 0, "and the other one may come back"


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_window_is_made_from_the_configuration(lockstep):
    config = InferenceConfig(batch_size=3, max_wait_s=0.5, adaptive_wait=False)
    window = Window.of(config, lockstep)
    assert (window.batch_size, window.max_wait_s, window.adaptive, window.lockstep) == (3, 0.5, False, lockstep)
