"""The client's side of the request path over ZeroMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq

from accerl.runtime.requests import Receiver
from accerl.runtime.wire import decode_answers, encode_requests, group_alike
from accerl.types import DecisionRequest

HEARTBEAT_S = 5.0
LINGER_MS = 200
"""For which a last message may still leave a closed socket."""
SEND_BUFFER = 2 * 2**20
"""Bytes, where the system allows so many: a message of a few images leaves in one go."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Of one end of a CURVE connection, in Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> KeyPair:
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is reached."""

    node: str
    """On which `ipc` is valid."""
    ipc: str
    """Path of a socket in a folder that only this user can enter."""
    tcp: str | None = None
    """Address for other nodes; None: it is reached on its own only."""
    key: str | None = None
    """Public key of the service, for `tcp`."""


class Sockets:
    """A `Medium`: unix sockets on the client's own node, encrypted TCP to others.

    Args:
        node: where the client is.
        keys: the client's; services know the public one.
    """

    def __init__(self, node: str, keys: KeyPair | None = None):
        self._node = node
        self._keys = keys

    def connect(self, endpoint: Endpoint, client: str, receiver: Receiver) -> SocketLink:
        """Raises ConnectionError if there is no way to the endpoint."""
        socket = zmq.Context.instance().socket(zmq.DEALER)
        socket.linger = LINGER_MS
        if endpoint.node == self._node:
            socket.sndbuf = SEND_BUFFER
            socket.connect(f"ipc://{endpoint.ipc}")
        elif endpoint.tcp is None or endpoint.key is None or self._keys is None:
            socket.close()
            raise ConnectionError(f"no keys or no TCP address for the way from node {self._node} to {endpoint}")
        else:
            socket.curve_serverkey = endpoint.key.encode()
            socket.curve_publickey = self._keys.public.encode()
            socket.curve_secretkey = self._keys.secret.encode()
            socket.heartbeat_ivl = int(1000 * HEARTBEAT_S)
            socket.connect(endpoint.tcp)
        return SocketLink(socket, client, receiver)


class SocketLink:
    """A `Link` that is read by the running event loop."""

    def __init__(self, socket: zmq.Socket[bytes], client: str, receiver: Receiver):
        self._socket = socket
        self._client = client
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(socket.fileno(), self._receive)

    def send(self, numbers: Sequence[int], requests: Sequence[DecisionRequest], slots: int | None) -> None:
        for own_numbers, own in group_alike(numbers, requests) or [([], [])]:
            frames = encode_requests(own_numbers, own, client=self._client, slots=slots)
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                _log.warning("the way to %s is full", self._socket.last_endpoint)  # the client will send it again
        self._receive()  # the socket signals an arrival once only, and sending may have taken the signal

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _receive(self) -> None:
        while has_message(self._socket):
            self._receiver.answered(decode_answers(self._socket.recv_multipart(copy=False)))


def has_message(socket: zmq.Socket[bytes]) -> bool:
    """Something can be received at once."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
