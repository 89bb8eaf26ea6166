"""Messages of two frames: a JSON header, and one buffer with all arrays. Nothing is pickled.

Rows of the same shape are stacked straight into the buffer, and arrays are received as views of it: an observation is
copied once before it is sent and not at all after it arrived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from accerl.types import Decision, DecisionRequest

Item = TypeVar("Item", bound=DecisionRequest | Decision | Exception)
Rows = Sequence[Mapping[str, Any]]
ALIGNMENT = 64
NEWEST = -1
"""In the place of a request's policy version: none is asked for."""


def encode(fields: Mapping[str, Any], rows: Rows = ()) -> list[Any]:
    """Frames of a message: `fields`, and what the rows hold under the same name stacked to one array."""
    layout = {name: [array.dtype.str, [len(rows), *array.shape]] for name, array in rows[0].items()} if rows else {}
    offsets, size = _offsets(layout)
    buffer = np.empty(size, np.uint8)
    for name, target in _views(buffer, layout, offsets).items():
        for index, row in enumerate(rows):
            target[index] = row[name]
    return [json.dumps({"fields": fields, "arrays": layout}).encode(), buffer]


def decode(frames: Sequence[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the stacked arrays of a message; arrays are views of its second frame.

    Raises:
        ValueError: the frames are not such a message.
    """
    try:
        header, content = frames
        message = json.loads(bytes(header))
        fields, layout = message["fields"], message["arrays"]
        offsets, size = _offsets(layout)
        buffer = np.frombuffer(content, np.uint8)
        if len(buffer) != size:
            raise ValueError(f"message announces {size} bytes and carries {len(buffer)}")
        return dict(fields), _views(buffer, layout, offsets)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from None


def encode_requests(numbers: Sequence[int], requests: Sequence[DecisionRequest], **fields: Any) -> list[Any]:
    """A message of requests of one kind (`group_alike`), each with its number; `fields` travel with it."""
    rows = [
        {
            "images": request.observation["images"],
            "proprio": request.observation["proprio"],
            "facts": np.array(
                [number, request.episode_step, request.seed, _version(request.policy_version)], dtype=np.int64
            ),
        }
        for number, request in zip(numbers, requests, strict=True)
    ]
    return encode({**fields, "instructions": [request.observation["instruction"] for request in requests]}, rows)


def decode_requests(frames: Sequence[Any]) -> tuple[list[int], list[DecisionRequest], dict[str, Any]]:
    """Numbers, requests and fields of such a message.

    Raises:
        ValueError: it is none.
    """
    fields, arrays = decode(frames)
    instructions = fields.pop("instructions", None)
    if not isinstance(instructions, list) or not all(isinstance(text, str) for text in instructions):
        raise ValueError("a request has no instruction")
    if not instructions:
        return [], [], fields
    if arrays.keys() != {"images", "proprio", "facts"} or any(len(a) != len(instructions) for a in arrays.values()):
        raise ValueError(f"requests consist of other arrays than {', '.join(arrays)}")
    facts = arrays["facts"]
    if facts.dtype != np.int64 or facts.shape[1:] != (4,):
        raise ValueError(f"the facts of a request are not {facts.dtype} {facts.shape}")
    requests = [
        DecisionRequest(
            observation={"images": images, "proprio": proprio, "instruction": instruction},
            episode_step=episode_step,
            seed=seed,
            policy_version=None if version == NEWEST else version,
        )
        for images, proprio, instruction, (_, episode_step, seed, version) in zip(
            arrays["images"], arrays["proprio"], instructions, facts.tolist(), strict=True
        )
    ]
    return facts[:, 0].tolist(), requests, fields


class Answers(NamedTuple):
    """What comes back in one message."""

    numbers: list[int]
    """Of the requests."""
    decisions: list[Decision]
    """One for each number; none if there is a `reason`."""
    reason: str | None
    """Why the requests were not answered."""
    queue: int
    """Requests of other clients that the service had not answered yet."""


def encode_answers(numbers: Sequence[int], answers: Sequence[Decision | Exception], queue: int) -> list[list[Any]]:
    """As few messages as hold the answers, usually one."""
    messages = []
    for own_numbers, own in group_alike(numbers, answers):
        fields = {"numbers": own_numbers, "queue": queue}
        rows = [_answer_row(answer) for answer in own if isinstance(answer, Decision)]
        messages.append(encode(fields if rows else {**fields, "reason": _reason(own[0])}, rows))
    return messages


def decode_answers(frames: Sequence[Any]) -> Answers:
    """The answers in a message.

    Raises:
        ValueError: there are none in it.
    """
    fields, arrays = decode(frames)
    try:
        numbers, reason, queue = fields["numbers"], fields.get("reason"), fields["queue"]
        blobs = {name.removeprefix("blob."): array for name, array in arrays.items() if name.startswith("blob.")}
        decisions = [
            Decision(
                action=arrays["action"][row],
                log_prob=arrays["log_prob"][row],
                value=float(arrays["value"][row]),
                blob={name: array[row] for name, array in blobs.items()},
                policy_version=int(arrays["version"][row]),
            )
            for row in range(len(numbers) if reason is None else 0)
        ]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not an answer: {error!r}") from None
    return Answers(numbers, decisions, reason, queue)


def group_alike(numbers: Sequence[int], items: Sequence[Item]) -> list[tuple[list[int], list[Item]]]:
    """The items with their numbers in groups of those that fit into one message."""
    groups: dict[Hashable, tuple[list[int], list[Item]]] = {}
    for number, item in zip(numbers, items, strict=True):
        own_numbers, own = groups.setdefault(_kind(item), ([], []))
        own_numbers.append(number)
        own.append(item)
    return list(groups.values())


def _kind(item: DecisionRequest | Decision | Exception) -> Hashable:
    if isinstance(item, Exception):
        return _reason(item)
    if isinstance(item, DecisionRequest):
        images, proprio = item.observation["images"], item.observation["proprio"]
        return images.shape, images.dtype, proprio.shape, proprio.dtype
    arrays = (("", item.action), ("", item.log_prob), *item.blob.items())
    return tuple((name, array.shape, array.dtype) for name, array in arrays)


def _reason(error: object) -> str:
    return f"{type(error).__name__}: {error}"


def _answer_row(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action,
        "log_prob": decision.log_prob,
        "value": np.float64(decision.value),
        "version": np.int64(decision.policy_version),
        **{f"blob.{name}": array for name, array in decision.blob.items()},
    }


def _version(version: int | None) -> int:
    return NEWEST if version is None else version


def _offsets(layout: Mapping[str, Any]) -> tuple[list[int], int]:
    """Where each array begins, and the length of the buffer."""
    offsets = []
    end = 0
    for kind, shape in layout.values():
        dtype = np.dtype(kind)
        if dtype.kind not in "biuf" or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"no array is {kind} {shape}")
        start = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(start)
        end = start + dtype.itemsize * math.prod(shape)
    return offsets, end


def _views(buffer: np.ndarray, layout: Mapping[str, Any], offsets: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        name: np.ndarray(shape, dtype=kind, buffer=buffer.data, offset=offset)
        for (name, (kind, shape)), offset in zip(layout.items(), offsets, strict=True)
    }
