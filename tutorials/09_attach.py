# %% [markdown]
# # 09 · Attach to a running cluster
#
# **Goal**: from a second notebook, see live trajectories of a run that somebody else has started, steer it, and
# survive its end. **Hardware**: two CPU cores. **Time**: one minute.
#
# Here the same notebook plays both parts. The run belongs to neither: it has processes of its own.

# %%
import time
from pathlib import Path
from shutil import rmtree

import torch

import accerl
from accerl import checkpoint, demos, imitation
from accerl.config import CloneConfig, DemosConfig, EnvConfig
from accerl.envs import make_env, make_expert
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

torch.set_num_threads(1)  # the run has other uses for the cores
folder = Path("runs/09")
rmtree(folder, ignore_errors=True)

# %% [markdown]
# ## Somebody's run
#
# A world of coloured dots, drawn in microseconds, so that there is something to see at once.

# %%
env_config = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=6)
how = DemosConfig(episodes_per_task=60, speed=0.6, noise=0.2)
recorder = make_env(demos.single_action(env_config, how))
expert = make_expert(env_config, recorder, speed=how.speed, noise=how.noise, seed=0)
demonstrations = demos.record(recorder, expert, how)
policy = TinyVLA(
    TinyVLAConfig.for_env(make_env(env_config).spec, {each.instruction for each in demonstrations}, width=64)
)
imitation.clone(policy, demonstrations, env_config.chunk_length, CloneConfig(updates=200, lr=1e-3, shift_pixels=0))
checkpoint.save_policy(folder / "start", policy.config_dict(), policy.state_dict())

# %%
_ = accerl.launch(
    accerl.RunConfig(
        name="theirs",
        root=folder,
        env=env_config.model_dump(),
        policy={"checkpoint": folder / "start"},
        rollout={"num_workers": 1, "slots_per_worker": 8},
        replay={"min_decisions": 128, "capacity_decisions": 1024, "max_reuse": 2},
        learner={"batch_decisions": 128},
        objective={"kind": "gipo", "sigma": 0.2, "behaviour_kl": 0.1},
    )
)

# %% [markdown]
# ## Attach
#
# By name, from any notebook or shell of a node of the cluster. Reading needs the folder only; what asks the cluster
# goes through a process of its own, so that this kernel outlives whatever happens there.

# %%
run = accerl.attach("theirs", folder)
while run.status().get("updates", 0) < 4:
    time.sleep(0.2)
print(run.status()["state"], [each.name for each in accerl.runs(folder)])

# %% [markdown]
# ## Live trajectories
#
# The replay keeps the newest ones for onlookers; a cursor says what was seen. Nobody waits for a slow notebook: it
# just sees fewer of them.

# %%
cursor, seen = run.watch({}, num=4)
print(len(seen), "of", {each.task for each in seen} <= {"red", "blue"}, seen[0].images.shape[1:])
later = []
while not later:
    time.sleep(0.5)
    _, later = run.watch(cursor, num=4)
known = {(each.origin, each.episode) for each in seen}
assert known.isdisjoint({(each.origin, each.episode) for each in later})

# %% tags=["nbval-ignore-output"]
from accerl.notebook import Dashboard, TrajectoryViewer

viewer = TrajectoryViewer(run, keep=6)
time.sleep(2)
viewer

# %% [markdown]
# In a live notebook this list grows; imagined episodes are in it too when a world model is at work, and *dream audit*
# plays a real one in both worlds.
#
# ## Steer
#
# `Controls(run)` has a field for each of these. What is changed, and by whom, is written into the run, and stands in
# everybody's dashboard.

# %%
run.set(sigma=0.3)
event = run.events()[-1]
print(event["set"], event["from"], "->", event["to"])
assert event["by"]

# %% [markdown]
# A setting that does not exist or does not fit is refused, and nothing happens.

# %%
for wrong in ({"sigmma": 0.3}, {"sigma": -1}):
    try:
        run.set(**wrong)
    except accerl.ConfigError as error:
        print(error)

# %% [markdown]
# ## Evaluate beside training
#
# A checkpoint made now is played in a process of its own, while training goes on.

# %%
before = run.status()["updates"]
result = run.evaluate(episodes_per_task=5, greedy=True)
assert result["episodes"] == 10 and 0 <= result["rate"] <= 1
while run.status()["updates"] <= before:  # and training went on
    time.sleep(0.2)
print(sorted(result["by_task"]), len(run.evaluations()), "evaluation in the run's folder")

# %% [markdown]
# ## Pause
#
# Episodes at hand are finished, then nobody collects or trains until `run.resume()`.

# %% tags=["nbval-ignore-output"]
run.pause()
Dashboard(run)

# %% [markdown]
# ## The end
#
# Whoever stops it: the handle stays, and reads what is left.

# %%
run.stop(timeout_s=120)
print(run.status()["state"], len(run.trajectories(2)) > 0)
try:
    run.pause()
except RuntimeError as error:
    print(error)
viewer.close()

# %% [markdown]
# `accerl status` lists runs in a shell, `accerl attach RUN` follows one there. Several nodes: `docs/cluster.md`.
