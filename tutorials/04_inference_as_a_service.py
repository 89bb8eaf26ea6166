# %% [markdown]
# # 04 · Inference as a service
#
# **Goal**: see why actions are answered in dynamic batches, and what waiting for one another costs: the timeline of the
# same work in lockstep, with a barrier, and asynchronously. **Hardware**: two CPU cores. **Time**: a minute and a half.

# %%
import asyncio
import time
from pathlib import Path
from shutil import rmtree

import torch
from IPython.display import Image

import accerl
from accerl import checkpoint
from accerl.gantt import gantt
from accerl.inference import InferenceService, Window
from accerl.timeline import FOLDER, read_spans

torch.set_num_threads(1)
folder = Path("runs/04")
rmtree(folder, ignore_errors=True)

# %% [markdown]
# ## A forward pass likes company
#
# A device needs nearly as long for one request as for sixteen. So a service collects requests until $B$ of them wait or
# the oldest has waited $T_{max}$, and while the device is busy they collect by themselves. Here the device is a sleep.


# %%
def answer(requests):
    """Ten milliseconds, and half a millisecond for each request."""
    time.sleep(0.010 + 0.0005 * len(requests))
    return [2 * request for request in requests]


async def ask(service, worker, times):
    """One environment after the other: look, ask, wait, act."""
    answers = []
    for step in range(times):
        answers.append(await service.ask(10 * worker + step))
        await asyncio.sleep(0.002)
    return answers


# %%
async def served(window, num_workers=16, times=20):
    with InferenceService(answer, window) as service:
        answers = await asyncio.gather(*(ask(service, worker, times) for worker in range(num_workers)))
    assert answers[3][7] == 2 * 37
    return service.statistics


alone = await served(Window(batch_size=1, max_wait_s=0.0))
together = await served(Window(batch_size=16, max_wait_s=0.005))
print("one by one:", alone.num_batches, "forward passes for", alone.num_requests, "requests")
print("together, at least eight in each:", together.num_requests >= 8 * together.num_batches)
assert together.forward_s < 0.25 * alone.forward_s

# %% [markdown]
# ## The same work, three times
#
# An environment of one's own, `slow_dots.py` beside this notebook: a decision takes 20 ms in the mean and sometimes ten
# times as long. `mode` says who waits for whom; everything else is the same code.

# %%
from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

env_config = EnvConfig(
    suite="slow_dots:make", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=6
)
spec = make_env(env_config).spec
policy = TinyVLA(TinyVLAConfig.for_env(spec, ["go to the red dot", "go to the blue dot"], width=64))
checkpoint.save_policy(folder / "start", policy.config_dict(), policy.state_dict())


# %%
def train(mode):
    """Twelve updates; the run's trace lies in its folder afterwards."""
    config = accerl.RunConfig(
        name=mode,
        root=folder,
        mode=mode,
        env=env_config.model_dump(),
        policy={"checkpoint": folder / "start"},
        rollout={"slots_per_worker": 8, "threads_per_worker": 8, "episodes_per_round": 16},
        replay={"min_decisions": 32, "max_reuse": 1},
        learner={"batch_decisions": 64, "value_warmup_updates": 0},
        limits={"max_updates": 12},
    )
    run = accerl.launch(config)
    assert run.wait() == "finished", run.status()
    return run


runs = {mode: train(mode) for mode in ("sync", "barrier", "async")}

# %% [markdown]
# In lockstep (`sync`) each step waits for the slowest environment, everybody waits for the update, and the update for
# everybody. With a barrier environments step on their own, but a round ends with its slowest episode.


# %%
def timeline(mode):
    """The last two seconds: a row a process, blank where it waits."""
    picture = folder / f"{mode}.png"
    gantt(read_spans(runs[mode].folder / FOLDER), picture, seconds=2.0, title=mode)
    return Image(picture, width=700)


# %% tags=["nbval-ignore-output"]
timeline("sync")

# %% tags=["nbval-ignore-output"]
timeline("barrier")

# %% [markdown]
# And asynchronously nobody waits: a slot plays on while the learner trains, with whatever version is there.

# %% tags=["nbval-ignore-output"]
timeline("async")

# %% [markdown]
# The price is staleness: what is trained on was decided by an older policy. It is data, counted for each decision, and
# nothing is thrown away. Tutorial 03 shows what an objective makes of it.

# %%
last = {mode: run.metrics()[-1] for mode, run in runs.items()}
print({mode: line["run_policy_lag_max"] == 0 for mode, line in last.items()}, "never stale")
print({mode: line["discarded_decisions"] for mode, line in last.items()}, "discarded")
assert last["async"]["run_policy_lag_max"] >= 1

# %% [markdown]
# How much faster, on emulated devices that are always alike: 3.1 times `sync`, 1.6 times `barrier`
# (`python benchmarks/pipeline.py`, `docs/runtime.md`). Next: 05, from episodes to batches.
