"""`check_env` accepts the environments of the library and refuses those that break a promise."""

import numpy as np
import pytest

from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.envs.conformance import check_env
from accerl.envs.dots import Dots
from accerl.types import ChunkResult, Observation

DOTS = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=8)


@pytest.mark.parametrize("reward", ["success", "dense"])
@pytest.mark.parametrize("steps_per_action", [1, 3])
def test_dots_keep_every_promise(reward, steps_per_action):
    check_env(make_env(DOTS.model_copy(update={"reward": reward, "steps_per_action": steps_per_action})))


@pytest.mark.parametrize("reward", ["success", "dense"])
def test_metaworld_keeps_every_promise(reward):
    config = EnvConfig(
        tasks=("faucet-open-v3", "reach-v3"), cameras=("workspace", "gripperPOV"), max_decisions=6, reward=reward
    )
    check_env(make_env(config))


class Broken(Dots):
    """Dots that break the promise named by `fault`."""

    def __init__(self, fault: str) -> None:
        super().__init__(DOTS)
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        if self.fault == "accepts any task":
            options = None
        return super().reset(seed=None if self.fault == "ignores the seed" else seed, options=options)

    def step_chunk(self, actions, on_step=None) -> ChunkResult:
        if self.fault == "does not clip":
            self.agent = self.agent + 0.01 * np.asarray(actions).sum(axis=0)
        if self.fault == "steps after the end":
            self._loop._ended = False
        if self.fault == "never truncates":
            self._loop.num_decisions = 0
        result = super().step_chunk(actions, None if self.fault == "forgets on_step" else on_step)
        if self.fault == "truncates early":
            result = result._replace(truncated=True)
        if self.fault == "counts steps wrongly":
            result = result._replace(num_env_steps=result.num_env_steps + 1)
        return result

    def render(self, size) -> np.ndarray:
        image = super().render(size)
        return image.astype(np.float32) if self.fault == "float images" else image

    def save_state(self):
        state = super().save_state()
        if self.fault == "forgets the agent":
            state["agent"] = np.zeros(2)
        if self.fault == "forgets the random numbers":
            state["random"] = _other_random_numbers()
        return state

    def _observe(self) -> Observation:
        observation = super()._observe()
        if self.fault == "hands out its memory":
            observation["proprio"] = self._memory()
        return observation

    def _memory(self) -> np.ndarray:
        self.shared = getattr(self, "shared", np.zeros(2, np.float32))
        self.shared[:] = self.agent
        return self.shared


def _other_random_numbers() -> np.ndarray:
    env = Dots(DOTS)
    env.reset()
    return env.save_state()["random"]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("accepts any task", "must raise ValueError"),
        ("ignores the seed", "same seed and actions gave another episode"),
        ("does not clip", "must be clipped"),
        ("steps after the end", "after the end of the episode"),
        ("never truncates", "went on after spec.max_decisions = 8"),
        ("truncates early", "truncated at decision 1"),
        ("forgets on_step", "on_step was called 0 times in 4"),
        ("counts steps wrongly", "5 environment steps do not fit 4 actions"),
        ("float images", "must be uint8, not float32"),
        ("forgets the agent", "did not return the observation of the saved state"),
        ("forgets the random numbers", "did not restore the random numbers"),
        ("hands out its memory", "changed after it had been returned"),
    ],
)
def test_a_broken_promise_is_named(fault, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_env(Broken(fault))


def test_the_unbroken_base_of_the_faults_passes():
    check_env(Broken("none"))


def test_an_object_that_is_no_environment_is_refused():
    with pytest.raises(AssertionError, match="lacks one of"):
        check_env(object())  # pyright: ignore[reportArgumentType]
