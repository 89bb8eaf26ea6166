"""What is kept for those who look on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from accerl import trajectories
from accerl.config import ConfigError
from accerl.recent import Recent, check_source, watch_folder
from accerl.trajectories import joined
from tests.roles.fakes import trajectory as make_trajectory


def test_reader_gets_only_what_it_has_not_seen():
    recent = Recent()
    episodes = [make_trajectory(episode=number) for number in range(5)]
    for trajectory in episodes[:2]:
        recent.add(trajectory)
    count, seen = recent.newest(8)
    assert (count, list(seen)) == (2, episodes[:2])
    for trajectory in episodes[2:]:
        recent.add(trajectory)
    count, seen = recent.newest(8, after=count)
    assert (count, list(seen)) == (5, episodes[2:])
    assert recent.newest(8, after=count) == (5, [])


def test_slow_reader_gets_the_newest_of_what_it_missed():
    recent = Recent()
    episodes = [make_trajectory(episode=number) for number in range(5)]
    for trajectory in episodes:
        recent.add(trajectory)
    assert recent.newest(2, after=1) == (5, episodes[3:])


def test_cursor_of_a_process_before_this_one_has_seen_nothing():
    recent = Recent()
    trajectory = make_trajectory()
    recent.add(trajectory)
    assert recent.newest(8, after=7) == (1, [trajectory])


def test_number_and_bytes_are_bounded_but_one_is_kept():
    size = make_trajectory().images.nbytes
    by_number, by_bytes, small = Recent(keep=3), Recent(max_bytes=2 * size), Recent(max_bytes=1)
    for number in range(9):
        for recent in (by_number, by_bytes, small):
            recent.add(make_trajectory(episode=number))
    assert [each.episode for each in by_number.newest(9)[1]] == [6, 7, 8]
    assert [each.episode for each in by_bytes.newest(9)[1]] == [7, 8]
    assert [each.episode for each in small.newest(9)[1]] == [8]


def test_folder_is_watched_like_a_run_by_source_and_only_what_is_new(tmp_path):
    for number, is_imagined in enumerate((False, True, False)):
        trajectory = make_trajectory(episode=number, is_imagined=is_imagined)
        trajectories.save(tmp_path / f"{number}.safetensors", trajectory)
    cursor, seen = watch_folder(tmp_path, {}, 8, None)
    assert [each.episode for each in seen] == [0, 2, 1]
    assert [each.episode for each in watch_folder(tmp_path, {}, 8, "imagined").trajectories] == [1]
    assert [each.episode for each in watch_folder(tmp_path, {}, 1, "real").trajectories] == [2]
    trajectories.save(tmp_path / "3.safetensors", make_trajectory(episode=3))
    assert [each.episode for each in watch_folder(tmp_path, cursor, 8, None).trajectories] == [3]


def test_unknown_source_is_refused():
    with pytest.raises(ConfigError, match="source: 'dreams'"):
        check_source("dreams")  # type: ignore[arg-type]


def test_segments_are_joined_to_their_episode():
    whole = make_trajectory(5, success_probability=np.linspace(0, 1, 5, dtype=np.float32))
    first, second = part(whole, 0, 3), part(whole, 3, 5)
    again = joined(first, second)
    for name in ("images", "proprio", "episode_step", *trajectories.EACH_DECISION):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    np.testing.assert_array_equal(again.blob["tokens"], whole.blob["tokens"])
    with pytest.raises(ValueError, match="does not follow"):
        joined(second, first)


def part(whole, first, last):
    """Decisions `first` to `last` of a trajectory."""
    rows, frames = slice(first, last), slice(first, last + 1)
    arrays = {name: getattr(whole, name)[frames] for name in ("images", "proprio", "episode_step")}
    decisions = {
        name: value[rows] for name in trajectories.EACH_DECISION if (value := getattr(whole, name)) is not None
    }
    blob = {name: value[rows] for name, value in whole.blob.items()}
    return replace(whole, **arrays, **decisions, blob=blob)
