"""Messages as frames: a JSON header, then the arrays' own memory. Nothing is pickled, nothing is copied twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from accerl.types import Decision, DecisionRequest


def encode(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[Any]:
    """Frames for a multi-part message."""
    layout = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    header = json.dumps({"fields": fields, "arrays": layout}).encode()
    return [header, *(np.ascontiguousarray(array).data for array in arrays.values())]


def decode(frames: Sequence[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and arrays of a message; arrays are read-only views of its frames.

    Raises:
        ValueError: the frames are not such a message.
    """
    try:
        header = json.loads(bytes(frames[0]))
        fields, layout = header["fields"], header["arrays"]
        if len(layout) != len(frames) - 1:
            raise ValueError(f"message announces {len(layout)} arrays and carries {len(frames) - 1}")
        arrays = {
            name: np.frombuffer(frame, dtype=np.dtype(kind)).reshape(shape)
            for (name, (kind, shape)), frame in zip(layout.items(), frames[1:], strict=True)
        }
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from None
    return fields, arrays


def encode_request(request: DecisionRequest) -> list[Any]:
    observation = request.observation
    fields = {
        "instruction": observation["instruction"],
        "episode_step": request.episode_step,
        "seed": request.seed,
    }
    return encode(fields, {"images": observation["images"], "proprio": observation["proprio"]})


def decode_request(frames: Sequence[Any]) -> DecisionRequest:
    fields, arrays = decode(frames)
    return DecisionRequest(
        observation={
            "images": arrays["images"],
            "proprio": arrays["proprio"],
            "instruction": fields["instruction"],
        },
        episode_step=fields["episode_step"],
        seed=fields["seed"],
    )


def encode_decision(decision: Decision) -> list[Any]:
    blob = {f"blob.{name}": array for name, array in decision.blob.items()}
    fields = {"value": decision.value, "policy_version": decision.policy_version}
    return encode(fields, {"action": decision.action, "log_prob": decision.log_prob, **blob})


def decode_decision(frames: Sequence[Any]) -> Decision:
    fields, arrays = decode(frames)
    return Decision(
        action=arrays["action"],
        log_prob=arrays["log_prob"],
        value=fields["value"],
        blob={name.removeprefix("blob."): array for name, array in arrays.items() if name.startswith("blob.")},
        policy_version=fields["policy_version"],
    )
