# %% [markdown]
# # 05 · From episodes to batches
#
# **Goal**: follow decisions from the robot to the gradient: replay, packing, fresh values, global normalisation,
# prefetching, and which task is played next. **Hardware**: one CPU core. **Time**: twenty seconds.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch

from accerl import demos, imitation
from accerl.config import (
    CloneConfig,
    DemosConfig,
    EnvConfig,
    InferenceConfig,
    LearnerConfig,
    ObjectiveConfig,
    ReplayConfig,
    RolloutConfig,
    TaskConfig,
)
from accerl.envs import make_env, make_expert
from accerl.learner import Learner
from accerl.packing import pack
from accerl.plots import BLUE, ORANGE, STYLE
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

# %%
from accerl.policy_server import LocalClient, PolicyServer
from accerl.prefetch import Prefetcher
from accerl.replay import Replay
from accerl.rl.diagnostics import explained_variance
from accerl.rl.gae import gae
from accerl.rl.normalization import normalize
from accerl.rollout import RolloutWorker
from accerl.tasks import TaskSampler
from accerl.types import BatchRule, Episode, EpisodePlan

torch.set_num_threads(1)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A policy that succeeds now and then
#
# As in tutorial 00, in a world of dots that costs microseconds.

# %%
env_config = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=6)
how = DemosConfig(episodes_per_task=60, speed=0.6, noise=0.2)
recorder = make_env(demos.single_action(env_config, how))
expert = make_expert(env_config, recorder, speed=how.speed, noise=how.noise, seed=0)
demonstrations = demos.record(recorder, expert, how)
spec, instructions = make_env(env_config).spec, {each.instruction for each in demonstrations}
policy = TinyVLA(TinyVLAConfig.for_env(spec, instructions, width=64))
_ = imitation.clone(policy, demonstrations, env_config.chunk_length, CloneConfig(updates=150, lr=1e-3, shift_pixels=0))

# %% [markdown]
# ## Episodes
#
# A rollout worker plays what it is told and puts what happened into a *sink*. Here the sink is a list and the policy
# sits in this process; in a run both are other processes, and the worker does not know.


# %%
class Notebook:
    """Tasks and sink of a worker."""

    def __init__(self, num_episodes):
        self.left, self.trajectories = num_episodes, []

    async def next_episode(self):
        self.left -= 1
        task = env_config.tasks[self.left % 2]
        return EpisodePlan(task=task, seed=self.left, number=self.left) if self.left >= 0 else None

    async def put(self, trajectory):
        self.trajectories.append(trajectory)

    async def report(self, episode): ...


# %%
async def play(num_episodes):
    book = Notebook(num_episodes)
    worker = RolloutWorker(
        name="here",
        make_env=lambda: make_env(env_config),
        config=RolloutConfig(slots_per_worker=8),
        client=LocalClient(PolicyServer(policy, InferenceConfig())),
        sink=book,
        tasks=book,
        seed=0,
    )
    await worker.run()
    return book.trajectories


trajectories = await play(64)
lengths = sorted({each.num_decisions for each in trajectories})
print(len(trajectories), "episodes of", lengths[0], "to", lengths[-1], "decisions")

# %% [markdown]
# ## Replay
#
# It owns what is pushed, gives what was used least, and lets nothing go before it was used: when it is full, whoever
# pushes has to wait.

# %%
replay = Replay(ReplayConfig(capacity_decisions=256, max_reuse=2, min_decisions=1, paced=False), seed=0)
taken = 0
for trajectory in trajectories:
    if not replay.push(trajectory):
        break
    taken += 1
print("full:", taken < len(trajectories), "- nothing was discarded:", replay.discarded_decisions)

first = replay.sample(64, batch=0)
print("unused decisions:", replay.unused_decisions == replay.num_decisions - sum(t.num_decisions for t in first))
replay.confirm(0)

# %% [markdown]
# ## Packing
#
# Segments end to end, no padding: episodes differ in length, and nothing has to be divisible by anything. Behind the
# decisions stand the observations that bootstrap the segments that did not end in success or failure.

# %%
batch = pack(trajectories, env_config.chunk_length)
assert batch.num_decisions == int(batch.lengths.sum())
assert len(batch.observations) == batch.num_decisions + int((~batch.terminal).sum())
print("one row for each decision, and one for each segment that goes on")

# %% [markdown]
# ## Values go stale
#
# With each decision came the value of the critic that acted. Some updates later the critic knows better. So values are
# computed again, by the newest critic, when they are needed. Let it learn for a while, and compare.

# %%
learner = Learner(
    policy,
    LearnerConfig(batch_decisions=1000, value_lr=3e-3, value_warmup_updates=1000, warmup_updates=0),
    ObjectiveConfig(discount=0.9, trace=0.8, time_limit="failure", value_loss="bce"),
)
losses = [learner.update(batch)["value_loss"] for _ in range(15)]
print("the critic has learned:", losses[-1] < 0.9 * losses[0])

# %%
with torch.inference_mode():
    fresh = policy.value(batch.observations)[: batch.num_decisions]
estimate = partial(gae, batch.reward, lengths=batch.lengths, discount=0.9, trace=0.8)
ended = torch.ones_like(batch.terminal)
none = torch.zeros(len(batch.lengths))
returns = gae(batch.reward, torch.zeros_like(fresh), none, batch.lengths, ended, discount=0.9, trace=1.0)
stale, recomputed = (explained_variance(value, returns) for value in (batch.behaviour_value, fresh))
print("the newest critic explains more of the returns:", recomputed > stale + 0.02)
advantage = estimate(value=fresh, bootstrap_value=none, terminal=ended)

# %% [markdown]
# ## Normalised, over what?
#
# An advantage counts relative to the others of its *global* batch. Normalise each micro-batch by itself, and in one
# where everything fails the least bad failure becomes a triumph.

# %%
order = torch.argsort(torch.repeat_interleave(torch.arange(len(batch.lengths)), batch.lengths) % 8, stable=True)
parts = order.chunk(8)
local = torch.empty_like(advantage)
for part in parts:
    local[part] = normalize(advantage[part])
whole = normalize(advantage)

# %%
plt.rcParams.update(STYLE)
_, axes = plt.subplots(figsize=(4.4, 3.2), layout="constrained")
axes.scatter(whole, local, s=6, color=BLUE)
axes.axline((0, 0), slope=1, color=ORANGE)
_ = axes.set(xlabel="normalised over the global batch", ylabel="over its micro-batch of an eighth")
print("same order, other signs:", bool(((whole.sign() != local.sign()).float().mean()) > 0.01))

# %% [markdown]
# Over several ranks the sums are added up (`all_reduce`); `recompute = "fused"` takes the statistics of the update
# before, so that a micro-batch can be trained on as soon as it is there. What both are worth: `docs/learner.md`.
#
# ## Prefetching
#
# A thread of the trainer packs the next micro-batches while the present one is trained on, a bounded number of them.


# %%
class Source:
    """replay -> prefetch, without a process in between."""

    def sample(self, num_decisions, batch, timeout_s):
        return replay.sample(num_decisions, batch)

    def rule(self, batch, timeout_s):
        return BatchRule()

    def take(self, num_decisions, rule, batch, timeout_s):
        return replay.sample(num_decisions, batch)

    def confirm(self, batch):
        replay.confirm(batch)


# %%
config = LearnerConfig(batch_decisions=48, micro_batch_decisions=16, prefetch=2)
prefetcher = Prefetcher(Source(), lambda segments: pack(segments, env_config.chunk_length), config, first_version=1)
sizes, last = [], False
while not last:
    micro = prefetcher.get(timeout_s=5.0)
    sizes.append(micro.batch.num_decisions)
    last = micro.is_last
prefetcher.close()
print("at least 3 parts of whole segments:", len(sizes) >= 3, "- at least 48 decisions:", sum(sizes) >= 48)

# %% [markdown]
# ## Which task next?
#
# Dynamic weighted resampling: $P(k) \propto \text{failures of } k + \epsilon$, over the last episodes of each. What
# fails is played more; $\epsilon$ keeps what is solved from being forgotten.

# %%
for epsilon in (1.0, 30.0):
    tasks = TaskSampler(("easy", "hard"), TaskConfig(window=100, epsilon=epsilon), seed=0)
    for number in range(200):
        task = ("easy", "hard")[number % 2]
        success = task == "easy" or number % 10 == 1
        tasks.report(
            Episode(
                task=task,
                success=success,
                episode_return=float(success),
                num_decisions=6,
                num_env_steps=24,
                policy_version=0,
                origin="here",
            )
        )
    print(epsilon, {task: round(share, 2) for task, share in tasks.probabilities().items()})
