"""The frame buffer: real episodes, from which models learn and imaginations start.

    demonstrations ─┐
                    ├─► Frames buffer ─► windows ─► training, evaluation
    trajectories ───┘                └─► starts ──► imagination

Episodes are kept as they came, each frame once; windows are cut when they are asked for.
"""

from __future__ import annotations

import shutil
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from accerl.demos import Demonstration
from accerl.types import Array, Trajectory
from accerl_wm.carriers import Frames, Origin, Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class RealEpisode:
    """What is known of an episode, or of a segment of one."""

    task: str
    instruction: str
    images: UInt8[Array, "frame camera height width 3"]
    proprio: Float32[Array, "frame proprio"]
    action: Float32[Array, "time action"]
    """One after the other, whatever chunks they were decided in."""
    every: int
    """Actions between two frames; between the last two there may be fewer."""
    success: bool
    """Its last frame shows the instruction fulfilled; no other does."""
    first_step: int = 0
    """Decisions of the episode before the first frame."""
    state: UInt8[Array, " byte"] | None = None
    """Of the simulator at the first frame (`Trajectory.state`)."""

    @property
    def num_frames(self) -> int:
        return len(self.images)

    @property
    def nbytes(self) -> int:
        return self.images.nbytes + self.proprio.nbytes + self.action.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """frames -> imagination: a real moment, and what led to it."""

    task: str
    instruction: str
    images: UInt8[Array, "history camera height width 3"]
    proprio: Float32[Array, "history proprio"]
    """Where the episode is younger its first frame is repeated."""
    action: Float32[Array, "history-1 chunk action"]
    """Executed between these; zeros between copies."""
    episode_step: int
    """Decisions taken in the episode so far."""
    origin: Origin


def of_demonstration(demonstration: Demonstration) -> RealEpisode:
    """Raises ValueError if the demonstration has no last observation, so that nothing shows success."""
    if demonstration.last_images is None or demonstration.last_proprio is None:
        raise ValueError("the data set has no last observations; record it again with `accerl demos --overwrite`")
    return RealEpisode(
        task=demonstration.task,
        instruction=demonstration.instruction,
        images=np.concatenate([demonstration.images, demonstration.last_images[None]]),
        proprio=np.concatenate([demonstration.proprio, demonstration.last_proprio[None]]),
        action=demonstration.action,
        every=demonstration.every,
        success=demonstration.success,
    )


def of_trajectory(trajectory: Trajectory) -> RealEpisode:
    """Raises ValueError for one without actions, or an imagined one."""
    if trajectory.action is None or trajectory.is_imagined:
        raise ValueError("a world model learns from real trajectories, with their actions")
    executed = trajectory.action.shape[1] * (trajectory.num_decisions - 1) + int(trajectory.num_actions[-1])
    return RealEpisode(
        task=trajectory.task,
        instruction=trajectory.instruction,
        images=trajectory.images,
        proprio=trajectory.proprio,
        action=trajectory.action.reshape(-1, trajectory.action.shape[2])[:executed],
        every=trajectory.action.shape[1],
        success=trajectory.success,
        first_step=int(trajectory.episode_step[0]),
        state=trajectory.state,
    )


class FrameBuffer:
    """Real episodes, the oldest of which go when there are too many bytes of them.

    Args:
        chunk_length: actions of a decision; frames must be there at least that often.
        max_bytes: of all episodes; None: no limit.
        held_out: share of the episodes that no training sees, for `windows(held_out=True)`.
        folder: where images lie, in memory only as far as the system has room; it is this buffer's alone. None: in
            memory.
        max_decisions: of an episode, where later moments of longer recordings are none to start from; None: all are.
    """

    def __init__(
        self,
        chunk_length: int,
        max_bytes: int | None = None,
        held_out: float = 0.1,
        folder: Path | None = None,
        max_decisions: int | None = None,
    ):
        self.chunk_length = chunk_length
        self._max_decisions = max_decisions
        self._folder = folder
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self._num_written = 0
        self._max_bytes = max_bytes
        self._held_out = held_out
        self._order: deque[tuple[bool, str]] = deque()  # of the episodes as they came
        self._episodes: dict[bool, dict[str, list[RealEpisode]]] = {False: {}, True: {}}
        self._num_seen: dict[str, int] = defaultdict(int)
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def tasks(self) -> tuple[str, ...]:
        """With episodes to learn from."""
        return tuple(task for task, episodes in self._episodes[False].items() if episodes)

    def add(self, episodes: Iterable[RealEpisode]) -> None:
        """Take them in; of each task every `1 / held_out`-th is held out.

        Raises:
            ValueError: frames are too far apart.
        """
        for episode in episodes:
            if self.chunk_length % episode.every:
                raise ValueError(
                    f"demos.draw_every: {episode.every} actions from frame to frame do not meet decisions of "
                    f"{self.chunk_length}; record with a divisor of env.chunk_length"
                )
            self._num_seen[episode.task] += 1
            number = self._num_seen[episode.task]
            is_held_out = int(number * self._held_out) > int((number - 1) * self._held_out)
            self._episodes[is_held_out].setdefault(episode.task, []).append(self._stored(episode))
            self._order.append((is_held_out, episode.task))
            self.nbytes += episode.nbytes
            while self._max_bytes is not None and self.nbytes > self._max_bytes and len(self) > 1:
                oldest_is_held_out, task = self._order.popleft()
                oldest = self._episodes[oldest_is_held_out][task].pop(0)
                self.nbytes -= oldest.nbytes
                if isinstance(oldest.images, np.memmap):
                    Path(str(oldest.images.filename)).unlink()

    def episodes(self, held_out: bool = False) -> list[RealEpisode]:
        return [episode for episodes in self._episodes[held_out].values() for episode in episodes]

    def windows(
        self,
        batch: int,
        time: int,
        history: int,
        generator: np.random.Generator,
        held_out: bool = False,
        ending: float = 0.0,
    ) -> Windows:
        """Windows of `time` decisions at random: tasks alike, then episodes, then the frame that they begin with.

        The first `history - 1` decisions may lie before the episode, where its first frame is repeated.

        Args:
            ending: share of the windows whose last decision is the one in which their episode ends.

        Raises:
            ValueError: no episode is there.
        """
        by_task = [episodes for episodes in self._episodes[held_out].values() if episodes]
        if not by_task:
            raise ValueError("data: no episodes to learn from; record some with `accerl demos`")
        cut = []
        for _ in range(batch):
            episodes = by_task[generator.integers(len(by_task))]
            episode = episodes[generator.integers(len(episodes))]
            cut.append(self._window(episode, time, history, generator, generator.random() < ending))
        return stack(cut)

    def start(self, task: str, history: int, generator: np.random.Generator, near_success: float = 0.0) -> Start:
        """A moment of an episode of `task` in which a decision was due, but not its last one.

        Args:
            near_success: share of the starts among the last quarter of the decisions of episodes that succeeded.

        Raises:
            ValueError: there is no such episode.
        """
        episodes = self._episodes[False].get(task)
        if not episodes:
            raise ValueError(f"imagination: no real episode of {task} to start from")
        first_share = 0.0
        if generator.random() < near_success and (succeeded := [each for each in episodes if each.success]):
            episodes, first_share = succeeded, 0.75
        episode = episodes[generator.integers(len(episodes))]
        last = num_decisions(episode, self.chunk_length) - 1
        if self._max_decisions is not None:
            last = max(0, min(last, self._max_decisions - 1 - episode.first_step))
        return cut_start(
            episode, int(generator.integers(int(first_share * last), last + 1)), history, self.chunk_length
        )

    def _stored(self, episode: RealEpisode) -> RealEpisode:
        """The same, its images in a file if this buffer has a folder."""
        if self._folder is None:
            return episode
        path = self._folder / f"{self._num_written:08d}.npy"
        self._num_written += 1
        np.save(path, episode.images)
        return replace(episode, images=np.load(path, mmap_mode="r"))

    def _window(
        self, episode: RealEpisode, time: int, history: int, generator: np.random.Generator, is_ending: bool
    ) -> Windows:
        """From a decision before the episode, or from any frame of it that leaves room."""
        if is_ending:
            left = int(generator.integers(self.chunk_length // episode.every)) * episode.every
            end = len(episode.action) + left
            return cut_window(episode, end - time * self.chunk_length, time, self.chunk_length, generator)
        last = max(0, self.chunk_length * (num_decisions(episode, self.chunk_length) - time))
        number = int(generator.integers(1 - history, last // episode.every + 1))
        first = number * (episode.every if number > 0 else self.chunk_length)
        return cut_window(episode, first, time, self.chunk_length, generator)


def num_decisions(episode: RealEpisode, chunk_length: int) -> int:
    """In which it would have been played from its first frame on."""
    return -(-len(episode.action) // chunk_length)


def cut_window(
    episode: RealEpisode, first: int, time: int, chunk_length: int, generator: np.random.Generator
) -> Windows:
    """Decisions of `chunk_length` actions from action `first` on, which may be negative.

    Where the episode ends inside a chunk its last frame follows, whatever the rest of the actions are: they are drawn
    from the episode at random, so that a model learns that the world stands still. After that the frame is repeated.
    """
    bounds = first + chunk_length * np.arange(time + 1)
    ends = np.clip(bounds, 0, len(episode.action))
    frames = np.minimum(-(-ends // episode.every), episode.num_frames - 1)
    places = first + np.arange(time * chunk_length)
    actions = episode.action[np.clip(places, 0, len(episode.action) - 1)].copy()
    actions[places < 0] = 0.0
    beyond = places >= len(episode.action)
    actions[beyond] = episode.action[generator.integers(len(episode.action), size=int(beyond.sum()))]
    success = (ends == len(episode.action)) & episode.success
    return Windows(
        frames=Frames(
            images=torch.from_numpy(episode.images[frames])[None],
            proprio=torch.from_numpy(episode.proprio[frames])[None],
        ),
        actions=torch.from_numpy(actions.reshape(1, time, chunk_length, -1)),
        is_real=torch.from_numpy(bounds[:-1] >= 0)[None],
        success=torch.from_numpy(success)[None],
        instructions=[episode.instruction],
    )


def cut_start(episode: RealEpisode, decision: int, history: int, chunk_length: int) -> Start:
    """The moment of a decision, with the `history - 1` before it."""
    first = (decision - history + 1) * chunk_length
    window = cut_window(episode, first, history, chunk_length, np.random.default_rng(0))
    played = episode.action[: decision * chunk_length].reshape(decision, chunk_length, episode.action.shape[1])
    return Start(
        task=episode.task,
        instruction=episode.instruction,
        images=window.frames.images[0, :history].numpy(),
        proprio=window.frames.proprio[0, :history].numpy(),
        action=window.actions[0, : history - 1].numpy(),
        episode_step=episode.first_step + decision,
        origin=Origin(episode.state, played),
    )


def stack(windows: Sequence[Windows]) -> Windows:
    """One after the other along the batch."""
    return Windows(
        frames=Frames(
            images=torch.cat([each.frames.images for each in windows]),
            proprio=torch.cat([each.frames.proprio for each in windows]),
        ),
        actions=torch.cat([each.actions for each in windows]),
        is_real=torch.cat([each.is_real for each in windows]),
        success=torch.cat([each.success for each in windows]),
        instructions=[instruction for each in windows for instruction in each.instructions],
    )
