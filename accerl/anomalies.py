"""Batches that could not be trained on, as files in `RUN/anomalies/`: what was in them, and where it came from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from accerl.types import Batch

if TYPE_CHECKING:
    from accerl.guards import Broken

FORMAT = 1


class Anomalies:
    """A folder of batches, at most `keep` of them, the newest: `NAME.safetensors`, and `NAME.json` beside it.

    The tensors of part i are named `i/FIELD`. The JSON says of each part what is not finite in it, and of each of its
    segments where it came from, the versions of the policy that made it, and its tensors that are not finite.

    Args:
        suffix: of the names, where several processes write into one folder.
    """

    def __init__(self, folder: Path, keep: int = 16, suffix: str = ""):
        self._folder = folder
        self._keep = keep
        self._suffix = suffix

    def save(self, name: str, what: str, parts: Sequence[Broken]) -> Path | None:
        """The file with the tensors; None where the disk did not take it."""
        path = self._folder / f"{name}{self._suffix}.safetensors"
        tensors = {f"{i}/{field}": tensor for i, part in enumerate(parts) for field, tensor in fields_of(part.batch)}
        facts = {"format": FORMAT, "what": what, "parts": [_facts(part.batch, part.what) for part in parts]}
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}, temporary)
            path.with_suffix(".json").write_text(json.dumps(facts, indent=1))
            temporary.rename(path)
            self._tidy()
        except (OSError, SafetensorError) as error:
            for left in (temporary, path.with_suffix(".json")):
                with suppress(OSError):
                    left.unlink(missing_ok=True)
            print(f"{path} was not written ({error})", file=sys.stderr, flush=True)
            return None
        return path

    def _tidy(self) -> None:
        own = sorted(self._folder.glob(f"*{self._suffix}.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in own[: -self._keep]:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def fields_of(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch by its name."""
    observations = batch.observations
    for name in ("images", "proprio", "episode_step"):
        yield name, getattr(observations, name)
    for name in ("log_prob", "mask", "behaviour_value", "reward", "policy_version", "lengths", "terminal"):
        yield name, getattr(batch, name)
    for name, tensor in batch.blob.items():
        yield f"blob.{name}", tensor
    if batch.group_advantage is not None:
        yield "group_advantage", batch.group_advantage
    if batch.values is not None:
        yield "values.decision", batch.values.decision
        yield "values.bootstrap", batch.values.bootstrap


def _facts(batch: Batch, what: Sequence[str]) -> Mapping[str, Any]:
    """JSON-compatible."""
    ends = batch.lengths.cumsum(0).tolist()
    segments = []
    for index, end in enumerate(ends):
        rows = slice(end - int(batch.lengths[index]), end)
        versions = batch.policy_version[rows]
        origin = batch.origins[index]._asdict() if batch.origins else {}
        bad = [
            name
            for name, tensor in fields_of(batch)
            if len(tensor) >= batch.num_decisions and tensor.is_floating_point() and not tensor[rows].isfinite().all()
        ]
        segments.append(
            {
                **origin,
                "decisions": int(batch.lengths[index]),
                "instruction": batch.observations.instructions[rows.start],
                "policy_versions": [int(versions.min()), int(versions.max())],
                "not_finite": bad,
            }
        )
    return {"not_finite": list(what), "segments": segments}
