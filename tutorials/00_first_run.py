# %% [markdown]
# # 00 · First run
#
# **Goal**: train a robot policy by reinforcement learning, watch it while it trains, leave it, and come back to it.
# **Hardware**: two CPU cores. **Time**: one minute.
#
# A *run* is a folder and some processes. The notebook holds neither: it has a handle, and may be closed at any time.

# %%
from pathlib import Path
from shutil import rmtree

import torch

import accerl
from accerl import checkpoint, demos, imitation
from accerl.config import CloneConfig, DemosConfig, EnvConfig
from accerl.envs import make_env, make_expert
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

torch.set_num_threads(1)
folder = Path("runs/00")
rmtree(folder, ignore_errors=True)

# %% [markdown]
# ## A task
#
# Meta-World in MuJoCo, seen through one camera of 64 x 64 pixels. A *decision* is one look of the policy: it answers
# with a chunk of four actions, each held for two steps of the simulator.

# %%
env_config = EnvConfig(
    suite="metaworld",
    tasks=("handle-press-v3",),
    image_size=64,
    chunk_length=4,
    steps_per_action=2,
    max_decisions=12,
)
env = make_env(env_config)
observation, _ = env.reset(seed=0)
print(observation["instruction"], observation["images"].shape, observation["proprio"].shape)

# %% [markdown]
# ## A policy to start from
#
# Reinforcement learning needs a policy that succeeds now and then. A scripted expert at half speed shows the task
# twelve times, and a small vision-language-action network imitates it for some seconds: it is often too late.

# %%
how = DemosConfig(episodes_per_task=12, speed=0.45, noise=0.15)
recorder = make_env(demos.single_action(env_config, how))
expert = make_expert(env_config, recorder, speed=how.speed, noise=how.noise, seed=0)
demonstrations = demos.record(recorder, expert, how)
print(len(demonstrations), "demonstrations")

# %%
instructions = {each.instruction for each in demonstrations}
policy = TinyVLA(TinyVLAConfig.for_env(env.spec, instructions, width=96, num_layers=2))
imitation.clone(policy, demonstrations, env_config.chunk_length, CloneConfig(updates=150))
checkpoint.save_policy(folder / "start", policy.config_dict(), policy.state_dict())

# %% [markdown]
# ## Start
#
# Every setting is a field of `RunConfig`; what cannot work is refused here, in one line. `launch` returns at once.

# %%
config = accerl.RunConfig(
    name="first",
    root=folder,
    env=env_config.model_dump(),
    policy={"checkpoint": folder / "start"},
    rollout={"num_workers": 1, "slots_per_worker": 8},
    replay={"min_decisions": 128, "capacity_decisions": 2048, "max_reuse": 4},
    learner={"batch_decisions": 128, "value_warmup_updates": 4, "warmup_updates": 2},
    objective={"kind": "gipo", "sigma": 0.2, "time_limit": "failure", "value_loss": "bce"},
    limits={"max_updates": 12},
)
run = accerl.launch(config)

# %% [markdown]
# ## Watch
#
# Simulation, inference and training run beside each other; none waits for another. The dashboard reads the run's
# folder.

# %% tags=["nbval-ignore-output"]
from accerl.notebook import Dashboard, TrajectoryViewer

state = run.wait()
board = Dashboard(run)
board

# %% [markdown]
# The run has ended after its twelve updates. While it goes on, `Dashboard(run)` is the same cell, and moves.

# %%
last = run.metrics()[-1]
assert state == "finished", run.status()
assert last["updates"] == 12 and last["discarded_decisions"] == 0
assert 0 <= last["success"] <= 1 and last["run_policy_lag_max"] >= 1
print("nothing was discarded, and the policy that acted was at times older than the one that learned")

# %% [markdown]
# ## Look at what the robot did
#
# A sample of the episodes stays in the folder. Space plays, arrows step, `+` puts another episode beside.

# %% tags=["nbval-ignore-output"]
viewer = TrajectoryViewer(run.trajectories(2))
viewer

# %% [markdown]
# ## Come back
#
# From any notebook, script or shell, now or next week, by its name.

# %%
again = accerl.attach("first", folder)
learned = checkpoint.load_policy(again.checkpoints()[-1])
print(sorted(path.name for path in again.folder.iterdir() if path.suffix in (".json", ".jsonl")))
print(type(learned).__name__, again.status()["state"], len(again.incidents()), "incidents")

# %% [markdown]
# Next: `make quickstart` is this with four tasks and eight minutes of training, and ends at a success of 0.94.
# Tutorial 03 shows what GIPO does with decisions of an older policy; 09 attaches to a run that goes on.
