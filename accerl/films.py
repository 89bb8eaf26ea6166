"""Films of policies: the same episodes side by side, one after another, in H.264 that browsers play."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from accerl.config import EnvConfig, InferenceConfig
from accerl.evaluation import evaluate
from accerl.inference import PolicyServer
from accerl.protocols import Env, Policy
from accerl.types import ChunkResult, EnvSpec, EpisodePlan, Observation

VIEW = 256
"""Pixels of a view; the film has one beside the other."""
BAND = 28
"""Pixels above the views for the instruction, and below them for the labels."""
GAP = 4
FONT_SIZE = 16
FRAMES_PER_S = 25
HOLD_S = 0.8
"""How long the end of the longer episode stays."""
BACKGROUND, TEXT, GOOD, BAD = (24, 24, 27), (244, 244, 245), (52, 211, 153), (248, 113, 113)


def rollout_film(
    policies: Mapping[str, Policy],
    env: EnvConfig,
    plans: Sequence[EpisodePlan],
    path: Path,
    on_episode: Callable[[], None] | None = None,
) -> None:
    """Each policy plays each plan; a frame is an environment step.

    Args:
        policies: label to policy, from left to right.
        plans: shown in this order; the policies get the same seeds.
        on_episode: called after each episode that was played.
    """
    from accerl.envs import make_env

    filmed = {label: _play(policy, lambda: make_env(env), plans, on_episode) for label, policy in policies.items()}
    frames = (
        frame
        for number in range(len(plans))
        for frame in _side_by_side({label: takes[number] for label, takes in filmed.items()})
    )
    write_film(path, frames)


def take_film(path: Path, take: Take) -> None:
    """One episode alone."""
    write_film(path, _side_by_side({"": take}))


def write_film(path: Path, frames: Iterator[np.ndarray]) -> None:
    """Encode frames, uint8 [height, width, 3], all of one size with even sides.

    Raises:
        ValueError: there is no frame.
    """
    import imageio_ffmpeg

    first = next(frames, None)
    if first is None:
        raise ValueError("frames: a film needs at least one")
    height, width = first.shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=FRAMES_PER_S,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        output_params=["-crf", "20", "-movflags", "+faststart"],
    )
    writer.send(None)
    writer.send(np.ascontiguousarray(first))
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


@dataclass(slots=True)
class Take:
    """One filmed episode."""

    instruction: str
    frames: list[np.ndarray] = field(default_factory=list)
    success: bool = False


class FilmedEnv:
    """An `Env` that keeps a view of every environment step.

    Args:
        on_view: called after each.
    """

    def __init__(self, env: Env, takes: list[Take], on_view: Callable[[], None] = lambda: None) -> None:
        self.takes = takes
        self._env = env
        self._on_view = on_view

    @property
    def spec(self) -> EnvSpec:
        return self._env.spec

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        observation, info = self._env.reset(seed=seed, options=options)
        self.takes.append(Take(observation["instruction"]))
        self._shoot()
        return observation, info

    def step_chunk(self, actions: np.ndarray, on_step: Callable[[], None] | None = None) -> ChunkResult:
        result = self._env.step_chunk(actions, self._shoot)
        self.takes[-1].success = result.success
        return result

    def render(self, size: int) -> np.ndarray:
        return self._env.render(size)

    def close(self) -> None:
        self._env.close()

    def _shoot(self) -> None:
        self.takes[-1].frames.append(self._env.render(VIEW))
        self._on_view()


def _play(
    policy: Policy, make_env: Callable[[], Env], plans: Sequence[EpisodePlan], on_episode: Callable[[], None] | None
) -> list[Take]:
    """As in an evaluation, one episode at a time."""
    takes: list[Take] = []
    evaluate(
        PolicyServer(policy, InferenceConfig()),
        lambda: FilmedEnv(make_env(), takes),
        plans,
        num_slots=1,
        on_episode=lambda _: on_episode() if on_episode else None,
    )
    return takes


def _side_by_side(takes: Mapping[str, Take]) -> Iterator[np.ndarray]:
    """Frames of one episode; a take that ends first stands still, with its result."""
    length = max(len(take.frames) for take in takes.values()) + round(HOLD_S * FRAMES_PER_S)
    instruction = next(iter(takes.values())).instruction
    for index in range(length):
        width = len(takes) * (VIEW + GAP) - GAP
        picture = Image.new("RGB", (width, VIEW + 2 * BAND), BACKGROUND)
        draw = ImageDraw.Draw(picture)
        _centred(draw, (width // 2, BAND // 2), width, f"“{instruction}”", TEXT)
        for place, (label, take) in enumerate(takes.items()):
            left = place * (VIEW + GAP)
            picture.paste(Image.fromarray(take.frames[min(index, len(take.frames) - 1)]), (left, BAND))
            middle = (left + VIEW // 2, BAND + VIEW + BAND // 2)
            if index < len(take.frames) - 1:
                _centred(draw, middle, VIEW, label, TEXT)
                continue
            colour = GOOD if take.success else BAD
            result = "success" if take.success else "failure"
            _centred(draw, middle, VIEW, f"{label}: {result}" if label else result, colour)
            draw.rectangle((left, BAND, left + VIEW - 1, BAND + VIEW - 1), outline=colour, width=3)
        yield np.asarray(picture)


def _centred(
    draw: ImageDraw.ImageDraw, middle: tuple[int, int], room: int, text: str, colour: tuple[int, int, int]
) -> None:
    """In smaller letters where `room` pixels are too few."""
    width = draw.textlength(text, font=ImageFont.load_default(size=FONT_SIZE))
    size = FONT_SIZE * min(1.0, (room - 8) / max(1.0, width))
    draw.text(middle, text, fill=colour, font=ImageFont.load_default(size=size), anchor="mm")
