"""Messages of two frames: a JSON header, and one buffer with all arrays. Nothing is pickled.

Rows of the same shape are stacked straight into the buffer, and arrays are received as views of it: an observation is
copied once before it is sent and not at all after it arrived.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from accerl.types import Decision, DecisionRequest

Item = TypeVar("Item", bound=DecisionRequest | Decision | Exception)
Columns = Mapping[str, Sequence[Any] | np.ndarray]
"""Name to array, or to the rows that make it up when they are stacked."""
ALIGNMENT = 64
KIND = re.compile(r"[<>|=]?[biuf](1|2|4|8)")
"""Types of arrays: what NumPy makes of other words is no concern of a stranger."""
NEWEST = -1
"""In the place of a request's policy version: none is asked for."""


def encode(fields: Mapping[str, Any], columns: Columns | None = None) -> list[Any]:
    """Frames of a message."""
    columns = columns or {}
    layout = json.dumps([[name, rows[0].dtype.str, [len(rows), *rows[0].shape]] for name, rows in columns.items()])
    places, size = _places(layout)
    buffer = np.empty(size, np.uint8)
    for name, target in _views(buffer, places).items():
        rows = columns[name]
        if isinstance(rows, np.ndarray):
            target[...] = rows
        else:
            for index, row in enumerate(rows):
                target[index] = row
    return [json.dumps({"fields": fields, "arrays": layout}).encode(), buffer]


def decode(frames: Sequence[Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the arrays of a message; arrays are views of its second frame.

    Raises:
        ValueError: the frames are not such a message.
    """
    try:
        header, content = frames
        message = json.loads(bytes(header))
        places, size = _places(message["arrays"])
        buffer = np.frombuffer(content, np.uint8)
        if len(buffer) != size:
            raise ValueError(f"message announces {size} bytes and carries {len(buffer)}")
        return dict(message["fields"]), _views(buffer, places)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"not a message: {error!r}") from None


def encode_requests(numbers: Sequence[int], requests: Sequence[DecisionRequest], **fields: Any) -> list[Any]:
    """A message of requests of one kind (`group_alike`), each with its number; `fields` travel with it."""
    observations = [request.observation for request in requests]
    columns: dict[str, Any] = {}
    if requests:
        columns["images"] = [observation["images"] for observation in observations]
        columns["proprio"] = [observation["proprio"] for observation in observations]
        columns["facts"] = np.array(
            [
                (number, request.episode_step, request.seed, _version(request.policy_version))
                for number, request in zip(numbers, requests, strict=True)
            ],
            dtype=np.int64,
        )
    return encode({**fields, "instructions": [observation["instruction"] for observation in observations]}, columns)


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
        decisions = [answer for answer in own if isinstance(answer, Decision)]
        if decisions:
            messages.append(encode(fields, _columns(decisions)))
        else:
            messages.append(encode({**fields, "reason": _reason(own[0])}))
    return messages


def decode_answers(frames: Sequence[Any]) -> Answers:
    """The answers in a message.

    Raises:
        ValueError: there are none in it.
    """
    fields, arrays = decode(frames)
    try:
        numbers, reason, queue = list(fields["numbers"]), fields.get("reason"), fields["queue"]
        if reason is not None:
            return Answers(numbers, [], reason, queue)
        blobs = {name.removeprefix("blob."): array for name, array in arrays.items() if name.startswith("blob.")}
        columns = [arrays["action"], arrays["log_prob"], arrays["value"].tolist(), arrays["version"].tolist()]
        decisions = [
            Decision(
                action=action,
                log_prob=log_prob,
                value=value,
                blob=dict(zip(blobs, own, strict=True)),
                policy_version=version,
            )
            for _, action, log_prob, value, version, *own in zip(numbers, *columns, *blobs.values(), strict=True)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an answer: {error!r}") from None
    return Answers(numbers, decisions, None, queue)


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
    return tuple([(name, array.shape, array.dtype) for name, array in arrays])


def _reason(error: object) -> str:
    return f"{type(error).__name__}: {error}"


def _columns(decisions: Sequence[Decision]) -> Columns:
    return {
        "action": [decision.action for decision in decisions],
        "log_prob": [decision.log_prob for decision in decisions],
        "value": np.array([decision.value for decision in decisions], dtype=np.float64),
        "version": np.array([decision.policy_version for decision in decisions], dtype=np.int64),
        **{f"blob.{name}": [decision.blob[name] for decision in decisions] for name in decisions[0].blob},
    }


def _version(version: int | None) -> int:
    return NEWEST if version is None else version


class _Place(NamedTuple):
    """Of an array in the buffer."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@lru_cache(maxsize=256)
def _places(layout: str) -> tuple[tuple[_Place, ...], int]:
    """Where each array of a layout is, and the length of the buffer. Layouts repeat from message to message."""
    places = []
    end = 0
    for name, kind, shape in json.loads(layout):
        if not KIND.fullmatch(kind) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"no array is {kind:.20} {shape}")
        dtype = np.dtype(kind)
        start = -(-end // ALIGNMENT) * ALIGNMENT
        places.append(_Place(name, dtype, tuple(shape), start))
        end = start + dtype.itemsize * math.prod(shape)
    return tuple(places), end


def _views(buffer: np.ndarray, places: Sequence[_Place]) -> dict[str, np.ndarray]:
    memory = buffer.data
    return {name: np.ndarray(shape, dtype, memory, offset) for name, dtype, shape, offset in places}
