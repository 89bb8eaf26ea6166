import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accerl import plots, quickstart
from accerl.cli import processes
from accerl.cli.train import TrainOptions
from accerl.config import RunConfig
from accerl.runtime import run as runtime
from tests.cli.fakes import FakeRun, metrics_line

TASKS = ("red", "blue")
KEYS = {
    *("success_start", "success_final", "greedy_start", "greedy_final", "success_shuffled_instruction"),
    *("seed", "decisions", "env_steps", "updates", "train_wall_s", "decisions_per_s", "env_steps_per_s"),
    *("policy_lag_mean", "policy_lag_max", "discarded_decisions", "learner_busy", "inference_busy", "rollout_busy"),
    *("cores_busy", "incidents", "commit", "machine"),
}


class World:
    """The commands, the training and the film, each leaving what the real one leaves."""

    def __init__(self, folder: Path):
        self.out = folder / "q"
        self.done: list[str] = []
        self.trained: list[TrainOptions] = []
        self.state = "finished"
        self.wall_s = 100.0

    def run_commands(self, commands: list[list[str]], at_once: int = 1, log: Path | None = None) -> None:
        for name, *rest in commands:
            self.done.append(name)
            options = dict(zip(rest[::2], rest[1::2], strict=False))
            config = json.loads(Path(options["--config"]).read_text())
            if name == "demos":
                self._write(Path(options["--out"]) / "dataset.json", {key: config[key] for key in ("env", "demos")})
            elif name == "clone":
                made = {key: config[key] for key in ("env", "demos", "policy", "clone")}
                self._write(Path(options["--out"]) / "origin.json", made)
            else:
                by_task = {task: {"rate": 0.5, "interval": [0.4, 0.6], "episodes": 2} for task in TASKS}
                file = next(Path(word) for word in rest if word.endswith(".json") and "evaluation" in word)
                self._write(file, {"rate": 0.5, "interval": [0.4, 0.6], "episodes": 4, "by_task": by_task, "more": 1})

    def train(self, options: TrainOptions) -> int:
        self.trained.append(options)
        config = options.run_config()
        (config.folder / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        (config.folder / "config.json").write_text(config.model_dump_json())
        return 0 if self.state == "finished" else 130

    def attach(self, folder: Path, root: Path = Path("runs")) -> FakeRun:
        run = FakeRun(RunConfig.load(folder / "config.json"), num_lines=10)
        run.folder = folder
        run._looks = 10
        state = {**metrics_line(9, TASKS), "wall_s": self.wall_s, "state": self.state, "reason": ""}
        run.status = lambda: state
        return run

    def curve(self, metrics: list[dict[str, Any]], path: Path, **_: Any) -> None:
        self.done.append("curve")
        path.write_bytes(b"curve")

    def film(self, places: quickstart.Places, options: Any) -> None:
        self.done.append("film")
        (places.run / "rollouts.mp4").write_bytes(b"film")

    def call(self, *options: str) -> int:
        """A quickstart; what it did is in `done`."""
        self.done.clear()
        self.trained.clear()
        line = ["--out", str(self.out), "--env.suite", "dots", "--env.tasks", ",".join(TASKS), "--train-seconds", "100"]
        return quickstart.main([*line, *options])

    @staticmethod
    def _write(file: Path, content: dict[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


END = ["eval"] * 5 + ["curve", "film"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    for name in ("run_commands", "train", "film"):
        monkeypatch.setattr(quickstart, name, getattr(world, name))
    monkeypatch.setattr(plots, "curve", world.curve)
    monkeypatch.setattr(runtime, "attach", world.attach)
    return world


def test_it_goes_through_every_stage_and_leaves_a_summary_a_curve_and_a_film(world, capsys):
    assert world.call("--seed", "3") == 0
    assert world.done == ["demos", "clone", *END]
    (trained,) = world.trained
    assert trained.folder == world.out
    assert trained.policy.checkpoint == world.out.with_name("q-start") / "policy"
    assert (trained.seed, trained.clone.seed, trained.limits.max_wall_s) == (3, 3, 100.0)
    assert not trained.resume
    summary = json.loads((world.out / "summary.json").read_text())
    assert set(summary) == KEYS
    assert set(summary["success_start"]) == {"rate", "interval", "episodes", "by_task"}
    printed = capsys.readouterr().out
    for name in ("summary.json", "curve.png", "rollouts.mp4"):
        assert (world.out / name).stat().st_size > 0
        assert str(world.out / name) in printed
    assert "0.50 [0.40, 0.60]" in printed
    assert "What to try next" in printed


def test_the_summary_sums_up_the_whole_training(world):
    world.call()
    summary = json.loads((world.out / "summary.json").read_text())
    last = metrics_line(9)
    assert summary["train_wall_s"] == last["wall_s"] == 18.0
    assert summary["decisions_per_s"] == pytest.approx(last["decisions"] / 18.0)
    assert summary["policy_lag_max"] == last["run_policy_lag_max"]
    assert summary["cores_busy"] == pytest.approx([0.97, 0.94])
    assert summary["incidents"][0]["role"] == "rollout-0"


def test_a_second_call_keeps_the_start_and_sets_the_finished_run_aside(world):
    world.call()
    (world.out / "mark").write_text("first")
    assert world.call() == 0
    assert world.done == END
    assert len(world.trained) == 1
    assert (world.out.with_name("q-1") / "mark").exists()
    assert not (world.out / "mark").exists()
    world.call()
    assert world.out.with_name("q-2").is_dir()


@pytest.mark.parametrize(
    ("change", "made_anew"),
    [
        (["--demos.speed", "0.9"], ["demos", "clone"]),
        (["--env.image-size", "32"], ["demos", "clone"]),
        (["--clone.updates", "7"], ["clone"]),
        (["--policy.width", "64"], ["clone"]),
        (["--seed", "1"], ["clone"]),
        (["--learner.policy-lr", "0.1"], []),
    ],
)
def test_only_what_depends_on_a_changed_setting_is_made_anew(change, made_anew, world):
    world.call()
    world.call(*change)
    assert world.done == [*made_anew, *END]


def test_an_interrupted_training_ends_the_command_and_the_next_call_goes_on(world):
    world.state = "dead"
    assert world.call() == 130
    assert world.done == ["demos", "clone"]
    world.call()
    assert world.trained[0].resume is True
    assert not world.out.with_name("q-1").exists()


def test_an_interrupted_training_with_other_settings_is_set_aside(world):
    world.state = "dead"
    world.call()
    world.call("--learner.policy-lr", "0.1")
    assert world.trained[0].resume is False
    assert world.out.with_name("q-1").is_dir()


def test_a_training_that_was_stopped_before_its_limit_goes_on(world):
    world.call()
    (world.out / "summary.json").unlink()
    world.wall_s = 99.0
    world.call()
    assert world.trained[0].resume is True


def test_a_complete_training_without_results_is_not_repeated(world, capsys):
    world.call()
    (world.out / "summary.json").unlink()
    assert world.call() == 0
    assert world.trained == []
    assert (world.out / "summary.json").exists()


def test_a_run_that_is_going_on_is_left_alone(world, capsys):
    world.call()
    world.state = "running"
    assert world.call() == 2
    assert f"out: {world.out} is running" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--name", "--root"])
def test_the_folder_has_one_option_only(option, world, capsys):
    assert world.call(option, "other") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message == f"accerl: error: {option[2:]}: the quickstart takes it from --out; use that"


@pytest.fixture
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("in_an_empty_folder")
def test_a_command_that_fails_ends_the_others_and_gives_its_code(capfd):
    commands = [["status", "nothing"], ["status"]]
    with pytest.raises(SystemExit) as ended:
        processes.run_commands(commands)
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert printed.out.splitlines() == ["$ accerl status nothing"]
    assert printed.err.startswith("accerl: error: run: ")


def test_an_interruption_ends_the_commands_that_run(monkeypatch):
    started = []
    popen = processes.subprocess.Popen

    def start(*arguments: Any, **settings: Any) -> Any:
        started.append(popen(*arguments, **settings))
        return started[-1]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes, "time", SimpleNamespace(sleep=interrupt))
    with pytest.raises(KeyboardInterrupt):
        processes.run_commands([["doctor"], ["doctor"]], at_once=2)
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


@pytest.mark.usefixtures("in_an_empty_folder")
def test_what_several_commands_print_goes_to_the_log(tmp_path, capfd):
    processes.run_commands([["status"], ["--version"]], at_once=2, log=tmp_path / "log.txt")
    printed = capfd.readouterr().out.splitlines()
    assert printed[:2] == ["$ accerl status", "$ accerl --version"]
    assert printed[-1] == "2 of 2 done"
    assert "no runs below runs" in (tmp_path / "log.txt").read_text()
