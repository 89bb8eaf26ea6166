"""Vision-language-action policies behind `accerl.protocols.Policy`.

A policy of your own is a class that `policy.kind = "package.module:Class"` names. It has `for_env(spec, instructions,
config)`, which makes an untrained one for an environment, and takes as keywords what its `config_dict` gives beside
`kind`, which is that same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from accerl.config import ConfigError, PolicyConfig
from accerl.plugins import find_object
from accerl.protocols import Policy
from accerl.types import EnvSpec

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("tiny_vla", "openvla_oft", "openvla_oft_tiny")
LABEL_WIDTH = 96.0
"""Of TinyVLA's imitation targets, bins, times the number of its basis functions: less than these can follow."""


def new_policy(
    config: PolicyConfig,
    spec: EnvSpec,
    instructions: Iterable[str],
    value_probability: bool,
    proprio_bounds: Iterable[tuple[float, float]] | None = None,
) -> Policy:
    """An untrained policy of `config.kind` for such an environment; random weights.

    Args:
        value_probability: its values are probabilities, as `objective.value_loss = "bce"` needs.
        proprio_bounds: low and high of each dimension of proprioception in demonstrations, which is scaled by them.

    Raises:
        ConfigError: an unknown kind, or one that does not begin with random weights.
    """
    if config.kind == "openvla_oft":
        raise ConfigError(
            "policy.kind: openvla_oft begins with a public checkpoint, set policy.checkpoint to its folder; for random "
            "weights use openvla_oft_tiny"
        )
    if config.kind == "openvla_oft_tiny":
        from accerl.policies.openvla_oft import OpenVLAOFT, start_weights, tiny_config

        policy = OpenVLAOFT(
            tiny_config(
                spec,
                instructions,
                width=config.width,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                value_probability=value_probability,
                proprio_bounds=proprio_bounds,
            )
        )
        start_weights(policy)
        return policy
    if config.kind != "tiny_vla":
        return find_class(config.kind).for_env(spec, instructions, config)
    from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

    return TinyVLA(
        TinyVLAConfig.for_env(
            spec,
            instructions,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_basis=config.num_basis,
            label_width=LABEL_WIDTH / config.num_basis,
            value_probability=value_probability,
            proprio_bounds=None if proprio_bounds is None else tuple(proprio_bounds),
        )
    )


def build_policy(description: Mapping[str, Any]) -> Policy:
    """The untrained policy that `Policy.config_dict` described.

    Raises:
        ConfigError: the description is of an unknown kind or of another version.
    """
    fields = {key: value for key, value in description.items() if key != "format"}
    if (additions := fields.pop("lora", None)) is not None:
        from accerl.policies.lora import LowRankPolicy

        return LowRankPolicy(build_policy(fields), **additions)
    kind = str(fields.pop("kind", None))
    if kind == "openvla_oft":
        from accerl.policies.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig

        return OpenVLAOFT(OpenVLAOFTConfig(**fields))
    if kind != "tiny_vla":
        return find_class(kind)(**fields)
    from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

    try:
        config = TinyVLAConfig(**fields)
    except ValueError as error:
        reason = "; ".join(str(error).splitlines()[1:3])
        raise ConfigError(f"policy.checkpoint: policy.json does not fit this version ({reason.strip()})") from None
    return TinyVLA(config)


def restore_policy(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Policy:
    """The policy that `Policy.config_dict` described, with these weights; of OpenVLA-OFT with their types, too.

    Raises:
        ConfigError: as `build_policy`.
        RuntimeError: the weights do not fit.
    """
    if description.get("kind") != "openvla_oft":
        policy = build_policy(description)
        policy.load_state_dict(tensors)
        return policy
    import torch

    with torch.device("meta"):
        policy = build_policy(description)
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # of a file they are views
    cast(Any, policy).load_state_dict(own, assign=True)
    _make_rotary(policy, "cpu")
    return policy


def empty_policy(description: Mapping[str, Any], device: str) -> Policy:
    """The policy that `Policy.config_dict` described, on a device, for weights that are still to come: OpenVLA-OFT is
    not filled with random ones first.
    """
    if description.get("kind") != "openvla_oft":
        return build_policy(description).to(device)
    import torch

    with torch.device("meta"):
        policy = build_policy(description)
    return cast(Any, policy).to_empty(device=device)


def find_class(kind: str) -> Any:
    """The class that `package.module:Class` names.

    Raises:
        ConfigError: there is none.
    """
    found = find_object(kind, "policy.kind", KINDS)
    if not isinstance(found, type):
        raise ConfigError(f"policy.kind: {kind!r} is no class")
    return found


def _make_rotary(policy: Policy, device: str) -> None:
    """Rotary frequencies, which no file has."""
    from accerl.policies.openvla_oft.model import Float32RotaryEmbedding

    for module in cast(Any, policy).modules():
        if isinstance(module, Float32RotaryEmbedding):
            module.to_empty(device=device)
