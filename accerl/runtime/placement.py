"""Which process gets which role, on which node and device."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from accerl.config import ConfigError, RunConfig
from accerl.runtime.actors.inference import InferenceActor
from accerl.runtime.actors.learner import LearnerActor
from accerl.runtime.actors.rank import RankActor
from accerl.runtime.actors.replay import ReplayActor
from accerl.runtime.actors.role import Wiring
from accerl.runtime.actors.rollout import RolloutActor
from accerl.runtime.extra import ExtraKind, extra_kinds

BUILT_IN: dict[str, Any] = {
    "replay": ReplayActor,
    "learner": LearnerActor,
    "rank": RankActor,
    "inference": InferenceActor,
    "rollout": RolloutActor,
}

TOKEN_BYTES = 1
"""Memory that a role asks for. Ray lets an actor that asks for nothing be placed by any node, by what that happens to
know; the others are placed by the controller's node, which spreads them in turn."""


class Roles:
    """The actors of a run, by name `KIND-NUMBER`. Ray restarts their processes; `supervisor` starts their work again.

    They are detached: the end of the controller's process, whose next one takes them over, is not theirs.

    Args:
        before: `facts` of the controller that has started them; None: they are to be started.

    Raises:
        ConfigError: the cluster has too few GPUs for `placement`.
    """

    def __init__(self, config: RunConfig, wiring: Wiring, before: Mapping[str, Any] | None = None):
        self._config = config
        self._wiring = wiring
        self._actors: dict[str, Any] = {}
        self._extra = extra_kinds(config)
        self._kinds = BUILT_IN | {kind: extra.actor for kind, extra in self._extra.items()}
        self._numbers = dict.fromkeys(self._kinds, 0)
        if before is not None:
            self._take_over(before)
            return
        _check_gpus(config, ray.cluster_resources().get("GPU", 0.0))
        self._shared = _share(config)
        for kind, num in initial_counts(config).items():
            for _ in range(num):
                self.add(kind)

    def facts(self) -> dict[str, Any]:
        """JSON-compatible: what it takes to find the same actors from another process."""
        return {"numbers": self._numbers, "names": list(self._actors), "is_shared": self._shared is not None}

    def _take_over(self, before: Mapping[str, Any]) -> None:
        self._numbers |= before["numbers"]
        self._shared = get_placement_group(_shared_name(self._config)) if before["is_shared"] else None
        for name in before["names"]:
            with suppress(ValueError):  # it was just being removed
                self._actors[name] = ray.get_actor(f"{self._config.name}/{name}")

    def __getitem__(self, name: str) -> Any:
        return self._actors[name]

    def named(self) -> Iterator[tuple[str, Any]]:
        yield from list(self._actors.items())

    def of(self, kind: str) -> dict[str, Any]:
        """Those of one kind, the oldest first."""
        return {name: actor for name, actor in self._actors.items() if name.startswith(f"{kind}-")}

    def add(self, kind: str, without: Collection[str] = ()) -> str:
        """Create one more, on another node than these; returns its name."""
        number = self._numbers[kind]
        self._numbers[kind] += 1
        self._create(kind, number, without)
        return f"{kind}-{number}"

    def remake(self, name: str, without: Collection[str]) -> None:
        """Put another actor in the place of one, on another node than these."""
        ray.kill(self._actors[name])
        kind, _, number = name.rpartition("-")
        self._create(kind, int(number), without)

    def _create(self, kind: str, number: int, without: Collection[str]) -> None:
        name = f"{kind}-{number}"
        options: dict[str, Any] = {
            "max_restarts": -1,
            "max_task_retries": 0,
            "name": f"{self._config.name}/{name}",
            "lifetime": "detached",
            "get_if_exists": True,
            **resources(self._config, kind),
            **self._strategy(kind, number, without),
        }
        arguments = (self._config, self._wiring) if kind == "learner" else (self._config, number, self._wiring)
        self._actors[name] = ray.remote(self._kinds[kind]).options(**options).remote(*arguments)

    def imagined(self) -> dict[str, Any]:
        """Shards that take and give what is imagined."""
        return self._those(lambda extra: extra.is_replay)

    def observers(self) -> dict[str, Any]:
        """Those that are shown each real trajectory."""
        return self._those(lambda extra: extra.observes)

    def _those(self, wanted: Callable[[ExtraKind], bool]) -> dict[str, Any]:
        kinds = [kind for kind, extra in self._extra.items() if wanted(extra)]
        return {name: actor for kind in kinds for name, actor in self.of(kind).items()}

    def remove(self, name: str) -> None:
        """End one."""
        ray.kill(self._actors.pop(name))

    async def wait_until_ready(self, within_s: float) -> None:
        """Returns when every role has been constructed. Raises what a constructor raised.

        Raises:
            TimeoutError: one has not been in time, and which.
        """
        calls = {name: asyncio.ensure_future(health(actor)) for name, actor in self.named()}
        try:
            await asyncio.wait_for(asyncio.gather(*calls.values()), within_s)
        except TimeoutError:
            late = ", ".join(name for name, call in calls.items() if call.cancelled() or not call.done())
            raise TimeoutError(f"{late} did not come up within {within_s:.0f} s") from None

    async def flush(self, within_s: float) -> None:
        """Have every role write its trace; one that does not answer loses the newest part of it."""
        calls = [actor.flush.remote() for _, actor in self.named()]
        await asyncio.to_thread(ray.wait, calls, num_returns=len(calls), timeout=within_s)

    def kill(self) -> None:
        for name in list(self._actors):
            self.remove(name)
        if self._shared is not None:
            remove_placement_group(self._shared)

    def _strategy(self, kind: str, number: int, without: Collection[str]) -> dict[str, Any]:
        """Where Ray may put it: beside the controller, on a shared device, or spread out."""
        if self._shared is not None and is_shared(self._config, kind, number):
            bundle = PlacementGroupSchedulingStrategy(self._shared, placement_group_bundle_index=0)
            return {"scheduling_strategy": bundle}
        if kind in ("learner", "replay"):
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            return {"scheduling_strategy": here, "memory": TOKEN_BYTES}
        elsewhere = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(without))})"}} if without else {}
        return {"scheduling_strategy": "SPREAD", "memory": TOKEN_BYTES, **elsewhere}


def initial_counts(config: RunConfig) -> dict[str, int]:
    """How many of each kind a run starts with."""
    return {
        "replay": config.replay.num_shards,
        "learner": 1,
        "rank": config.learner.num_ranks - 1,
        "inference": config.inference.num_services,
        "rollout": config.rollout.num_workers,
        **{kind: extra.count for kind, extra in extra_kinds(config).items()},
    }


def resources(config: RunConfig, kind: str) -> dict[str, float]:
    """What Ray keeps for one of the kind."""
    placement = config.placement
    match kind:
        case "learner" | "rank":
            gpus = placement.learner_gpus if config.learner.device.startswith("cuda") else 0.0
        case "inference":
            gpus = placement.inference_gpus if config.inference.device.startswith("cuda") else 0.0
        case "rollout":
            return {"num_cpus": placement.rollout_cpus, "num_gpus": placement.rollout_gpus}
        case "replay":
            gpus = 0.0
        case _:
            gpus = extra_kinds(config)[kind].gpus
    return {"num_cpus": 0, "num_gpus": gpus}


def shared_gpus(config: RunConfig) -> float:
    """Of the one bundle that the learner shares with inference; 0 where it shares with nobody."""
    sharers = {"disaggregated": 0, "hybrid": 1, "colocated": config.inference.num_services}[config.placement.layout]
    if not sharers:
        return 0.0
    learner, service = (resources(config, kind)["num_gpus"] for kind in ("learner", "inference"))
    return learner + sharers * service if learner and service else 0.0


def total_gpus(config: RunConfig) -> float:
    """That a run asks for when it starts."""
    counts = initial_counts(config)
    return sum(num * resources(config, kind)["num_gpus"] for kind, num in counts.items())


def is_shared(config: RunConfig, kind: str, number: int) -> bool:
    """It stands in that bundle, where there is one."""
    layout = config.placement.layout
    if kind == "learner":
        return True
    return kind == "inference" and number < (1 if layout == "hybrid" else config.inference.num_services)


def _share(config: RunConfig) -> PlacementGroup | None:
    gpus = shared_gpus(config)
    if not gpus:
        return None
    bundles = [{"GPU": float(math.ceil(gpus))}]
    group = placement_group(bundles, strategy="STRICT_PACK", name=_shared_name(config), lifetime="detached")
    if not group.wait(30):
        remove_placement_group(group)
        raise ConfigError(
            f"placement.layout: {config.placement.layout!r} needs {math.ceil(gpus)} free GPUs on one node, which the "
            f"cluster does not have; lower placement.learner_gpus and placement.inference_gpus"
        )
    return group


def _shared_name(config: RunConfig) -> str:
    return f"{config.name}/shared"


def _check_gpus(config: RunConfig, available: float) -> None:
    wanted = total_gpus(config)
    if wanted > available:
        raise ConfigError(
            f"placement: the run needs {wanted:g} GPUs (learner {config.placement.learner_gpus:g}, "
            f"{config.inference.num_services} services of {config.placement.inference_gpus:g}, "
            f"{config.rollout.num_workers} workers of {config.placement.rollout_gpus:g}) and the cluster has "
            f"{available:g}; use shares of a GPU, fewer services, or add nodes"
        )


async def health(actor: Any) -> Mapping[str, float]:
    """What the actor says of itself; raises what its constructor raised."""
    return await actor.health.remote()
