"""How others evaluate on LIBERO: a success rate means nothing without the protocol behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accerl.config import ConfigError, EnvConfig
from accerl.envs.libero.suites import SPLITS, STEP_LIMITS, SUITES


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What an evaluation fixes."""

    name: str
    step_limits: Mapping[str, int]
    """Environment steps of an episode, by suite."""
    episodes_per_task: int
    """That its authors play."""
    init_states: str = "all"
    settle_steps: int = 10
    settle_gripper: float = -1.0
    source: str

    def apply(self, env: EnvConfig) -> EnvConfig:
        """`env` evaluated so; what it observes, and how many actions it executes at once, is the policy's affair.

        Raises:
            ConfigError: it is no suite of LIBERO.
        """
        if env.suite not in SUITES:
            raise ConfigError(f"protocol: {self.name!r} is for LIBERO, not for env.suite={env.suite!r}; leave it out")
        limit = self.step_limits[env.suite]
        libero = env.libero.model_copy(
            update={
                "init_states": self.init_states,
                "settle_steps": self.settle_steps,
                "settle_gripper": self.settle_gripper,
            }
        )
        decisions = -(-limit // (env.chunk_length * env.steps_per_action))
        return env.model_copy(update={"libero": libero, "max_env_steps": limit, "max_decisions": decisions})


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="openvla-oft",
            step_limits=STEP_LIMITS,
            episodes_per_task=50,
            source="github.com/moojink/openvla-oft, experiments/robot/libero/run_libero_eval.py",
        ),
        Protocol(
            name="simplevla-rl",
            step_limits=dict.fromkeys(SUITES, 512),
            episodes_per_task=50,
            source="github.com/PRIME-RL/SimpleVLA-RL, verl/workers/rollout/rob_rollout.py",
        ),
        Protocol(
            name="rlinf",
            step_limits=dict.fromkeys(SUITES, 512),
            episodes_per_task=50,
            settle_steps=15,
            source="github.com/RLinf/RLinf, examples/embodiment/config/env/eval and rlinf/envs/libero/libero_env.py",
        ),
    )
}


def describe(env: EnvConfig, protocol: str | None) -> dict[str, Any]:
    """What a success rate in `env` must be printed with; JSON-compatible."""
    states = SPLITS[env.libero.init_states]
    own = "held-out initial states" if env.libero.init_states == "evaluation" else "none"
    return {
        "protocol": protocol or own,
        "suite": env.suite,
        "max_env_steps": env.max_env_steps,
        "settle_steps": env.libero.settle_steps,
        "settle_gripper": env.libero.settle_gripper,
        "init_states": f"{states.start} to {states.stop - 1}",
        "observations": "2 ms late" if env.libero.lag else "fresh",
        "reflections": env.libero.reflections,
        "multisampling": env.libero.multisampling,
        "chunk_length": env.chunk_length,
    }


def leakage(evaluated: str, trained: str | None) -> str | None:
    """A warning if the initial states of an evaluation are among those that the policy was trained on.

    Args:
        trained: the split of the training; None: not known.
    """
    if trained is None:
        return None
    seen = len(set(SPLITS[evaluated]) & set(SPLITS[trained]))
    if not seen:
        return None
    return (
        f"leakage: the policy was trained on {seen} of the {len(SPLITS[evaluated])} initial states that it is "
        f"evaluated on; for an honest figure use --env.libero.init-states evaluation, and no --protocol"
    )
