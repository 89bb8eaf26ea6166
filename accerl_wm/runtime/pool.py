"""Services of the models on Ray: their actors, and the client that spreads an imagination's questions over them.

imagination ─► Pool ─ all that ask in one iteration of the loop ─► service with the fewest of them ─► InferenceService

An actor that is replaced keeps its handle. What it had not answered is asked again, of whoever is there.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import ray
import torch
from ray.exceptions import RayActorError

from accerl.config import RunConfig
from accerl.inference import InferenceService, Window
from accerl.runtime.actors.role import Role, Wiring
from accerl.runtime.readings import REPORT
from accerl_wm.runtime.models import FOLLOW_S, Follower, Name, load_model
from accerl_wm.services import Seen, Sight, judge, predict
from accerl_wm.world import Dtype, Question

RETRY_AFTER_S = 0.5
Request = TypeVar("Request")
Response = TypeVar("Response")


class ServiceActor(Role):
    """Answers with the newest weights of one model, for as long as the run lasts."""

    kind: ClassVar[str]
    model_name: ClassVar[Name]

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"{self.kind}-{index}", wiring.controller)
        section = config.imagination
        torch.set_num_threads(section.num_threads)
        self._index = index
        self._device = section.device
        self._dtype: Dtype = section.dtype
        self._model = load_model(config, self.model_name)
        self._follower = Follower(self._controller, {self.model_name: self._model})
        window = Window(batch_size=section.service_batch, max_wait_s=section.service_wait_s)
        self._service: InferenceService[Any, Any] = InferenceService(self._answer, window, self.tracer)

    @abstractmethod
    def _answer(self, requests: Sequence[Any]) -> Sequence[Any]: ...

    async def work(self, incarnation: int) -> None:
        """Until the run ends."""
        with self._service:
            await self.announce()
            await self._follower.follow(self.model_name)

    async def announce(self) -> None:
        here = ray.get_runtime_context().current_actor
        await self._controller.post.remote(self.name, [here, getattr(self._model, "history", None)])

    def pulse(self) -> int | None:
        return self._service.batch_under_way

    async def ask(self, requests: Sequence[Any]) -> list[Any]:
        """The answers, in order. Raises what the model raised."""
        answers = await self._service.ask_many(requests)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def health(self) -> dict[str, float]:
        statistics = self._service.statistics
        found = {**await super().health(), "progress": statistics.num_requests}
        if self._index == 0 and statistics.num_batches:
            found[f"{REPORT}{self.kind}_batch"] = statistics.num_requests / statistics.num_batches
            found[f"{REPORT}{self.kind}_version"] = float(self._follower.taken)
        return found


class PredictorActor(ServiceActor):
    """The observation model."""

    kind = "predictor"
    model_name = "observation"

    def _answer(self, requests: Sequence[Question]) -> list[Seen]:
        self._follower.settle()
        return predict(self._model, requests, self._device, self._dtype)


class JudgeActor(ServiceActor):
    """The reward model."""

    kind = "judge"
    model_name = "reward"

    def _answer(self, requests: Sequence[Sight]) -> list[float]:
        self._follower.settle()
        return judge(self._model, requests, self._device, self._dtype)


class Pool(Generic[Request, Response]):
    """All services of one kind, to whoever asks in one event loop."""

    def __init__(self, controller: Any, kind: str, count: int):
        self._controller = controller
        self._names = [f"{kind}-{index}" for index in range(count)]
        self._services: list[Any] = []
        self._unanswered: list[int] = []
        self._waiting: list[tuple[Request, asyncio.Future[Response]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def open(self) -> Any:
        """Returns when all services are there; what they say of themselves."""
        told = await asyncio.gather(*map(self._find, self._names))
        self._services = [service for service, _ in told]
        self._unanswered = [0] * len(told)
        return told[0][1]

    async def ask(self, request: Request) -> Response:
        """Raises what the model raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Response] = loop.create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == 1:
            loop.call_soon(self._flush)
        return await future

    async def _find(self, name: str) -> tuple[Any, Any]:
        while (answer := await self._controller.news.remote(name, 0, FOLLOW_S)) is None:
            pass
        return answer[1]

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        call = asyncio.get_running_loop().create_task(self._send(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _send(self, batch: Sequence[tuple[Request, asyncio.Future[Response]]]) -> None:
        requests = [request for request, _ in batch]
        try:
            answers = await self._answers(requests)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _answers(self, requests: Sequence[Request]) -> Sequence[Response]:
        """Of the service with the least to do; after its death of the next one, and of itself once it is back."""
        failed: set[int] = set()
        while True:
            there = [index for index in range(len(self._services)) if index not in failed]
            if not there:
                await asyncio.sleep(RETRY_AFTER_S)
                failed.clear()
                continue
            chosen = min(there, key=lambda index: self._unanswered[index])
            self._unanswered[chosen] += len(requests)
            try:
                return await self._services[chosen].ask.remote(requests)
            except RayActorError:
                failed.add(chosen)
            finally:
                self._unanswered[chosen] -= len(requests)
