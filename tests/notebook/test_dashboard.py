"""The dashboard of a run in a folder, without and with a browser."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from accerl.config import RunConfig
from accerl.notebook import dashboard as module
from accerl.notebook.dashboard import Dashboard
from accerl.notebook.panels import PANELS, compact
from accerl.runtime.run import Run


def line(number: int, **fields: Any) -> dict[str, Any]:
    """Of metrics, `number` reports after the start."""
    return {
        "time": 1000.0 + 2 * number,
        "wall_s": 2.0 * number,
        "decisions": 100 * number,
        "env_steps": 400 * number,
        "updates": number,
        "success": 0.5 + 0.01 * number,
        "success_low": 0.4,
        "success_high": 0.7,
        "success_by_task": {"red": 0.4, "blue": 0.6},
        "task_probability": {"red": 0.6, "blue": 0.4},
        "decisions_per_s": 50.0,
        "learner_busy": 0.987654321,
        "advice": "learner busy 99 %: add a GPU",
        **{f"policy_lag_share_{low}": 0.125 for low in (0, 1, 2, 4, 8, 16, 32, 64)},
        "unknown_number": 3.0,
        **fields,
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.json").write_text(RunConfig(name="first", root=tmp_path).model_dump_json())
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": "", "updated": time.time()}))
    write(folder, "metrics.jsonl", [line(number) for number in range(5)])
    return Run(folder)


def write(folder, name, lines):
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in lines)


def test_a_line_is_reduced_to_what_is_shown_with_five_digits():
    shown = compact(line(3))
    assert shown["learner_busy"] == 0.98765 and "unknown_number" not in shown
    assert shown["success_by_task"] == {"red": 0.4, "blue": 0.6}


def test_every_key_of_a_panel_is_drawn_once():
    keys = [curve.key for panel in PANELS for curve in panel.curves]
    assert len(keys) == len(set(keys))


def test_only_new_lines_are_sent_and_a_hello_gets_all(run, monkeypatch):
    board = Dashboard(run)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(board, "send", lambda content, buffers=None: sent.append(content))
    write(run.folder, "metrics.jsonl", [line(5), line(6)])
    board.update()
    board.update()
    board._answer(board, {"kind": "hello"}, [])
    assert [(each["kind"], [got["updates"] for got in each["lines"]]) for each in sent] == [
        ("lines", [5, 6]),
        ("all", [0, 1, 2, 3, 4, 5, 6]),
    ]
    board.close()


def test_a_long_run_is_thinned_and_keeps_its_newest_line(run, monkeypatch):
    monkeypatch.setattr(module, "MOST_LINES", 4)
    board = Dashboard(run)
    assert [each["updates"] for each in board.lines] == [0, 2, 4]
    board.close()


def test_state_incidents_and_changes_come_from_the_folder(run):
    write(
        run.folder, "incidents.jsonl", [{"time": 1.0, "role": "rollout-0", "action": "restarted", "reason": "killed"}]
    )
    write(run.folder, "events.jsonl", [{"time": 1003.0, "set": "sigma", "from": 0.2, "to": 0.3, "by": "somebody"}])
    board = Dashboard(run)
    assert board.state == "finished"
    assert board.incidents[0]["role"] == "rollout-0" and board.events[0]["to"] == 0.3
    assert board.png().startswith(b"\x89PNG")
    board.close()


def test_the_page_shows_figures_curves_and_marks(run, page, tmp_path):
    write(run.folder, "events.jsonl", [{"time": 1003.0, "set": "sigma", "from": 0.2, "to": 0.3, "by": "somebody"}])
    board = Dashboard(run)
    page.goto(board.save(tmp_path / "dashboard.html").as_uri())
    root = page.locator(".dashboard")
    root.wait_for()
    data = root.evaluate("root => ({ ...root.dataset })")
    assert (data["lines"], data["state"], data["updates"], data["events"]) == ("5", "finished", "4", "1")
    titles = page.locator("figcaption").all_inner_texts()
    assert {"success", "policy lag now", "tasks played", "decisions a second", "busy"} <= set(titles)
    assert "imagination" not in titles
    assert page.locator(".advice").inner_text() == "Limit: learner busy 99 %: add a GPU"
    success = page.locator(".card", has_text="mean over tasks").locator("path[fill=none]")
    assert success.count() == 3 and all(
        path.startswith("M") for path in success.evaluate_all("all => all.map(p => p.getAttribute('d'))")
    )
    assert page.locator(".card", has_text="mean over tasks").locator("line[stroke-dasharray]").count() == 1
    page.locator("details.events summary").click()
    assert "sigma: 0.2 → 0.3 (somebody)" in page.locator("details.events li").inner_text()
    page.locator(".axis-choice").select_option("decisions")
    assert "400" in page.locator(".card", has_text="mean over tasks").locator("text").all_text_contents()
    board.close()
