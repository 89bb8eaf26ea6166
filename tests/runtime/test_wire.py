"""Messages as two frames: there and back, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from accerl.runtime.wire import (
    Answers,
    decode,
    decode_answers,
    decode_requests,
    encode,
    encode_answers,
    encode_requests,
    group_alike,
)
from accerl.types import Decision, DecisionRequest, Observation

shapes = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
seeds = st.integers(-1, 2**63 - 1)
texts = st.text(max_size=30)


def floats(shape: Any) -> st.SearchStrategy[np.ndarray]:
    return arrays_of.arrays(np.float32, shape, elements=st.floats(width=32))


@st.composite
def requests_alike(draw: st.DrawFn) -> list[DecisionRequest]:
    image_shape, proprio_shape = draw(shapes), draw(shapes)
    return [
        DecisionRequest(
            observation=Observation(
                images=draw(arrays_of.arrays(np.uint8, image_shape)),
                proprio=draw(floats(proprio_shape)),
                instruction=draw(texts),
            ),
            episode_step=draw(st.integers(0, 10**6)),
            seed=draw(seeds),
            policy_version=draw(st.none() | st.integers(0, 2**31)),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]


@st.composite
def decisions_alike(draw: st.DrawFn) -> list[Decision]:
    blob_shapes = draw(st.dictionaries(texts, st.tuples(st.sampled_from((np.int16, np.float32)), shapes), max_size=3))
    action_shape, log_prob_shape = draw(shapes), draw(shapes)
    return [
        Decision(
            action=draw(floats(action_shape)),
            log_prob=draw(floats(log_prob_shape)),
            value=draw(st.floats()),
            blob={name: draw(arrays_of.arrays(kind, shape)) for name, (kind, shape) in blob_shapes.items()},
            policy_version=draw(st.integers(0, 2**31)),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


def sent(frames: Sequence[Any]) -> list[bytes]:
    """As they arrive at the other end."""
    return [bytes(frame) for frame in frames]


def same(first: Any, second: Any) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def request(seed: int = 0, image_size: int = 4) -> DecisionRequest:
    return DecisionRequest(
        observation=Observation(
            images=np.full((1, image_size, image_size, 3), seed, np.uint8),
            proprio=np.full(2, seed, np.float32),
            instruction="go",
        ),
        episode_step=0,
        seed=seed,
    )


def decision(value: float = 0.0, num_tokens: int = 4) -> Decision:
    return Decision(
        action=np.full((2, 3), value, np.float32),
        log_prob=np.full(num_tokens, value, np.float32),
        value=value,
        blob={"tokens": np.zeros(num_tokens, np.int16)},
        policy_version=3,
    )


@given(requests_alike())
def test_requests_arrive_as_they_were_sent(requests):
    numbers = list(range(7, 7 + len(requests)))
    received_numbers, received, fields = decode_requests(
        sent(encode_requests(numbers, requests, client="me", slots=None))
    )
    assert received_numbers == numbers
    assert fields == {"client": "me", "slots": None}
    assert len(received) == len(requests)
    for one, other in zip(received, requests, strict=True):
        assert same(one.observation["images"], other.observation["images"])
        assert same(one.observation["proprio"], other.observation["proprio"])
        assert one.observation["instruction"] == other.observation["instruction"]
        assert (one.episode_step, one.seed, one.policy_version) == (
            other.episode_step,
            other.seed,
            other.policy_version,
        )


@given(decisions_alike())
def test_decisions_arrive_as_they_were_made(decisions):
    numbers = list(range(5, 5 + len(decisions)))
    (message,) = encode_answers(numbers, decisions, queue=9)
    received = decode_answers(sent(message))
    assert (received.numbers, received.reason, received.queue) == (numbers, None, 9)
    for one, other in zip(received.decisions, decisions, strict=True):
        assert same(one.action, other.action)
        assert same(one.log_prob, other.log_prob)
        assert same(np.float64(one.value), np.float64(other.value))
        assert one.policy_version == other.policy_version
        assert one.blob.keys() == other.blob.keys()
        assert all(same(one.blob[name], array) for name, array in other.blob.items())


def test_all_arrays_of_a_message_are_in_one_buffer():
    frames = encode_requests([1, 2], [request(1), request(2)])
    assert len(frames) == 2
    assert b"pickle" not in bytes(frames[0])
    assert bytes(frames[1]).startswith(b"\1" * 48 + b"\2" * 48)


def test_arrays_are_received_as_views_of_what_arrived():
    frames = sent(encode_requests([1, 2], [request(1), request(2)]))
    _, received, _ = decode_requests(frames)
    whole = np.frombuffer(frames[1], np.uint8)
    assert all(np.shares_memory(each.observation["images"], whole) for each in received)


def test_what_is_not_contiguous_is_sent_all_the_same():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3]
    _, received = decode(sent(encode({}, {"a": [array]})))
    assert np.array_equal(received["a"][0], array)


def test_only_what_is_alike_goes_into_one_message():
    requests = [request(0), request(1, image_size=8), request(2)]
    groups = group_alike([10, 11, 12], requests)
    assert [numbers for numbers, _ in groups] == [[10, 12], [11]]
    assert [own for _, own in groups] == [[requests[0], requests[2]], [requests[1]]]
    assert group_alike([], []) == []


def test_decisions_and_errors_go_back_in_messages_of_their_own():
    answers = [decision(1), ValueError("no"), decision(2, num_tokens=8), decision(3), ValueError("no"), KeyError("k")]
    received = [decode_answers(sent(message)) for message in encode_answers([1, 2, 3, 4, 5, 6], answers, queue=0)]
    assert [each.numbers for each in received] == [[1, 4], [2, 5], [3], [6]]
    assert [[decision.value for decision in each.decisions] for each in received] == [[1, 3], [], [2], []]
    assert [each.reason for each in received] == [None, "ValueError: no", None, "KeyError: 'k'"]


def test_without_answers_there_is_nothing_to_send():
    assert encode_answers([], [], queue=0) == []


TWO = np.zeros(2, np.float32).tobytes()


def header(*layout: Any) -> bytes:
    return json.dumps({"fields": {}, "arrays": json.dumps(layout)}).encode()


def test_the_unbroken_base_of_the_malformed_messages_is_read():
    fields, arrays = decode([header(["a", "<f4", [2]]), TWO])
    assert fields == {} and arrays["a"].tolist() == [0, 0]


def test_arrays_may_be_whole_or_rows_and_begin_at_round_places():
    frames = sent(encode({}, {"rows": [np.float32(1), np.float32(2)], "whole": np.arange(3)}))
    assert len(frames[1]) == 64 + 3 * 8
    _, arrays = decode(frames)
    assert arrays["rows"].tolist() == [1, 2]
    assert arrays["whole"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"", b""],
        [b"\x80\x04pickled", TWO],
        [b"\xff\xfe", TWO],
        [b"[]", TWO],
        [b"3", TWO],
        [b"[" * 100_000, TWO],
        [b'{"arrays": "[]"}', b""],
        [b'{"fields": {}}', b""],
        [b'{"fields": 3, "arrays": "[]"}', b""],
        [b'{"fields": {}, "arrays": []}', b""],
        [b'{"fields": {}, "arrays": 3}', b""],
        [b'{"fields": {}, "arrays": "{"}', b""],
        [header(["a", "<f4", [2]])],
        [header(["a", "<f4", [2]]), TWO, TWO],
        [header(["a", "<f4", [2]]), TWO[:7]],
        [header(["a", "<f4", [2]]), TWO + TWO],
        [header(1), TWO],
        [header(["a", "<f4"]), TWO],
        [header(["a", "<f4", 2]), TWO],
        [header(["a", "<f4", ["2"]]), TWO],
        [header(["a", "<f4", [2.0]]), TWO],
        [header(["a", "<f4", [True, 2]]), TWO],
        [header(["a", "<f4", [-2, -1]]), TWO],
        [header(["a", "<f4", [0, 2**80]]), b""],
        [header(["a", "<f4", [1] * 100 + [2]]), TWO],
        [header(["a", "no type", [2]]), TWO],
        [header(["a", None, [2]]), TWO],
        [header(["a", "|O", [1]]), TWO],
        [header(["a", "V4", [2]]), TWO],
        [header([["a"], "<f4", [2]]), TWO],
    ],
)
def test_what_is_no_message_is_refused(frames):
    with pytest.raises(ValueError):
        decode(frames)


FACTS = np.zeros((1, 4), np.int64)
PARTS: dict[str, Any] = {"images": np.zeros((1, 1, 2, 2, 3), np.uint8), "proprio": np.zeros((1, 2)), "facts": FACTS}


def message(fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[Any]:
    return sent(encode(fields, arrays))


def test_the_unbroken_base_of_the_malformed_requests_is_read():
    _, requests, fields = decode_requests(message({"instructions": ["go"], "client": "me"}, PARTS))
    assert len(requests) == 1
    assert fields == {"client": "me"}


@pytest.mark.parametrize(
    ("fields", "arrays"),
    [
        ({}, PARTS),
        ({"instructions": "go"}, PARTS),
        ({"instructions": [3]}, PARTS),
        ({"instructions": ["go", "go"]}, PARTS),
        ({"instructions": ["go"]}, {}),
        ({"instructions": ["go"]}, PARTS | {"more": FACTS}),
        ({"instructions": ["go"]}, {"images": FACTS, "proprio": FACTS}),
        ({"instructions": ["go"]}, PARTS | {"facts": FACTS.astype(np.int32)}),
        ({"instructions": ["go"]}, PARTS | {"facts": FACTS[:, :3]}),
        ({"instructions": ["go"]}, PARTS | {"facts": FACTS[:, 0]}),
    ],
)
def test_what_is_no_request_is_refused(fields, arrays):
    with pytest.raises(ValueError):
        decode_requests(message(fields, arrays))


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_noise_is_refused(frames):
    for read in (decode_requests, decode_answers):
        with pytest.raises(ValueError):
            read(frames)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


@given(
    st.fixed_dictionaries(
        {
            "fields": json_values,
            "arrays": (
                json_values
                | st.lists(
                    st.tuples(
                        st.sampled_from(("images", "proprio", "facts")),
                        st.sampled_from(("<i8", "|u1", "<f4")),
                        st.lists(st.integers(0, 3), max_size=3),
                    )
                )
            ).map(json.dumps),
        }
    ),
    st.binary(max_size=40),
)
def test_a_well_formed_header_with_any_content_is_read_or_refused(content, buffer):
    for read in (decode_requests, decode_answers):
        with contextlib.suppress(ValueError):
            read([json.dumps(content).encode(), buffer])


@pytest.mark.parametrize(
    "fields",
    [{}, {"numbers": [1]}, {"queue": 0}, {"numbers": 1, "queue": 0}, {"numbers": [1, 2], "queue": 0}],
)
def test_what_is_no_answer_is_refused(fields):
    (whole,) = encode_answers([1], [decision()], queue=0)
    _, arrays = decode(whole)
    assert isinstance(decode_answers(message({"numbers": [1], "queue": 0}, arrays)), Answers)
    with pytest.raises(ValueError):
        decode_answers(message(fields, arrays))
