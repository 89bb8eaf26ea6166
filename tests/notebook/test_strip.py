"""Frames in one JPEG, and curves with a number for each frame."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from accerl.notebook.strip import curves_of, facts_of, make_strip
from tests.roles.fakes import trajectory


def frame_of(strip, index):
    sheet = np.asarray(Image.open(io.BytesIO(strip.jpeg)))
    left, top = index % strip.columns * strip.width, index // strip.columns * strip.height
    return sheet[top : top + strip.height, left : left + strip.width]


def test_every_frame_stands_in_its_tile_with_all_cameras_side_by_side():
    colours = np.random.default_rng(0).integers(0, 256, (7, 2, 1, 1, 3), dtype=np.uint8)
    images = np.broadcast_to(colours, (7, 2, 16, 16, 3))
    strip = make_strip(images)
    assert (strip.num_frames, strip.columns, strip.width, strip.height) == (7, 3, 32, 16)
    for index in range(7):
        frame = frame_of(strip, index).astype(int)
        for camera in range(2):
            found = frame[4:12, 16 * camera + 4 : 16 * camera + 12].reshape(-1, 3)
            assert np.abs(found - images[index, camera, 0, 0].astype(int)).max() <= 6


def test_large_images_are_sent_smaller_with_their_proportions():
    images = np.zeros((3, 1, 225, 448, 3), np.uint8)
    images[1] = 200
    strip = make_strip(images)
    assert (strip.width, strip.height) == (112, 56)
    assert [int(frame_of(strip, index).mean()) for index in range(3)] == [0, 200, 0]


def test_curves_have_a_number_for_each_frame_and_consequences_stand_after_their_decision():
    made = trajectory(3, terminal=True, success=True)
    curves = curves_of(made)
    assert {len(values) for values in curves.values()} == {4}
    assert curves["reward"][0] is None and curves["value"][-1] is None
    np.testing.assert_allclose(np.array(curves["reward"][1:], float), made.reward, atol=1e-5)
    np.testing.assert_allclose(np.array(curves["surprise"][:-1], float), -made.log_prob.mean(1), atol=1e-5)
    assert curves["success"] == [0, 0, 0, 1]


def test_imagined_success_is_the_reward_models_probability_and_an_open_end_says_nothing():
    known = np.array([0.1, 0.4, 0.9], np.float32)
    curves = curves_of(trajectory(3, is_imagined=True, success_probability=known))
    assert "success" not in curves
    np.testing.assert_allclose(np.array(curves["success probability"][1:], float), known, atol=1e-5)
    assert not {"success", "success probability"} & curves_of(trajectory(3)).keys()


def test_facts_say_what_can_be_filtered_by():
    facts = facts_of(trajectory(3, policy_version=np.array([4, 4, 6], np.int32), truncated=True, is_imagined=True), 5)
    assert (facts["number"], facts["source"], facts["outcome"], facts["versions"]) == (5, "imagined", "failure", [4, 6])
