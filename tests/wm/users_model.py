"""An observation model such as a user would write: a bright pixel goes where the actions say, as fast as it learns."""

import torch
from torch import nn

from accerl_wm.carriers import Frames


class Mover(nn.Module):
    history = 1

    def __init__(self, config):
        super().__init__()
        self.config = dict(config)
        self.rate = nn.Parameter(torch.tensor(0.01))

    def config_dict(self):
        return self.config

    def moved(self, proprio, actions):
        return (proprio + self.rate * actions.sum(1)).clamp(-1, 1)

    @torch.no_grad()
    def predict(self, past, actions):
        proprio = self.moved(past.proprio[:, -1], actions[:, -1])
        images = past.images[:, -1].clone()
        column, row = ((proprio[:, :2] + 1) / 2 * (images.shape[-2] - 1)).round().long().unbind(-1)
        images[torch.arange(len(images)), :, row, column] = 255
        return Frames(images=images, proprio=proprio)

    def loss(self, windows):
        moved = self.moved(windows.frames.proprio[:, 0], windows.actions[:, 0])
        loss = (moved - windows.frames.proprio[:, 1]).square().mean()
        return loss, {"loss": loss.item()}
