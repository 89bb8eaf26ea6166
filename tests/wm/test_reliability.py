"""Whether what is imagined may be learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from accerl.config import ImaginationConfig
from accerl_wm.carriers import Frames
from accerl_wm.frames import RealEpisode
from accerl_wm.reliability import Audited, Reliability, audit_episode
from accerl_wm.world import WorldModel

CONFIG = ImaginationConfig(share=0.9, horizon=6, audited_episodes=20, trusted=0.8, distrusted=0.5)


def filled(real: str, imagined: str) -> Reliability:
    """From the outcomes of episodes, + and -."""
    reliability = Reliability(CONFIG)
    for success, claim in zip(real, imagined, strict=True):
        reliability.add(Audited(success == "+", claim == "+", (30.0, 25.0)))
    return reliability


def test_nothing_is_judged_by_a_few_episodes():
    verdict = filled("-" * 5 + "+" * 2, "+" * 5 + "-" * 2).verdict
    assert (verdict.share, verdict.horizon, verdict.reason) == (0.9, 6, "")


@pytest.mark.parametrize(
    ("agreeing", "share", "horizon"), [(20, 0.9, 6), (16, 0.9, 6), (15, 0.9, 3), (10, 0.9, 3), (9, 0.0, 3)]
)
def test_the_less_the_models_agree_with_what_happened_the_less_is_imagined(agreeing: int, share: float, horizon: int):
    verdict = filled("+" * 20, "+" * agreeing + "-" * (20 - agreeing)).verdict
    assert (verdict.share, verdict.horizon) == (share, horizon)
    assert f"{agreeing / 20:.0%} of the last 20" in verdict.reason


def test_models_that_have_become_better_are_trusted_again():
    reliability = filled("+" * 20, "-" * 20)
    assert reliability.verdict.share == 0
    for _ in range(20):
        reliability.add(Audited(True, True, ()))
    assert (reliability.verdict.share, reliability.verdict.horizon) == (0.9, 6)


def test_the_gate_does_not_flutter_around_its_bounds():
    reliability = filled("+" * 20, "+" * 9 + "-" * 11)
    shares = []
    for _ in range(6):  # ever the oldest of them leaves, which the models agreed with, and another like it comes
        reliability.add(Audited(True, True, ()))
        shares.append(reliability.verdict.share)
    assert shares == [0.0] * 6, "45 % were too few, and it stays closed below 65 %"
    exploited = filled("+" * 10 + "-" * 9, "+" * 10 + "+" * 5 + "-" * 4)
    assert exploited.verdict.share == 0
    exploited.add(Audited(False, False, ()))
    exploited.add(Audited(False, False, ()))
    assert not exploited.is_exploited and exploited.verdict.share == 0, "5 of 11 failures are still above 40 %"
    for _ in range(2):
        exploited.add(Audited(False, False, ()))
    assert exploited.verdict.share == 0.9
    reliability.set_horizon(2)
    assert reliability.verdict.horizon == 1


def test_failures_that_look_like_successes_are_exploitation_and_missed_successes_are_not():
    exploited = filled("-" * 14 + "+" * 6, "+" * 10 + "-" * 4 + "+" * 6)
    assert exploited.is_exploited and exploited.false_success == pytest.approx(10 / 14)
    assert exploited.verdict.share == 0 and "71% of the last failures look like successes" in exploited.verdict.reason
    blind = filled("-" * 14 + "+" * 6, "-" * 20)
    assert not blind.is_exploited and blind.missed_success == 1.0 and blind.false_success == 0.0
    assert not filled("-" * 5 + "+" * 15, "+" * 20).is_exploited, "five failures say little"


def test_what_is_reported_is_known():
    assert Reliability(CONFIG).report() == {"audited": 0.0, "audit_exploited": 0.0}
    report = filled("+-", "++").report()
    assert report["audit_psnr_1"] == 30.0 and "audit_psnr_6" not in report
    assert report["audit_same_outcome"] == 0.5 and all(math.isfinite(value) for value in report.values())


class Still:
    """Nothing ever changes."""

    history = 2

    def predict(self, past: Frames, actions: torch.Tensor) -> Frames:
        return Frames(images=past.images[:, -1].clone(), proprio=past.proprio[:, -1].clone())


class Bright:
    """Success is a bright image."""

    def predict(self, frames: Frames, instructions: Sequence[str]) -> torch.Tensor:
        return frames.images.float().mean((1, 2, 3, 4)) / 255


def test_an_episode_is_imagined_from_its_first_frame_alone():
    images = np.zeros((4, 1, 16, 16, 3), np.uint8)
    images[1:] = 100
    images[-1] = 250
    episode = RealEpisode(
        task="t",
        instruction="shine",
        images=images,
        proprio=np.zeros((4, 2), np.float32),
        action=np.zeros((6, 1), np.float32),
        every=2,
        success=True,
    )
    audited = audit_episode(WorldModel(Still(), Bright()), episode, chunk_length=2, threshold=0.5)
    assert audited.success and not audited.imagined_success, "a world that stands still never gets bright"
    assert len(audited.psnr) == 3 and audited.psnr[0] == pytest.approx(20 * math.log10(255 / 100), abs=1e-3)
    assert audit_episode(WorldModel(Still(), Bright()), episode, 2, threshold=0.0).imagined_success
