"""What is checked before a run starts, and the policy it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accerl import kernels
from accerl.config import ConfigError, RunConfig
from accerl.envs import check_tasks, make_env, read_spec
from accerl.policies import KINDS, find_class
from accerl.protocols import Policy, StatefulEnv
from accerl.reading import read_object
from accerl.runtime.extra import check_extra
from accerl.types import EnvSpec


def check(config: RunConfig) -> None:
    """Refuse what cannot work, without building a policy, and an environment only where a public checkpoint wants one.

    Raises:
        ConfigError: naming the field, the reason and the remedy.
    """
    check_tasks(config.env)
    checkpoint = config.policy.checkpoint
    if config.policy.kind not in KINDS:
        find_class(config.policy.kind)
    if config.policy.kind == "openvla_oft" and checkpoint is None:
        raise ConfigError(
            "policy.checkpoint: openvla_oft begins with a public checkpoint; give its folder, or use "
            "policy.kind = 'openvla_oft_tiny' for random weights"
        )
    if checkpoint is not None:
        _check_checkpoint(checkpoint, config)
    for section, device in (("inference", config.inference.device), ("learner", config.learner.device)):
        _check_device(section, device)
    if config.imagination.enabled:
        _check_device("imagination", config.imagination.device)
    check_extra(config)
    if config.kernels == "ext":
        kernels.examine(config.kernels)


def start_policy(config: RunConfig) -> Policy:
    """The policy that `policy` names, checked against the environment.

    Raises:
        ConfigError: they do not fit.
    """
    import torch

    from accerl.checkpoint import is_public, load_policy
    from accerl.policies import new_policy
    from accerl.policies.lora import adapted

    new = config.policy.checkpoint is None
    spec, instructions = describe_env(config, config.env.tasks if new else config.env.tasks[:1])
    torch.manual_seed(config.seed)
    if config.policy.checkpoint is not None:
        folder = config.policy.checkpoint
        policy = load_policy(folder, _open_fields(config, spec) if is_public(folder) else None)
    else:
        policy = new_policy(config.policy, spec, instructions, config.objective.value_loss == "bce")
    try:
        policy.check_env(spec)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if config.learner.gradient_checkpointing and not hasattr(policy, "gradient_checkpointing_enable"):
        raise ConfigError(
            f"learner.gradient_checkpointing: {config.policy.kind} has no gradient_checkpointing_enable(); leave it out"
        )
    return adapted(policy, config.policy)


def _open_fields(config: RunConfig, spec: EnvSpec) -> dict[str, Any]:
    from accerl.policies.openvla_oft.checkpoint import open_fields

    assert config.policy.checkpoint is not None
    probability = config.objective.value_loss == "bce"
    return open_fields(config.policy.checkpoint, config.env, spec, probability, config.policy.norm_stats_key)


def describe_env(config: RunConfig, tasks: Sequence[str]) -> tuple[EnvSpec, list[str]]:
    """The environment's facts and the instruction of each of `tasks`, which are started for it.

    Raises:
        ConfigError: its state is to be kept, and it has none that can be.
    """
    env = make_env(config.env)
    try:
        if config.rollout.keep_state and not isinstance(env, StatefulEnv):
            raise ConfigError(f"rollout.keep_state: env.suite={config.env.suite!r} has no save_state(); leave it out")
        instructions = [env.reset(seed=config.seed, options={"task": task})[0]["instruction"] for task in tasks]
        return env.spec, instructions
    finally:
        env.close()


def _check_checkpoint(checkpoint: Path, config: RunConfig) -> None:
    from accerl.checkpoint import is_public

    if is_public(checkpoint):
        from accerl.policies.openvla_oft.checkpoint import describe

        description = describe(checkpoint, **_open_fields(config, read_spec(config.env))).model_dump()
        return _check_description({"kind": "openvla_oft", **description}, config)
    try:
        description = read_object(checkpoint / "policy.json")
    except FileNotFoundError:
        raise ConfigError(
            f"policy.checkpoint: {checkpoint} has no policy.json; give a folder written by `accerl clone`, "
            f"RUN/checkpoints/step-N or a public OpenVLA checkpoint"
        ) from None
    except ValueError as error:
        raise ConfigError(f"policy.checkpoint: {checkpoint} is damaged ({error}); use another one") from None
    _check_description(description, config)


def _check_description(description: Mapping[str, Any], config: RunConfig) -> None:
    """Of the policy in `policy.checkpoint`."""
    cameras, chunk_length = len(config.env.cameras), config.env.chunk_length
    if description.get("kind") == "openvla_oft":  # whose images are resized
        wanted = {"num_images": cameras, "chunk_length": chunk_length}
    else:
        wanted = {"image_size": config.env.image_size, "num_cameras": cameras, "chunk_length": chunk_length}
    for field, value in wanted.items():
        if description.get(field) != value:
            name = "cameras" if field in ("num_cameras", "num_images") else field
            raise ConfigError(
                f"env.{name}: {value} does not fit policy.checkpoint={config.policy.checkpoint}, which was made for "
                f"{field}={description.get(field)}; change one of them"
            )
    if config.objective.value_loss == "bce" and not description.get("value_probability", False):
        raise ConfigError(
            "objective.value_loss: 'bce' needs a value head that gives probabilities, which policy.checkpoint has not; "
            "use 'mse'"
        )


def _check_device(section: str, device: str) -> None:
    import torch

    kind = device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{section}.device: this machine has no CUDA device; use 'cpu'")
    try:
        torch.device(device)
    except RuntimeError:
        raise ConfigError(f"{section}.device: torch knows no device {device!r}; use 'cpu' or 'cuda'") from None
