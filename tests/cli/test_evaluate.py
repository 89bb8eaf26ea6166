"""`accerl eval` with worker processes: the same episodes however many there are, also if some of them die."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from accerl.checkpoint import save_policy
from accerl.cli import main
from accerl.cli.evaluate import EvalOptions, table
from accerl.cli.policies import env_of_policy, trained_states
from accerl.config import ConfigError, EnvConfig
from accerl.evaluation import EvaluationReport, plan_episodes
from accerl.players import Played
from accerl.types import Episode
from tests.roles.fakes import tiny_policy

ROOT = Path(__file__).parents[2]
ENV: dict[str, Any] = {
    "suite": "dots",
    "tasks": ["red", "blue"],
    "image_size": 16,
    "chunk_length": 2,
    "steps_per_action": 2,
    "max_decisions": 4,
    "reward": "dense",
}
"""Whose returns tell episodes apart."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    made = tiny_policy(max_decisions=4)
    save_policy(folder, made.config_dict(), made.state_dict())
    (folder / "origin.json").write_text(json.dumps({"env": ENV}))
    return folder


def evaluated(out: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """What `accerl eval` writes."""
    assert main(["eval", *options, "--out", str(out)]) == code
    return json.loads(out.read_text())


def results(content: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how the episodes were played."""
    return {name: content[name] for name in ("rate", "interval", "episodes", "by_task", "played", "seed")}


@pytest.mark.parametrize("how", ["sampled", "greedy"])
def test_a_policy_plays_the_same_episodes_however_many_workers_there_are(how, policy, tmp_path):
    line = ["--policy", str(policy), "--episodes-per-task", "3", *(["--greedy"] if how == "greedy" else [])]
    alone = evaluated(tmp_path / "alone.json", *line)
    pair = evaluated(tmp_path / "pair.json", *line, "--num-workers", "2")
    assert alone["episodes"] == 6
    assert results(pair) == results(alone)
    assert len({played["episode"]["episode_return"] for played in alone["played"]}) == 6
    assert results(evaluated(tmp_path / "other.json", *line, "--seed", "1")) != results(alone)


def test_the_demonstrator_plays_the_same_episodes_however_many_workers_there_are(tmp_path, capsys):
    (tmp_path / "dots.json").write_text(json.dumps({"env": {**ENV, "max_decisions": 12}}))
    line = ["--policy", "demonstrator", "--config", str(tmp_path / "dots.json"), "--episodes-per-task", "3"]
    one, two = (evaluated(tmp_path / f"{number}.json", *line, "--num-workers", number) for number in ("1", "2"))
    assert results(one) == results(two)
    assert one["rate"] == 1.0
    assert all(played["episode"]["num_decisions"] > 2 for played in one["played"]), "its decisions are single actions"
    assert "95 % interval" in capsys.readouterr().out


def test_the_result_says_what_was_played_and_under_which_conditions(policy, tmp_path):
    line = ["--policy", str(policy), "--episodes-per-task", "2", "--num-workers", "2", "--seed", "5"]
    content = evaluated(tmp_path / "e.json", *line)
    plans = plan_episodes(("red", "blue"), 2, seed=5, greedy=False)
    told = [(played["episode"]["task"], played["episode"]["number"], played["seed"]) for played in content["played"]]
    assert told == [(plan.task, plan.number, plan.seed) for plan in plans]
    assert (content["incidents"], content["given_up"], content["conditions"]) == ([], {}, {})
    assert content["env"] == EnvConfig(**ENV).model_dump(mode="json")
    assert (content["seed"], content["num_workers"], content["policy"]) == (5, 2, str(policy))


def test_a_failed_episode_is_filmed(policy, tmp_path):
    line = ["--policy", str(policy), "--episodes-per-task", "1", "--num-workers", "2", "--env.max-decisions", "1"]
    content = evaluated(tmp_path / "e.json", *line, "--films", str(tmp_path / "films"))
    assert [played["episode"]["success"] for played in content["played"]] == [False, False]
    films = [Path(played["film"]) for played in content["played"]]
    assert films == [tmp_path / "films" / f"{task}-0.mp4" for task in ("red", "blue")]
    assert all(film.read_bytes()[4:8] == b"ftyp" for film in films)


def test_a_success_is_not_filmed(tmp_path):
    (tmp_path / "dots.json").write_text(json.dumps({"env": {**ENV, "max_decisions": 12}}))
    line = ["--policy", "demonstrator", "--config", str(tmp_path / "dots.json"), "--episodes-per-task", "1"]
    content = evaluated(tmp_path / "e.json", *line, "--num-workers", "1", "--films", str(tmp_path / "films"))
    assert [played["film"] for played in content["played"]] == [None, None]
    assert not (tmp_path / "films").exists()


def test_a_task_whose_environment_keeps_failing_is_given_up_and_told(policy, tmp_path, capsys):
    line = ["--policy", str(policy), "--episodes-per-task", "4", "--env.suite", "tests.cli.fakes:half_broken_dots"]
    content = evaluated(tmp_path / "e.json", *line, "--num-workers", "2", code=1)
    assert list(content["by_task"]) == ["red"]
    assert content["by_task"]["red"]["episodes"] == content["episodes"] == 4
    reason = "raised: OSError: the blue paint has dried"
    assert content["given_up"] == {"blue": reason}
    assert {(incident["task"], incident["kind"]) for incident in content["incidents"]} == {("blue", "raised")}
    assert "Traceback" in content["incidents"][0]["detail"]
    printed = capsys.readouterr().out
    assert f"blue: given up, its environment kept failing ({reason})" in printed


def test_killed_and_stopped_workers_cost_no_episode(policy, tmp_path):
    line = ["--policy", str(policy), "--episodes-per-task", "4", "--env.suite", "tests.cli.fakes:slow_dots"]
    undisturbed = evaluated(tmp_path / "undisturbed.json", *line)
    out = tmp_path / "e.json"
    disturbing = ["--num-workers", "2", "--hang-s", "6", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "accerl.cli", "eval", *line, *disturbing],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
    )
    try:
        killed, stopped = two_workers(process.pid)
        killed.send_signal(signal.SIGKILL)
        stopped.send_signal(signal.SIGSTOP)
        printed, _ = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    content = json.loads(out.read_text())
    assert results(content) == results(undisturbed)
    assert {task: rate["episodes"] for task, rate in content["by_task"].items()} == {"red": 4, "blue": 4}
    assert Counter(incident["kind"] for incident in content["incidents"]) == {"died": 1, "hung": 1}
    assert "a worker died: signal SIGKILL" in printed
    assert "a worker hung: no sign of life for 6 s" in printed
    assert {line.split()[0]: line.split()[-1] for line in printed.splitlines() if "[" in line and "]" in line} == {
        "blue": "4",
        "red": "4",
        "all": "8",
    }
    assert not killed.is_running()
    assert not stopped.is_running()


def two_workers(owner: int) -> list[psutil.Process]:
    """Once both have been started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(owner).children()
        if len(workers := [child for child in children if "--multiprocessing-fork" in child.cmdline()]) == 2:
            return workers
        time.sleep(0.05)
    raise AssertionError("two workers were never seen")


def test_the_table_shows_long_names_of_tasks_to_their_ends():
    task = "pick_up_the_black_bowl_" + "_".join(f"behind_object_{number}" for number in range(9))
    episode = Episode(
        task=task,
        success=True,
        episode_return=1.0,
        num_decisions=1,
        num_env_steps=1,
        policy_version=0,
        origin="evaluation",
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(EvaluationReport((Played(episode=episode, seed=0, init_state=None),))))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert "".join(row[0] for row in rows[1:] if row[0] != "all") == task
    assert rows[1][1:] == ["1.00", "[0.21,", "1.00]", "1"]


# --- on LIBERO; full names of tasks need no installation of it --------------------------------------------------------

LIBERO: dict[str, Any] = {"suite": "libero_spatial", "tasks": ["pick_up_the_bowl"]}


def options(policy: str = "demonstrator", env: dict[str, Any] = LIBERO, **fields: Any) -> EvalOptions:
    return EvalOptions(**{"policy": policy, "env": env, **fields})


def test_libero_is_evaluated_on_held_out_initial_states_unless_others_are_asked_for():
    assert options().env.libero.init_states == "evaluation"
    assert options(env={**LIBERO, "libero": {"lag": True}}).env.libero.init_states == "evaluation"
    assert options(env={**LIBERO, "libero": {"init_states": "train"}}).env.libero.init_states == "train"


def test_a_protocol_says_how_libero_is_played():
    played = options(policy="p", protocol="openvla-oft").played_env
    assert (played.libero.init_states, played.max_env_steps, played.chunk_length) == ("all", 220, 8)
    assert options(policy="p").played_env == options(policy="p").env


def test_the_demonstrator_plays_single_actions_without_images():
    played = options(protocol="openvla-oft").played_env
    assert (played.chunk_length, played.cameras, played.max_env_steps) == (1, (), 220)
    assert played.max_decisions >= 220


def test_libero_and_the_demonstrator_have_workers_by_themselves(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    dots = {"suite": "dots", "tasks": ["red"]}
    assert options().workers == options(policy="p").workers == options(env=dots).workers == 3
    assert options(policy="p", env=dots).workers == 0
    assert options(num_workers=1).workers == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": ENV, "protocol": "rlinf"}, "protocol: 'rlinf' is for LIBERO, not for env.suite='dots'; leave it out"),
        ({"env": ENV, "policy": "p", "films": "f"}, "films: are made by workers; add --num-workers N"),
        ({"shuffle_instructions": True}, "shuffle_instructions: the demonstrator does not listen"),
        ({"protocol": "openvla"}, "protocol: input should be 'openvla-oft', 'simplevla-rl' or 'rlinf'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError) as refused:
        options(**fields)
    assert str(refused.value).startswith(message)


def test_the_states_that_a_policy_was_trained_on_are_known_and_not_evaluated_on(tmp_path):
    env = EnvConfig(**LIBERO, libero={"init_states": "all", "lag": True})  # pyright: ignore[reportArgumentType]
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "origin.json").write_text(json.dumps({"env": env.model_dump(mode="json")}))
    assert trained_states(tmp_path, "libero_spatial") == "all"
    assert trained_states(tmp_path, "libero_goal") is None
    fields = env_of_policy(EvalOptions, {"policy": str(tmp_path)})
    assert "init_states" not in fields["env"]["libero"]
    evaluated = EvalOptions(policy=tmp_path, **fields)
    assert (evaluated.env.libero.init_states, evaluated.env.libero.lag) == ("evaluation", True)


def test_the_demonstrator_needs_an_environment():
    with pytest.raises(ConfigError, match=r"env: demonstrator does not say which environment .*; give --env SUITE or"):
        env_of_policy(EvalOptions, {"policy": "demonstrator"})
    assert env_of_policy(EvalOptions, {"policy": "demonstrator", "env": {"suite": "dots"}}) == {}
    assert env_of_policy(EvalOptions, {"policy": "demonstrator", "env.suite": "dots"}) == {}
