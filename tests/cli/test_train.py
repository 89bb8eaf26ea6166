import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from accerl import console
from accerl.cli import main
from accerl.config import ConfigError, LearnerConfig, RunConfig
from accerl.runtime import run as runtime
from tests.cli.fakes import FakeRun


class Launcher:
    """In place of `accerl.runtime.run`: keeps what it was asked for."""

    def __init__(self) -> None:
        self.launched: list[tuple[RunConfig, bool, int | None]] = []
        self.run: FakeRun | None = None
        self.make = FakeRun
        self.known: dict[str, RunConfig] = {}

    def launch(self, config: RunConfig, *, resume: bool = False, owner_pid: int | None = None) -> FakeRun:
        self.launched.append((config, resume, owner_pid))
        self.run = self.make(config)
        return self.run

    def attach(self, run: str | Path, root: Path = Path("runs")) -> FakeRun:
        if str(run) not in self.known:
            raise ConfigError(f"run: there is no run {str(run)!r} below {root}; known: none")
        self.run = self.make(self.known[str(run)])
        return self.run


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launcher:
    launcher = Launcher()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "launch", launcher.launch)
    monkeypatch.setattr(runtime, "attach", launcher.attach)
    monkeypatch.setattr(console, "POLL_S", 0.0)
    return launcher


def test_a_run_is_followed_to_its_end_and_belongs_to_this_process(launcher, capsys):
    assert main(["train", "--name", "mine", "--learner.policy-lr", "0.1"]) == 0
    ((config, resume, owner),) = launcher.launched
    assert (config.name, config.learner.policy_lr, resume) == ("mine", 0.1, False)
    assert type(config) is RunConfig
    assert owner is not None
    printed = capsys.readouterr().out
    assert "starting" in printed
    assert "finished: runs/mine" in printed


def test_a_detached_run_belongs_to_nobody_and_is_not_followed(launcher, capsys):
    assert main(["train", "--detach"]) == 0
    assert launcher.launched[0][2] is None
    printed = capsys.readouterr().out
    assert "accerl attach runs/run" in printed
    assert "accerl stop runs/run" in printed


def test_a_run_that_fails_gives_code_1_its_reason_and_where_its_logs_are(launcher, capsys):
    launcher.make = lambda config: FakeRun(config, end="failed", reason="the learner died")
    assert main(["train"]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message == "accerl: error: runs/run: the run failed (the learner died); see runs/run/logs"


class Interrupted(FakeRun):
    """Ctrl-C comes at the second look, and again while stopping if `twice`."""

    twice = False

    def status(self):
        if self._looks == 2 and not self.stopped_within:
            raise KeyboardInterrupt
        return super().status()

    def stop(self, timeout_s: float = 30.0) -> None:
        super().stop(timeout_s)
        if self.twice:
            raise KeyboardInterrupt


def test_an_interruption_stops_the_run_and_says_how_to_go_on(launcher, capsys):
    launcher.make = Interrupted
    assert main(["train"]) == 130
    assert len(launcher.run.stopped_within) == 1
    printed = capsys.readouterr()
    assert "stopped; `accerl train --resume runs/run` goes on from step-00000002" in printed.out
    assert printed.err == ""


def test_a_run_that_could_not_save_its_last_moments_says_so():
    run: Any = FakeRun(RunConfig(), num_lines=0, end="dead", reason="its processes are gone")
    run.status()
    assert console.ending(run).startswith("dead, its processes are gone; `accerl train --resume runs/run` goes on")
    run.saved = []
    assert console.ending(run).startswith("runs/run ended before its first checkpoint")


def test_a_second_interruption_leaves_at_once_and_says_that_the_run_ends_by_itself(launcher, capsys, monkeypatch):
    monkeypatch.setattr(Interrupted, "twice", True)
    launcher.make = Interrupted
    assert main(["train"]) == 130
    assert "which ends by itself" in capsys.readouterr().out


def test_resuming_keeps_the_settings_of_the_run_apart_from_those_given(launcher):
    launcher.known["old"] = RunConfig(name="old", root=Path("elsewhere"), seed=7, learner=LearnerConfig(policy_lr=0.5))
    assert main(["train", "--resume", "old", "--limits.max-updates", "99"]) == 0
    ((config, resume, _),) = launcher.launched
    assert resume is True
    assert config.folder == Path("elsewhere/old")
    assert (config.seed, config.learner.policy_lr, config.limits.max_updates) == (7, 0.5, 99)


def test_resuming_without_a_name_takes_the_run_of_the_configured_name(launcher, tmp_path):
    launcher.known["mine"] = RunConfig(name="mine", seed=7)
    (tmp_path / "mine.json").write_text(json.dumps({"name": "mine", "seed": 8}))
    assert main(["train", "--config", "mine.json", "--resume"]) == 0
    ((config, resume, _),) = launcher.launched
    assert (config.name, config.seed, resume) == ("mine", 8, True)


def test_resume_auto_starts_what_is_not_there_and_goes_on_with_what_is(launcher):
    command = ["train", "--name", "mine", "--resume", "auto", "--seed", "9"]
    assert main(command) == 0
    launcher.known["mine"] = RunConfig(name="mine", seed=7, learner=LearnerConfig(policy_lr=0.5))
    assert main(command) == 0
    (first, how, _), (second, again, _) = launcher.launched
    assert how == again == "auto", "`launch` looks whether there is something to go on from"
    assert (first.name, first.seed, first.learner.policy_lr) == ("mine", 9, LearnerConfig().policy_lr)
    assert (second.name, second.seed, second.learner.policy_lr) == ("mine", 9, 0.5)


class Host:
    """In place of the process that a run lives in."""

    def poll(self) -> None:
        return None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of `launch` itself: what it started."""
    modules: list[str] = []
    monkeypatch.setattr(runtime, "spawn", lambda module, *_: modules.append(module) or Host())
    monkeypatch.setattr("accerl.runtime.preflight.check", lambda config: None)
    return modules


def state_of(config: RunConfig, **fields: Any) -> None:
    runtime.write_status(config.folder, {"state": "running", "reason": "", "host": socket.gethostname(), **fields})


def test_resume_auto_of_a_run_that_goes_on_is_refused(started, tmp_path):
    config = RunConfig(name="mine", root=tmp_path)
    runtime.launch(config, resume="auto")
    state_of(config, host_pid=os.getpid(), host_started=runtime.started(os.getpid()))
    with pytest.raises(ConfigError, match="is running; attach to it instead"):
        runtime.launch(config, resume="auto")
    assert len(started) == 1


def test_resume_auto_goes_on_where_another_process_has_the_number_of_the_dead_one(started, tmp_path):
    config = RunConfig(name="mine", root=tmp_path)
    runtime.launch(config, resume="auto")
    (config.folder / "start").mkdir()
    state_of(config, host_pid=os.getpid(), host_started=1)
    runtime.launch(config, resume="auto")
    assert len(started) == 2


def test_resume_auto_begins_again_what_died_before_it_had_anything_to_go_on_from(started, tmp_path):
    config = RunConfig(name="mine", root=tmp_path)
    runtime.launch(config, resume="auto")
    state_of(config, state="failed")
    runtime.launch(config.model_copy(update={"seed": 3}), resume="auto")
    assert len(started) == 2
    assert runtime.Run(config.folder).config.seed == 3


def test_attaching_follows_a_run_and_leaves_it_alone_when_interrupted(launcher, capsys):
    launcher.known["long"] = RunConfig(name="long")
    assert main(["attach", "long"]) == 0
    launcher.make = Interrupted
    assert main(["attach", "long"]) == 0
    assert launcher.run.stopped_within == []
    assert "runs/long goes on" in capsys.readouterr().out


def test_stop_stops_a_live_run_and_leaves_an_ended_one(launcher, capsys):
    launcher.known["long"] = RunConfig(name="long")
    assert main(["stop", "long", "--timeout-s", "5"]) == 0
    assert launcher.run.stopped_within == [5.0]
    launcher.make = _ended
    assert main(["stop", "long"]) == 0
    assert launcher.run.stopped_within == []
    assert "is not running: finished" in capsys.readouterr().out


def test_status_lists_runs_and_details_one(launcher, capsys, monkeypatch):
    configs = [RunConfig(name="a"), RunConfig(name="b")]
    launcher.known = {config.name: config for config in configs}
    monkeypatch.setattr(runtime, "runs", lambda root: [_ended(config) for config in configs])
    assert main(["status"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["run", "a", "b"]
    launcher.make = _ended
    assert main(["status", "a"]) == 0
    assert "runs/a/metrics.jsonl" in capsys.readouterr().out


def _ended(config: RunConfig) -> FakeRun:
    run = FakeRun(config)
    for _ in range(run.num_lines):
        run.status()
    return run
