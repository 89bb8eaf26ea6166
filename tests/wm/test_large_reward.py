"""A reward model out of OpenVLA-OFT's first layers, tiny: trained from the command line, kept, and judging."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from accerl.checkpoint import save_policy
from accerl.cli import main as accerl
from accerl.config import ConfigError, PolicyConfig
from accerl.demos import load
from accerl.policies import new_policy
from accerl.protocols import Policy
from accerl_wm import store
from accerl_wm.carriers import Frames
from accerl_wm.cli import main
from accerl_wm.config import RewardTraining
from accerl_wm.fidelity import area_under_curve
from accerl_wm.frames import FrameBuffer, of_demonstration
from accerl_wm.reward import LargeReward, build
from accerl_wm.training import RewardTrainer, fit
from tests.wm.scenes import SPEC, policy
from tests.wm.test_reward_training import LINE

INSTRUCTIONS = ("go to the red dot", "go to the blue dot")
UPDATES = 80


def large_policy() -> Policy:
    torch.manual_seed(0)
    return new_policy(PolicyConfig(kind="openvla_oft_tiny", width=64, num_layers=2), SPEC, INSTRUCTIONS, True)


def frames(num: int) -> Frames:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num, 1, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Frames(images=images, proprio=torch.zeros(num, 2))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wm") / "demos"
    line = f"{LINE} --demos.episodes-per-task 40 --demos.speed 0.9 --demos.noise 0.2"
    assert accerl(["demos", "--out", str(folder), *line.split()]) == 0
    return folder


def test_it_learns_to_recognise_success_and_is_calibrated(demos: Path):
    frames = FrameBuffer(chunk_length=2, held_out=0.25)
    frames.add(map(of_demonstration, load(demos)[0]))
    model = LargeReward.cut_from(large_policy(), num_layers=1)
    trainer = RewardTrainer(model, frames, RewardTraining(batch_size=32, updates=UPDATES))
    before = area_under_curve(*trainer.judge(96))
    fit(trainer.update, UPDATES)
    logits, labels = trainer.judge(96)
    assert area_under_curve(logits, labels) > max(0.8, before)
    temperature = trainer.calibrate(96)
    assert temperature != 1 and model.temperature.item() == pytest.approx(temperature)


def test_it_is_trained_from_the_command_line(demos: Path, tmp_path: Path):
    whole = large_policy()
    save_policy(tmp_path / "policy", whole.config_dict(), whole.state_dict())
    short = "--observation.updates 1 --reward.updates 2 --reward.batch-size 8 --reward-kind openvla_oft"
    line = ["train", "--demos", str(demos), "--out", str(tmp_path / "world"), *short.split()]
    with pytest.raises(ConfigError, match=r"large\.policy: is missing"):
        main(line)
    assert main([*line, "--large.policy", str(tmp_path / "policy"), "--large.num-layers", "1"]) == 0
    model: Any = store.load_model(tmp_path / "world", "reward")
    assert isinstance(model, LargeReward) and model.temperature != 1
    cut, trained = (
        each.vision_backbone.featurizer.patch_embed.proj.weight for each in (cast(Any, whole).model, model.classifier)
    )
    assert not torch.equal(cut, trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_rebuilt_without_its_policy_judges_the_same(dtype: torch.dtype, tmp_path: Path):
    whole: Any = large_policy()
    model = LargeReward.cut_from(whole.to(dtype), num_layers=1, freeze_vision=True)
    model.temperature.fill_(2.0)
    store.save_model(tmp_path, "reward", model)
    again = store.load_model(tmp_path, "reward")
    seen, instructions = frames(3), [INSTRUCTIONS[0], INSTRUCTIONS[1], INSTRUCTIONS[0]]
    assert torch.equal(again.predict(seen, instructions), model.predict(seen, instructions))
    assert len(again.classifier.language_model.layers) == 1
    assert again.classifier.projector.fc1.weight.dtype == dtype
    assert not any(parameter.requires_grad for parameter in again.classifier.vision_backbone.parameters())


def test_what_it_cannot_be_cut_from_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"large\.policy: is tiny_vla"):
        LargeReward.cut_from(policy())
    with pytest.raises(ConfigError, match="num_layers: 3 of the policy's 2"):
        LargeReward.cut_from(large_policy(), num_layers=3)
    with pytest.raises(ConfigError, match=r"reward_kind.*convolutional"):
        build({"kind": "magic"})
