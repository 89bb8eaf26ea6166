"""Vision-language-action policies behind `accerl.protocols.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accerl.config import ConfigError
from accerl.protocols import Policy


def build_policy(description: Mapping[str, Any]) -> Policy:
    """The untrained policy that `Policy.config_dict` described.

    Raises:
        ConfigError: the description is of an unknown kind or of another version.
    """
    from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

    fields = {key: value for key, value in description.items() if key != "format"}
    kind = fields.pop("kind", None)
    if kind != "tiny_vla":
        raise ConfigError(f"policy.kind: this version cannot build {kind!r}; known: tiny_vla")
    try:
        config = TinyVLAConfig(**fields)
    except ValueError as error:
        reason = "; ".join(str(error).splitlines()[1:3])
        raise ConfigError(f"policy.checkpoint: policy.json does not fit this version ({reason.strip()})") from None
    return TinyVLA(config)
