from __future__ import annotations

import pytest
import torch

from accerl_wm.observation.body import NARROW, Keypoints, body_planes, localisation_loss
from accerl_wm.observation.config import SceneConfig
from accerl_wm.observation.window import Window


def test_the_camera_finds_what_moves():
    """Two cameras see a point at (0.6 p + 0.1, -0.5 q) and at (q, p) / (2 - p)."""
    torch.manual_seed(0)
    keypoints = Keypoints(
        SceneConfig(image_size=32, num_cameras=2, proprio_dim=2, action_dim=1, chunk_length=1, num_keypoints=1)
    )
    optimizer = torch.optim.Adam(keypoints.parameters(), lr=3e-3)
    for _ in range(200):
        proprio, truth = seen(32)
        pixel = ((truth + 1) * 8).long().clamp(0, 15).flatten(0, 1)
        changed = torch.zeros(len(pixel), 16, 16)
        changed[torch.arange(len(pixel)), pixel[:, 1], pixel[:, 0]] = 1.0
        loss = localisation_loss(keypoints(proprio).flatten(0, 1), changed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    proprio, truth = seen(256)
    assert (keypoints(proprio)[:, :, 0] - truth).abs().mean() < 0.05  # a pixel is 0.125


def seen(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    proprio = torch.rand(count, 2) * 1.6 - 0.8
    p, q = proprio.unbind(1)
    first, second = torch.stack([0.6 * p + 0.1, -0.5 * q], 1), torch.stack([q / (2 - p), p / (2 - p)], 1)
    return proprio, torch.stack([first, second], 1)


def test_planes_peak_at_the_point_and_know_on_which_side_a_pixel_is():
    window = Window.around(torch.zeros(1, 1, 2), size=8, side=8)
    x, y = window.coordinates()
    point = torch.tensor([[[x[0, 5].item(), y[0, 2].item()]]])
    narrow, wide, right, down = body_planes(point, x, y)[0]
    assert narrow.argmax() == 2 * 8 + 5
    assert wide.argmax() == 2 * 8 + 5
    assert narrow[2, 6].item() == pytest.approx(torch.exp(torch.tensor(-(0.25**2) / (2 * NARROW**2))).item())
    assert right[2, 6] > 0 > right[2, 4]
    assert down[3, 5] > 0 > down[1, 5]


def test_a_window_is_cut_around_the_points_and_pasted_back():
    points = torch.tensor([[[-0.5, 0.0], [0.0, 0.0]], [[-1.5, 1.5], [-1.5, 1.5]]])
    window = Window.around(points, size=16, side=4)
    assert window.x[:, 0].tolist() == [4, 0]  # the middle is column 6; the second lies outside the picture
    assert window.y[:, 0].tolist() == [6, 12]
    planes = torch.arange(2 * 3 * 256).float().view(2, 3, 16, 16)
    assert torch.equal(window.cut(planes)[0], planes[0, :, 6:10, 4:8])
    assert torch.equal(window.cut(planes)[1], planes[1, :, 12:16, 0:4])
    pasted = window.paste(planes, torch.zeros(2, 3, 4, 4))
    assert pasted[0, :, 6:10, 4:8].abs().sum() == 0
    assert (pasted != planes).sum() == 2 * 3 * 16 - (window.cut(planes) == 0).sum()
    assert torch.equal(window.paste(planes, window.cut(planes)), planes)
