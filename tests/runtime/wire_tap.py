"""Listens on a network device and says, at the end of its input, which ZeroMQ conversations it heard.

    python wire_tap.py DEVICE  ─►  [{"port": 40001, "mechanism": "CURVE", "bytes": 123456, "readable": false}, ...]

Readable is a conversation in which the name of a worker was seen.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys

GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
"""First bytes of a ZMTP 3 connection (RFC 23); libzmq sends a length of 1 and the mechanism's name with them."""
MECHANISM = slice(12, 32)
EVERYTHING = 0x0003
TCP = 6


def main() -> None:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(EVERYTHING))
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
    wire.bind((sys.argv[1], 0))
    print("listening", flush=True)
    heard: dict[tuple[int, int], bytearray] = {}
    sizes: dict[tuple[int, int], int] = {}
    readable: set[tuple[int, int]] = set()
    while sys.stdin not in select.select([wire, sys.stdin], [], [])[0]:
        frame = wire.recv(2**17)
        if (parsed := parse(frame)) is None:
            continue
        ports, payload = parsed
        start = heard.setdefault(ports, bytearray())
        start += payload[: max(0, 64 - len(start))]
        sizes[ports] = sizes.get(ports, 0) + len(payload)
        if b"rollout-" in payload:
            readable.add(ports)
    conversations = [
        {
            "from": ports[0],
            "to": ports[1],
            "mechanism": bytes(start[MECHANISM]).rstrip(b"\0").decode(errors="replace"),
            "bytes": sizes[ports],
            "readable": ports in readable,
        }
        for ports, start in heard.items()
        if start[:1] == GREETING[:1] and start[9:10] == GREETING[9:10]
    ]
    print(json.dumps(conversations), flush=True)


def parse(frame: bytes) -> tuple[tuple[int, int], bytes] | None:
    """Ports and content of a TCP segment over IPv4; None: it is none, or empty."""
    if frame[12:14] != b"\x08\x00" or frame[23] != TCP:
        return None
    length = struct.unpack_from(">H", frame, 16)[0]
    packet = frame[14 : 14 + length] if length else frame[14:]
    header = 4 * (packet[0] & 15)
    source, target = struct.unpack_from(">HH", packet, header)
    payload = packet[header + 4 * (packet[header + 12] >> 4) :]
    return ((source, target), payload) if payload else None


if __name__ == "__main__":
    main()
