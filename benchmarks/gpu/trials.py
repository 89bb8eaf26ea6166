"""Measurements on a device that fail alone: memory given back, times taken, rows kept as they come.

what is to be measured ─► attempt ─► row: figures, or why there are none ─► Rows: a line, a line of the CSV file
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from accerl.config import ConfigError
from accerl.plan_memory import GIB
from benchmarks.results_file import append

MEASURED, LEFT_OUT = "measured", "left out"
LEAST = 3
"""Timed repeats, however long they take."""
MOST = 200


def attempt(measure: Callable[[], Mapping[str, Any]], device: str, keep: bool = False) -> dict[str, Any]:
    """What `measure` gives, or in `status` why it does not; memory is free again afterwards.

    Args:
        keep: compiled code is used again by what comes next.
    """
    try:
        return {"status": MEASURED, **measure()}
    except torch.OutOfMemoryError as error:
        return {"status": f"out of memory: {asked(str(error))}"}
    except ConfigError as error:
        return {"status": f"not available: {error}"}
    except Exception as error:  # the next one is to be measured all the same: a device is lent for minutes
        traceback.print_exc()
        return {"status": f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        release(device, keep)


def asked(message: str) -> str:
    """What was asked for, of the message of an error."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", message)
    return f"{found[1]} more asked for" if found else message.splitlines()[0]


def release(device: str, keep: bool = False) -> None:
    """Give back memory that nothing uses any more, compiled code included unless it is kept."""
    if (dynamo := sys.modules.get("torch._dynamo")) is not None and not keep:
        dynamo.reset()
    gc.collect()
    if is_cuda(device):
        torch.cuda.empty_cache()


@contextlib.contextmanager
def tracing_only(device: str) -> Iterator[None]:
    """On a processor torch.compile only traces in here: to generate code takes minutes, and no figure there counts."""
    if is_cuda(device):
        yield
        return
    whole = torch.compile
    torch.compile = cast(Any, partial(whole, backend="eager"))
    try:
        yield
    finally:
        torch.compile = whole


def is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def free_gib(device: str) -> float | None:
    """Memory that is free now; None: it is no GPU."""
    return torch.cuda.mem_get_info(device)[0] / GIB if is_cuda(device) else None


def begin_peak(device: str) -> None:
    """From now on the peak counts."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: str) -> float | None:
    """Most that tensors took since `begin_peak`; None: it is no GPU."""
    return torch.cuda.max_memory_allocated(device) / GIB if is_cuda(device) else None


def repeated(run: Callable[[], float], seconds: float) -> np.ndarray:
    """Seconds that `run` says it took, again and again for so long."""
    until, found = time.perf_counter() + seconds, []
    while len(found) < LEAST or (time.perf_counter() < until and len(found) < MOST):
        found.append(run())
    return np.array(found)


def spread(seconds: np.ndarray) -> float:
    """From the shortest to the longest, as a share of the median."""
    return float((seconds.max() - seconds.min()) / np.median(seconds))


def matrix_peak(device: str) -> float:
    """TFLOP/s of a product of square bfloat16 matrices of random numbers: the best of several groups of them."""
    size, group = (8192, 10) if is_cuda(device) else (256, 2)
    left, right, product = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(3))

    def run() -> float:
        if not is_cuda(device):
            began = time.perf_counter()
            for _ in range(group):
                torch.mm(left, right, out=product)
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(group):
            torch.mm(left, right, out=product)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    for _ in range(2):
        run()
    return group * 2 * size**3 / min(run() for _ in range(6)) / 1e12


class Rows:
    """The rows of a benchmark, each printed when it comes, and added to NAME.csv.

    Args:
        told: columns that the line says.
        folder: of the file; None: there is none.
    """

    def __init__(self, name: str, columns: Sequence[str], told: Sequence[str], folder: Path | None):
        self.all: list[dict[str, Any]] = []
        self._name, self._columns, self._told, self._folder = name, columns, told, folder

    def add(self, row: Mapping[str, Any]) -> None:
        full = {column: row.get(column) for column in self._columns}
        self.all.append(full)
        said = (f"{name} {_text(full[name])}" for name in self._told if full[name] is not None)
        print(f"{full['variant']}: {', '.join(said)}", flush=True)
        if self._folder is not None:
            append(self._name, [full], self._folder)

    @property
    def failed(self) -> bool:
        """One neither gave figures nor a reason that was foreseen."""
        return any(row["status"].startswith("failed") for row in self.all)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
