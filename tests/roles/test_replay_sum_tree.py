"""The sum tree against a list of weights, and its draws against their chances."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accerl.replay.sum_tree import SumTree


def test_a_point_is_in_the_weight_that_covers_it():
    tree = SumTree()
    assert [tree.add(weight) for weight in (2, 0, 3, 1)] == [0, 1, 2, 3]
    assert [tree.find(point) for point in range(tree.total)] == [0, 0, 2, 2, 2, 3]


OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "set", "remove"]), st.integers(0, 99), st.integers(0, 9)))


@given(OPERATIONS)
def test_the_tree_agrees_with_a_list(operations):
    tree = SumTree()
    weights: dict[int, int] = {}
    for name, number, weight in operations:
        if name == "add":
            place = tree.add(weight)
            assert place not in weights
            weights[place] = weight
        elif weights:
            place = sorted(weights)[number % len(weights)]
            if name == "set":
                tree.set(place, weight)
                weights[place] = weight
            else:
                tree.remove(place)
                del weights[place]
        assert tree.total == sum(weights.values())
        assert [tree[place] for place in weights] == list(weights.values())
    running = [place for place in sorted(weights) for _ in range(weights[place])]
    assert [tree.find(point) for point in range(tree.total)] == running


def test_removed_places_are_used_again():
    tree = SumTree()
    for _ in range(100):
        tree.remove(tree.add(5))
    assert tree.add(5) == 0


def test_draws_are_in_proportion_to_the_weights():
    tree = SumTree()
    weights = [1, 7, 0, 3, 64, 5, 12, 64, 2, 30]
    for weight in weights:
        tree.add(weight)
    points = np.random.default_rng(0).integers(tree.total, size=20_000)
    drawn = np.bincount([tree.find(int(point)) for point in points], minlength=len(weights))
    expected = 20_000 * np.array(weights) / sum(weights)
    assert drawn[2] == 0
    misfit = (np.delete(drawn - expected, 2) ** 2 / np.delete(expected, 2)).sum()
    assert misfit < 26.1, "chi-square of 8 degrees of freedom is above it once in 1000"
