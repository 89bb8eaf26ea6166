"""Requests over real sockets, within this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from accerl.inference import InferenceService, Window
from accerl.runtime.request_server import RequestServer, TcpDoor
from accerl.runtime.requests import RequestClient, RequestError
from accerl.runtime.requests_zmq import Endpoint, KeyPair, Sockets
from accerl.runtime.wire import decode_answers, encode, encode_requests
from accerl.types import Decision, DecisionRequest, Observation
from tests.roles.fakes import observation


def request(seed: int) -> DecisionRequest:
    return DecisionRequest(observation=observation(abs(seed)), episode_step=seed, seed=seed)


def decision(request: DecisionRequest, version: int = 1) -> Decision:
    return Decision(
        action=request.observation["proprio"][None],
        log_prob=np.array([request.seed], np.float32),
        value=float(request.seed),
        blob={"tokens": np.array([request.episode_step], np.int16)},
        policy_version=version,
    )


class Answer:
    """A batch function that keeps the seeds of every batch; it waits where `gate` is closed. Negative seeds fail."""

    def __init__(self, version: int = 1) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._version = version

    def __call__(self, requests: Sequence[DecisionRequest]) -> list[Decision | Exception]:
        self.batches.append([request.seed for request in requests])
        self.started.release()
        assert self.gate.wait(20)
        return [
            LookupError(f"not {request.seed}") if request.seed < 0 else decision(request, self._version)
            for request in requests
        ]


Start = Callable[..., RequestServer]


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zmq")  # a socket's path has at most 107 characters


@pytest.fixture
def start(sockets: Path) -> Iterator[Start]:
    """Start a service with a server on node "here", which ends with the test."""
    with ExitStack() as stack:

        def start_one(
            answer: Answer, name: str = "s", tcp: TcpDoor | None = None, node: str = "here", **window: Any
        ) -> RequestServer:
            fields = {"batch_size": 8, "max_wait_s": 0.0, **window}
            service = InferenceService(answer, Window(**fields))
            server = RequestServer(service, node, sockets / name, tcp)
            stack.callback(service.close)
            stack.callback(answer.gate.set)
            stack.callback(server.close)
            service.start()
            server.start()
            return server

        yield start_one


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 30))


def client_of(*servers: RequestServer | Endpoint, name: str = "me", medium: Sockets | None = None, **options: Any):
    """A client that knows these services, as a context."""
    client = RequestClient(medium or Sockets("here"), name, **options)
    endpoints = {
        str(index): server if isinstance(server, Endpoint) else server.endpoint for index, server in enumerate(servers)
    }

    class Context:
        async def __aenter__(self) -> RequestClient:
            await client.__aenter__()
            client.set_services(endpoints)
            return client

        async def __aexit__(self, *error: object) -> None:
            await client.__aexit__(*error)

    return Context()


async def values(client: RequestClient, *seeds: int) -> list[float]:
    return [answer.value for answer in await asyncio.gather(*(client.act(request(seed)) for seed in seeds))]


async def both_entered(server: RequestServer) -> None:
    while len(server._service._queue._expected) < 2:
        await asyncio.sleep(0.005)


def test_every_request_gets_its_own_answer(start):
    server = start(Answer(), batch_size=3)

    async def scene() -> None:
        async with client_of(server) as client:
            answers = await asyncio.gather(*(client.act(request(seed)) for seed in range(10)))
            for seed, answer in enumerate(answers):
                assert answer.value == seed
                assert answer.blob["tokens"].tolist() == [seed]
                assert np.array_equal(answer.action[0], observation(seed)["proprio"])

    play(scene)


def test_several_clients_do_not_get_each_others_answers(start):
    server = start(Answer())

    async def scene() -> None:
        async with client_of(server, name="first") as first, client_of(server, name="second") as second:
            for _ in range(3):
                assert await asyncio.gather(values(first, 1, 2, 3), values(second, 4, 5)) == [[1, 2, 3], [4, 5]]

    play(scene)


def test_observations_of_different_shapes_can_ask_together(start):
    server = start(Answer())

    def wide(seed: int) -> DecisionRequest:
        seen = observation(seed, num_cameras=2)
        return replace(request(seed), observation=Observation(**seen))

    async def scene() -> None:
        async with client_of(server) as client:
            answers = await asyncio.gather(
                client.act(request(1)), client.act(wide(2)), client.act(request(3)), client.act(wide(4))
            )
            assert [answer.value for answer in answers] == [1, 2, 3, 4]

    play(scene)


def test_the_reason_reaches_the_asker_and_nobody_else(start):
    server = start(Answer())

    async def scene() -> None:
        async with client_of(server) as client:
            fine, failed = await asyncio.gather(client.act(request(3)), client.act(request(-5)), return_exceptions=True)
            assert isinstance(fine, Decision)
            assert isinstance(failed, RequestError)
            assert str(failed) == "LookupError: not -5"

    play(scene)


def test_a_client_may_come_before_its_service(start, sockets):
    async def scene() -> None:
        async with client_of(Endpoint("here", str(sockets / "s"))) as client:
            asked = asyncio.create_task(values(client, 3))
            await asyncio.sleep(0.05)
            start(Answer())
            assert await asked == [3]

    play(scene)


def test_a_request_is_asked_again_of_a_restarted_service(start):
    hangs = Answer()
    hangs.gate.clear()
    server = start(hangs)

    async def scene() -> None:
        async with client_of(server, resend_after_s=0.2) as client:
            asked = asyncio.create_task(client.act(request(4)))
            await asyncio.to_thread(hangs.started.acquire)
            server.close()
            start(Answer(version=2))
            answer = await asked
            assert (answer.value, answer.policy_version) == (4, 2)

    play(scene)


def test_what_a_service_leaves_behind_is_answered_by_another(start):
    hangs, other = Answer(), Answer(version=2)
    hangs.gate.clear()
    first, second = start(hangs, "a"), start(other, "b")

    async def scene() -> None:
        async with client_of(first) as client:
            asked = asyncio.create_task(values(client, 1, 2, 3))
            await asyncio.to_thread(hangs.started.acquire)
            client.set_services({"second": second.endpoint})
            assert await asked == [1, 2, 3]
        assert other.batches == [[1, 2, 3]]

    play(scene)


def test_requests_are_spread_over_services(start):
    answers = [Answer(), Answer()]
    servers = [start(answer, f"s{index}") for index, answer in enumerate(answers)]

    async def scene() -> None:
        async with client_of(*servers) as client:
            assert await values(client, 1, 2, 3, 4) == [1, 2, 3, 4]
        assert [answer.batches for answer in answers] == [[[1, 3]], [[2, 4]]]

    play(scene)


def test_a_request_that_is_sent_again_while_it_is_answered_is_answered_once(start):
    slow = Answer()
    slow.gate.clear()
    server = start(slow)

    async def scene() -> None:
        async with client_of(server, resend_after_s=0.02) as client:
            asked = asyncio.create_task(values(client, 1))
            await asyncio.to_thread(slow.started.acquire)
            await asyncio.sleep(0.2)
            slow.gate.set()
            assert await asked == [1]
            assert await values(client, 2) == [2]
        seeds = [seed for batch in slow.batches for seed in batch]
        assert seeds.count(1) <= 2, "ten were sent; the last may have met the answer on its way"

    play(scene)


def test_in_lockstep_a_batch_waits_for_the_slots_of_all_clients(start):
    answer = Answer()
    server = start(answer, lockstep=True)

    async def scene() -> None:
        async with (
            client_of(server, name="first", lockstep=True) as first,
            client_of(server, name="second", lockstep=True) as second,
        ):
            for client in (first, first, second):
                client.enter()
            await both_entered(server)
            early = asyncio.create_task(values(first, 1, 2))
            await asyncio.sleep(0.1)
            assert not answer.batches
            assert await values(second, 3) == [3]
            assert await early == [1, 2]
            early = asyncio.create_task(values(first, 4, 5))
            await asyncio.sleep(0.05)
            second.leave()
            assert await early == [4, 5]
        assert [sorted(batch) for batch in answer.batches] == [[1, 2, 3], [4, 5]]

    play(scene)


def test_in_lockstep_a_client_that_ends_is_not_waited_for(start):
    server = start(Answer(), lockstep=True)

    async def scene() -> None:
        async with client_of(server, name="stays", lockstep=True) as stays:
            stays.enter()
            async with client_of(server, name="goes", lockstep=True) as goes:
                goes.enter()
                await both_entered(server)
                assert await asyncio.gather(values(stays, 1), values(goes, 2)) == [[1], [2]]
            assert await values(stays, 3) == [3]

    play(scene)


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(start) -> Iterator[Callable[[RequestServer], zmq.Socket[bytes]]]:
    """A bare socket that is connected to a server."""
    context = zmq.Context()

    def connect(server: RequestServer) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.rcvtimeo = 20_000
        socket.connect(f"ipc://{server.endpoint.ipc}")
        return socket

    yield connect
    context.destroy(linger=0)


def test_the_answers_of_one_batch_to_one_client_are_one_message(start, raw):
    answer = Answer()
    server = start(answer, batch_size=5, max_wait_s=60.0)
    mine, other = raw(server), raw(server)
    for numbers in ([1], [2, 3]):
        mine.send_multipart(encode_requests(numbers, [request(n) for n in numbers], client="a", slots=None))
    other.send_multipart(encode_requests([1, 2], [request(8), request(9)], client="b", slots=None))
    received = decode_answers(mine.recv_multipart())
    assert sorted(received.numbers) == [1, 2, 3]
    assert sorted(decision.value for decision in received.decisions) == [1, 2, 3]
    assert [decision.value for decision in decode_answers(other.recv_multipart()).decisions] == [8, 9]
    assert len(answer.batches) == 1
    assert mine.poll(50) == other.poll(0) == 0


def test_answers_tell_how_many_requests_of_others_wait(start, raw):
    answer = Answer()
    answer.gate.clear()
    server = start(answer, batch_size=1)
    mine, other = raw(server), raw(server)
    mine.send_multipart(encode_requests([1], [request(1)], client="a", slots=None))
    answer.started.acquire()
    mine.send_multipart(encode_requests([2, 3], [request(2), request(3)], client="a", slots=None))
    other.send_multipart(encode_requests([1, 2], [request(8), request(9)], client="b", slots=None))
    while sum(map(len, server._unanswered.values())) < 5:
        time.sleep(0.005)
    answer.gate.set()
    queues = [decode_answers(mine.recv_multipart()).queue for _ in range(3)]
    assert queues[0] == 2
    assert all(queue <= 2 for queue in queues)


MALFORMED = [
    [b""],
    [b"\x80\x04pickled", b"\0"],
    [b"{}", b""],
    [b"a", b"b", b"c"],
    encode({"instructions": []}),
    encode({"instructions": [], "client": 3, "slots": None}),
    encode({"instructions": [], "client": "a", "slots": "many"}),
    encode({"instructions": ["go"], "client": "a", "slots": None}),
]


@pytest.mark.parametrize("message", MALFORMED)
def test_what_is_no_message_is_counted_and_the_server_goes_on(start, raw, message):
    server = start(Answer())
    socket = raw(server)
    socket.send_multipart(message)
    socket.send_multipart(encode_requests([7], [request(7)], client="a", slots=None))
    assert decode_answers(socket.recv_multipart()).numbers == [7]
    assert server.num_malformed == 1


def test_what_is_done_with_is_forgotten(start):
    server = start(Answer(), lockstep=True)

    async def scene() -> None:
        async with client_of(server, lockstep=True) as client:
            client.enter()
            assert await values(client, 1) == [1]
            client.leave()
            assert await values(client, 2) == [2]

    play(scene)
    server.close()
    assert server._unanswered == {}


# --- across nodes -----------------------------------------------------------------------------------------------------

HOST = "127.0.0.1"
GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + b"\x00" * 47
"""Of ZeroMQ."""


def test_a_client_on_another_node_comes_over_tcp_with_its_key(start):
    keys, own = KeyPair.make(), KeyPair.make()
    server = start(Answer(), tcp=TcpDoor(HOST, keys, frozenset({own.public})))
    assert server.endpoint.tcp.startswith(f"tcp://{HOST}:")
    assert server.endpoint.key == keys.public

    async def scene() -> None:
        away = Sockets("there", own)
        async with client_of(server, medium=away) as client, client_of(server) as neighbour:
            assert await asyncio.gather(values(client, 1, 2), values(neighbour, 3)) == [[1, 2], [3]]

    play(scene)
    assert server.num_refused == 0


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 4096, b"GET / HTTP/1.1\r\n\r\n", GREETING, GREETING + b"\x02\x7f" + b"\xff" * 4096]
)
def test_whoever_talks_nonsense_over_tcp_disturbs_nobody(start, garbage: bytes):
    keys, own = KeyPair.make(), KeyPair.make()
    server = start(Answer(), tcp=TcpDoor(HOST, keys, frozenset({own.public})))
    port = int(server.endpoint.tcp.rpartition(":")[2])

    async def scene() -> None:
        async with client_of(server, medium=Sockets("there", own)) as friend:
            with socket.create_connection((HOST, port), 5) as stranger, suppress(OSError):
                stranger.sendall(garbage)
                assert await values(friend, 1) == [1]
            assert await values(friend, 2) == [2]

    play(scene)


def test_a_stranger_gets_no_answer(start):
    keys, own = KeyPair.make(), KeyPair.make()
    answer = Answer()
    server = start(answer, tcp=TcpDoor(HOST, keys, frozenset({own.public})))

    async def scene() -> None:
        stranger = Sockets("there", KeyPair.make())
        async with (
            client_of(server, medium=stranger, name="stranger") as client,
            client_of(server, medium=Sockets("there", own)) as friend,
        ):
            asked = asyncio.create_task(values(client, 6))
            while not server.num_refused:
                await asyncio.sleep(0.01)
            assert await values(friend, 1) == [1]
            await asyncio.sleep(0.1)
            assert not asked.done()
            asked.cancel()

    play(scene)
    assert answer.batches == [[1]]


def test_without_any_key_nothing_is_heard(start):
    keys, own = KeyPair.make(), KeyPair.make()
    answer = Answer()
    server = start(answer, tcp=TcpDoor(HOST, keys, frozenset({own.public})))
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(server.endpoint.tcp)
    with suppress(zmq.Again):  # libzmq gives the connection up as soon as the server has broken it off
        socket.send_multipart(encode_requests([1], [request(1)], client="a", slots=None), zmq.NOBLOCK)
    num_events = socket.poll(300)
    context.destroy()
    assert num_events == 0
    assert answer.batches == []


def test_a_client_does_not_talk_to_a_service_with_another_key(start):
    keys, own = KeyPair.make(), KeyPair.make()
    answer = Answer()
    server = start(answer, tcp=TcpDoor(HOST, keys, frozenset({own.public})))
    impostor = replace(server.endpoint, key=KeyPair.make().public)

    async def scene() -> None:
        async with client_of(impostor, medium=Sockets("there", own)) as client:
            asked = asyncio.create_task(values(client, 1))
            await asyncio.sleep(0.3)
            assert not asked.done()
            asked.cancel()

    play(scene)
    assert answer.batches == []


@pytest.mark.parametrize("keys", [None, KeyPair.make()])
def test_a_node_without_a_way_to_a_service_is_told_so(start, keys):
    server = start(Answer())  # without TCP

    async def scene() -> None:
        async with RequestClient(Sockets("there", keys), "me") as client:
            with pytest.raises(ConnectionError, match="no keys or no TCP address"):
                client.set_services({"one": server.endpoint})

    play(scene)


def test_a_secret_key_is_not_shown():
    keys = KeyPair.make()
    assert keys.secret not in repr(keys)
