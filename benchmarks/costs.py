"""What the runtime itself takes beside its devices, for the simulation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from accerl.config import PositiveFloat, Section

Seconds = Annotated[float, Field(ge=0)]


class Costs(Section):
    """Processor seconds of the parts that work one job after the other, and the network of the learner's node."""

    worker_s: Seconds = 0.0
    """A worker's event loop, a decision: request, answer, its part of the trajectory."""
    service_s: Seconds = 0.0
    """A service's event loop, a decision."""
    controller_s: Seconds = 0.0
    """The controller, a call: an episode's end and start, a segment, an update."""
    wake_s: Seconds = 0.0
    """The controller, for each slot that waits for a credit when something changes."""
    replay_s: Seconds = 0.0
    """A shard, a decision that it takes and gives."""
    sample_s: Seconds = 0.0
    """The learner's process beside training, a decision: fetch, unpack, pack."""
    update_s: Seconds = 0.0
    """The learner between its last micro-batch and the next update: step, copy of the weights, messages."""
    decision_bytes: int = 301_056
    """Of a decision's images: two cameras, 224 px."""
    network_bytes_per_s: PositiveFloat = 50e9
    """Each way: 400 Gb/s."""
    weights_s: Seconds = 0.0
    """From the learner until the last service has new weights."""

    def network_s(self, num_bytes: float) -> float:
        """Time that so many bytes occupy the network."""
        return num_bytes / self.network_bytes_per_s
