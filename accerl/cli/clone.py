"""`accerl clone`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accerl.cli.command import Command
from accerl.cli.folders import check_out
from accerl.cli.policies import ORIGIN
from accerl.config import CloneConfig, ConfigError, EnvConfig, PolicyConfig, Section
from accerl.console import progress, say
from accerl.files import write_file

if TYPE_CHECKING:
    from accerl.demos import Demonstration
    from accerl.protocols import Policy
    from accerl.types import EnvSpec


class CloneOptions(Section):
    """What is imitated, and where the policy goes."""

    data: Path
    """Folder of a data set, made by `accerl demos`."""
    out: Path
    """Folder for the policy."""
    overwrite: bool = False
    """Replace a policy that is there already."""
    config: Path | None = None
    """Recipe (`quickstart`) or TOML or JSON file whose `policy` and `clone` sections are used."""
    policy: PolicyConfig = PolicyConfig()
    clone: CloneConfig = CloneConfig()


def clone(options: CloneOptions) -> int:
    import torch

    from accerl import demos, imitation
    from accerl.checkpoint import save_policy

    check_out(options.out, "policy.json", "a policy", options.overwrite)
    config = options.clone
    demonstrations, env = demos.load(options.data)
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    policy = starting_policy(options.policy, env, demonstrations)
    size = sum(parameter.numel() for parameter in policy.policy_parameters())
    say(f"{len(demonstrations)} demonstrations, {size / 1e6:.2f} M parameters")
    with progress(config.updates, "updates") as advance:
        loss = imitation.clone(
            policy,
            demonstrations,
            env.chunk_length,
            config,
            on_update=lambda _, loss: advance(f"loss {loss:.3f}"),
        )
    save_policy(options.out, policy.config_dict(), policy.state_dict())
    recorded = json.loads((options.data / "dataset.json").read_text())
    origin = {"env": recorded["env"], "demos": recorded["demos"], **options.model_dump(mode="json"), "loss": loss}
    write_file(options.out / ORIGIN, json.dumps(origin, indent=1))
    say(f"loss {loss:.3f} over the last tenth: {options.out}")
    return 0


def starting_policy(config: PolicyConfig, env: EnvConfig, demonstrations: Sequence[Demonstration]) -> Policy:
    """The policy of the configured checkpoint, or else a new one that fits the environment and the instructions.

    Raises:
        ConfigError: it cannot fit the environment.
    """
    from accerl.checkpoint import load_policy
    from accerl.envs import read_spec
    from accerl.policies import new_policy
    from accerl.policies.lora import adapted
    from accerl.statistics import summarize

    spec = read_spec(env)
    try:
        if config.checkpoint is not None:
            policy = load_policy(config.checkpoint, _open_fields(config, env, spec))
            policy.check_env(spec)
            return adapted(policy, config)
        proprio = summarize(np.concatenate([demonstration.proprio for demonstration in demonstrations]))
        bounds = zip(proprio["q01"], proprio["q99"], strict=True)
        instructions = [demonstration.instruction for demonstration in demonstrations]
        return adapted(new_policy(config, spec, instructions, env.reward == "success", bounds), config)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _open_fields(config: PolicyConfig, env: EnvConfig, spec: EnvSpec) -> dict[str, Any] | None:
    from accerl.checkpoint import is_public
    from accerl.policies.openvla_oft.checkpoint import open_fields

    if config.checkpoint is None or not is_public(config.checkpoint):
        return None
    return open_fields(config.checkpoint, env, spec, env.reward == "success", config.norm_stats_key)


COMMAND = Command(
    name="clone",
    summary="Train a policy to imitate demonstrations (behaviour cloning): where reinforcement learning starts.",
    options=CloneOptions,
    run=clone,
    examples=(
        ("a small policy", "accerl clone --data data/faucets --out policies/faucets"),
        (
            "stop early, so that something is left to learn",
            "accerl clone --data data/faucets --out p --clone.updates 200",
        ),
    ),
)
