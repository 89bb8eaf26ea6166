"""How near predictions are to what happened: of pictures, and of probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from accerl_wm.carriers import Frames, Windows
from accerl_wm.protocols import ObservationModel

CHANGED = 8
"""Levels of 255 by which a pixel of a changed place differs, in any colour."""


def psnr(
    predicted: UInt8[Tensor, "*batch camera height width 3"], truth: UInt8[Tensor, "*batch camera height width 3"]
) -> Float[Tensor, "*batch"]:
    r"""$10 \log_{10}(255^2 / MSE)$ in decibels, over all cameras; 100 for what is equal."""
    error = (predicted.float() - truth.float()).square().mean((-1, -2, -3, -4))
    return (10 * torch.log10(255**2 / error.clamp(min=1e-10))).clamp(max=100.0)


def changed_psnr(
    predicted: UInt8[Tensor, "*batch camera height width 3"],
    truth: UInt8[Tensor, "*batch camera height width 3"],
    before: UInt8[Tensor, "*batch camera height width 3"],
) -> Float[Tensor, "*batch"]:
    """The same over the places that differ between `before` and `truth`; NaN where nothing does."""
    where = (before.int() - truth.int()).abs().amax(-1, keepdim=True) > CHANGED
    error = ((predicted.float() - truth.float()).square() * where).sum((-1, -2, -3, -4)) / (
        3 * where.sum((-1, -2, -3, -4))
    )
    return (10 * torch.log10(255**2 / error.clamp(min=1e-10))).clamp(max=100.0)


def ssim(
    predicted: UInt8[Tensor, "batch camera height width 3"], truth: UInt8[Tensor, "batch camera height width 3"]
) -> Float[Tensor, " batch"]:
    r"""Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels and deviation 1.5, each colour by itself.

    $$SSIM = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
    {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
    \quad C_1 = (0.01 \cdot 255)^2, C_2 = (0.03 \cdot 255)^2$$
    """
    x, y = (images.float().movedim(-1, -3).flatten(0, 2)[:, None] for images in (predicted, truth))
    window = torch.exp(-(torch.arange(-5, 6, device=x.device).float() ** 2) / (2 * 1.5**2))
    kernel = torch.outer(window, window)[None, None] / window.sum() ** 2

    def blurred(image: Tensor) -> Tensor:
        return F.conv2d(image, kernel)

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    found = found / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
    return found.view(len(predicted), -1).mean(1)


def roll_out(model: ObservationModel, windows: Windows, steps: int) -> Frames:
    """Predictions [batch, steps, ...] on the model's own outputs, from the first `history` frames of the windows."""
    history = model.history
    images, proprio = (
        list(windows.frames.images[:, :history].unbind(1)),
        list(windows.frames.proprio[:, :history].unbind(1)),
    )
    memory = windows.frames.memory
    with torch.inference_mode():
        for step in range(steps):
            past = Frames(
                images=torch.stack(images[-history:], 1), proprio=torch.stack(proprio[-history:], 1), memory=memory
            )
            predicted = model.predict(past, windows.actions[:, step : step + history])
            memory = predicted.memory
            images.append(predicted.images)
            proprio.append(predicted.proprio)
    return Frames(images=torch.stack(images[history:], 1), proprio=torch.stack(proprio[history:], 1))


def area_under_curve(score: Float[Tensor, " frame"], label: Bool[Tensor, " frame"]) -> float:
    """Probability that a success scores higher than a failure, ties half; NaN with only one kind."""
    order = score.argsort()
    rank = torch.empty(len(score), dtype=torch.float64)
    rank[order] = torch.arange(1, len(score) + 1, dtype=torch.float64)
    _, group, size = score.unique(return_inverse=True, return_counts=True)
    rank = torch.zeros(len(size), dtype=torch.float64).index_add_(0, group, rank)[group] / size[group]
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return float("nan")
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(probability: Float[Tensor, " frame"], label: Bool[Tensor, " frame"], bins: int = 10) -> float:
    """Expected calibration error: mean distance of probability and frequency over equal bins, by their sizes."""
    place = (probability * bins).long().clamp(max=bins - 1)
    gaps = [
        float(inside.sum()) * abs(float(probability[inside].mean()) - float(label[inside].float().mean()))
        for bin in range(bins)
        if (inside := place == bin).any()
    ]
    return sum(gaps) / len(probability)


def fitted_temperature(logits: Float[Tensor, " frame"], label: Bool[Tensor, " frame"]) -> float:
    """What log-odds are divided by so that their probabilities fit best (Guo et al. 2017): least cross-entropy."""
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(logits.double() * scale.exp(), label.double())
        value.backward()
        return value

    optimizer.step(loss)
    return float((-scale.detach().clamp(-5, 5)).exp())
