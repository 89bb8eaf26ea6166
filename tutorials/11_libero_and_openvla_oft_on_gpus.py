# %% [markdown]
# # 11 · LIBERO and OpenVLA-OFT on GPUs
#
# **Goal**: plan, start, watch and resume the whole distributed system: a 7B policy on LIBERO, its learner on several
# ranks, weights broadcast to services. **Hardware**: two CPU cores; here the recipe for GPUs runs with a network that
# is four thousand times smaller, all else as it is. **Time**: two minutes. **Needs**: `pip install accerl[libero]`.

# %%
import time
from pathlib import Path
from shutil import rmtree

import torch

import accerl
from accerl.cli import main
from accerl.cli.options import find_file

torch.set_num_threads(1)
folder = Path("runs/11")
rmtree(folder, ignore_errors=True)

# %% [markdown]
# ## The recipe
#
# A file of settings, [`libero-openvla.toml`](../accerl/recipes/libero-openvla.toml), for two GPUs of 141 GiB: one
# trains, the other infers. In Python it is an object.

# %%
path = find_file("libero-openvla")
recipe = accerl.RunConfig.load(path)
print(len(recipe.env.tasks), "tasks of", recipe.env.suite, "- a decision is", recipe.env.chunk_length, "actions")
print(recipe.rollout.num_workers, "workers of", recipe.rollout.slots_per_worker, "environments each")
print("learner on", recipe.learner.device, "- weights by", recipe.weights.channel, "-", recipe.placement.layout)

# %% [markdown]
# The network is read from a folder in the public layout, which you download (`docs/openvla.md` says which fit):
#
#     hf download Haozhan72/Openvla-oft-SFT-libero-spatial-traj1 --local-dir checkpoints/spatial
#     accerl eval --policy checkpoints/spatial --env libero_spatial --env.cameras agentview \
#         --protocol openvla-oft --greedy
#
# Without it the run is refused before anything starts, and so is whatever else cannot work.

# %%
try:
    accerl.launch(recipe)
except accerl.ConfigError as error:
    print(error)

# %% [markdown]
# ## Will it fit?
#
# `accerl plan` counts bytes and operations of the real network without building it, for machines that are not there.
# The first table says which ways there are to train it, the second what this recipe needs, the last what decides.

# %%
machine = ["--cores", "64", "--host-memory", "512"]
assert main(["plan", "--config", "libero-openvla", "--gpus", "2", "--memory", "141", *machine]) == 0

# %% [markdown]
# Eight smaller GPUs: seven ranks spread the optimizer with ZeRO-2, one GPU infers.

# %%
assert main(["plan", "--policy", "openvla-oft", "--gpus", "8", "--memory", "80GiB", *machine]) == 0

# %% [markdown]
# And two that are too small for the recipe as it is. The remedy is in the sentence; another one is LoRA
# (`--policy.lora-rank 32`).

# %%
from accerl.envs import read_spec
from accerl.plan import Machine, make_plan
from accerl.policies.costs import costs_of

small_gpus = Machine(gpus=2, gpu_gib=80, cores=64, memory_gib=512)
for changes in ({}, {"policy.lora_rank": 32, "learner.dtype": "bfloat16"}):
    config = accerl.RunConfig.load(path, changes)
    print(make_plan(config, costs_of(config, read_spec(config.env)), small_gpus).refusals or "it fits")

# %% [markdown]
# ## Who gets which GPU
#
# `disaggregated`: the learner and each service have their own. `colocated`: they share. `hybrid`: the first service
# sits beside the learner, the others have their own. Shares are what Ray keeps for them.

# %%
from accerl.runtime.placement import shared_gpus, total_gpus

both = {"placement.learner_gpus": 0.5, "placement.inference_gpus": 0.5}
layouts = {
    "disaggregated": {"inference.num_services": 3},
    "colocated": {"inference.num_services": 1, **both},
    "hybrid": {"inference.num_services": 4, **both},
}
for layout, changes in layouts.items():
    config = accerl.RunConfig.load(path, {"placement.layout": layout, **changes})
    services = config.inference.num_services
    print(f"{layout}: {services} services, {total_gpus(config):g} GPUs, {shared_gpus(config):g} of them shared")

# %% [markdown]
# ## The same recipe, small
#
# What changes is written here, and nothing else does. First the simulator: one task of the ten, smaller pictures,
# episodes that end after three decisions, long before anything is done: what is shown here is the machinery.

# %%
scene = {
    "env.tasks": ["0"],
    "env.image_size": 64,
    "env.max_decisions": 3,
    "env.libero.multisampling": False,
    "env.libero.reflections": False,
    "rollout.num_workers": 1,
}

# %% [markdown]
# Then the network: an OpenVLA-OFT with random weights and all parts of the large one (both vision towers, projector,
# Llama, action tokens in parallel, value head), on processors. Two ranks under ZeRO-2 make up the learner, and weights
# are broadcast over gloo where GPUs have NCCL.

# %%
network = {
    "policy.kind": "openvla_oft_tiny",
    "policy.width": 32,
    "policy.num_heads": 2,
    "inference.device": "cpu",
    "inference.batch_size": 4,
    "inference.buckets": [4],
}

# %%
learner = {
    "replay.min_decisions": 12,
    "learner.device": "cpu",
    "learner.batch_decisions": 12,
    "learner.value_warmup_updates": 0,
    "learner.num_ranks": 2,
    "learner.zero_stage": 2,
}
small = accerl.RunConfig.load(path, {"name": "small", "root": str(folder), **scene, **network, **learner})
same = ("placement", "weights", "objective", "tasks", "limits")
print("as in the recipe:", [name for name in same if getattr(small, name) == getattr(recipe, name)])

# %% [markdown]
# ## Launch
#
# The call returns at once. The processes come up one after the other, find each other, and go to work; on a cluster
# they would be on several nodes.

# %%
run = accerl.launch(small)


def until(updates):
    """The run has made so many."""
    while (status := run.status()).get("updates", 0) < updates:
        assert status["state"] in ("starting", "running"), status
        time.sleep(0.2)


until(3)
print(run.status()["state"])

# %%
from accerl.runtime.strikes import processes

print(*sorted(processes(run.folder)))
health = run.health()
print({name: health[name] for name in ("num_workers", "num_services", "num_shards")})
line = run.metrics()[-1]
print("discarded:", line["discarded_decisions"], "- older than K = 8:", line["run_policy_lag_max"] > 8)

# %% [markdown]
# ## LIBERO
#
# Physics at every step, a picture when a decision is due. The policy knows nothing yet; one from a public checkpoint
# would pick up the bowl.

# %%
seen = run.trajectories(4)[-1]
print(seen.instruction)
print("images", seen.images.shape[1:], "proprioception", seen.proprio.shape[1:])

# %% tags=["nbval-ignore-output"]
from accerl.notebook import TrajectoryViewer

viewer = TrajectoryViewer(run, keep=4)
time.sleep(2)
viewer

# %% tags=["nbval-ignore-output"]
print(run.metrics()[-1]["advice"])

# %% [markdown]
# ## Resume, with other ranks
#
# A checkpoint is whole, however many ranks wrote it: two here, one when it goes on. On a cluster that is a job that
# gets fewer GPUs the second time.

# %%
viewer.close()
run.stop(timeout_s=120)
(newest,) = run.checkpoints()[-1:]
made = run.status()["updates"]
print("checkpoint of the last update:", int(newest.name.removeprefix("step-")) == made)

# %%
alone = accerl.RunConfig.load(run.folder / "config.json", {"learner.num_ranks": 1, "learner.zero_stage": 0})
run = accerl.launch(alone, resume=True)
until(made + 2)
print("ranks beside the learner:", [name for name in processes(run.folder) if name.startswith("rank")])
run.stop(timeout_s=120)
print(run.status()["state"])

# %% [markdown]
# ## On a cluster
#
# One environment on a file system that all nodes see, and a token, without which anybody who reaches Ray's ports runs
# programs there (`docs/cluster.md`, with Slurm and Kubernetes):
#
#     export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/shared/ray.token
#     ray start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false    # on the first node
#     ray start --address=10.0.0.1:6379                                                     # on each other one
#
# Can these nodes carry it, and does LIBERO draw? Then train, with the learner on seven GPUs of eight.
#
#     accerl doctor --cluster 10.0.0.1:6379 --root /shared/runs --nodes 2
#     accerl doctor --libero
#     accerl train --config libero-openvla --policy.checkpoint checkpoints/spatial \
#         --name large --root /shared/runs --cluster.address 10.0.0.1:6379 \
#         --learner.num-ranks 7 --learner.zero-stage 2 --learner.dtype bfloat16 --learner.gradient-checkpointing
#
# With `--policy.lora-rank 32 --weights.trainable-only` only the additions train and are sent. While it runs, from a
# notebook on any node, `accerl.attach("large", root="/shared/runs").scale(rollout=+8, inference=+1)`. Where the time
# goes; how to go on after it was killed, with the GPUs that there are then; how good it is:
#
#     accerl trace /shared/runs/large
#     accerl train --resume /shared/runs/large --learner.num-ranks 3
#     accerl eval --policy /shared/runs/large --env libero_spatial --protocol openvla-oft \
#         --episodes-per-task 50 --greedy
#
# What of this has run on GPUs, and how fast, says `docs/openvla.md`; nothing here has seen a public checkpoint.
