"""Messages as frames: there and back, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from accerl.runtime.wire import (
    decode,
    decode_decision,
    decode_request,
    encode,
    encode_decision,
    encode_request,
)
from accerl.types import Decision, DecisionRequest, Observation

shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
seeds = st.integers(-1, 2**63 - 1)
texts = st.text(max_size=30)


def floats(shape: Any) -> st.SearchStrategy[np.ndarray]:
    return arrays_of.arrays(np.float32, shape, elements=st.floats(width=32))


def images(shape: Any) -> st.SearchStrategy[np.ndarray]:
    return arrays_of.arrays(np.uint8, shape)


def sent(frames: list[Any]) -> list[bytes]:
    """As they arrive at the other end."""
    return [bytes(frame) for frame in frames]


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


@given(images(shapes), floats(shapes), texts, st.integers(0, 10**6), seeds)
def test_a_request_arrives_as_it_was_sent(image, proprio, instruction, episode_step, seed):
    request = DecisionRequest(
        observation=Observation(images=image, proprio=proprio, instruction=instruction),
        episode_step=episode_step,
        seed=seed,
    )
    received = decode_request(sent(encode_request(request)))
    assert same(received.observation["images"], image)
    assert same(received.observation["proprio"], proprio)
    assert received.observation["instruction"] == instruction
    assert (received.episode_step, received.seed) == (episode_step, seed)


@given(
    floats(shapes),
    floats(shapes),
    st.floats(allow_nan=False),
    st.dictionaries(texts, arrays_of.arrays(np.int16, shapes) | floats(shapes), max_size=3),
    st.integers(0, 2**31),
)
def test_a_decision_arrives_as_it_was_made(action, log_prob, value, blob, version):
    decision = Decision(action=action, log_prob=log_prob, value=value, blob=blob, policy_version=version)
    received = decode_decision(sent(encode_decision(decision)))
    assert same(received.action, action)
    assert same(received.log_prob, log_prob)
    assert (received.value, received.policy_version) == (value, version)
    assert received.blob.keys() == blob.keys()
    assert all(same(received.blob[name], array) for name, array in blob.items())


def test_what_is_not_contiguous_is_sent_all_the_same():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3]
    _, received = decode(sent(encode({}, {"a": array})))
    assert np.array_equal(received["a"], array)


def test_contiguous_arrays_are_sent_from_their_own_memory_and_received_as_views():
    array = np.arange(6, dtype=np.float32)
    _, frame = encode({}, {"a": array})
    assert np.shares_memory(np.asarray(frame), array)
    _, received = decode(sent(encode({}, {"a": array})))
    assert not received["a"].flags.writeable


HEADER = {"fields": {}, "arrays": {"a": ["<f4", [2]]}}
TWO = np.zeros(2, np.float32).tobytes()


def test_the_unbroken_base_of_the_malformed_messages_is_read():
    fields, arrays = decode([json.dumps(HEADER).encode(), TWO])
    assert fields == {} and arrays["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\x80\x04pickled"],
        [b"\xff\xfe", TWO],
        [b"[]", TWO],
        [b"3", TWO],
        [json.dumps({"arrays": {}}).encode()],
        [json.dumps({"fields": {}}).encode()],
        [json.dumps({"fields": {}, "arrays": [1]}).encode(), TWO],
        [json.dumps(HEADER).encode()],
        [json.dumps(HEADER).encode(), TWO, TWO],
        [json.dumps(HEADER).encode(), TWO[:7]],
        [json.dumps(HEADER).encode(), TWO + TWO],
        [json.dumps(HEADER | {"arrays": {"a": ["<f4"]}}).encode(), TWO],
        [json.dumps(HEADER | {"arrays": {"a": ["no type", [2]]}}).encode(), TWO],
        [json.dumps(HEADER | {"arrays": {"a": ["|O", [1]]}}).encode(), TWO],
    ],
)
def test_what_is_no_message_is_refused(frames):
    with pytest.raises(ValueError):
        decode(frames)
