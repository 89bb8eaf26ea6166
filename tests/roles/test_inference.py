"""Dynamic batching with fake batch functions, in the service's own thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import accerl.inference
from accerl.inference import InferenceService, ServiceClosed, Window
from accerl.trace import Tracer

NEVER_S = 60.0


class Recorder:
    """A batch function that doubles numbers and keeps every batch; it waits where `gate` is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, requests: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(requests))
        self.started.release()
        assert self.gate.wait(20)
        if -1 in requests:
            raise ValueError("minus one")
        return [LookupError("two") if request == 2 else 2 * request for request in requests]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The service's clock, set by hand: a window of NEVER_S seconds ends when it says so, at the next arrival."""
    clock = Clock()
    monkeypatch.setattr(accerl.inference, "time", clock)
    return clock


@contextmanager
def serving(answer: Callable[[Sequence[int]], Any], batch_size: int, max_wait_s: float = NEVER_S, **fields: Any):
    service = InferenceService(answer, Window(batch_size=batch_size, max_wait_s=max_wait_s, **fields))
    with service:
        yield service
        if isinstance(answer, Recorder):
            answer.gate.set()


def ask(service: InferenceService, request: int, client: str = "") -> Future[Any]:
    future: Future[Any] = Future()
    service.submit(request, future.set_result, client)
    return future


def ask_all(service: InferenceService, *requests: int) -> list[Any]:
    return answers_of([ask(service, request) for request in requests])


def answers_of(futures: Sequence[Future[Any]]) -> list[Any]:
    return [future.result(20) for future in futures]


def until(condition: Callable[[], bool]) -> None:
    """Return when something has happened that nobody tells."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- the window -------------------------------------------------------------------------------------------------------


def test_a_batch_leaves_when_b_requests_wait():
    answer = Recorder()
    with serving(answer, 3) as service:
        asked = [ask(service, number) for number in (1, 3)]
        until(lambda: service.num_waiting == 2)
        assert not answer.batches
        assert answers_of([*asked, ask(service, 4)]) == [2, 6, 8]
    assert answer.batches == [[1, 3, 4]]


def test_a_batch_leaves_when_its_oldest_request_is_old_enough_however_young_the_others_are(clock):
    answer = Recorder()
    with serving(answer, 10) as service:
        asked = [ask(service, 1)]
        until(lambda: service.num_waiting == 1)
        clock.now += 0.9 * NEVER_S
        asked.append(ask(service, 3))
        until(lambda: service.num_waiting == 2)
        assert not answer.batches
        clock.now += 0.2 * NEVER_S
        asked.append(ask(service, 4))
        assert answers_of(asked) == [2, 6, 8]
    assert answer.batches == [[1, 3, 4]]
    assert service.statistics.wait_s == pytest.approx((1.1 + 0.2 + 0) * NEVER_S)


def test_an_idle_gap_does_not_use_up_the_window_of_the_next_request(clock):
    answer = Recorder()
    with serving(answer, 2) as service:
        ask_all(service, 0, 1)
        until(lambda: service.num_waiting == 0)
        clock.now += 10 * NEVER_S
        asked = ask(service, 3)
        until(lambda: service.num_waiting == 1)
        answers_of([asked, ask(service, 4)])
    assert answer.batches == [[0, 1], [3, 4]]
    assert service.statistics.idle_s == 10 * NEVER_S


def test_without_new_arrivals_the_window_ends_by_itself():
    with serving(Recorder(), 10, 0.02) as service:
        assert ask(service, 4).result(20) == 8
    assert service.statistics.wait_s >= 0.02


def test_b_is_a_cap_and_requests_are_answered_in_order():
    answer = Recorder()
    with serving(answer, 3, 0.05) as service:
        asked: list[Any] = []
        service.submit_many(
            "abcdefg", range(3, 10), lambda tags, answers: asked.extend(zip(tags, answers, strict=True))
        )
        until(lambda: len(asked) == 7)
    assert answer.batches == [[3, 4, 5], [6, 7, 8], [9]]
    assert asked == list(zip("abcdefg", range(6, 20, 2), strict=True))
    assert service.statistics.sizes == {3: 2, 1: 1}
    assert (service.statistics.num_batches, service.statistics.num_requests) == (3, 7)


def test_what_queues_behind_a_busy_device_leaves_at_once_when_it_is_free():
    answer = Recorder()
    answer.gate.clear()
    with serving(answer, 4) as service:
        asked = [ask(service, number) for number in (1, 3, 4, 5)]
        answer.started.acquire()
        asked += [ask(service, number) for number in (6, 7)]
        assert answer.batches == [[1, 3, 4, 5]]
        answer.gate.set()
        assert answers_of(asked) == [2, 6, 8, 10, 12, 14], "although fewer than B wait, and the window is endless"
    assert answer.batches == [[1, 3, 4, 5], [6, 7]]


def test_in_lockstep_a_batch_waits_for_all_that_entered():
    answer = Recorder()
    with serving(answer, 1, 0.0, lockstep=True) as service:
        service.expect("first", 2)
        service.expect("second", 1)
        asked = [ask(service, 1, "first"), ask(service, 3, "second")]
        until(lambda: service.num_waiting == 2)
        assert not answer.batches
        asked.append(ask(service, 4, "first"))
        assert answers_of(asked) == [2, 6, 8]
        asked = [ask(service, 5, "first"), ask(service, 6, "first")]
        until(lambda: service.num_waiting == 2)
        service.forget("second")
        assert answers_of(asked) == [10, 12]
    assert answer.batches == [[1, 3, 4], [5, 6]]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_answers_of_one_batch_are_told_together():
    told: list[tuple[list[str], list[int]]] = []

    def done(tags: list[str], answers: list[int]) -> None:
        told.append((tags, answers))

    with serving(Recorder(), 4) as service:
        service.submit_many(["a", "b"], [1, 3], done)
        service.submit_many(["c"], [4], done)
        other = ask(service, 5)
        assert other.result(20) == 10
        until(lambda: bool(told))
    assert told == [(["a", "b", "c"], [2, 6, 8])]


def test_an_exception_reaches_every_asker_of_its_batch_and_the_service_goes_on():
    with serving(Recorder(), 2) as service:
        failed = ask_all(service, 1, -1)
        assert [(type(error), str(error)) for error in failed] == [(ValueError, "minus one")] * 2
        assert ask_all(service, 5, 6) == [10, 12]
    assert service.statistics.num_failures == 1


def test_one_request_can_fail_alone():
    with serving(Recorder(), 2) as service:
        first, second = ask_all(service, 1, 2)
    assert first == 2
    assert isinstance(second, LookupError)


def test_too_few_answers_are_an_error():
    with serving(lambda requests: [0], 2) as service:
        assert [str(error) for error in ask_all(service, 1, 3)] == ["1 answers to 2 requests"] * 2


def test_an_asker_that_fails_to_take_its_answer_does_not_disturb_the_others():
    def fail(answer: Any) -> None:
        raise RuntimeError("no place for it")

    with serving(Recorder(), 2) as service:
        service.submit(1, fail)
        assert ask(service, 3).result(20) == 6
        assert ask_all(service, 4, 5) == [8, 10]


def test_what_waits_when_the_service_closes_is_refused_and_so_is_what_comes_later():
    answer = Recorder()
    answer.gate.clear()
    with serving(answer, 1) as service:
        running = ask(service, 1)
        answer.started.acquire()
        waiting = ask(service, 3)
        threading.Timer(0.05, answer.gate.set).start()
        service.close()
        assert running.result(20) == 2
        assert isinstance(waiting.result(20), ServiceClosed)
        assert isinstance(ask(service, 4).result(20), ServiceClosed)
    assert answer.batches == [[1]]


def test_a_service_that_never_started_refuses_when_it_closes():
    service = InferenceService(Recorder(), Window(batch_size=1, max_wait_s=0))
    asked = ask(service, 1)
    service.close()
    assert isinstance(asked.result(0), ServiceClosed)


def test_many_threads_may_ask_at_once():
    with serving(Recorder(), 5, 0.001) as service:
        answers: dict[int, list[int]] = {}

        def keep_asking(first: int) -> None:
            answers[first] = [ask(service, number).result(20) for number in range(first, first + 50)]

        threads = [threading.Thread(target=keep_asking, args=(100 * index + 3,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == {first: [2 * number for number in range(first, first + 50)] for first in answers}
    assert len(answers) == 6


def test_an_event_loop_asks_and_gets_answers_and_exceptions():
    async def scene(service: InferenceService[int, int]) -> None:
        assert await asyncio.gather(service.ask(3), service.ask(4)) == [6, 8]
        with pytest.raises(LookupError, match="two"):
            await asyncio.gather(service.ask(2), service.ask(4))
        first, second = await service.ask_many([5, 2])
        assert first == 10
        assert isinstance(second, LookupError)

    with serving(Recorder(), 2) as service:
        asyncio.run(asyncio.wait_for(scene(service), 20))


def test_an_asker_that_gave_up_does_not_disturb_the_others():
    answer = Recorder()
    answer.gate.clear()

    async def scene(service: InferenceService[int, int]) -> None:
        gone, stays = (asyncio.create_task(service.ask(number)) for number in (1, 3))
        await asyncio.to_thread(answer.started.acquire)
        gone.cancel()
        await asyncio.sleep(0)
        answer.gate.set()
        assert await stays == 6
        assert await asyncio.gather(service.ask(5), service.ask(6)) == [10, 12]

    with serving(answer, 2) as service:
        asyncio.run(asyncio.wait_for(scene(service), 20))


def test_forwards_and_waits_are_traced(tmp_path: Path):
    tracer = Tracer(tmp_path / "trace.jsonl", "inference-0", 100)
    with InferenceService(Recorder(), Window(batch_size=2, max_wait_s=NEVER_S), tracer) as service:
        asked = ask(service, 1)
        until(lambda: service.num_waiting == 1)
        answers_of([asked, ask(service, 3)])
    tracer.flush()
    text = (tmp_path / "trace.jsonl").read_text()
    assert '"forward"' in text
    assert '"size": 2' in text
    assert tracer.totals().keys() == {"forward", "wait"}
