"""The controls on a run that is played by a fake."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from accerl.config import ConfigError, RunConfig
from accerl.notebook.controls import Controls, describe_knobs
from accerl.runtime.knobs import Knobs, turn


class FakeRun:
    """Does what it is told, and remembers it."""

    name = "fake"

    def __init__(self):
        self.config = RunConfig()
        self.calls: list[Any] = []
        self.state = "running"
        self.turned: Knobs = {}

    def status(self):
        return {"state": self.state, "knobs": self.turned, "num_workers": 2, "num_services": 1, "num_shards": 1}

    def pause(self):
        self.state = "paused"

    def resume(self):
        self.state = "running"

    def set(self, **knobs):
        self.turned = turn(self.config, self.turned, knobs)
        return dict(self.turned)

    def scale(self, **changes):
        return {kind: 2 + by for kind, by in changes.items()}

    def checkpoint(self):
        return Path("step-00000007")

    def evaluate(self, *, episodes_per_task=0, greedy=False):
        self.calls.append((episodes_per_task, greedy))
        return {"rate": 0.5, "interval": [0.25, 0.75], "episodes": 8}

    def stop(self):
        raise ConnectionError("the run's cluster is not there any more")


@pytest.fixture
def controls():
    made = Controls(FakeRun())
    yield made
    made.close()


def use(controls, action, **arguments):
    """As the browser asks, until it is done."""
    controls._answer(controls, {"kind": "do", "action": action, "arguments": arguments}, [])
    control = arguments.get("name") or arguments.get("kind") or action
    deadline = time.monotonic() + 10
    while control not in controls.said or controls.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return controls.said[control]


@pytest.mark.parametrize(
    ("action", "arguments", "text"),
    [
        ("pause", {}, "paused: episodes at hand are finished"),
        ("resume", {}, "goes on"),
        ("set", {"name": "sigma", "value": 0.3}, "sigma is 0.3"),
        ("scale", {"kind": "rollout", "by": 1}, "3 rollout"),
        ("checkpoint", {}, "saved step-00000007"),
        ("evaluate", {"episodes": 4, "greedy": True}, "success 0.50 [0.25, 0.75] of 8 episodes"),
    ],
)
def test_each_control_does_what_it_says_and_tells_what_came_of_it(controls, action, arguments, text):
    assert use(controls, action, **arguments) == {"text": text, "ok": True}


def test_what_does_not_fit_and_what_is_gone_is_said_beside_the_control(controls):
    said = use(controls, "set", name="sigma", value=-1)
    assert not said["ok"] and "sigma: input should be greater than 0" in said["text"]
    assert use(controls, "stop") == {"text": "the run's cluster is not there any more", "ok": False}


def test_a_knob_that_was_turned_elsewhere_shows_its_value(controls):
    controls._run.set(policy_lr=5e-5)
    controls.update()
    assert next(knob for knob in controls.knobs if knob["name"] == "policy_lr")["value"] == 5e-5


def test_every_knob_has_an_explanation_and_those_of_imagination_are_shown_where_there_is_some():
    knobs = describe_knobs(RunConfig(), {})
    assert all(knob["explanation"] for knob in knobs)
    assert "imagination" not in {knob["section"] for knob in knobs}
    with pytest.raises(ConfigError, match=r"imagination\.horizon: this run does not imagine"):
        turn(RunConfig(), {}, {"imagination.horizon": 3})


def test_the_page_without_a_kernel_shows_values_and_offers_nothing(controls, page, tmp_path):
    page.goto(controls.save(tmp_path / "controls.html").as_uri())
    page.locator(".controls").wait_for()
    assert page.locator("input[data-control=sigma]").input_value() == "0.2"
    assert page.locator("button:not(:disabled)").count() == 0
    assert controls.png().startswith(b"\x89PNG")
