import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from accerl import console
from accerl.config import EnvConfig, LimitsConfig, RunConfig
from tests.cli.fakes import FakeRun, metrics_line


def text_of(renderable, width: int = 120) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(renderable)
    return text.getvalue()


def test_the_picture_shows_success_tasks_speed_lag_queue_busy_shares_and_incidents():
    history = [metrics_line(index) for index in range(30)]
    status = {**history[-1], "state": "running", "reason": ""}
    incident = {"time": 1.7e9, "role": "rollout-0", "what": "its process ended", "action": "restarted"}
    shown = text_of(console.picture(Path("runs/a"), LimitsConfig(max_wall_s=100), status, history, [incident]))
    for part in (
        "runs/a  running  58 s",
        "58% of the budget",
        f"{status['success']:.2f} [{status['success_low']:.2f}, {status['success_high']:.2f}]",
        "red  50% of the episodes",
        "decisions/s",
        "environment steps/s",
        "versions, at most",
        "120 decisions unused of 4000",
        "learner 93%",
        "cores 97% 94%",
        "rollout-0: its process ended; restarted",
    ):
        assert part in shown


def test_the_picture_keeps_the_diagnostics_of_the_last_update():
    found = {
        **{"abs_log_ratio_p95": 0.1234, "behaviour_kl": 0.0061, "effective_sample_size": 0.97, "dead_fraction": 0.02},
        **{"entropy": 3.58, "explained_variance": 0.63, "grad_norm": 0.21},
    }
    history = [metrics_line(0), {**metrics_line(1), **found}, metrics_line(2)]
    status = {**history[-1], "state": "running", "reason": ""}
    shown = text_of(console.picture(Path("runs/a"), LimitsConfig(), status, history, []))
    for part in (
        "|log ratio| p95 0.123, KL 0.0061, effective sample 97%, without gradient 2%",
        "entropy 3.58, explained variance 0.63, gradient norm 0.21",
    ):
        assert part in shown


@pytest.mark.parametrize("status", [{"state": "starting", "reason": ""}, {"state": "dead", "reason": "gone"}])
def test_a_run_without_numbers_yet_is_shown_all_the_same(status):
    shown = text_of(console.picture(Path("runs/a"), LimitsConfig(), status, [], []))
    assert shown.strip().startswith(f"runs/a  {status['state']}")
    assert console.line(status) == f"{status['state']} ..."


def test_numbers_that_are_missing_become_dashes():
    status = {"state": "running", "reason": "", "decisions": 0, "success": None, "success_by_task": {}}
    assert "success -" in console.line(status)
    assert "learner -" in text_of(console.picture(Path("a"), LimitsConfig(), status, [status], []))


def test_the_share_of_the_budget_is_that_of_the_nearest_limit():
    status = {"decisions": 500, "updates": 10, "wall_s": 1.0}
    assert console.spent(LimitsConfig(max_decisions=1000, max_updates=11), status) == pytest.approx(10 / 11)
    assert console.spent(LimitsConfig(max_decisions=100), status) == 1.0
    assert console.spent(LimitsConfig(), status) is None


def test_a_sparkline_averages_equal_stretches_and_leaves_blanks():
    assert console.sparkline([0.0, 0.5, 1.0], 3) == "▁▅█"
    assert console.sparkline([0.0, 1.0, None, None, 0.99, 1.0], 3) == "▅ █"
    assert console.sparkline([], 3) == ""


def test_an_interval_bar_is_solid_shaded_and_empty():
    assert console.interval_bar(0.5, 0.6).plain == "█" * 25 + "▒" * 5 + "░" * 20


@pytest.mark.parametrize("terminal", [True, False])
def test_following_ends_with_the_run_and_shows_its_last_state(terminal, monkeypatch):
    monkeypatch.setattr(console, "POLL_S", 0.0)
    text = io.StringIO()
    run: Any = FakeRun(RunConfig(env=EnvConfig(suite="dots", tasks=("red", "blue"))), num_lines=5, end="failed")
    assert console.follow(run, Console(file=text, width=120, force_terminal=terminal)) == "failed"
    assert "failed" in text.getvalue()
    assert "restarted" in text.getvalue()


def test_progress_in_lines_speaks_five_times(capsys):
    with console.progress(50, "things") as advance:
        for _ in range(50):
            advance("well")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"{done} of 50 things" for done in (10, 20, 30, 40, 50)]
    assert all(line.endswith(", well") for line in lines)


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.4, "0 s"), (59.9, "59 s"), (61, "1 min 01 s")])
def test_durations_read_well(seconds, text):
    assert console.duration(seconds) == text
