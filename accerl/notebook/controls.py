"""Controls: everything that may be done to a run while it goes on, a click each, none of which blocks the kernel.

static/controls.js ─ message ─► a thread ─► run ─► what came of it, beside the control
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol

import traitlets

from accerl.config import ConfigError, RunConfig
from accerl.notebook.view import View, assets
from accerl.runtime.knobs import KNOBS, Knobs, value

SCALED = {"rollout": "num_workers", "inference": "num_services", "replay": "num_shards"}
"""Kind of process to where a line of metrics counts it."""


class Steered(Protocol):
    """A run, as far as the controls need it."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> RunConfig: ...

    def status(self) -> dict[str, Any]: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def set(self, **knobs: Any) -> dict[str, Any]: ...

    def scale(self, **changes: int) -> dict[str, int]: ...

    def checkpoint(self) -> Path: ...

    def evaluate(self, *, episodes_per_task: int = ..., greedy: bool = ...) -> Any: ...

    def stop(self) -> None: ...


class Controls(View):
    """Pause, knobs, processes, checkpoint, evaluation, stop. What is done is recorded in the run, with who did it."""

    name: ClassVar[str] = "controls"
    _esm = assets("controls")["_esm"]
    _css = assets("controls")["_css"]

    title = traitlets.Unicode("").tag(sync=True)
    state = traitlets.Unicode("").tag(sync=True)
    knobs = traitlets.List(trait=traitlets.Dict()).tag(sync=True)
    """Name, section, value and explanation of each."""
    processes = traitlets.Dict().tag(sync=True)
    """Kind to number."""
    said = traitlets.Dict().tag(sync=True)
    """Control to what came of its last use."""
    busy = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Controls that are at work."""

    def __init__(self, run: Steered):
        super().__init__(title=run.name)
        self._run = run
        self._work = ThreadPoolExecutor(max_workers=4, thread_name_prefix="controls")
        self.on_msg(self._answer)
        self.update()

    def update(self) -> None:
        """Look again at what the run has."""
        status = self._run.status()
        self.state = status["state"]
        self.processes = {kind: status.get(key, 0) for kind, key in SCALED.items()}
        self.knobs = describe_knobs(self._run.config, status.get("knobs", {}))

    def png(self) -> bytes:
        from accerl.notebook.controls_picture import controls_picture

        return controls_picture(self.title, self.state, self.knobs)

    def do(self, action: str, arguments: Mapping[str, Any]) -> str:
        """One of the controls; returns what came of it.

        Raises:
            ConfigError: an argument that does not fit.
            ConnectionError, RuntimeError: the run is not there any more.
        """
        run = self._run
        match action:
            case "pause":
                run.pause()
                return "paused: episodes at hand are finished"
            case "resume":
                run.resume()
                return "goes on"
            case "set":
                run.set(**{arguments["name"]: arguments["value"]})
                return f"{arguments['name']} is {arguments['value']}"
            case "scale":
                counts = run.scale(**{arguments["kind"]: arguments["by"]})
                return f"{counts[arguments['kind']]} {arguments['kind']}"
            case "checkpoint":
                return f"saved {run.checkpoint().name}"
            case "evaluate":
                options = {"episodes_per_task": arguments["episodes"], "greedy": arguments["greedy"]}
                return _told(run.evaluate(**options))
            case "stop":
                run.stop()
                return "stopped; it can be resumed"
        raise ConfigError(f"control: there is no {action!r}")

    def _answer(self, _: Any, message: Mapping[str, Any], buffers: Any) -> None:
        match message:
            case {"kind": "do", "action": str(action), "arguments": dict(arguments)}:
                self._work.submit(self._done, action, arguments)
            case {"kind": "hello" | "look"}:
                self._work.submit(self.update)

    def _done(self, action: str, arguments: Mapping[str, Any]) -> None:
        control = arguments.get("name") or arguments.get("kind") or action
        self.busy = [*self.busy, control]
        try:
            text, went_well = self.do(action, arguments), True
        except (ConfigError, ConnectionError, RuntimeError, TimeoutError) as error:
            text, went_well = str(error), False
        self.said = {**self.said, control: {"text": text, "ok": went_well}}
        self.busy = [each for each in self.busy if each != control]
        self.update()


def describe_knobs(config: RunConfig, turned: Knobs) -> list[dict[str, Any]]:
    """What can be turned in this run: name, section, present value, explanation."""
    described = []
    for section, names in KNOBS.items():
        if section == "imagination" and not config.imagination.enabled:
            continue
        settings = getattr(config, section)
        for name in names:
            explanation = (type(settings).model_fields[name].description or "").replace("\n", " ")
            described.append(
                {
                    "name": name,
                    "section": section,
                    "value": value(config, turned, f"{section}.{name}"),
                    "explanation": explanation,
                }
            )
    return described


def _told(result: Mapping[str, Any]) -> str:
    low, high = result["interval"]
    return f"success {result['rate']:.2f} [{low:.2f}, {high:.2f}] of {result['episodes']} episodes"
