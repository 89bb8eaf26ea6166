# %% [markdown]
# # 08 · Learning in imagination, and the dream audit
#
# **Goal**: let a policy act in a world model, compare its dreams with the simulator, and see a gate refuse a model that
# is wrong. **Hardware**: one CPU core. **Time**: a minute. **Needs**: `pip install accerl[wm]`.
#
# A simulator, or a robot, is slow. A world model stands in for it: an *observation model* says what is seen after an
# action chunk, a *reward model* how likely what is seen is success. A small one of four Meta-World tasks is shipped.

# %%
from pathlib import Path

import torch

from accerl import demos, imitation
from accerl.config import CloneConfig, DemosConfig, EnvConfig, ImaginationConfig, InferenceConfig, RolloutConfig
from accerl.envs import make_env, make_expert
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import LocalClient, PolicyServer
from accerl.rollout import RolloutWorker
from accerl.types import EpisodePlan
from accerl_wm import store

torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %%
world = store.load(Path("quickstart"))
for part in (world.observation, world.reward):
    print(type(part).__name__, f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")

# %% [markdown]
# ## A policy, and some of its real episodes
#
# Cloned for some seconds from a slow expert, as in tutorial 00. `keep_state` keeps the simulator's state, from which
# the audit will play an episode again.

# %%
env_config = EnvConfig(
    suite="metaworld",
    tasks=("handle-press-v3", "coffee-button-v3"),
    image_size=64,
    chunk_length=4,
    steps_per_action=2,
    max_decisions=12,
)
how = DemosConfig(episodes_per_task=10, speed=0.55, noise=0.15)
recorder = make_env(demos.single_action(env_config, how))
expert = make_expert(env_config, recorder, speed=how.speed, noise=how.noise, seed=0)
demonstrations = demos.record(recorder, expert, how)

# %%
env = make_env(env_config)
policy = TinyVLA(TinyVLAConfig.for_env(env.spec, {each.instruction for each in demonstrations}, width=96))
_ = imitation.clone(policy, demonstrations, env_config.chunk_length, CloneConfig(updates=150))
server = PolicyServer(policy, InferenceConfig())


# %%
class Real:
    """Plays eight episodes, and keeps them."""

    def __init__(self):
        self.left, self.trajectories = 8, []

    async def next_episode(self):
        self.left -= 1
        return EpisodePlan(task=env_config.tasks[self.left % 2], seed=self.left) if self.left >= 0 else None

    async def put(self, trajectory):
        self.trajectories.append(trajectory)

    async def report(self, episode): ...


# %%
async def play():
    book = Real()
    worker = RolloutWorker(
        name="real",
        make_env=lambda: make_env(env_config),
        config=RolloutConfig(slots_per_worker=2, keep_state=True),
        client=LocalClient(server),
        sink=book,
        tasks=book,
        seed=0,
    )
    await worker.run()
    return book.trajectories


real = await play()
print(len(real), "episodes, all with the simulator's state:", all(each.state is not None for each in real))

# %% [markdown]
# ## Imagination
#
# An imagined episode begins in a real moment and is cut after a horizon, where the critic's value takes over. The same
# worker plays it: the policy sees exactly what it sees from the simulator. All that wait are answered in one batch.

# %%
from accerl_wm.frames import FrameBuffer, of_trajectory
from accerl_wm.imagination import Imagination

frames = FrameBuffer(env_config.chunk_length)
frames.add(map(of_trajectory, real))
settings = ImaginationConfig(slots=8, horizon=8, threshold=0.7)
imagination = Imagination(world, frames, env.spec, settings, discount=0.97)
dreams = imagination.imagine(40, server)
assert sum(each.num_decisions for each in dreams) >= 40
assert all(each.is_imagined and each.images.shape[1:] == real[0].images.shape[1:] for each in dreams)
print("real and imagined trajectories are the same type:", {type(each).__name__ for each in [*real, *dreams]})

# %% tags=["nbval-ignore-output"]
from accerl.notebook import TrajectoryViewer

TrajectoryViewer([real[0], *dreams[:3]])

# %% [markdown]
# ## The dream audit
#
# The same actions from the same state, in the simulator and in the model. `psnr` says how alike the pictures are, and
# the two curves of success whether the model would have told the policy the truth.

# %%
from accerl_wm.audit import audit_trajectory


def audited(world, trajectory):
    return audit_trajectory(world, env, trajectory, env_config.chunk_length)


found = [audited(world, trajectory) for trajectory in real[:4]]
assert min(each.psnr[1] for each in found) > 25
print("the same outcome in at least three of four:", sum(each.same_outcome for each in found) >= 3)

# %% [markdown]
# In the viewer of a run that imagines this is a button; `accerl wm audit` does it for the episodes a run has kept.
#
# ## A model of your own
#
# Whatever has `history` and `predict` plugs in. This one believes that nothing ever changes; it is honest about shapes,
# and that is all that the conformance check can see.

# %%
from accerl_wm.carriers import Frames
from accerl_wm.conformance import check_observation_model
from accerl_wm.world import WorldModel


class Still:
    """Nothing ever changes."""

    history = 2

    def predict(self, past, actions):
        return Frames(images=past.images[:, -1].clone(), proprio=past.proprio[:, -1].clone())


check_observation_model(Still(), env.spec)
still = WorldModel(Still(), world.reward)
wrong = [audited(still, trajectory) for trajectory in real[:4]]
print("worse pictures in each:", all(a.psnr[-1] > b.psnr[-1] for a, b in zip(found, wrong, strict=True)))

# %% [markdown]
# ## The gate
#
# In a run every real episode is imagined again from its own actions before any model has learned from it. Where too few
# end as they did, nothing imagined is trained on, and the run goes on with what is real.

# %%
from accerl_wm.reliability import Reliability, audit_episode


def judged(world):
    """After these episodes: the share of a batch that may be imagined, and why."""
    reliability = Reliability(settings)
    for trajectory in real:
        reliability.add(audit_episode(world, of_trajectory(trajectory), env_config.chunk_length, settings.threshold))
    return reliability.verdict


print("shipped:", judged(world).share > 0, "- still:", judged(still).share > 0)
assert judged(still).share == 0, judged(still).reason

# %% [markdown]
# ## In a run
#
# `accerl train --config quickstart --imagination` adds imagination, its replay and two trainers to a run; how many real
# decisions that saves, and what it cannot do: `docs/world_model.md`.

# %%
env.close()
