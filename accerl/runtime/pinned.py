"""Evaluations beside training: a version of the policy in a process of its own, which asks nothing of the run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accerl.config import ConfigError
from accerl.files import write_file
from accerl.runtime.bridge import spawn

NICE = 5
"""It gives way to training where they share processors."""


class PinnedEvaluation:
    """An evaluation that goes on; it outlives this handle, and its result lies in the run's folder.

    Args:
        policy: folder of the policy, which nobody changes or removes while it is played.
        out: JSON file for the result.
        log: file for what it prints.
    """

    def __init__(self, policy: Path, out: Path, log: Path, options: dict[str, Any], facts: dict[str, Any]):
        self.path = out
        self._log = log
        out.parent.mkdir(parents=True, exist_ok=True)
        arguments = [str(out), json.dumps(facts), "--policy", str(policy)]
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        self._process = spawn("accerl.runtime.pinned", arguments, log)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def progress(self) -> str:
        """The newest line that it has printed."""
        lines = self._log.read_text().splitlines()
        return lines[-1] if lines else ""

    def result(
        self, timeout_s: float | None = None, on_wait: Callable[[str], None] = lambda line: None
    ) -> dict[str, Any]:
        """Wait for it, which interrupting this does not stop.

        Raises:
            TimeoutError: it goes on after `timeout_s`.
            RuntimeError: it failed; with the last line of its log.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.running:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.path.stem} goes on after {timeout_s:.0f} s; ask again, or look at {self._log}"
                )
            on_wait(self.progress)
            time.sleep(0.2)
        if not self.path.exists():
            raise RuntimeError(f"{self.path.stem} failed: {self.progress}; see {self._log}")
        return json.loads(self.path.read_text())

    def cancel(self) -> None:
        """End it; nothing is kept."""
        self._process.terminate()
        self._process.wait()


def begin(run_folder: Path, checkpoint: Path, options: dict[str, Any]) -> PinnedEvaluation:
    """Of a run's checkpoint, in the run's environment; `options` are those of `accerl eval`, `greedy` among them."""
    folder = run_folder / "evaluations"
    how = "greedy" if options["greedy"] else "sampled"
    number = sum(1 for _ in folder.glob(f"{checkpoint.name}-{how}-*.json"))
    name = f"{checkpoint.name}-{how}-{number}"
    return PinnedEvaluation(
        _pin(checkpoint, folder),
        folder / f"{name}.json",
        run_folder / "logs" / f"{name}.log",
        {"config": run_folder / "config.json", **options},
        {"checkpoint": checkpoint.name, "updates": int(checkpoint.name.removeprefix("step-")), "time": time.time()},
    )


def _pin(checkpoint: Path, folder: Path) -> Path:
    """A copy of the checkpoint's policy that costs no space and stays when the run lets the checkpoint go."""
    kept = folder / checkpoint.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("policy.json", "policy.safetensors"):
        target = kept / name
        if not target.exists():
            os.link(checkpoint / name, target)
    return kept


def main(out: Path, facts: dict[str, Any], arguments: list[str]) -> int:
    """`accerl eval`, and then the facts beside its result."""
    os.nice(NICE)
    from accerl.cli.evaluate import COMMAND

    temporary = out.with_suffix(".part")
    try:
        COMMAND([*arguments, "--out", str(temporary)])
    except ConfigError as error:
        print(error)
        return 1
    write_file(out, json.dumps({**json.loads(temporary.read_text()), **facts}, indent=1))
    temporary.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]))
