"""Training on own outputs: what a model predicts is what it next looks back on, as in imagination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from accerl_wm.carriers import Windows
from accerl_wm.observation.body import localisation_loss
from accerl_wm.observation.conditioning import Scaling
from accerl_wm.observation.config import SceneConfig

CHANGED = 0.08
"""How much of [-1, 1] a pixel differs by before it counts as changed: 10 of 255."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One question of a window, and its answer."""

    images: Tensor
    """Looked back on [B, H, V, 3, Y, X]: real ones, and from the second decision on the model's own."""
    proprio: Tensor
    """Likewise [B, H, P]."""
    actions: Tensor
    """[B, H, chunk, action]."""
    next_image: Tensor
    """The truth [B, V, 3, Y, X]."""
    next_proprio: Tensor
    """[B, P]."""
    changed: Tensor
    """1.0 where the truth differs from the true frame before it [B, V, 1, Y, X]."""
    is_real: Tensor
    """1.0, or 0.0 where there is nothing to learn [B]."""

    def mean(self, error: Tensor) -> Tensor:
        """Of rows with something to learn, of an error [B, ...]."""
        return (error.flatten(1).mean(1) * self.is_real).sum() / self.is_real.sum().clamp(min=1.0)

    def body_losses(self, config: SceneConfig, proprio: Tensor, points: Tensor) -> dict[str, Tensor]:
        """Of the predicted proprio [B, P] and of the body's points in the image.

        The root mean square of each dimension by itself, or else the one that is hardest to predict drowns the others.
        """
        moving = F.avg_pool2d((self.changed * self.is_real[:, None, None, None, None]).flatten(0, 1), 4)[:, 0]
        squared = ((proprio - self.next_proprio).square() * self.is_real[:, None]).sum(0)
        error = (squared / self.is_real.sum().clamp(min=1.0) + 1e-8).sqrt().mean()
        return {
            "proprio": config.proprio_weight * error,
            "localisation": config.localisation_weight * localisation_loss(points, moving),
        }


def unroll(
    windows: Windows,
    scaling: Scaling,
    history: int,
    answer: Callable[[Decision], tuple[Tensor, Tensor, dict[str, Tensor]]],
) -> tuple[Tensor, dict[str, float]]:
    """The summed loss terms, mean over the decisions of the windows; and what to log.

    Args:
        answer: predicted image [B, V, 3, Y, X], predicted proprio [B, P] and loss terms.
    """
    images, proprio = scaling.images_in(windows.frames.images), scaling.proprio_in(windows.frames.proprio)
    seen, felt = list(images[:, :history].unbind(1)), list(proprio[:, :history].unbind(1))
    losses: list[dict[str, Tensor]] = []
    for last in range(history - 1, windows.actions.shape[1]):
        truth = images[:, last + 1]
        decision = Decision(
            images=torch.stack(seen[-history:], 1),
            proprio=torch.stack(felt[-history:], 1),
            actions=windows.actions[:, last + 1 - history : last + 1],
            next_image=truth,
            next_proprio=proprio[:, last + 1],
            changed=((truth - images[:, last]).abs().amax(2, keepdim=True) > CHANGED).float(),
            is_real=windows.is_real[:, last].float(),
        )
        image, moved, terms = answer(decision)
        squared = decision.mean((image.detach() - truth).square())
        losses.append({**terms, "mse": squared})
        seen.append(image)
        felt.append(moved)
    means = {name: torch.stack([terms[name] for terms in losses]).mean() for name in losses[0]}
    psnr = -10 * torch.log10(means.pop("mse").clamp(min=1e-8) / 4)
    total = torch.stack(list(means.values())).sum()
    return total, {"loss": total.item(), "psnr": psnr.item(), **{name: term.item() for name, term in means.items()}}
