"""Where trajectories wait for the learner.

trajectory ─► Replay.push ─► Order (which comes next) ─► Replay.sample, Replay.take ─► learner ─► Replay.confirm
                   ▼
            segments on disk ─► snapshots
"""

from accerl.replay.store import Replay

__all__ = ["Replay"]
