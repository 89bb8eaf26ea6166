"""Batches made ahead of the learner: sample, pack and move to the device in a thread of the training process.

A global batch comes in micro-batches, each as soon as there are enough trajectories for it; the last one closes it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from accerl.config import LearnerConfig
from accerl.packing import count, first_part
from accerl.protocols import TrajectorySource
from accerl.trace import Tracer
from accerl.types import Batch, BatchRule, Trajectory

WAIT_S = 0.5
"""For trajectories, before it is looked whether the prefetcher was closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """prefetch -> learner: a part of a global batch, of whole segments."""

    batch: Batch | None
    """None: the global batch closes with nothing more; if it had nothing at all, its trajectories were lost."""
    is_last: bool
    """It closes the global batch: the optimizer steps after it."""
    episodes: tuple[int, ...]
    """Numbers of the real episodes that end in it."""


class Prefetcher:
    """Keeps up to `learner.prefetch` micro-batches ready; `get` waits for the next one.

    An error of the source is raised by the next `get`.

    Args:
        first_version: version of the parameters that the first batch is trained on; each batch makes the next one.
        streams: take trajectories one by one as they come; otherwise a batch is sampled in one go.
    """

    def __init__(
        self,
        source: TrajectorySource,
        pack: Callable[[Sequence[Trajectory]], Batch],
        config: LearnerConfig,
        first_version: int = 0,
        streams: bool = False,
        tracer: Tracer | None = None,
    ):
        self._source = source
        self._pack = pack
        self._config = config
        self._version = first_version
        self._streams = streams
        self._tracer = tracer or Tracer.off()
        self._ready: queue.Queue[MicroBatch | Exception] = queue.Queue(maxsize=config.prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> MicroBatch | None:
        """The next micro-batch, or None if none was ready in time."""
        try:
            item = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """End the thread; what was ready is dropped, and the replay has it still."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._make_batch()
                self._version += 1
        except Exception as error:
            self._ready.put(error)

    def _make_batch(self) -> None:
        pending: list[Trajectory] = []
        num_decisions = 0
        is_closed = closed_by_it = False
        while not (is_closed or self._stopped.is_set()):
            missing = max(0, self._config.batch_decisions - num_decisions)
            segments, rule = self._next(missing)
            pending += segments
            num_decisions += count(segments)
            is_closed = closes(rule, num_decisions, self._config.batch_decisions) and (
                num_decisions > 0 or rule.needs_all
            )
            while pending and (is_closed or count(pending) >= self._config.micro_batch_decisions):
                part = first_part(pending, self._config.micro_batch_decisions)
                pending = pending[len(part) :]
                closed_by_it = is_closed and not pending
                self._emit(part, closed_by_it)
            if is_closed and not closed_by_it:
                self._emit((), is_last=True)

    def _next(self, missing: int) -> tuple[Sequence[Trajectory], BatchRule]:
        rule = BatchRule()
        if self._streams:
            with self._tracer.span("wait_replay", "prefetch"):
                rule = self._source.rule(self._version, WAIT_S)
        started = time.monotonic()
        if self._streams:
            segments = self._source.take(missing, rule, self._version, WAIT_S)
        else:
            segments = self._source.sample(missing, self._version, WAIT_S)
        self._tracer.add("sample" if segments else "wait_replay", started, time.monotonic(), "prefetch")
        return segments, rule

    def _emit(self, segments: Sequence[Trajectory], is_last: bool) -> None:
        with self._tracer.span("pack", "prefetch"):
            batch = self._pack(segments) if segments else None
        ended = tuple(segment.episode for segment in segments if segment.ended and not segment.is_imagined)
        self._ready.put(MicroBatch(batch=batch, is_last=is_last, episodes=ended))


def closes(rule: BatchRule, num_decisions: int, batch_decisions: int) -> bool:
    """A batch of `num_decisions`, with all in it that `rule` wanted when it was given, is whole."""
    if not rule.is_complete:
        return False
    return rule.needs_all or rule.is_starved or num_decisions >= batch_decisions
