from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from accerl.trajectories import TrajectorySample, load, save
from accerl.types import Trajectory


def trajectory(origin: str = "rollout-0.0/3/17") -> Trajectory:
    generator = np.random.default_rng(0)
    return Trajectory(
        task="red",
        instruction="go to the red dot",
        images=generator.integers(0, 255, (4, 1, 8, 8, 3), dtype=np.uint8),
        proprio=generator.normal(size=(4, 2)).astype(np.float32),
        episode_step=np.arange(5, 9, dtype=np.int32),
        blob={"tokens": np.arange(24, dtype=np.int16).reshape(3, 8)},
        log_prob=generator.normal(size=(3, 8)).astype(np.float32),
        value=np.zeros(3, np.float32),
        reward=np.array([0, 0, 1], np.float32),
        num_actions=np.array([4, 4, 2], np.int32),
        num_env_steps=np.array([8, 8, 3], np.int32),
        policy_version=np.array([1, 1, 2], np.int32),
        terminal=True,
        truncated=False,
        success=True,
        origin=origin,
    )


def test_a_trajectory_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    written = trajectory()
    save(tmp_path / "one.safetensors", written)
    read = load(tmp_path / "one.safetensors")
    np.testing.assert_array_equal(read.blob["tokens"], written.blob["tokens"])
    for field in fields(Trajectory):
        before, after = getattr(written, field.name), getattr(read, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        elif field.name != "blob":
            assert before == after


def test_a_sample_keeps_every_third_and_only_the_newest(tmp_path: Path) -> None:
    sample = TrajectorySample(tmp_path, every=3, keep=2)
    for number in range(10):
        sample.offer(replace(trajectory(), origin=f"worker/0/{number}"))
    assert sorted(load(path).origin for path in tmp_path.glob("*.safetensors")) == ["worker/0/6", "worker/0/9"]
