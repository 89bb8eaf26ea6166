"""What a run reports: counters, rolling rates, files that survive a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import accerl.metrics
from accerl.files import append_line, read_lines
from accerl.metrics import MetricsWriter, RunMetrics, rewind
from accerl.types import Episode


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 5.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(accerl.metrics, "time", clock)
    return clock


def episode(task: str = "red", success: bool = True, episode_return: float = 1.0) -> Episode:
    return Episode(
        task=task,
        success=success,
        episode_return=episode_return,
        num_decisions=3,
        num_env_steps=20,
        policy_version=1,
        origin="",
    )


def update(size: float, lag: float, lag_max: float, loss: float) -> dict[str, float]:
    return {"batch_decisions": size, "policy_lag_mean": lag, "policy_lag_max": lag_max, "policy_loss": loss}


def test_a_line_sums_up_what_happened_since_the_line_before(clock):
    metrics = RunMetrics(("red", "blue"))
    metrics.start_clock()
    for success in (True, False, True, True):
        metrics.add_episode(episode(success=success, episode_return=2.0 * success))
    metrics.add_update(update(100, 1.0, 4.0, 0.5))
    metrics.add_update(update(300, 3.0, 5.0, 1.5))
    clock.now += 2.0
    line = metrics.line()
    assert (line["decisions"], line["env_steps"], line["episodes"], line["trained_decisions"]) == (12, 80, 4, 400)
    assert (line["decisions_per_s"], line["env_steps_per_s"], line["trained_decisions_per_s"]) == (6, 40, 200)
    assert (line["success"], line["success_by_task"]) == (0.75, {"red": 0.75})
    assert line["return_mean"] == 1.5
    assert line["policy_loss"] == 1.0
    assert (line["run_policy_lag_mean"], line["run_policy_lag_max"]) == (2.5, 5.0)
    assert (line["wall_s"], line["time"]) == (2.0, 5.0)

    metrics.add_episode(episode("blue", success=False))
    clock.now += 1.0
    line = metrics.line()
    assert (line["decisions"], line["decisions_per_s"], line["trained_decisions_per_s"]) == (15, 3, 0)
    assert line["success"] == pytest.approx((0.75 + 0) / 2), "each task counts the same"
    assert "policy_loss" not in line, "there was no update"


def test_updates_that_were_skipped_are_counted_and_are_in_no_mean(clock):
    metrics = RunMetrics(("red",))
    metrics.add_update(update(100, 1.0, 4.0, 0.5))
    metrics.add_update({"batch_decisions": 0.0, "skipped_updates": 1.0, "skipped_decisions": 70.0, "updates": 1})
    resumed = RunMetrics(("red",))
    resumed.load_state_dict(json.loads(json.dumps(metrics.state_dict())))
    for line in (metrics.line(), resumed.line()):
        assert (line["skipped_updates"], line["skipped_decisions"], line["trained_decisions"]) == (1, 70, 100)
    metrics.add_update(update(100, 1.0, 4.0, 0.5))
    assert metrics.line()["policy_loss"] == 0.5


def test_before_the_first_episode_success_is_unknown(clock):
    line = RunMetrics(("red",)).line()
    assert (line["success"], line["success_low"], line["success_high"], line["return_mean"]) == (None, 0, 1, None)
    json.dumps(line, allow_nan=False)


def test_success_is_that_of_the_last_hundred_episodes_of_a_task():
    metrics = RunMetrics(("red",))
    for number in range(250):
        metrics.add_episode(episode(success=number < 200))
    line = metrics.line()
    assert line["success"] == 0.5
    assert line["episodes"] == 250


def test_counters_and_the_clock_go_on_over_a_resumption(clock):
    before = RunMetrics(("red",))
    before.start_clock()
    before.add_episode(episode())
    before.add_update(update(100, 1.0, 4.0, 0.5))
    clock.now += 10.0
    before.tick()
    state = json.loads(json.dumps(before.state_dict()))

    clock.now = 5000.0
    after = RunMetrics(("red",))
    after.load_state_dict(state)
    assert after.tick() == 10.0
    clock.now += 60.0
    after.start_clock()
    clock.now += 5.0
    after.add_episode(episode(success=False))
    line = after.line()
    assert line["wall_s"] == 15.0, "the minute before training began again does not count"
    assert (line["decisions"], line["trained_decisions"], line["success"]) == (6, 100, 0.5)
    assert line["decisions_per_s"] == pytest.approx(3 / 5), "what was made before the resumption is not a rate"
    assert line["run_policy_lag_max"] == 4.0


# --- files ------------------------------------------------------------------------------------------------------------


def write_lines(path: Path, *decisions: int, torn: str = "") -> None:
    path.write_text("".join(json.dumps({"decisions": number}) + "\n" for number in decisions) + torn)


def decisions_in(path: Path) -> list[int]:
    return [line["decisions"] for line in read_lines(path)]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    write_lines(path, 1, 2, torn='{"deci')
    assert decisions_in(path) == [1, 2]
    assert [line["decisions"] for line in read_lines(path, after=1)] == [2]


def test_appended_lines_are_read_back(tmp_path: Path):
    path = tmp_path / "incidents.jsonl"
    for line in ({"what": "a\nb"}, {"what": "\u2028"}):
        append_line(path, line)
    assert read_lines(path) == [{"what": "a\nb"}, {"what": "\u2028"}]


def test_rewinding_moves_what_a_resumed_run_takes_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, 10, 20, 30, 40)
    rewind(path, 20)
    assert decisions_in(path) == [10, 20]
    append_line(path, {"decisions": 25})
    rewind(path, 22)
    assert decisions_in(path) == [10, 20]
    assert decisions_in(tmp_path / "metrics.jsonl.lost") == [30, 40, 25]


def test_rewinding_to_the_end_changes_nothing(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rewind(path, 5)
    assert not path.exists()
    write_lines(path, 10, 20)
    rewind(path, 20)
    assert decisions_in(path) == [10, 20]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("decisions", [(), (10, 20)])
def test_rewinding_drops_a_line_that_was_never_completed(tmp_path: Path, decisions):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, *decisions, torn='{"decisions": 3')
    rewind(path, 100)
    append_line(path, {"decisions": 30})
    assert decisions_in(path) == [*decisions, 30]


def test_lines_are_written_for_readers_and_for_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = MetricsWriter(tmp_path)
    line = {"decisions": 50, "success": 0.25, "success_by_task": {"red": 0.5}, "note": None, "time": 1.0}
    writer.write(line)
    assert read_lines(tmp_path / "metrics.jsonl") == [line], "at once"
    writer.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"decisions", "success", "success_by_task/red"}
    assert [(event.step, event.value) for event in board.Scalars("success")] == [(50, 0.25)]
