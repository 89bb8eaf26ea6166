"""The commands that make and judge policies, on a small world without a simulator."""

import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from safetensors.numpy import save_file

from accerl.cli import main
from accerl.config import EnvConfig
from accerl.demos import load
from accerl.evaluation import plan_episodes

SETTINGS = {
    "env": {"suite": "dots", "tasks": ["red", "blue"], "image_size": 16, "max_decisions": 4, "chunk_length": 2},
    "demos": {"episodes_per_task": 3, "speed": 1.0, "noise": 0.1},
    "policy": {"width": 16, "num_layers": 1, "num_heads": 2},
    "clone": {"updates": 5, "batch_size": 8, "num_threads": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds config.json, demos and policy."""
    folder = tmp_path_factory.mktemp("dots")
    settings = {**SETTINGS, "env": {**SETTINGS["env"], "max_decisions": 20}}
    (folder / "config.json").write_text(json.dumps(settings))
    config = ["--config", str(folder / "config.json")]
    assert main(["demos", *config, "--out", str(folder / "demos")]) == 0
    assert main(["clone", *config, "--data", str(folder / "demos"), "--out", str(folder / "policy")]) == 0
    return folder


def test_demonstrations_are_recorded_in_the_configured_environment(folder):
    demonstrations, env = load(folder / "demos")
    assert [demonstration.task for demonstration in demonstrations] == ["red"] * 3 + ["blue"] * 3
    assert env.image_size == 16


def test_a_cloned_policy_says_how_it_was_made(folder):
    origin = json.loads((folder / "policy" / "origin.json").read_text())
    assert origin["env"]["suite"] == "dots"
    assert origin["demos"]["episodes_per_task"] == 3
    assert origin["clone"]["updates"] == 5
    assert origin["loss"] > 0


@pytest.mark.parametrize("command", ["demos", "clone"])
def test_what_is_there_is_replaced_only_if_asked(command, folder, capsys):
    config = ["--config", str(folder / "config.json")]
    data = ["--data", str(folder / "demos")] if command == "clone" else []
    out = ["--out", str(folder / ("policy" if command == "clone" else "demos"))]
    assert main([command, *config, *data, *out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([command, *config, *data, *out, "--overwrite"]) == 0


def test_a_policy_is_evaluated_where_it_was_made_for_and_the_result_written(folder, capsys):
    out = folder / "results" / "e.json"
    assert main(["eval", "--policy", str(folder / "policy"), "--episodes-per-task", "3", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["episodes"] == 6
    low, high = result["interval"]
    assert low - 1e-9 <= result["rate"] <= high + 1e-9
    assert {task: rate["episodes"] for task, rate in result["by_task"].items()} == {"red": 3, "blue": 3}
    assert result["env"]["max_decisions"] == 20
    printed = capsys.readouterr().out
    assert "95 % interval" in printed
    assert str(out) in printed


def test_an_evaluation_depends_on_its_seed_only(folder):
    results = []
    for name, slots in (("a", "1"), ("b", "4")):
        out = folder / f"{name}.json"
        line = ["eval", "--policy", str(folder / "policy"), "--episodes-per-task", "4", "--env.max-decisions", "8"]
        assert main([*line, "--num-slots", slots, "--out", str(out)]) == 0
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1]
    assert results[0]["env"]["max_decisions"] == 8


def test_a_checkpoint_is_evaluated_in_the_environment_of_its_run(folder, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for number in ("step-00000001", "step-00000002"):
        checkpoint = run / "checkpoints" / number
        checkpoint.mkdir()
        for file in ("policy.json", "policy.safetensors"):
            (checkpoint / file).write_bytes((folder / "policy" / file).read_bytes())
        for file in ("learner.json", "run.json"):
            (checkpoint / file).write_text("{}")
        save_file({}, checkpoint / "learner.safetensors")
    (run / "config.json").write_text(json.dumps(SETTINGS))
    out = tmp_path / "e.json"
    for policy in (run, checkpoint):
        assert main(["eval", "--policy", str(policy), "--episodes-per-task", "1", "--out", str(out)]) == 0
        assert json.loads(out.read_text())["env"]["max_decisions"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env.image-size", "32"], "policy.checkpoint: made for image_size=16, but the environment has 32"),
        (["--env.tasks", "red", "--shuffle-instructions"], "env.tasks: shuffling instructions needs"),
    ],
)
def test_what_does_not_fit_the_policy_is_refused(options, message, folder, capsys):
    assert main(["eval", "--policy", str(folder / "policy"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"accerl: error: {message}")


def test_a_policy_of_unknown_origin_needs_an_environment(folder, tmp_path, capsys):
    for file in ("policy.json", "policy.safetensors"):
        (tmp_path / file).write_bytes((folder / "policy" / file).read_bytes())
    assert main(["eval", "--policy", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"accerl: error: env: {tmp_path} does not say")
    config = ["--config", str(folder / "config.json")]
    assert main(["eval", "--policy", str(tmp_path), *config, "--episodes-per-task", "1"]) == 0


def test_a_film_shows_the_same_episodes_side_by_side_in_a_format_that_browsers_play(folder, tmp_path):
    from accerl.checkpoint import load_policy
    from accerl.films import BAND, GAP, VIEW, rollout_film

    env = EnvConfig(**SETTINGS["env"])
    policy = load_policy(folder / "policy")
    played = []
    path = tmp_path / "films" / "film.mp4"
    plans = plan_episodes(env.tasks, 1, seed=0, greedy=True)
    rollout_film({"left": policy, "right": policy}, env, plans, path, on_episode=lambda: played.append(1))
    assert len(played) == 4

    reader = imageio_ffmpeg.read_frames(str(path))
    facts = next(reader)
    assert isinstance(facts, dict)
    width, height = 2 * VIEW + GAP, VIEW + 2 * BAND
    assert (facts["codec"], facts["pix_fmt"].partition("(")[0], facts["size"]) == ("h264", "yuv420p", (width, height))
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader if isinstance(frame, bytes)]
    assert len(frames) > 2 * 4
    for frame in frames:
        views = frame[BAND + 8 : BAND + VIEW - 8].astype(int)
        left, right = views[:, 8 : VIEW - 8], views[:, VIEW + GAP + 8 : -8]
        assert left.std() > 5
        assert np.abs(left - right).mean() < 0.5  # one policy, one seed; the encoder changes a little


def test_a_filmed_environment_keeps_every_environment_step_and_the_result():
    from accerl.envs import make_env
    from accerl.films import VIEW, FilmedEnv

    takes = []
    env = FilmedEnv(make_env(EnvConfig(**SETTINGS["env"])), takes)
    env.reset(seed=0, options={"task": "blue"})
    steps = sum(env.step_chunk(np.zeros((2, 2))).num_env_steps for _ in range(4))
    (take,) = takes
    assert take.instruction == "go to the blue dot"
    assert len(take.frames) == 1 + steps == 17
    assert take.frames[0].shape == (VIEW, VIEW, 3)
    assert take.success is False


def test_a_film_without_frames_is_refused(tmp_path):
    from accerl.films import write_film

    with pytest.raises(ValueError, match="frames: a film needs at least one"):
        write_film(tmp_path / "film.mp4", iter(()))
