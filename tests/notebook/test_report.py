"""A run as one page."""

from __future__ import annotations

import json
import re

from accerl import trajectories
from accerl.cli import main
from accerl.config import RunConfig
from accerl.notebook.report import differences
from accerl.runtime.run import Run
from tests.notebook.test_dashboard import line, run, write  # noqa: F401 - a fixture
from tests.roles.fakes import trajectory


def test_settings_that_differ_are_named_with_their_defaults():
    config = RunConfig(name="first", objective={"sigma": 0.3})  # type: ignore[arg-type]
    assert ("objective.sigma", 0.3, 0.2) in differences(config)
    assert {name for name, _, _ in differences(config)} == {"name", "objective.sigma"}


def test_the_page_holds_everything_and_needs_no_network(run: Run, page, capsys):  # noqa: F811
    (run.folder / "trajectories").mkdir()
    trajectories.save(run.folder / "trajectories" / "one.safetensors", trajectory(3, terminal=True, success=True))
    write(
        run.folder, "incidents.jsonl", [{"time": 1.0, "role": "rollout-0", "action": "restarted", "reason": "<killed>"}]
    )
    (run.folder / "evaluations").mkdir()
    evaluation = {"rate": 0.5, "interval": [0.2, 0.8], "episodes": 8, "by_task": {"red": {"rate": 0.5}}}
    (run.folder / "evaluations" / "one.json").write_text(json.dumps({**evaluation, "updates": 4, "greedy": True}))
    assert main(["report", str(run.folder)]) == 0
    path = run.folder / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    text = path.read_text()
    assert not re.findall(r'(?:src|href)="https?:', text)
    page.goto(path.as_uri())
    page.locator(".dashboard").wait_for()
    assert page.locator("h2").all_inner_texts() == [
        "Course",
        "Episodes",
        "Evaluations",
        "What went wrong",
        "Settings",
        "Where",
    ]
    assert page.locator(".viewer .item").count() == 1
    assert "0.500 [0.200, 0.800]" in page.locator("body").inner_text()
    assert "reason <killed>" in page.locator("body").inner_text()


def test_a_handle_shows_itself_in_a_line(run: Run):  # noqa: F811
    (run.folder / "status.json").write_text(
        json.dumps({"state": "finished", "reason": "", "updated": 0, "updates": 7, "success": 0.5, "advice": "a < b"})
    )
    assert run._repr_html_() == "<b>first</b> finished · updates 7, success 0.5 · a &lt; b"
