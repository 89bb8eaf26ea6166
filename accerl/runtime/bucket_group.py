"""A process group in which the first rank sends a flat buffer in buckets, beside any other group of the process."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor

from accerl.weight_buckets import bucket_slices, checksum

IN_FLIGHT = 64
"""Buckets that are on their way at a time; the timeout holds for each."""
POLL_S = 0.001
LOOK_S = 0.1
"""Between two looks whether the group is still wanted."""


class Seat(NamedTuple):
    """One process in a group."""

    rank: int
    """0 sends."""
    size: int
    host: str
    """Address of this process's machine, as the other ranks reach it."""


def open_store(host: str) -> dist.TCPStore:
    """Where processes find each other, at any port of this address only. It asks nobody who they are."""
    listener = socket.create_server((host, 0))
    port: int = listener.getsockname()[1]
    return dist.TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


class BucketGroup:
    """Made at the same time by all its ranks.

    Args:
        backend: `gloo` or `nccl`; through NCCL, buckets of a buffer in host memory pass over the GPU one by one.
        timeout_s: for the making and for each bucket.
        is_over: the group is no longer wanted; looked at while a bucket is waited for.

    Raises:
        RuntimeError: not all ranks have come.
    """

    def __init__(self, store: dist.Store, seat: Seat, backend: str, timeout_s: float, is_over: Callable[[], bool]):
        self._is_sender = seat.rank == 0
        self._timeout_s = timeout_s
        self._is_over = is_over
        self._stream = torch.cuda.Stream() if backend == "nccl" else None
        self._device = torch.device("cpu" if self._stream is None else "cuda")
        self._options = dist.BroadcastOptions()
        self._options.rootRank = self._options.rootTensor = 0
        make = _gloo_group if backend == "gloo" else _nccl_group
        self._group: Any = make(store, seat, timedelta(seconds=timeout_s))

    def send(self, flat: UInt8[Tensor, " byte"], bucket_bytes: int) -> None:
        """Send `flat` to all other ranks. Raises as `receive` does."""
        self._broadcast(flat, bucket_bytes, lambda _: None)

    def receive(self, flat: UInt8[Tensor, " byte"], bucket_bytes: int) -> list[int]:
        """Fill `flat`; gives the checksum of each bucket, worked out while the next ones travel.

        Raises:
            RuntimeError: a rank is gone or did not answer in time, or the group is no longer wanted.
        """
        checksums: list[int] = []
        self._broadcast(flat, bucket_bytes, lambda bucket: checksums.append(checksum(bucket)))
        return checksums

    def abandon(self) -> None:
        """Leave the group without waiting for what is still on its way; such a buffer may yet be written to."""
        threading.Thread(target=_drop, args=([self._group],), name="abandoned-group", daemon=True).start()
        self._group = None

    def _broadcast(self, flat: Tensor, bucket_bytes: int, landed: Callable[[Tensor], None]) -> None:
        flying: deque[_Flight] = deque()
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for part in bucket_slices(flat.numel(), bucket_bytes):
                if len(flying) == IN_FLIGHT:
                    landed(self._land(flying.popleft()))
                flying.append(self._take_off(flat[part]))
            for flight in flying:
                landed(self._land(flight))

    def _take_off(self, place: Tensor) -> _Flight:
        bucket = place
        if place.device.type != self._device.type:
            bucket = torch.empty_like(place, device=self._device)
            if self._is_sender:
                bucket.copy_(place, non_blocking=True)
        return _Flight(place, bucket, self._group.broadcast([bucket], self._options))

    def _land(self, flight: _Flight) -> Tensor:
        self._wait(flight.work)
        if flight.bucket is not flight.place and not self._is_sender:
            flight.place.copy_(flight.bucket)
        return flight.place

    def _wait(self, work: Any) -> None:
        now = time.monotonic()
        deadline, look = now + self._timeout_s, now + LOOK_S
        while not self._is_done_soon(work):
            now = time.monotonic()
            if now > deadline:
                raise RuntimeError(f"a bucket was not through within {self._timeout_s:g} s")
            if now > look:
                look = now + LOOK_S
                if self._is_over():
                    raise RuntimeError("the group is over")
        work.wait()  # raises what went wrong

    def _is_done_soon(self, work: Any) -> bool:
        """Returns as soon as it is, or a moment later."""
        if self._stream is None:
            with contextlib.suppress(RuntimeError):  # not yet; or a fault, which the last wait raises
                work.wait(timedelta(seconds=LOOK_S))
        elif not work.is_completed():  # through NCCL, waiting waits for nothing
            time.sleep(POLL_S)
        return work.is_completed()


class _Flight(NamedTuple):
    place: Tensor
    """Where it comes from or goes to."""
    bucket: Tensor
    """The same, on the device of the group."""
    work: Any


def _gloo_group(store: dist.Store, seat: Seat, timeout: timedelta) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=seat.host)]
    options._timeout = timeout
    return gloo(store, seat.rank, seat.size, options)


def _nccl_group(store: dist.Store, seat: Seat, timeout: timedelta) -> Any:
    if not dist.is_nccl_available():
        raise ValueError("weights.channel=group: this torch has no NCCL; take gloo or another channel")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _environment(TORCH_NCCL_ASYNC_ERROR_HANDLING="0", TORCH_NCCL_ENABLE_MONITORING="0"):
        # a fault ends the group, which is noticed and mended here; torch's watchdog would end the process
        return dist.ProcessGroupNCCL(store, seat.rank, seat.size, options)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _drop(groups: list[Any]) -> None:
    """The destructor waits until what hangs has timed out."""
    groups[0].abort()
    groups.clear()
