import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from accerl.gantt import MAX_ROWS, gantt, window
from accerl.timeline import (
    Span,
    busy_share,
    chrome_trace,
    flatten,
    merge,
    order,
    read_spans,
    tracks,
    write_chrome_trace,
)
from accerl.trace import Tracer


def span(name: str, start_s: float, end_s: float, lane: str = "", process: str = "learner", node: str = "a") -> Span:
    return Span(process=process, node=node, lane=lane, name=name, start_s=start_s, end_s=end_s)


def trace_file(folder: Path, process: str, spans: list[tuple[str, float, float, str]], offset_s: float = 0.0) -> Path:
    """As a tracer writes it, on a machine whose monotonic clock began `offset_s` after the epoch."""
    path = folder / f"{process}.1.jsonl"
    header = {"process": process, "pid": 1, "node": "a", "wall_offset_s": offset_s, "num_spans": len(spans)}
    lines = [header, *([*entry, {}] for entry in spans)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def is_nested(pieces: list[tuple[float, float]]) -> bool:
    """Any two are apart, or one is inside the other."""
    return all(
        a_end <= b_start
        or b_end <= a_start
        or (a_start <= b_start and b_end <= a_end)
        or (b_start <= a_start <= a_end <= b_end)
        for index, (a_start, a_end) in enumerate(pieces)
        for b_start, b_end in pieces[:index]
    )


def test_clocks_of_several_machines_are_aligned(tmp_path):
    trace_file(tmp_path, "learner", [("train", 5.0, 6.0, "")], offset_s=1000.0)
    trace_file(tmp_path, "rollout-0", [("env", 105.5, 105.75, "0")], offset_s=900.0)
    first, second = read_spans(tmp_path)
    assert (first.process, first.start_s, first.end_s) == ("learner", 1005.0, 1006.0)
    assert (second.process, second.start_s, second.end_s) == ("rollout-0", 1005.5, 1005.75)
    slices = [event for event in merge(tmp_path)["traceEvents"] if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in slices] == [
        ("train", 0, 1_000_000),
        ("env", 500_000, 250_000),
    ]


def test_what_a_killed_process_wrote_is_read_up_to_the_torn_line(tmp_path):
    path = trace_file(tmp_path, "learner", [("train", 0.0, 1.0, ""), ("train", 1.0, 2.0, "")])
    path.write_text(path.read_text()[:-9])
    (tmp_path / "rollout-0.1.jsonl").write_text('{"process": "roll')
    (tmp_path / "rollout-1.1.jsonl").write_text("")
    (tmp_path / ".rollout-2.1.jsonl.77.tmp").write_text("half a file")
    assert [(found.process, found.end_s) for found in read_spans(tmp_path)] == [("learner", 1.0)]


def test_a_restarted_process_keeps_its_row(tmp_path):
    for number, start in ((1, 0.0), (2, 5.0)):
        tracer = Tracer(tmp_path / f"rollout-0.{number}.jsonl", "rollout-0", 10)
        tracer.add("env", start, start + 1.0, "0")
        tracer.flush()
    events = merge(tmp_path)["traceEvents"]
    assert {event["pid"] for event in events} == {1}
    assert len({event["tid"] for event in events if event["ph"] == "X"}) == 1


def test_a_trace_has_the_structure_that_viewers_read(tmp_path):
    spans = [
        span("train", 10.0, 12.0),
        span("recompute", 10.0, 10.5),
        span("sample", 11.0, 11.5, lane="prefetch"),
        span("env", 9.0, 9.5, lane="10", process="rollout-10"),
        span("env", 9.5, 10.5, lane="2", process="rollout-10"),
        span("forward", 9.25, 9.5, process="inference-0", node="b"),
    ]
    trace = json.loads(json.dumps(chrome_trace(spans)))
    events = trace["traceEvents"]
    metadata = [event for event in events if event["ph"] == "M"]
    slices = [event for event in events if event["ph"] == "X"]
    assert len(metadata) + len(slices) == len(events)
    assert all(type(event[key]) is int for event in events for key in ("pid", "tid", "ts"))
    assert all(type(event["dur"]) is int and event["ts"] >= 0 for event in slices)
    assert [event["ts"] for event in slices] == sorted(event["ts"] for event in slices)
    names = {event["pid"]: event["args"]["name"] for event in metadata if event["name"] == "process_name"}
    assert [names[pid] for pid in sorted(names)] == ["learner on a", "inference-0 on b", "rollout-10 on a"]
    lanes = {
        (event["pid"], event["tid"]): event["args"]["name"] for event in metadata if event["name"] == "thread_name"
    }
    assert {(event["pid"], event["tid"]) for event in slices} == set(lanes)
    assert [lanes[key] for key in sorted(lanes)] == ["main", "prefetch", "main", "2", "10"]
    assert len({tid for _, tid in lanes}) == len(lanes)


def test_spans_that_overlap_within_a_lane_get_threads_of_their_own():
    overlapping = [span("wait", 0.0, 2.0, lane="0"), span("wait", 1.0, 3.0, lane="0"), span("wait", 2.0, 2.5, lane="0")]
    events = chrome_trace(overlapping)["traceEvents"]
    by_thread = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_thread[event["tid"]].append((event["ts"], event["dur"]))
    assert sorted(by_thread.values()) == [[(0, 2_000_000), (2_000_000, 500_000)], [(1_000_000, 2_000_000)]]
    assert [event["args"]["name"] for event in events if event["name"] == "thread_name"] == ["0", "0 (2)"]


def test_what_follows_at_once_stays_in_its_thread_in_spite_of_rounding(tmp_path):
    tracer = Tracer(tmp_path / "a.jsonl", "rollout-0", 1000)
    ends = np.random.default_rng(0).uniform(0, 50, 500)
    for start, end in zip(np.sort(ends)[:-1], np.sort(ends)[1:], strict=True):
        tracer.add("env", 12345.6789 + float(start), 12345.6789 + float(end), "0")
    tracer.flush()
    slices = [event for event in merge(tmp_path)["traceEvents"] if event["ph"] == "X"]
    assert len({event["tid"] for event in slices}) == 1
    assert all(a["ts"] + a["dur"] == b["ts"] for a, b in pairwise(slices))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), max_size=25))
def test_tracks_hold_every_span_once_and_nest_and_their_flat_form_does_not_overlap(intervals):
    spans = [span(str(index), start, start + length) for index, (start, length) in enumerate(intervals)]
    found = tracks(spans)
    assert sorted(int(each.name) for track in found for each in track) == list(range(len(spans)))
    for track in found:
        assert is_nested([(each.start_s, each.end_s) for each in track])
        pieces = flatten(track)
        assert all(a.end_s <= b.start_s for a, b in pairwise(pieces))
        covered = {instant for each in track for instant in range(int(each.start_s), int(each.end_s))}
        assert sum(piece.end_s - piece.start_s for piece in pieces) == len(covered)


def test_the_innermost_span_counts_and_waiting_is_no_work():
    track = [span("train", 0.0, 10.0), span("recompute", 2.0, 4.0), span("wait_data", 5.0, 6.0)]
    assert [(piece.name, piece.start_s, piece.end_s) for piece in flatten(track)] == [
        ("train", 0.0, 2.0),
        ("recompute", 2.0, 4.0),
        ("train", 4.0, 5.0),
        ("train", 6.0, 10.0),
    ]


def test_the_busy_share_is_that_of_the_main_lane():
    lanes = {"": [span("train", 0.0, 4.0)], "prefetch": [span("sample", 0.0, 10.0)]}
    assert busy_share(lanes, 10.0) == pytest.approx(0.4)


def test_the_busy_share_of_slots_is_over_what_the_process_can_do_at_once():
    in_turn = {"0": [span("env", 0.0, 3.0)], "1": [span("env", 3.0, 8.0)]}
    assert busy_share(in_turn, 10.0) == pytest.approx(0.8)
    at_once = {"0": [span("env", 0.0, 3.0)], "1": [span("env", 1.0, 6.0)]}
    assert busy_share(at_once, 10.0) == pytest.approx(0.4)  # 8 s of two times 10
    for_a_moment = {"0": [span("env", 0.0, 3.01)], "1": [span("env", 3.0, 8.0)]}
    assert busy_share(for_a_moment, 10.0) == pytest.approx(0.801)
    assert busy_share({"0": []}, 10.0) == 0.0


def test_processes_are_ordered_by_role_and_number():
    names = ["rollout-10", "other", "rollout-2", "inference-0", "learner", "replay-1"]
    assert sorted(names, key=order) == ["learner", "replay-1", "inference-0", "rollout-2", "rollout-10", "other"]


def test_the_window_ends_where_the_last_report_of_the_slowest_process_ends():
    spans = [span("train", 0.0, 100.0), span("env", 0.0, 97.0, process="rollout-0")]
    dead = span("env", 0.0, 50.0, process="rollout-1")
    assert window([*spans, dead], 20.0) == (77.0, 97.0)
    assert window(spans, 1000.0) == (0.0, 97.0)


def test_a_picture_shows_work_in_its_colour_and_idleness_not(tmp_path):
    idle = [span("wait", 0.0, 10.0), span("env", 0.0, 10.0, lane="0", process="rollout-0")]
    busy = [span("train", 0.0, 10.0), span("env", 0.0, 10.0, lane="0", process="rollout-0")]
    gantt(idle, tmp_path / "deep" / "idle.png")
    gantt(busy, tmp_path / "busy.png")
    orange = np.array([0xE6, 0x9F, 0x00])

    def share(path: Path) -> float:
        return float((np.asarray(Image.open(path))[:, :, :3] == orange).all(-1).mean())

    assert share(tmp_path / "deep" / "idle.png") == 0.0
    assert share(tmp_path / "busy.png") > 0.02


@pytest.mark.parametrize("num_workers", [1, MAX_ROWS, 80])
def test_many_processes_still_make_a_picture_of_bounded_height(tmp_path, num_workers):
    spans = [
        span(name, start, start + 0.5, lane=str(lane), process=f"rollout-{worker}")
        for worker in range(num_workers)
        for lane in range(6)
        for start, name in ((float(lane), "env"), (lane + 0.5, "own"))
    ]
    gantt([span("train", 0.0, 6.0), *spans], tmp_path / "a.png", title="many")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.height < 1200


def test_no_spans_are_refused(tmp_path):
    with pytest.raises(ValueError, match="spans: there is none"):
        gantt([], tmp_path / "a.png")


def test_a_run_without_spans_gives_an_empty_trace(tmp_path):
    (tmp_path / "trace").mkdir()
    assert json.loads(write_chrome_trace(tmp_path).read_text())["traceEvents"] == []
