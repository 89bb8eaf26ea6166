"""The frame buffer, with episodes whose frames and actions count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accerl.demos import Demonstration
from accerl_wm.frames import FrameBuffer, RealEpisode, cut_start, cut_window, of_demonstration
from tests.roles.fakes import trajectory

CHUNK = 2


def episode(num_actions: int = 7, task: str = "red", every: int = 1, success: bool = True) -> RealEpisode:
    """Frame n shows n, action n is n / 100; the last frame comes after the last action, wherever that is."""
    shown = [*range(0, num_actions, every), num_actions]
    images = np.array(shown, np.uint8)[:, None, None, None, None] * np.ones((1, 1, 8, 8, 3), np.uint8)
    return RealEpisode(
        task=task,
        instruction=f"go to the {task} dot",
        images=images,
        proprio=np.array(shown, np.float32)[:, None],
        action=np.arange(num_actions, dtype=np.float32)[:, None] / 100,
        every=every,
        success=success,
    )


def cut(made: RealEpisode, first: int, time: int):
    return cut_window(made, first, time, CHUNK, np.random.default_rng(0))


@pytest.mark.parametrize("every", [1, 2])
def test_a_window_shows_the_frames_between_its_chunks(every):
    window = cut(episode(every=every), 2, 2)
    assert window.frames.proprio[0, :, 0].tolist() == [2, 4, 6]
    assert window.frames.images[0, :, 0, 0, 0, 0].tolist() == [2, 4, 6]
    assert np.allclose(window.actions[0, :, :, 0], [[0.02, 0.03], [0.04, 0.05]])
    assert window.success[0].tolist() == [False, False, False] and window.is_real[0].all()


def test_before_an_episode_its_first_frame_is_repeated_with_zero_actions():
    window = cut(episode(), -2, 2)
    assert window.frames.proprio[0, :, 0].tolist() == [0, 0, 2]
    assert np.allclose(window.actions[0, :, :, 0], [[0, 0], [0, 0.01]])
    assert window.is_real[0].tolist() == [False, True]


@pytest.mark.parametrize("success", [True, False])
def test_where_an_episode_ends_inside_a_chunk_the_world_stands_still(success):
    window = cut(episode(success=success), 6, 2)
    assert window.frames.proprio[0, :, 0].tolist() == [6, 7, 7]
    assert window.success[0].tolist() == [False, success, success]
    assert np.isclose(window.actions[0, 0, 0, 0], 0.06)
    left_over = np.delete(window.actions[0].flatten().numpy(), 0)
    assert set(np.round(100 * left_over).astype(int)) <= set(range(7)) and left_over.any()


def test_windows_that_are_to_end_do_so_with_their_episode():
    buffer = FrameBuffer(CHUNK, held_out=0.0)
    buffer.add([episode(), episode(5)])
    generator = np.random.default_rng(0)
    windows = buffer.windows(32, 2, 2, generator, ending=1.0)
    assert windows.success[:, -1].all() and not windows.success[:, :-1].any()
    assert {float(frame) for frame in windows.frames.proprio[:, -1, 0]} == {5.0, 7.0}
    drawn = buffer.windows(256, 2, 2, generator)
    assert 0.05 < drawn.success[:, -1].float().mean() < 0.6


@pytest.mark.parametrize(("max_decisions", "steps"), [(None, set(range(10))), (4, set(range(4)))])
def test_an_imagined_episode_begins_where_a_real_one_may_still_be(max_decisions, steps):
    buffer = FrameBuffer(CHUNK, held_out=0.0, max_decisions=max_decisions)
    buffer.add([episode(num_actions=10 * CHUNK)])
    generator = np.random.default_rng(0)
    assert {buffer.start("red", 2, generator, near_success=0.2).episode_step for _ in range(300)} == steps


def test_tasks_are_drawn_alike_whatever_there_is_of_them():
    buffer = FrameBuffer(CHUNK, held_out=0.0)
    buffer.add([episode(task="blue"), *[episode(task="red") for _ in range(20)]])
    told = buffer.windows(400, 1, 1, np.random.default_rng(0)).instructions
    assert 0.4 < np.mean([instruction == "go to the blue dot" for instruction in told]) < 0.6


def test_what_is_held_out_is_never_trained_on_and_the_oldest_leave_first():
    made = [episode(num_actions=3 + number) for number in range(20)]
    buffer = FrameBuffer(CHUNK, held_out=0.25)
    buffer.add(made)
    held_out = {len(each.action) for each in buffer.episodes(held_out=True)}
    kept = {len(each.action) for each in buffer.episodes()}
    assert len(held_out) == 5 and len(kept) == 15 and not held_out & kept
    small = FrameBuffer(CHUNK, max_bytes=sum(each.nbytes for each in made[-3:]), held_out=0.0)
    small.add(made)
    assert [len(each.action) for each in small.episodes()] == [20, 21, 22]
    assert small.nbytes == sum(each.nbytes for each in made[-3:])


def test_images_in_files_are_the_same_and_those_of_the_oldest_episodes_go(tmp_path: Path):
    made = [episode(num_actions=3 + number) for number in range(6)]
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "of-an-earlier-run.npy").touch()
    limit = sum(each.nbytes for each in made[-4:])
    on_disk = FrameBuffer(CHUNK, max_bytes=limit, held_out=0.0, folder=folder)
    in_memory = FrameBuffer(CHUNK, max_bytes=limit, held_out=0.0)
    on_disk.add(made)
    in_memory.add(made)
    assert len(list(folder.iterdir())) == 4 and on_disk.nbytes == in_memory.nbytes
    assert all(isinstance(each.images, np.memmap) for each in on_disk.episodes())
    one, other = (buffer.windows(32, 2, 2, np.random.default_rng(0)) for buffer in (on_disk, in_memory))
    assert torch.equal(one.frames.images, other.frames.images)
    held = on_disk.episodes()[0]
    on_disk.add(made[-1:])
    assert held.images.sum() > 0, "what is still looked at can be read although its file is gone"


def test_a_start_has_the_past_of_its_moment_and_how_it_came_about():
    start = cut_start(episode(), 2, history=2, chunk_length=CHUNK)
    assert start.proprio[:, 0].tolist() == [2, 4] and start.episode_step == 2
    assert np.allclose(start.action[:, :, 0], [[0.02, 0.03]])
    assert np.allclose(start.origin.played[:, :, 0], [[0, 0.01], [0.02, 0.03]])
    first = cut_start(episode(), 0, history=3, chunk_length=CHUNK)
    assert first.proprio[:, 0].tolist() == [0, 0, 0] and not first.action.any() and not len(first.origin.played)


def test_starts_are_decisions_that_were_taken_and_keyframes_are_near_success():
    buffer = FrameBuffer(CHUNK, held_out=0.0)
    buffer.add([episode(17), episode(17, success=False)])
    generator = np.random.default_rng(0)
    steps = [buffer.start("red", 1, generator).episode_step for _ in range(300)]
    assert set(steps) == set(range(9))
    near = [buffer.start("red", 1, generator, near_success=1.0).episode_step for _ in range(100)]
    assert set(near) == {6, 7, 8}
    with pytest.raises(ValueError, match="blue"):
        buffer.start("blue", 1, generator)


def test_a_demonstration_shows_its_success_and_one_without_its_last_observation_is_refused():
    shape = (1, 8, 8, 3)
    made = Demonstration(
        task="red",
        instruction="go",
        images=np.zeros((4, *shape), np.uint8),
        proprio=np.zeros((4, 2), np.float32),
        action=np.zeros((4, 1), np.float32),
        last_images=np.ones(shape, np.uint8),
        last_proprio=np.ones(2, np.float32),
    )
    real = of_demonstration(made)
    assert real.num_frames == 5 and real.images[-1].all() and real.success
    with pytest.raises(ValueError, match="accerl demos"):
        of_demonstration(replace(made, last_images=None))


def test_frames_that_decisions_do_not_meet_are_refused():
    with pytest.raises(ValueError, match=r"demos\.draw_every"):
        FrameBuffer(CHUNK).add([episode(every=3)])


def test_only_executed_actions_of_a_trajectory_count_and_imagined_ones_are_refused():
    from accerl_wm.frames import of_trajectory

    made = trajectory(
        3, action=np.zeros((3, 2, 2), np.float32), num_actions=np.array([2, 2, 1], np.int32), terminal=True
    )
    real = of_trajectory(made)
    assert len(real.action) == 5 and real.every == 2 and real.num_frames == 4
    for wrong in (replace(made, is_imagined=True), replace(made, action=None)):
        with pytest.raises(ValueError, match="real trajectories"):
            of_trajectory(wrong)
