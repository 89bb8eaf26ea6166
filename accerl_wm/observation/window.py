"""The part of an image where something can happen: a square around the body, before and after it moves.

Everything else is copied, so a model pays for what moves and not for the walls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """One square of each row's planes [B, C, X, Y]."""

    x: Tensor
    """Columns [B, side]."""
    y: Tensor
    """Rows [B, side]."""
    size: int
    """Of the whole planes."""

    @classmethod
    def around(cls, points_BK2: Tensor, size: int, side: int) -> Window:
        """Centred on the middle of the points, which are in image coordinates from -1 to 1, as far as it fits."""
        low, high = points_BK2.detach().amin(1), points_BK2.detach().amax(1)
        middle = ((low + high) / 2 + 1) * size / 2
        corner = (middle - side / 2).round().clamp(0, size - side).long()
        steps = torch.arange(side, device=corner.device)
        return cls(x=corner[:, :1] + steps, y=corner[:, 1:] + steps, size=size)

    @property
    def side(self) -> int:
        return self.x.shape[1]

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Of the columns' and the rows' centres, from -1 to 1."""
        return ((self.x + 0.5) * (2 / self.size) - 1, (self.y + 0.5) * (2 / self.size) - 1)

    def cut(self, planes: Tensor) -> Tensor:
        """[B, C, size, size] to [B, C, side, side]."""
        if self.side == self.size:
            return planes
        return planes.flatten(2).gather(2, self._index(planes)).unflatten(2, (self.side, self.side))

    def paste(self, planes: Tensor, patch: Tensor) -> Tensor:
        """The planes with the patch [B, C, side, side] in its place."""
        if self.side == self.size:
            return patch
        return planes.flatten(2).scatter(2, self._index(planes), patch.flatten(2)).view_as(planes)

    def _index(self, planes: Tensor) -> Tensor:
        index = (self.y[:, :, None] * self.size + self.x[:, None, :]).flatten(1)
        return index[:, None].expand(-1, planes.shape[1], -1)
