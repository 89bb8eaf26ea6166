import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from accerl.trace import Tracer


def read(path: Path) -> tuple[dict[str, Any], list[list[Any]]]:
    header, *spans = map(json.loads, path.read_text().splitlines())
    return header, spans


def test_spans_are_written_with_their_lane_and_arguments(tmp_path):
    tracer = Tracer(tmp_path / "trace" / "a.jsonl", "inference-0", 10)
    tracer.add("forward", 1.0, 1.25, batch=8)
    tracer.add("env", 1.5, 1.75, "3")
    tracer.flush()
    header, spans = read(tmp_path / "trace" / "a.jsonl")
    assert header["process"] == "inference-0"
    assert header["wall_offset_s"] == pytest.approx(time.time() - time.monotonic(), abs=1.0)
    assert spans == [["forward", 1.0, 1.25, "", {"batch": 8}], ["env", 1.5, 1.75, "3", {}]]


def test_a_context_takes_its_time_and_arguments_that_are_known_only_inside(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "learner", 10)
    before = time.monotonic()
    with tracer.span("sample", "prefetch", wanted=4) as args:
        args["got"] = 3
    after = time.monotonic()
    tracer.flush()
    ((name, start_s, end_s, lane, args),) = read(tmp_path / "a.jsonl")[1]
    assert (name, lane, args) == ("sample", "prefetch", {"wanted": 4, "got": 3})
    assert before - 1e-6 <= start_s <= end_s <= after + 1e-6


def test_only_the_newest_spans_are_kept_but_all_are_in_the_totals(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "learner", 3)
    for index in range(10):
        tracer.add("train", float(index), index + 0.5)
        if index == 6:
            tracer.flush()
    tracer.flush()
    header, spans = read(tmp_path / "a.jsonl")
    assert [start for _, start, *_ in spans] == [7.0, 8.0, 9.0]
    assert header["num_spans"] == 10
    assert tracer.totals() == {"train": 5.0}


def test_totals_are_summed_over_lanes(tmp_path):
    tracer = Tracer(None, "rollout-0", 5)
    tracer.add("env", 0.0, 1.0, "0")
    tracer.add("env", 0.5, 1.0, "1")
    tracer.add("wait", 1.0, 4.0, "0")
    assert tracer.totals() == {"env": 1.5, "wait": 3.0}


def test_a_span_that_goes_on_is_in_the_totals_and_in_the_file(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "learner", 10)
    with tracer.span("train"):
        first = tracer.totals()["train"]
        assert tracer.totals()["train"] >= first >= 0
        tracer.flush()
        ((name, start_s, end_s, _, args),) = read(tmp_path / "a.jsonl")[1]
        assert (name, args) == ("train", {"open": True})
        assert start_s <= end_s
    tracer.flush()
    ((*_, args),) = read(tmp_path / "a.jsonl")[1]
    assert args == {}


def test_a_span_that_raised_is_kept():
    tracer = Tracer(None, "learner", 10)
    with pytest.raises(KeyError), tracer.span("train"):
        raise KeyError
    assert list(tracer.totals()) == ["train"]
    assert tracer.totals() == tracer.totals()  # it is closed


def test_nothing_new_leaves_the_file_alone(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "learner", 10)
    tracer.flush()
    assert not (tmp_path / "a.jsonl").exists()
    tracer.add("train", 0.0, 1.0)
    tracer.flush()
    (tmp_path / "a.jsonl").unlink()
    tracer.flush()
    assert not (tmp_path / "a.jsonl").exists()


def test_threads_lose_no_entry_to_one_another_or_to_a_flush(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "rollout-0", 10_000)

    def work(lane: str) -> None:
        for index in range(1000):
            tracer.add("env", float(index), index + 1.0, lane)
            with tracer.span("wait", lane):
                pass

    threads = [threading.Thread(target=work, args=(str(lane),)) for lane in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        tracer.flush()
    tracer.flush()
    _, spans = read(tmp_path / "a.jsonl")
    assert tracer.totals()["env"] == 4000.0
    for lane in "0123":
        assert [start for name, start, _, own, _ in spans if name == "env" and own == lane] == list(range(1000))
    assert sum(name == "wait" and "open" not in args for name, *_, args in spans) == 4000


def test_switched_off_it_records_nothing(tmp_path):
    tracer = Tracer.off()
    tracer.add("train", 0.0, 1.0)
    with tracer.span("train", wanted=1) as args:
        args["got"] = 1
    tracer.flush()
    assert tracer.totals() == {}


def test_without_room_for_spans_totals_are_kept_and_no_file_is_written(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "learner", 0)
    tracer.add("train", 0.0, 1.0)
    tracer.flush()
    assert tracer.totals() == {"train": 1.0}
    assert not (tmp_path / "a.jsonl").exists()
