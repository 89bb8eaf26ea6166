"""The roles on Ray actors. Each has `run`, which returns when its work is done, `health` and `flush`."""

from accerl.runtime.actors.inference import InferenceActor
from accerl.runtime.actors.learner import LearnerActor
from accerl.runtime.actors.rank import RankActor
from accerl.runtime.actors.replay import ReplayActor
from accerl.runtime.actors.role import Wiring
from accerl.runtime.actors.rollout import RolloutActor

__all__ = ["InferenceActor", "LearnerActor", "RankActor", "ReplayActor", "RolloutActor", "Wiring"]
