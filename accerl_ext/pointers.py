"""Tensors and numbers as C takes them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def of(*values: Tensor | float | bool | None) -> Iterator[Any]:
    """A tensor is the address of its first element, None a null pointer, int an int64 and float a float32."""
    for value in values:
        if isinstance(value, Tensor):
            assert value.is_contiguous(), "C goes from one element to the next"
            yield ctypes.c_void_p(value.data_ptr())
        elif value is None:
            yield ctypes.c_void_p()
        elif isinstance(value, bool):
            yield ctypes.c_bool(value)
        elif isinstance(value, int):
            yield ctypes.c_int64(value)
        else:
            yield ctypes.c_float(value)
