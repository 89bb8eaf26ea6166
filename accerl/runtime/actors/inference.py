"""The inference role as an actor."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray
import torch

from accerl import checkpoint, kernels
from accerl.config import RunConfig
from accerl.inference import InferenceService, PolicyServer, Window
from accerl.private import make_folder
from accerl.runtime.actors.role import Role, Wiring, node_id
from accerl.runtime.request_server import RequestServer, TcpDoor
from accerl.runtime.requests_ray import Message, RayAnswers
from accerl.runtime.weight_channels import make_source
from accerl.types import Weights


class InferenceActor(Role):
    """Answers with the newest weights it could get, until it is told to leave."""

    def __init__(self, config: RunConfig, index: int, wiring: Wiring):
        super().__init__(config, f"inference-{index}", wiring.controller)
        torch.set_num_threads(config.inference.num_threads)
        kernels.use(config.kernels)
        self._config = config
        self._wiring = wiring
        self._weights = make_source(config, wiring.controller, self.name)
        self._server = PolicyServer(wiring.make_policy(config), config.inference, tracer=self.tracer)
        self._service = InferenceService(
            self._server.answer, Window.of(config.inference, config.is_lockstep), self.tracer
        )
        self._answers = RayAnswers(self._service)
        self._left = asyncio.Event()
        self._closed = threading.Event()
        self._endpoint: Any = None

    async def work(self, incarnation: int) -> None:
        """Until `leave` was called."""
        while not await asyncio.to_thread(self._receive_weights):
            if await asyncio.to_thread(self._load_saved):
                break
        threading.Thread(target=self._keep_receiving, name="weights", daemon=True).start()
        door = self._open_door(incarnation)
        with self._service:
            try:
                self._endpoint = ray.get_runtime_context().current_actor if door is None else door.endpoint
                await self._controller.join.remote(self.name, self._endpoint)
                await self._left.wait()
            finally:
                self._closed.set()
                if door is not None:
                    door.close()

    async def announce(self) -> None:
        if self._endpoint is not None:
            self._controller.serve.remote(self.name, self._server.version)
            await self._controller.join.remote(self.name, self._endpoint)

    def pulse(self) -> int | None:
        return self._service.batch_under_way

    async def leave(self) -> None:
        """End; the clients have been told before."""
        self._left.set()

    async def ask(self, message: Message) -> list[Message]:
        """Requests over Ray."""
        return await self._answers.ask(message)

    async def pin(self) -> int:
        """Keep the version in use for requests that ask for it; returns it."""
        return await asyncio.to_thread(self._server.pin)

    async def unpin(self, version: int) -> None:
        self._server.unpin(version)

    async def health(self) -> dict[str, float]:
        statistics = self._service.statistics
        return {
            **await super().health(),
            "progress": statistics.num_requests,
            "batches": statistics.num_batches,
            "wait_s": statistics.wait_s,
            "version": self._server.version,
        }

    def _open_door(self, incarnation: int) -> RequestServer | None:
        """The sockets; over the network only where the run joined a cluster."""
        if self._config.inference.transport == "ray":
            return None
        tcp = None
        if self._config.cluster.address is not None:
            allowed = frozenset({self._wiring.client_keys.public})
            tcp = TcpDoor(host=ray.util.get_node_ip_address(), keys=self._wiring.server_keys, allowed=allowed)
        private = self._wiring.sockets.parent
        private.parent.mkdir(parents=True, exist_ok=True)
        for folder in (private, self._wiring.sockets):
            make_folder(folder)  # on another node neither is there yet
        door = RequestServer(self._service, node_id(), self._wiring.sockets / f"{self.name}.{incarnation}", tcp)
        door.start()
        return door

    def _keep_receiving(self) -> None:
        while not self._closed.is_set():
            self._receive_weights()

    def _load_saved(self) -> bool:
        """Begin with the weights of the newest checkpoint where no learner is there that could publish newer ones.

        Where staleness is bounded, the learner is waited for.
        """
        if self._config.max_policy_lag is not None:
            return False
        saved = checkpoint.newest_weights(self._config.folder / "checkpoints")
        if saved is None:
            return False
        self._use(saved)
        return True

    def _receive_weights(self) -> bool:
        weights = self._weights.latest(self._server.version, timeout_s=5.0)
        if weights is None:
            return False
        self._use(weights)
        return True

    def _use(self, weights: Weights) -> None:
        self._server.load(weights)
        self._controller.serve.remote(self.name, weights.version)
