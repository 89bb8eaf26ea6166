"""Measures against numbers worked out by hand, and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accerl_wm.fidelity import area_under_curve, calibration_error, changed_psnr, fitted_temperature, psnr, ssim


def picture(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (2, 1, 16, 16, 3), generator=generator, dtype=torch.uint8)


def test_psnr_of_an_error_of_one_level_everywhere_is_48_decibels():
    black = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    assert psnr(black + 1, black).item() == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert psnr(black, black).item() == 100


def test_changed_places_are_those_that_differ_in_any_colour():
    before = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    truth = before.clone()
    truth[0, 0, 0, 0, 1] = 100
    predicted = before + 50  # wrong everywhere, but only one place counts
    mse = (50**2 + 50**2 + 50**2) / 3
    assert changed_psnr(predicted, truth, before).item() == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-4)
    assert changed_psnr(predicted, before, before).isnan().all()


def test_ssim_is_one_for_equals_and_falls_with_noise_but_not_with_a_shift_of_brightness():
    truth = (picture() // 2) + 60
    noisy = (truth.int() + torch.randint(-40, 41, truth.shape)).clamp(0, 255).to(torch.uint8)
    assert ssim(truth, truth).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (ssim(noisy, truth) < 0.95).all()
    assert (ssim(truth + 5, truth) > 0.99).all()


def test_ssim_of_constants_follows_the_formula():
    low, high = (
        torch.full((1, 1, 16, 16, 3), 50, dtype=torch.uint8),
        torch.full((1, 1, 16, 16, 3), 100, dtype=torch.uint8),
    )
    c1 = (0.01 * 255) ** 2
    assert ssim(low, high).item() == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1), abs=1e-5)


def test_area_under_the_curve_counts_pairs():
    score, label = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.4]), torch.tensor([False, False, True, True, True])
    # pairs won: .35 > .1; .8 > .1, .4; .4 > .1; and a tie of .4 with .4
    assert area_under_curve(score, label) == pytest.approx(4.5 / 6)
    assert math.isnan(area_under_curve(score, torch.ones(5, dtype=torch.bool)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_area_under_the_curve_is_the_share_of_pairs_in_order(pairs):
    score, label = torch.tensor([p[0] / 5 for p in pairs]), torch.tensor([p[1] for p in pairs])
    won = [float(s > f) + 0.5 * float(s == f) for s in score[label] for f in score[~label]]
    assert not won or area_under_curve(score, label) == pytest.approx(float(np.mean(won)))


def test_calibration_error_is_the_mean_distance_over_the_bins():
    probability = torch.tensor([0.05, 0.05, 0.95, 0.95])
    label = torch.tensor([False, True, True, True])
    assert calibration_error(probability, label) == pytest.approx((2 * 0.45 + 2 * 0.05) / 4)
    assert calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0


def test_the_temperature_that_log_odds_were_scaled_by_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, generator=generator)
    label = torch.rand(20_000, generator=generator) < torch.sigmoid(logits)
    assert fitted_temperature(3 * logits, label) == pytest.approx(3, rel=0.05)
    assert fitted_temperature(logits / 2, label) == pytest.approx(0.5, rel=0.05)
