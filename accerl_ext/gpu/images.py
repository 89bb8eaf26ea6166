"""The image processor of OpenVLA-OFT: see `accerl_ext.images`.

Two kernels: what has another size is resized to grey levels, rows first, as the twin does; then each program makes a
part of a frame's row: turned, cropped, and looked up in a table of what normalising makes of each grey level.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 256, 4


def process(
    frames: Tensor, size: int, rotate: bool, rows: tuple, columns: tuple, places: tuple, tables: tuple[Tensor, ...]
) -> Tensor:
    """The arguments are what `accerl_ext.images` knows of sizes, on the frames' device."""
    frames = frames.contiguous()
    height, width = frames.shape[-3:-1]
    num_frames = frames.shape[:-3].numel()
    values = torch.empty(*frames.shape[:-3], 6, size, size, dtype=torch.float32, device=frames.device)
    if not values.numel():
        return values
    blocks = triton.cdiv(size, BLOCK)
    grid = (num_frames * size, blocks)
    if (height, width) != (size, size):
        resized = frames.new_empty(num_frames, size, size, 3)
        (row_first, _, row_weights, row_widest), (first, count, weights, widest) = rows, columns
        _resize[grid](
            *(frames, resized, row_first, row_weights, first, count, weights, height, width, size),
            ROW_TAPS=row_widest,
            TAPS=widest,
            ROTATE=rotate,
            BLOCK=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        frames, rotate = resized, False
    shares, normalized = tables
    crops = places[0] is not None
    _finish[grid](
        *(frames, values, *(places if crops else (frames, frames, shares)), shares, normalized, size),
        CROPS=crops,
        ROTATE=rotate,
        BLOCK=BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,  # what is fused rounds once, and the twin rounds twice
    )
    return values


@triton.jit
def _resize(
    frames,
    resized,
    row_first,
    row_weights,
    first,
    count,
    weights,
    height,
    width,
    size,
    ROW_TAPS: tl.constexpr,
    TAPS: tl.constexpr,
    ROTATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = (tl.program_id(0) // size).to(tl.int64)
    y = tl.program_id(0) % size
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < size
    top = tl.load(row_first + y)
    left = tl.load(first + x, mask=inside, other=0)
    num_columns = tl.load(count + x, mask=inside, other=0)
    for channel in range(3):
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for tap in range(TAPS):
            there = tap < num_columns
            old_x = left + tap
            if ROTATE:
                old_x = width - 1 - old_x
            column = tl.zeros((BLOCK,), dtype=tl.float32)
            for row_tap in range(ROW_TAPS):
                old_y = tl.minimum(top + row_tap, height - 1)  # beyond its count a tap has no weight
                if ROTATE:
                    old_y = height - 1 - old_y
                at = ((frame * height + old_y) * width + old_x) * 3 + channel
                grey = tl.load(frames + at, mask=there, other=0).to(tl.float32)
                column += tl.load(row_weights + y * ROW_TAPS + row_tap) * grey
            total += tl.load(weights + x * TAPS + tap, mask=there, other=0.0) * column
        total = tl.minimum(tl.maximum(total, 0.0), 255.0)
        near = tl.floor(total)  # rounded half to even, as torch does
        rest = total - near
        is_odd = near - 2 * tl.floor(near / 2) == 1
        near = tl.where((rest > 0.5) | ((rest == 0.5) & is_odd), near + 1, near)
        tl.store(resized + ((frame * size + y) * size + x) * 3 + channel, near.to(tl.uint8), mask=inside)


@triton.jit
def _finish(
    frames,
    values,
    below,
    above,
    weight,
    shares,
    normalized,
    size,
    CROPS: tl.constexpr,
    ROTATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = (tl.program_id(0) // size).to(tl.int64)
    y = tl.program_id(0) % size
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = x < size
    for channel in range(3):
        if CROPS:
            top, bottom = tl.load(below + y), tl.load(above + y)
            left = tl.load(below + x, mask=inside, other=0)
            right = tl.load(above + x, mask=inside, other=0)
            across = tl.load(weight + x, mask=inside, other=0.0)
            upper_left = _share(frames, shares, frame, top, left, channel, size, inside, ROTATE)
            upper_right = _share(frames, shares, frame, top, right, channel, size, inside, ROTATE)
            lower_left = _share(frames, shares, frame, bottom, left, channel, size, inside, ROTATE)
            lower_right = _share(frames, shares, frame, bottom, right, channel, size, inside, ROTATE)
            upper = upper_left + (upper_right - upper_left) * across
            lower = lower_left + (lower_right - lower_left) * across
            cropped = upper + (lower - upper) * tl.load(weight + y)
            grey = (tl.minimum(tl.maximum(cropped, 0.0), 1.0) * 255.5).to(tl.int32)
        else:
            grey = _grey(frames, frame, y, x, channel, size, inside, ROTATE)
        for tower in tl.static_range(2):
            out = tower * 3 + channel
            pixel = tl.load(normalized + out * 256 + grey, mask=inside, other=0.0)
            tl.store(values + ((frame * 6 + out) * size + y) * size + x, pixel, mask=inside)


@triton.jit
def _grey(frames, frame, y, x, channel, size, inside, ROTATE: tl.constexpr):
    if ROTATE:
        y = size - 1 - y
        x = size - 1 - x
    return tl.load(frames + ((frame * size + y) * size + x) * 3 + channel, mask=inside, other=0).to(tl.int32)


@triton.jit
def _share(frames, shares, frame, y, x, channel, size, inside, ROTATE: tl.constexpr):
    return tl.load(shares + _grey(frames, frame, y, x, channel, size, inside, ROTATE), mask=inside, other=0.0)
