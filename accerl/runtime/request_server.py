"""The services' side of the request path over ZeroMQ: a thread between the sockets and an `InferenceService`."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from accerl.inference import InferenceService, ServiceClosed
from accerl.runtime.requests_zmq import Endpoint, KeyPair, has_message
from accerl.runtime.wire import decode_requests, encode_answers
from accerl.types import Decision, DecisionRequest

LARGEST_MESSAGE = 2**30
"""Bytes, over the network: a stranger, too, may announce any length, for which room would be made."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TcpDoor:
    """How other nodes may come in."""

    host: str
    """Address of this node; the port is any that is free."""
    keys: KeyPair
    """Of the services."""
    allowed: frozenset[str]
    """Public keys of the clients; nobody else is heard."""


class _Asker(NamedTuple):
    """A connection of a client, to which answers go back."""

    door: zmq.Socket[bytes]
    identity: bytes


class RequestServer:
    """Brings requests from sockets to a service, and the answers of each batch back: one message for each client.

    What is no message is counted and dropped. A request that is sent again while it is being answered is dropped too.
    The sockets exist from construction on.
    """

    def __init__(
        self, service: InferenceService[DecisionRequest, Decision], node: str, ipc: Path, tcp: TcpDoor | None = None
    ):
        self.num_malformed = 0
        self.num_refused = 0
        """Connections of strangers."""
        self._service = service
        self._context = zmq.Context()
        self._allowed = frozenset() if tcp is None else tcp.allowed
        self._doors = [self._context.socket(zmq.ROUTER)]
        self._doors[0].bind(f"ipc://{ipc}")
        self.endpoint = Endpoint(node, str(ipc))
        self._guard = self._context.socket(zmq.REP)
        if tcp is not None:
            self._guard.bind("inproc://zeromq.zap.01")  # where libzmq asks about every client (RFC 27)
            self._doors.append(self._open(tcp))
            address = self._doors[1].getsockopt_string(zmq.LAST_ENDPOINT)
            self.endpoint = Endpoint(node, str(ipc), address, tcp.keys.public)
        self._unanswered: dict[_Asker, set[int]] = {}
        self._answered: deque[tuple[list[Any], list[Any]]] = deque()
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Requests that are not answered yet are not answered any more."""
        self._closed = True
        self._ring()
        if self._thread.is_alive():
            self._thread.join()
        self._context.destroy(linger=0)

    def _open(self, tcp: TcpDoor) -> zmq.Socket[bytes]:
        door = self._context.socket(zmq.ROUTER)
        door.curve_server = True
        door.curve_secretkey = tcp.keys.secret.encode()
        door.zap_domain = b"accerl"
        door.maxmsgsize = LARGEST_MESSAGE
        door.bind(f"tcp://{tcp.host}:*")
        return door

    def _serve(self) -> None:
        poller = zmq.Poller()
        for each in (*self._doors, self._guard, self._bell):
            poller.register(each, zmq.POLLIN)
        while not self._closed:
            for ready, _ in poller.poll():
                if ready in self._doors:
                    self._receive(ready)
                elif ready is self._guard:
                    self._judge()
                else:
                    self._send_answers()

    def _receive(self, door: zmq.Socket[bytes]) -> None:
        while has_message(door):
            identity, *frames = door.recv_multipart(copy=False)
            try:
                self._submit(_Asker(door, identity.bytes), frames)
            except ValueError as error:
                self.num_malformed += 1
                _log.warning("dropped a message: %s", error)

    def _submit(self, asker: _Asker, frames: Sequence[Any]) -> None:
        numbers, requests, fields = decode_requests(frames)
        client, slots = fields.get("client"), fields.get("slots")
        if not isinstance(client, str) or not (slots is None or type(slots) is int):
            raise ValueError(f"no client has the name {client!r} and {slots!r} slots")
        if slots is not None:
            self._service.expect(client, slots)
        unanswered = self._unanswered.get(asker, set())
        new = [row for row, number in enumerate(numbers) if number not in unanswered]
        if new:
            self._unanswered[asker] = unanswered.union(numbers)
            tags = [(asker, numbers[row]) for row in new]
            self._service.submit_many(tags, [requests[row] for row in new], self._take_answers, client)

    def _take_answers(self, tags: list[Any], answers: list[Any]) -> None:
        """In the service's thread."""
        self._answered.append((tags, answers))
        self._ring()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it is ringing already
            self._ringer.send(b"!")

    def _send_answers(self) -> None:
        self._bell.recv(4096)
        while self._answered:
            tags, answers = self._answered.popleft()
            by_asker: dict[_Asker, tuple[list[int], list[Any]]] = {}
            for (asker, number), answer in zip(tags, answers, strict=True):
                self._forget(asker, number)
                if not isinstance(answer, ServiceClosed):  # which another service will answer
                    numbers, own = by_asker.setdefault(asker, ([], []))
                    numbers.append(number)
                    own.append(answer)
            total = sum(map(len, self._unanswered.values()))
            for asker, (numbers, own) in by_asker.items():
                queue = total - len(self._unanswered.get(asker, ()))
                for frames in encode_answers(numbers, own, queue):
                    asker.door.send_multipart([asker.identity, *frames], copy=False)

    def _forget(self, asker: _Asker, number: int) -> None:
        self._unanswered[asker].discard(number)
        if not self._unanswered[asker]:
            del self._unanswered[asker]

    def _judge(self) -> None:
        """Answer libzmq's question whether a client may come in, by its public key."""
        version, request, _, address, _, mechanism, *credentials = self._guard.recv_multipart()
        known = mechanism == b"CURVE" and z85.encode(credentials[0]).decode() in self._allowed
        if not known:
            self.num_refused += 1
            _log.warning("refused a stranger from %s", address.decode())
        verdict = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._guard.send_multipart([version, request, *verdict, b"client", b""])
