"""Weights through shared memory, for a learner and inference on one machine.

 file in /dev/shm:  header │ half 0 │ half 1        half:  manifest (JSON) │ tensors

The sender writes the halves in turn, each under a sequence number that is odd meanwhile; the number of publications in
the header says which one is the newest. A reader that finds the sequence number changed begins again.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from accerl.types import Array, Weights
from accerl.weight_buckets import ChecksumError, Layout, PackedWeights, bucket_slices, checksum, verify
from accerl.weights import ReceiveStatistics

MAGIC = int.from_bytes(b"accerlW1")
HALF_BYTES, PUBLICATION, SEQUENCE = 1, 2, (8, 16)
"""Words of the header behind the magic one: size of a half, number of publications, sequence number of each half."""
BUCKET_BYTES = 16 * 2**20
POLL_S = 0.005
ATTEMPTS = 3
"""To read one version whose checksum is wrong; then the next one is waited for."""


class SharedSender:
    """Owns the file: for this user only, locked against a second sender, removed by `close`.

    A sender that starts again after it was killed goes on in the file that it finds.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: _SharedFile | None = None

    def prepare(self, packed: PackedWeights) -> None:
        packed.checksums(BUCKET_BYTES)

    def send(self, packed: PackedWeights) -> None:
        """Returns when it is written; readers take it in their own time.

        Raises:
            RuntimeError: another sender uses the file.
            OSError: there is not enough shared memory.
        """
        parts = list(bucket_slices(packed.layout.num_bytes, BUCKET_BYTES))
        manifest = {"version": packed.version, "layout": packed.layout.to_json(), "info": packed.info}
        offset = _whole_pages(len(json.dumps(manifest)) + 40 * len(parts) + 200)
        file = self._open(offset + packed.layout.num_bytes)
        publication = int(file.header[PUBLICATION]) + 1
        half = publication % 2
        file.header[SEQUENCE[half]] |= np.uint64(1)
        for part in parts:
            file.half(half)[offset:][part] = packed.flat[part].numpy()
        manifest |= {"publication": publication, "offset": offset, "checksums": packed.checksums(BUCKET_BYTES)}
        file.write_manifest(half, manifest)
        file.header[SEQUENCE[half]] += np.uint64(1)
        file.header[PUBLICATION] = publication

    def is_behind(self) -> bool:
        return False  # a reader that has joined finds the newest version by itself

    def close(self) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _open(self, half_bytes: int) -> _SharedFile:
        if self._file is None and self._path.exists():
            self._file = _SharedFile(self._path, writable=True)
        if self._file is None or self._file.header[HALF_BYTES] < half_bytes:
            larger = _SharedFile.create(self._path, _whole_pages(half_bytes))
            if self._file is not None:
                self._file.close()
            self._file = larger
        return self._file


class SharedSource:
    """Reads the newest version; it may be made before the sender, and finds one that was started again."""

    def __init__(self, path: Path):
        self.statistics = ReceiveStatistics()
        self._path = path
        self._file: _SharedFile | None = None
        self._publication = 0
        self._mismatches = 0
        """In a row, of the version at hand."""
        self._flat: Tensor | None = None

    def latest(self, after: int, timeout_s: float) -> Weights | None:
        """The newest weights that were not given yet; its tensors are valid until the next call."""
        deadline = time.monotonic() + timeout_s
        while True:
            file = self._find()
            if file is not None and file.header[PUBLICATION] != self._publication:
                packed = self._read(file)
                if packed is not None:
                    return packed.weights()
            elif time.monotonic() < deadline:
                time.sleep(POLL_S)
            if time.monotonic() >= deadline:
                return None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _find(self) -> _SharedFile | None:
        """The file at the path, which may have been replaced; the last one, if it was removed."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return self._file
        if self._file is None or self._file.inode != inode:
            self.close()
            self._file = _SharedFile(self._path, writable=False)
            self._publication = 0
        return self._file

    def _read(self, file: _SharedFile) -> PackedWeights | None:
        """Copy and check the newest version; None if it was written meanwhile or did not arrive whole."""
        publication = int(file.header[PUBLICATION])
        half = publication % 2
        sequence = int(file.header[SEQUENCE[half]])
        text = file.manifest_text(half)
        if sequence % 2 or file.header[SEQUENCE[half]] != sequence:
            return self._begin_again(publication)
        manifest: Mapping[str, Any] = json.loads(text)
        layout = Layout.from_json(manifest["layout"])
        if self._flat is None or self._flat.numel() != layout.num_bytes:
            self._flat = layout.empty()
        data = file.half(half)[manifest["offset"] :]
        for number, part in enumerate(bucket_slices(layout.num_bytes, BUCKET_BYTES)):
            self._flat.numpy()[part] = data[part]
            arrived = checksum(self._flat[part])
            if file.header[SEQUENCE[half]] != sequence:
                return self._begin_again(publication)
            try:
                verify(arrived, manifest["checksums"][number], manifest["version"], number)
            except ChecksumError as error:
                return self._reject(error, manifest["publication"])
        self._publication, self._mismatches = manifest["publication"], 0
        self.statistics.num_received += 1
        return PackedWeights(version=manifest["version"], layout=layout, flat=self._flat, info=manifest["info"])

    def _begin_again(self, publication: int) -> None:
        self.statistics.num_retries += 1
        self.statistics.last_fault = f"publication {publication} was written over while it was read"

    def _reject(self, error: ChecksumError, publication: int) -> None:
        self.statistics.num_mismatches += 1
        self.statistics.last_fault = str(error)
        self._mismatches += 1
        if self._mismatches == ATTEMPTS:
            self._publication, self._mismatches = publication, 0


class _SharedFile:
    """The mapped file.

    Raises:
        PermissionError: it belongs to somebody else.
        RuntimeError: it is to be written, and somebody writes it; or it is no such file.
    """

    def __init__(self, path: Path, writable: bool):
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW)
        status = os.fstat(self._fd)
        self.inode = status.st_ino
        try:
            if status.st_uid != os.getuid():
                raise PermissionError(f"{path}: belongs to user {status.st_uid}")
            if writable:
                self._lock(path)
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._bytes: UInt8[Array, " byte"] = np.frombuffer(mmap.mmap(self._fd, 0, access=access), np.uint8)
            self.header = self._bytes[: mmap.PAGESIZE].view(np.uint64)
            if self.header[0] != MAGIC:
                raise RuntimeError(f"{path}: no weights of accerl; remove it")
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def create(cls, path: Path, half_bytes: int) -> _SharedFile:
        """A new file in the place of `path`, with its memory reserved, appearing there when it is complete."""
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(fd, 0, mmap.PAGESIZE + 2 * half_bytes)
            os.pwrite(fd, np.array([MAGIC, half_bytes], np.uint64).tobytes(), 0)
            file = cls(temporary, writable=True)
            temporary.rename(path)
            return file
        except OSError as error:
            temporary.unlink()
            raise OSError(error.errno, f"{path}: {2 * half_bytes / 2**20:.0f} MiB of shared memory: {error}") from error
        finally:
            os.close(fd)

    def half(self, number: int) -> UInt8[Array, " byte"]:
        start = mmap.PAGESIZE + number * int(self.header[HALF_BYTES])
        return self._bytes[start : start + int(self.header[HALF_BYTES])]

    def write_manifest(self, half: int, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest).encode()
        self.half(half)[: 8 + len(text)] = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)

    def manifest_text(self, half: int) -> bytes:
        """May be torn; whoever reads it compares the sequence numbers first."""
        size = int.from_bytes(self.half(half)[:8].tobytes(), "little")
        return self.half(half)[8 : 8 + size].tobytes()

    def close(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        del self._bytes, self.header  # unmapped when nobody reads it any more

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"{path}: another learner publishes here") from error


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
