"""A reward model that learns to recognise success in `dots`, from the command line to imagination."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from accerl.cli import main as accerl
from accerl.config import (
    ConfigError,
    ImaginationConfig,
    LearnerConfig,
    LimitsConfig,
    ReplayConfig,
    RolloutConfig,
    RunConfig,
)
from accerl.demos import load
from accerl.envs import make_env
from accerl.policy_server import LocalClient
from accerl.rollout import RolloutWorker
from accerl.runtime.inline import InlineRun
from accerl.trajectories import TrajectorySample
from accerl.types import EpisodePlan
from accerl_wm import store
from accerl_wm.carriers import Frames
from accerl_wm.cli import main
from accerl_wm.conformance import check_observation_model
from accerl_wm.frames import FrameBuffer, of_demonstration
from accerl_wm.imagination import Imagination
from accerl_wm.inline import InlineImagination
from accerl_wm.reward import ConvolutionalReward, ConvolutionalRewardConfig
from accerl_wm.training import focal_cross_entropy
from tests.wm.scenes import DOTS, SPEC, Gathered, policy, server
from tests.wm.test_perceptual import weights
from tests.wm.users_model import Mover

LINE = "--env.suite dots --env.tasks red,blue --env.image-size 16 --env.chunk-length 2 --env.max-decisions 8"


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wm") / "demos"
    line = f"{LINE} --demos.episodes-per-task 40 --demos.speed 0.9 --demos.noise 0.2"
    assert accerl(["demos", "--out", str(folder), *line.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def world(demos):
    out = demos.parent / "world"
    line = "--held-out 0.25 --observation.updates 150 --observation.steps 1 --reward.updates 250 --reward.batch-size 64"
    assert main(["train", "--demos", str(demos), "--out", str(out), *line.split()]) == 0
    return out


def test_a_trained_world_model_predicts_better_than_copying_and_recognises_success(world, demos, capsys):
    assert main(["eval", "--world-model", str(world), "--demos", str(demos), "--held-out", "0.25"]) == 0
    found = json.loads((world / "evaluation.json").read_text())
    assert "lpips" not in found["drift"][0]
    first = found["drift"][0]
    assert first["horizon"] == 1 and first["psnr"] > first["copy"] + 2
    assert found["recognition"]["auc_real"] > 0.9
    assert found["recognition"]["calibration_error_real"] < 0.15
    assert (world / "evaluation.png").stat().st_size > 1000
    assert "psnr" in capsys.readouterr().out


def test_pictures_are_compared_by_lpips_where_its_weights_are_given(world, demos, tmp_path, capsys):
    save_file(weights("vgg", scale=0.05), tmp_path / "vgg.safetensors")
    line = ["eval", "--world-model", str(world), "--demos", str(demos), "--held-out", "0.1"]
    out = tmp_path / "evaluation.json"
    assert main([*line, "--lpips", str(tmp_path / "vgg.safetensors"), "--out", str(out)]) == 0
    (first, *_) = json.loads(out.read_text())["drift"]
    assert first["lpips"] > 0 and first["copy_lpips"] > 0
    assert "copy_lpips" in capsys.readouterr().out
    save_file(weights("alex"), tmp_path / "alex.safetensors")
    with pytest.raises(ConfigError, match="lpips: pictures of 16 pixels are too small for alex"):
        main([*line, "--lpips", str(tmp_path / "alex.safetensors"), "--out", str(out)])


def test_a_trained_world_model_imagines_for_a_policy(world, demos):
    frames = FrameBuffer(chunk_length=2, held_out=0.0)
    frames.add(map(of_demonstration, load(demos)[0]))
    made = Imagination(store.load(world), frames, SPEC, ImaginationConfig(slots=4), discount=0.99)
    trajectories = made.imagine(60, server())
    assert {trajectory.task for trajectory in trajectories} == {"red", "blue"}
    assert all(np.isfinite(trajectory.proprio).all() for trajectory in trajectories)


def test_a_model_of_the_users_own_is_checked_trained_saved_and_imagined_with(demos, tmp_path):
    out = tmp_path / "own"
    line = f"--kind {Mover.__module__}:Mover --observation.updates 60 --observation.steps 1 --reward.updates 20"
    assert main(["train", "--demos", str(demos), "--out", str(out), *line.split()]) == 0
    world = store.load(out)
    assert isinstance(world.observation, Mover) and world.observation.rate.item() > 0.03, "it has learned how fast"
    check_observation_model(world.observation, SPEC)
    frames = FrameBuffer(chunk_length=2, held_out=0.0)
    frames.add(map(of_demonstration, load(demos)[0]))
    config = ImaginationConfig(slots=4, share=0.5, horizon=3)
    imagination = Imagination(world, frames, SPEC, config, discount=0.99)
    updates: list[dict[str, float]] = []
    InlineRun(
        RunConfig(
            env=DOTS,
            rollout=RolloutConfig(slots_per_worker=8),
            replay=ReplayConfig(min_decisions=32),
            learner=LearnerConfig(batch_decisions=32, value_warmup_updates=0),
            limits=LimitsConfig(max_updates=3),
        ),
        policy(),
        lambda: make_env(DOTS),
        on_update=updates.append,
        imagination=InlineImagination(imagination, frames, config, world=world),
    ).run()
    assert len(updates) == 3 and len(imagination.episodes) > 4


def test_what_was_saved_predicts_the_same(world):
    first, second = store.load(world), store.load(world)
    frames = torch.randint(256, (3, 2, 1, 16, 16, 3), dtype=torch.uint8)
    past = Frames(images=frames, proprio=torch.zeros(3, 2, 2))
    one, other = (model.observation.predict(past, torch.ones(3, 2, 2, 2)) for model in (first, second))
    assert torch.equal(one.images, other.images) and torch.equal(one.proprio, other.proprio)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --demos {missing} --out {out}", r"dataset\.json"),
        ("train --demos {demos} --out {world}", r"out: .*--overwrite"),
        ("train --demos {demos} --out {out} --kind magic", "kind"),
        ("train --demos {demos} --out {out} --window 13", "window: .*multiple of 8"),
        ("eval --world-model {missing} --demos {demos}", r"world\.json.*accerl wm train"),
        ("eval --world-model {world} --demos {demos} --held-out 0", "held_out"),
        ("evaluate", r"unknown command 'wm evaluate'"),
    ],
)
def test_wrong_command_lines_name_the_field_and_the_remedy(line, message, world, demos, tmp_path):
    places = {"missing": tmp_path / "missing", "out": tmp_path / "out", "world": world, "demos": demos}
    with pytest.raises(ConfigError, match=message):
        main(line.format(**places).split())


def test_a_truncated_file_is_refused_with_its_name(world, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in world.iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 100 if path.name == "reward.safetensors" else None])
    with pytest.raises(ConfigError, match="reward cannot be read"):
        store.load(broken)


def test_an_instruction_without_a_known_word_is_refused():
    model = ConvolutionalReward(
        ConvolutionalRewardConfig(image_size=16, num_cameras=1, proprio_dim=2, vocabulary=("go",))
    )
    frames = Frames(images=torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), proprio=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="fly away"):
        model.predict(frames, ["fly away"])


def test_focal_cross_entropy_with_gamma_0_is_cross_entropy_and_discounts_what_is_known():
    logits, target = torch.tensor([4.0, -0.5]), torch.tensor([1.0, 1.0])
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert focal_cross_entropy(logits, target, 0.0).item() == pytest.approx(each.mean().item())
    missed = 1 - torch.sigmoid(logits)
    assert focal_cross_entropy(logits, target, 2.0).item() == pytest.approx((missed**2 * each).mean().item())


def test_a_run_is_audited_by_the_trajectories_that_it_keeps(world, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"rollout\.keep-state"):
        main(["audit", "--world-model", str(world), "--run", str(kept_run(tmp_path / "without", keep_state=False))])
    run = kept_run(tmp_path / "with", keep_state=True)
    assert main(["audit", "--world-model", str(world), "--run", str(run), "--num", "3"]) == 0
    found = json.loads((run / "audit.json").read_text())
    tasks = [audited["task"] for audited in found["audits"]]
    assert len(tasks) == 3 and set(tasks[:2]) == {"red", "blue"}
    assert all(audited["psnr"][0] == 100 for audited in found["audits"])
    assert (run / "audit.png").stat().st_size > 5000
    assert "of 3" in capsys.readouterr().out


def kept_run(folder, keep_state: bool):
    """The folder of a run that has kept every trajectory of four episodes."""
    gathered = Gathered([EpisodePlan(task=task, seed=seed) for seed in range(2) for task in ("red", "blue")])
    config = RolloutConfig(slots_per_worker=1, keep_state=keep_state)
    worker = RolloutWorker("w", lambda: make_env(DOTS), config, LocalClient(server()), gathered, gathered, seed=0)
    asyncio.run(worker.run())
    sample = TrajectorySample(folder / "trajectories", every=1)
    for trajectory in gathered.trajectories:
        sample.offer(trajectory)
    (folder / "config.json").write_text(RunConfig(env=DOTS).model_dump_json())
    return folder
