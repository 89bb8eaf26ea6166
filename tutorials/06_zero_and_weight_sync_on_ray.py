# %% [markdown]
# # 06 · DeepSpeed ZeRO-2 and weight sync on Ray
#
# **Goal**: build a learner of several ranks, see what each of them holds and that the update is the same; send its
# weights to a service that never waits for them. **Hardware**: two CPU cores; ranks talk through gloo here, through
# NCCL between GPUs. **Time**: a minute and a half.

# %%
import os
import secrets
from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import torch
import torch.distributed as dist

from accerl import RunConfig, checkpoint
from accerl.config import EnvConfig, InferenceConfig, LearnerConfig, ObjectiveConfig, RolloutConfig
from accerl.envs import make_env
from accerl.packing import pack
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import LocalClient, PolicyServer
from accerl.rollout import RolloutWorker
from accerl.types import EpisodePlan

torch.set_num_threads(1)
_ = torch.manual_seed(0)
folder = Path("runs/06").resolve()
rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)

# %% [markdown]
# ## A batch
#
# Of a policy that knows nothing yet, in a world of coloured dots; tutorial 05 is about this part. A global batch comes
# in parts as episodes end, and these are ragged.

# %%
env_config = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=6)
spec = make_env(env_config).spec
policy = TinyVLA(TinyVLAConfig.for_env(spec, ["go to the red dot", "go to the blue dot"], width=64))
checkpoint.save_policy(folder / "start", policy.config_dict(), policy.state_dict())


class Book:
    """Twenty episodes to play; what happened in them."""

    def __init__(self):
        self.left, self.trajectories = 20, []

    async def next_episode(self):
        self.left -= 1
        return EpisodePlan(task=env_config.tasks[self.left % 2], seed=self.left) if self.left >= 0 else None

    async def put(self, trajectory):
        self.trajectories.append(trajectory)

    async def report(self, episode): ...


# %%
book, server = Book(), PolicyServer(policy, InferenceConfig())
slots = RolloutConfig(slots_per_worker=1)
await RolloutWorker("here", lambda: make_env(env_config), slots, LocalClient(server), book, book, seed=0).run()
parts = [pack(book.trajectories[first:last], env_config.chunk_length) for first, last in pairwise([0, 1, 3, 7, 12, 20])]
print(len(parts), "parts of", [len(part.lengths) for part in parts], "episodes")

# %% [markdown]
# ## One learner
#
# Three updates on that batch in this process, as something to compare with. Parts are trained on as they come, and the
# step divides by the number of decisions in all of them.

# %%
from accerl.learner import Learner

objective = ObjectiveConfig(behaviour_kl=0.1)
settings = LearnerConfig(policy_lr=1e-3, value_lr=1e-3, warmup_updates=0, value_warmup_updates=0)
alone = Learner(checkpoint.load_policy(folder / "start"), settings, objective)
for _ in range(3):
    for part in parts:
        alone.accumulate(part)
    facts = alone.step()
print("version", alone.version)

# %% [markdown]
# ## A rank
#
# A process that holds all weights, and of the optimizer a part. `join_ranks` makes it one of a group, `ZeroEngine` is
# DeepSpeed's ZeRO behind the learner's `Engine`: nothing else about the learner changes.

# %%
from accerl.zero import ZeroEngine, join_ranks


class Rank:
    def __init__(self, number, num_ranks):
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / f"group-of-{num_ranks}"), num_ranks)
        join_ranks(number, num_ranks, store, "cpu", timeout_s=60)
        policy = checkpoint.load_policy(folder / "start")
        self.engine = ZeroEngine(policy, settings, stage=2)
        self.learner = Learner(policy, settings, objective, engine=self.engine)

    def accumulate(self, part, counts):
        self.learner.accumulate(part, counts)

    def step(self):
        return self.learner.step()

    def holds(self):
        return self.engine.optimizer_bytes, self.learner.weights().tensors


# %% [markdown]
# Ray places them: here three processes on this machine, on a cluster wherever there is a GPU. What follows is how the
# library deals a batch out (`accerl/runtime/ranks.py`). Every rank must reduce as many gradients as the others, so a
# round that the batch does not fill is filled up with a part that does not count.

# %%
token = folder / "ray.token"  # Ray's ports are open to everybody; this keeps strangers out, as a run does it
token.touch(mode=0o600)
token.write_text(secrets.token_hex(32))
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
import ray

store = 200 * 2**20
_ = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=store, log_to_driver=False, logging_level="ERROR")


# %%
def group(num_ranks):
    return [ray.remote(Rank).remote(number, num_ranks) for number in range(num_ranks)]


def deal(ranks, parts):
    for first in range(0, len(parts), len(ranks)):
        for place, rank in enumerate(ranks, start=first):
            counts = place < len(parts)
            rank.accumulate.remote(parts[place if counts else first], counts)


# %%
groups = {num_ranks: group(num_ranks) for num_ranks in (1, 2)}
held = {}
for num_ranks, ranks in groups.items():
    for _ in range(3):
        deal(ranks, parts)
        reports = ray.get([rank.step.remote() for rank in ranks])
    held[num_ranks] = ray.get([rank.holds.remote() for rank in ranks])
    trained = [report["batch_decisions"] for report in reports]
    print(num_ranks, "ranks, all decisions trained on:", sum(trained) == facts["batch_decisions"])

# %% [markdown]
# ## What is in parts
#
# AdamW keeps two moments of each parameter. On two ranks each has half of them, rounded up; the gradients are spread
# in the same way: each rank is sent the sum of its part alone.

# %%
num_parameters = sum(each.numel() for each in policy.parameters())
print(num_parameters, "parameters, two moments of 4 bytes each:", 8 * num_parameters)
for num_ranks, of_ranks in held.items():
    print(num_ranks, "ranks hold", [num_bytes for num_bytes, _ in of_ranks], "bytes of optimizer state")

# %% [markdown]
# For a small policy that is nothing. OpenVLA-OFT has 7.4 billion parameters, in bfloat16 with a float32 copy, and this
# is what decides whether it can be trained at all. GiB on each GPU, before any activation:

# %%
from accerl.plan_memory import GIB, trained_bytes

for num_ranks in (1, 2, 4, 8):
    large = LearnerConfig(num_ranks=num_ranks, zero_stage=2, dtype="bfloat16")
    print(num_ranks, "ranks:", round(7.37e9 * (2 + trained_bytes(large)) / GIB, 1))

# %% [markdown]
# ## The same update
#
# What a batch consists of does not depend on the number of ranks, and neither do the parameters, but for the order in
# which numbers were added.


# %%
def distance(tensors, others):
    return sum((tensors[name] - others[name]).double().square().sum().item() for name in tensors) ** 0.5


expected = alone.weights().tensors
moved = distance(expected, dict(policy.state_dict()))
found = {num_ranks: distance(of_ranks[0][1], expected) / moved for num_ranks, of_ranks in held.items()}
print("ranks agree to the bit:", distance(held[2][0][1], held[2][1][1]) == 0.0)
print("they end where one learner does, to a thousandth of the way:", all(each < 1e-3 for each in found.values()))

# %% tags=["nbval-ignore-output"]
print({num_ranks: f"{share:.1e} of the way" for num_ranks, share in found.items()})

# %% [markdown]
# ## Weights on their way
#
# All tensors lie in one run of bytes, which is cut into buckets, and each bucket has a checksum. One flipped bit, or a
# bucket of another version, and the whole transfer does not count.

# %%
from accerl.weight_buckets import ChecksumError, checksum, verify
from accerl.weight_buckets import pack as packed

message = packed(alone.weights())
sums = message.checksums(2**18)
print(len(sums), "buckets of 256 KiB")
bucket = message.flat[: 2**18].clone()
bucket[1000] ^= 1
try:
    verify(checksum(bucket), sums[0], message.version, bucket=0)
except ChecksumError as error:
    print(str(error).split(":")[0], "is not what was sent")

# %% [markdown]
# ## Channels
#
# Three ways, each with a sender and a source: Ray's object store, a broadcast in a group of its own, shared memory.
# They meet at the controller of a run; this is as much of it as they ask.

# %%
from accerl.runtime.group_board import GroupBoard
from accerl.runtime.weight_channels import make_sender, make_source
from accerl.weights import BackgroundPublisher


class Controller:
    def __init__(self):
        self.newest, self.group = (0, None, None), GroupBoard()

    def publish(self, version, references):
        self.newest = (self.newest[0] + 1, version, references)

    def latest(self, seen, timeout_s):
        return self.newest if self.newest[0] > seen else None

    def board(self, verb, *arguments):
        return getattr(self.group, verb)(*arguments)


# %% [markdown]
# And a service: it answers, looks between two answers whether there is something new, and goes on either way.

# %%
from accerl.types import DecisionRequest

observation, _ = make_env(env_config).reset(seed=0)
request = DecisionRequest(observation=observation, episode_step=0, seed=0)


class Service:
    def __init__(self, config, controller):
        torch.set_num_threads(1)
        self.server = PolicyServer(checkpoint.load_policy(folder / "start"), config.inference)
        self.source, self.received = make_source(config, controller, "inference-0"), {}

    def look(self, timeout_s=0.0):
        weights = self.source.latest(self.server.version, timeout_s)
        if weights is not None:
            self.server.load(weights)
            self.received = {name: tensor.clone() for name, tensor in weights.tensors.items()}
        return self.server.version

    def answer(self):
        return self.server.answer([request])[0].policy_version

    def holds(self):
        return self.source.statistics.num_received, self.received


# %%
def channel(name):
    """Its configuration, a controller, and a service that listens."""
    config = RunConfig(name=name, root=folder, weights={"channel": name, "bucket_mb": 1})
    controller = ray.remote(Controller).remote()
    service = ray.remote(Service).remote(config, controller)
    ray.get(service.look.remote())
    return config, controller, service


for name in ("store", "group", "shared"):
    config, controller, service = channel(name)
    publisher = BackgroundPublisher(make_sender(config, controller))
    publisher.publish(alone.policy, alone.version)
    assert publisher.flush(60.0)
    version = ray.get(service.look.remote(60.0))
    same = distance(expected, ray.get(service.holds.remote())[1]) == 0.0
    print(f"{name}: version {version}, equal to the bit: {same}")
    publisher.close()

# %% [markdown]
# ## Nobody waits
#
# `publish` returns at once: a thread copies, another one sends. Only the step that changes the parameters waits for the
# copy, which is done long before. A service that looks late takes the newest version and never hears of the others.

# %%
config, controller, service = channel("store")
print("nothing is there, and it answers with version", ray.get(service.answer.remote()))
publisher = BackgroundPublisher(make_sender(config, controller))
for version in range(1, 4):
    publisher.publish(alone.policy, version)
    assert publisher.flush(60.0)
ray.get(service.look.remote())
print("three were sent, it answers with version", ray.get(service.answer.remote()))
print("of", publisher.statistics.num_sent, "it received", ray.get(service.holds.remote())[0])
publisher.close()

# %% [markdown]
# ## Together
#
# The first of the two ranks publishes after each step, the service answers as fast as it can. There is no barrier: not
# between the ranks and the service, and none that a dead service could hold up.


# %%
def connect(rank, config, controller):
    rank.publisher = BackgroundPublisher(make_sender(config, controller))


def step_and_publish(rank):
    rank.learner.step(before_step=rank.publisher.before_step)
    rank.publisher.publish(rank.learner.policy, rank.learner.version)
    return rank.learner.version


def play(service, until):
    versions = [service.answer()]
    while versions[-1] < until:
        service.look()
        versions.append(service.answer())
    return versions


# %%
first, second = groups[2]
ray.get(first.__ray_call__.remote(connect, config, controller))
answers = service.__ray_call__.remote(play, until=13)
for _ in range(10):
    deal([first, second], parts)
    version, _ = ray.get([first.__ray_call__.remote(step_and_publish), second.step.remote()])
versions = ray.get(answers)
print("the learner is at version", version, "and the service at", versions[-1])
print("versions only rise:", versions == sorted(versions))

# %% tags=["nbval-ignore-output"]
print(len(versions), "answers, by versions", sorted(set(versions)))

# %% [markdown]
# In a run all of this is four settings: `--learner.num-ranks 8 --learner.zero-stage 2 --learner.dtype bfloat16
# --weights.channel group`. A rank that dies is replaced, and the group goes on from the last checkpoint, which fits any
# number of ranks (`docs/learner.md`); which channel when: `docs/cluster.md`. Next: 07, a world model.

# %%
ray.shutdown()
