"""The configuration of a run: frozen, typed, checked before anything starts.

The same object is built in Python, read from TOML (`RunConfig.load`) and changed from the command line
(`accerl.cli`). A field's docstring is its documentation and its `--help`.

    run          RunConfig: the whole, and what cannot work together
    environment  env, demos
    learning     policy, clone, objective, learner
    imagination  imagination, of the world-model extra
    system       rollout, inference, replay, tasks, weights, placement, trace, limits, supervision, cluster
    sections     what they are made of
"""

from accerl.config.environment import DemosConfig as DemosConfig
from accerl.config.environment import EnvConfig as EnvConfig
from accerl.config.environment import LiberoConfig as LiberoConfig
from accerl.config.imagination import ImaginationConfig as ImaginationConfig
from accerl.config.learning import CloneConfig as CloneConfig
from accerl.config.learning import LearnerConfig as LearnerConfig
from accerl.config.learning import ObjectiveConfig as ObjectiveConfig
from accerl.config.learning import PolicyConfig as PolicyConfig
from accerl.config.run import KernelChoice as KernelChoice
from accerl.config.run import Mode as Mode
from accerl.config.run import RunConfig as RunConfig
from accerl.config.sections import ConfigError as ConfigError
from accerl.config.sections import Fraction as Fraction
from accerl.config.sections import NonNegative as NonNegative
from accerl.config.sections import Positive as Positive
from accerl.config.sections import PositiveFloat as PositiveFloat
from accerl.config.sections import Section as Section
from accerl.config.sections import merge as merge
from accerl.config.sections import read_file as read_file
from accerl.config.sections import suggest as suggest
from accerl.config.system import ClusterConfig as ClusterConfig
from accerl.config.system import InferenceConfig as InferenceConfig
from accerl.config.system import LimitsConfig as LimitsConfig
from accerl.config.system import PlacementConfig as PlacementConfig
from accerl.config.system import ReplayConfig as ReplayConfig
from accerl.config.system import RolloutConfig as RolloutConfig
from accerl.config.system import SupervisionConfig as SupervisionConfig
from accerl.config.system import TaskConfig as TaskConfig
from accerl.config.system import TraceConfig as TraceConfig
from accerl.config.system import WeightsConfig as WeightsConfig
