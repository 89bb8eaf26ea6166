"""The network's forward as CUDA graphs, one for each size of a batch: launched as a whole, not kernel by kernel.

    prompts, pixels, proprio ─ copied ─► static inputs ─► replay ─► static outputs ─ copied ─► prediction

Weights are read where they lie, so that a graph goes on with new ones that are copied into their place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from accerl.policies.openvla_oft.layout import Prompts
from accerl.policies.openvla_oft.model import Prediction

WARM_UP = 3
"""Forwards before a capture, in which libraries choose their kernels and take their memory."""

Forward = Callable[[Prompts, Tensor, "Tensor | None"], Prediction]


class _Captured(NamedTuple):
    """A forward of one shape."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Prediction


class GraphedForward:
    """A forward that is captured when a shape comes for the first time, and replayed from then on.

    Args:
        forward: without gradients, reading weights that keep their place in memory.
    """

    def __init__(self, forward: Forward):
        self._forward = forward
        self._captured: dict[tuple[torch.Size | None, ...], _Captured] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Shapes that were captured."""
        return len(self._captured)

    def __call__(self, prompts: Prompts, pixels: Tensor, proprio: Tensor | None) -> Prediction:
        """The prediction, which later calls do not change.

        Raises:
            RuntimeError: gradients are wanted.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("a captured forward has no gradients; call it in torch.inference_mode()")
        with torch.inference_mode():
            return self._replay(prompts, pixels, proprio)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphedForward:
        """Without graphs: they read the weights of the original."""
        return GraphedForward(copy.deepcopy(self._forward, memo))

    def _replay(self, prompts: Prompts, pixels: Tensor, proprio: Tensor | None) -> Prediction:
        inputs = tuple(each for each in (*prompts, pixels, proprio) if each is not None)
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(inputs)
        captured = self._captured[shapes]
        for place, value in zip(captured.inputs, inputs, strict=True):
            place.copy_(value)
        captured.graph.replay()
        return Prediction(*(each.clone() for each in captured.output))

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        """Other threads may copy weights meanwhile, which must not end up in the graph or break it."""
        own = tuple(each.clone() for each in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._run(own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            output = self._run(own)
        self._pool = graph.pool()
        return _Captured(graph, own, output)

    def _run(self, inputs: tuple[Tensor, ...]) -> Prediction:
        ids, length, pixels, *proprio = inputs
        return self._forward(Prompts(ids, length), pixels, proprio[0] if proprio else None)
