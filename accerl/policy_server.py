"""A policy that answers requests while newer weights arrive, and the port to it within one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from accerl.batching import answer_padded
from accerl.config import ConfigError, InferenceConfig
from accerl.protocols import Policy
from accerl.trace import Tracer
from accerl.types import Decision, DecisionRequest, NoDecision, ObservationBatch, Weights

Request = TypeVar("Request")
Response = TypeVar("Response")


class VersionNotKept(LookupError):  # noqa: N818 - it says what is the matter
    """A request for a policy version that the server was not told to keep."""


@dataclass(slots=True)
class _Pin:
    """A copy of the policy that does not change, and how many want it."""

    policy: Policy
    num_users: int = 1


class PolicyServer:
    """Answers decision requests with the newest weights it was given, or with an older version that was pinned.

    `load` fills a second copy of the policy from any thread; the copies change places between two batches, so that a
    batch is answered by one version throughout and inference never stops for new weights.
    """

    def __init__(self, policy: Policy, config: InferenceConfig, version: int = 0, tracer: Tracer | None = None):
        self._device = torch.device(config.device)
        self._active = policy.to(self._device).train(False)
        self._shadow = copy.deepcopy(self._active)
        for each in (self._active, self._shadow):
            speed_up(each, config)
        self._version = version
        self._loaded: int | None = None
        self._pins: dict[int, _Pin] = {}
        self._config = config
        self._tracer = tracer or Tracer.off()
        self._swap = threading.Lock()  # which copy is which
        self._writing = threading.Lock()  # what is in the copies that no batch uses

    @property
    def version(self) -> int:
        """Of the newest weights it was given, in use from the next batch on."""
        with self._swap:
            return self._version if self._loaded is None else self._loaded

    def load(self, weights: Weights) -> None:
        """Use `weights` from the next batch on; what they leave out keeps the values that it has.

        Raises:
            ValueError: the policy has no parameter of such a name.
        """
        with self._writing, self._tracer.span("load", lane="weights", version=weights.version):
            own_names = self._shadow.state_dict().keys()  # the same in both copies
            if unknown := sorted(weights.tensors.keys() - own_names):
                raise ValueError(f"weights of version {weights.version}: the policy has no {', '.join(unknown)}")
            with self._swap:
                self._loaded = None  # a batch must not take the copy that is being written
                shadow = self._shadow
            tensors = {name: torch.as_tensor(value) for name, value in weights.tensors.items()}
            with _beside_the_forward(self._device):
                shadow.load_state_dict({**shadow.state_dict(), **tensors} if len(tensors) < len(own_names) else tensors)
            with self._swap:
                self._loaded = weights.version

    def pin(self) -> int:
        """Keep a copy of the newest version, which it returns; each call wants an `unpin`."""
        with self._writing:
            with self._swap:
                source, version = self._active, self._version
                if self._loaded is not None:
                    source, version = self._shadow, self._loaded
                if version in self._pins:
                    self._pins[version].num_users += 1
                    return version
            pin = _Pin(copy.deepcopy(source))  # neither copy is written meanwhile
            speed_up(pin.policy, self._config)
            with self._swap:
                self._pins[version] = pin
        return version

    def unpin(self, version: int) -> None:
        """One user less of a pinned version; with the last one its copy goes."""
        with self._swap:
            if version not in self._pins:
                raise self._not_kept(version)
            self._pins[version].num_users -= 1
            if not self._pins[version].num_users:
                del self._pins[version]

    def answer(self, requests: Sequence[DecisionRequest]) -> list[Decision | Exception]:
        """A decision for each request, or the reason why there is none: `VersionNotKept` or `NoDecision`.

        Requests for different versions, or with observations of different shapes, get a forward of their own.
        """
        self._take_newest()
        groups: dict[Hashable, list[int]] = {}
        for row, request in enumerate(requests):
            observation = request.observation
            key = (request.policy_version, observation["images"].shape, observation["proprio"].shape)
            groups.setdefault(key, []).append(row)
        if len(groups) == 1:
            return list(self._answer_group(requests))
        answers: dict[int, Decision | Exception] = {}
        for rows in groups.values():
            answers.update(zip(rows, self._answer_group([requests[row] for row in rows]), strict=True))
        return [answers[row] for row in range(len(requests))]

    def _answer_group(self, requests: Sequence[DecisionRequest]) -> Sequence[Decision | Exception]:
        version = requests[0].policy_version
        with self._swap:
            policy, current = self._active, self._version
            if version is not None and version in self._pins:
                policy = self._pins[version].policy
            elif version not in (None, current):
                return [self._not_kept(version)] * len(requests)
        version = current if version is None else version
        return answer_padded(lambda batch: _decide(policy, version, batch), requests, self._config.buckets)

    def _take_newest(self) -> None:
        """Exchange the copies if the other one holds a newer version."""
        started = time.monotonic()
        with self._swap:
            if self._loaded is None:
                return
            self._active, self._shadow = self._shadow, self._active
            self._version, self._loaded = self._loaded, None
        self._tracer.add("swap", started, time.monotonic(), version=self._version)

    def _not_kept(self, version: int | None) -> VersionNotKept:
        kept = ", ".join(str(pinned) for pinned in self._pins) or "none"
        return VersionNotKept(
            f"version {version} of the policy is not kept here; kept: {kept}; newest: {self._version}"
        )


class LocalClient:
    """The port to a server within one event loop, for evaluation and `runtime.inline`; see `LocalBatches`."""

    def __init__(self, server: PolicyServer, batch_size: int | None = None):
        self._batches: LocalBatches[DecisionRequest, Decision] = LocalBatches(server.answer, batch_size)

    async def act(self, request: DecisionRequest) -> Decision:
        return await self._batches.ask(request)

    def enter(self) -> None:
        """Changes nothing: a batch waits for every slot of the loop as it is."""

    def leave(self) -> None:
        """Changes nothing either."""


class LocalBatches(Generic[Request, Response]):
    """Answers the requests of one event loop in that loop, deterministically: everything that is waiting at once.

    For environments that are stepped in the loop itself: a batch leaves when no slot can go on without an answer.

    Args:
        answer: one response for each request, in order, or an exception in its place.
        batch_size: the most that are answered at once, the oldest first; those slots step before the next ones. None:
            all that wait.
    """

    def __init__(
        self, answer: Callable[[Sequence[Request]], Sequence[Response | Exception]], batch_size: int | None = None
    ):
        self._answer_all = answer
        self._batch_size = batch_size
        self._waiting: list[tuple[Request, asyncio.Future[Response]]] = []

    async def ask(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            self._schedule()
        return await future

    async def _flush(self) -> None:
        seen = 0
        while seen != len(self._waiting):
            seen = len(self._waiting)
            await asyncio.sleep(0)
        size = self._batch_size or seen
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        if self._waiting:
            self._schedule()
        self._answer(batch)

    def _schedule(self) -> None:
        asyncio.get_running_loop().create_task(self._flush())

    def _answer(self, batch: Sequence[tuple[Request, asyncio.Future[Response]]]) -> None:
        try:
            answers = self._answer_all([request for request, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def speed_up(policy: Policy, config: InferenceConfig) -> None:
    """Compile or capture the policy's network, as the configuration wants.

    Raises:
        ConfigError: the policy cannot.
    """
    for field, method in (("compile", "compile_network"), ("cuda_graphs", "capture_network")):
        if not getattr(config, field):
            continue
        if not hasattr(policy, method):
            raise ConfigError(f"inference.{field}: {type(policy).__name__} has no {method}(); leave it out")
        getattr(policy, method)()


def stack_requests(requests: Sequence[DecisionRequest]) -> ObservationBatch:
    """The observations of the requests as one batch. Each is copied once, or not at all if they arrived as a batch."""
    observations = [request.observation for request in requests]
    return ObservationBatch(
        images=torch.from_numpy(_stack([observation["images"] for observation in observations])),
        proprio=torch.from_numpy(np.stack([observation["proprio"] for observation in observations])),
        instructions=[observation["instruction"] for observation in observations],
        episode_step=torch.tensor([request.episode_step for request in requests]),
    )


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """`np.stack`, without a copy where the rows lie one after the other in memory of the same owner."""
    first = rows[0]
    owner, start, size = first.base, _address(first), first.nbytes
    for index, row in enumerate(rows):
        if owner is None or row.base is not owner or _address(row) != start + index * size or not row.flags.carray:
            return np.stack(rows)
    return as_strided(first, (len(rows), *first.shape), (size, *first.strides))


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@contextlib.contextmanager
def _beside_the_forward(device: torch.device) -> Iterator[None]:
    """On a GPU: copies in here run on a stream of their own, so that they and a forward do not wait for one another."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))  # a pin may still be reading
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _decide(policy: Policy, version: int, requests: Sequence[DecisionRequest]) -> Sequence[Decision | Exception]:
    with torch.inference_mode():
        output = policy.act(stack_requests(requests), np.array([request.seed for request in requests]))
        action, log_prob, value = (tensor.float().numpy(force=True) for tensor in output[:3])
        blob = {key: tensor.numpy(force=True) for key, tensor in output.blob.items()}
    rows = zip(action, log_prob, value.tolist(), *blob.values(), strict=True)
    decisions = [
        Decision(
            action=action,
            log_prob=log_prob,
            value=value,
            blob=dict(zip(blob, own, strict=True)),
            policy_version=version,
        )
        for action, log_prob, value, *own in rows
    ]
    if math.isfinite(action.sum() + log_prob.sum() + value.sum()):
        return decisions
    return [_unless_broken(decision) for decision in decisions]


def _unless_broken(decision: Decision) -> Decision | NoDecision:
    outputs = {"action": decision.action, "log_prob": decision.log_prob, "value": decision.value}
    bad = [name for name, output in outputs.items() if not np.isfinite(output).all()]
    if not bad:
        return decision
    return NoDecision(f"version {decision.policy_version} of the policy gave {', '.join(bad)} that is not finite")
