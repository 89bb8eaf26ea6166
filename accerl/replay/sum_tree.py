"""Weights, their sum, and who is at a given point of the running sum: a Fenwick tree."""

from __future__ import annotations


class SumTree:
    """Whole weights at places; every operation costs O(log n) for n places, of which removed ones are used again."""

    def __init__(self) -> None:
        self._weights: list[int] = []
        self._sums = [0]  # at i: of the weights of the places i - (i & -i) to i - 1
        self._free: list[int] = []
        self.total = 0

    def __getitem__(self, place: int) -> int:
        return self._weights[place]

    @property
    def free(self) -> list[int]:
        """Places that were removed, those that are used again first last."""
        return list(self._free)

    def add(self, weight: int) -> int:
        """Returns the place that it got."""
        if self._free:
            place = self._free.pop()
            self.set(place, weight)
            return place
        self._weights.append(weight)
        index = len(self._weights)
        below, first = index - 1, index - (index & -index)
        total = weight
        while below > first:
            total += self._sums[below]
            below -= below & -below
        self._sums.append(total)
        self.total += weight
        return index - 1

    def remove(self, place: int) -> None:
        self.set(place, 0)
        self._free.append(place)

    def set(self, place: int, weight: int) -> None:
        change = weight - self._weights[place]
        self._weights[place] = weight
        self.total += change
        index = place + 1
        while index < len(self._sums):
            self._sums[index] += change
            index += index & -index

    def find(self, point: int) -> int:
        """The place p with: sum of the weights before p <= `point` < the same with p; `point` in [0, total)."""
        index, step = 0, 1 << len(self._weights).bit_length()
        while step := step >> 1:
            following = index + step
            if following < len(self._sums) and self._sums[following] <= point:
                index = following
                point -= self._sums[following]
        return index
