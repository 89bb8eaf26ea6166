# %% [markdown]
# # 12 · When things go wrong
#
# **Goal**: kill and stop processes of a run and see that it goes on and loses nothing; end it by force, damage its
# newest checkpoint, and go on all the same; ask what limits a run, and what a machine lacks. **Hardware**: two CPU
# cores. **Time**: a minute and a half.

# %%
import os
import signal
import time
from pathlib import Path
from shutil import rmtree

import torch

import accerl
from accerl import checkpoint
from accerl.config import EnvConfig
from accerl.envs import make_env
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig

torch.set_num_threads(1)
folder = Path("runs/12")
rmtree(folder, ignore_errors=True)

# %% [markdown]
# ## A run
#
# Coloured dots and a policy that knows nothing: what matters here is only that it is busy. Each decision is to be
# trained on once, which makes it easy to count.

# %%
env_config = EnvConfig(suite="dots", tasks=("red", "blue"), image_size=32, steps_per_action=1, max_decisions=6)
spec = make_env(env_config).spec
policy = TinyVLA(TinyVLAConfig.for_env(spec, ["go to the red dot", "go to the blue dot"], width=64))
checkpoint.save_policy(folder / "start", policy.config_dict(), policy.state_dict())
run = accerl.launch(
    accerl.RunConfig(
        name="tried",
        root=folder,
        env=env_config.model_dump(),
        policy={"checkpoint": folder / "start"},
        rollout={"slots_per_worker": 8},
        replay={"min_decisions": 64, "max_reuse": 1},
        learner={"batch_decisions": 64, "value_warmup_updates": 0},
    )
)


# %%
def until(is_met):
    """Look again and again; within four minutes it must be so."""
    deadline = time.monotonic() + 240
    while not is_met():
        assert run.status()["state"] != "failed" and time.monotonic() < deadline, run.status()
        time.sleep(0.2)
    return True


until(lambda: run.status().get("updates", 0) >= 3)
print(run.status()["state"])

# %% [markdown]
# ## Chaos
#
# What `accerl chaos RUN` does for minutes, here with two faults of our own: the process that plays is killed, and the
# one that answers it is stopped (SIGSTOP), which no operating system reports to anybody. An outcome is known when
# another process has the place, and decisions and updates were made after that.

# %%
from accerl.runtime import chaos, strikes

before = {role: beat.pid for role, beat in strikes.processes(run.folder).items()}
print(sorted(before))
faults = [chaos.Fault(0.0, "kill-rollout", 0.0), chaos.Fault(1.0, "stop-inference", 0.0)]
outcomes = list(chaos.unleash(run, faults))
assert all(outcome.recovered_s is not None for outcome in outcomes), outcomes
print("at work again:", sorted(outcome.role for outcome in outcomes))

# %% tags=["nbval-ignore-output"]
for outcome in outcomes:
    print(f"{outcome.fault.kind}: {outcome.recovered_s:.1f} s")

# %% [markdown]
# ## Incidents
#
# Ray says at once that a process has ended. That one is stopped is found by asking every process every second; what
# does not answer is looked at, ended and replaced. Both are written down, for you and for whoever attaches later.

# %%
incidents = {each["role"]: each for each in run.incidents()}
print("rollout-0:", incidents["rollout-0"]["action"])
print("inference-0:", incidents["inference-0"]["what"], "-", incidents["inference-0"]["action"])
now = {role: beat.pid for role, beat in strikes.processes(run.folder).items()}
print("others were left alone:", all(now[role] == before[role] for role in ("controller", "learner-0", "replay-0")))

# %% [markdown]
# ## Nothing is lost
#
# Episodes that were being played when their worker died are played again; questions that a service did not answer are
# asked again. With nothing in flight, every decision that the replay took was trained on, is lent to the learner, or
# waits.

# %%
run.pause()


def adds_up():
    health, pushed = run.health(), run.pushed_decisions()
    counted = health["trained_decisions"] + health["replay_unused"] + health["replay_lent"]
    return not health["episodes_in_flight"] and counted == pushed


print("decisions add up:", until(adds_up))
print("lost episodes:", run.lost_episodes(), "- discarded decisions:", run.health()["discarded_decisions"])
run.resume()

# %% [markdown]
# ## The end, by force
#
# A checkpoint is written beside training and has a checksum of each of its files. Two of them, and then the process
# that the run lives in is killed: a machine that is switched off looks like that.

# %%
updates = run.status()["updates"]
until(lambda: run.status()["updates"] >= updates + 2)
first = run.checkpoint()
until(lambda: run.status()["updates"] >= updates + 4)
second = run.checkpoint()
print(sorted(path.name for path in second.iterdir()))
os.kill(run.status()["host_pid"], signal.SIGKILL)
until(lambda: run.status()["state"] == "dead" and not strikes.processes(run.folder))
print(run.status()["state"], "- processes left:", len(strikes.processes(run.folder)))

# %% [markdown]
# As if that were not enough, one bit of the newest checkpoint flips.

# %%
newest = run.checkpoints()[-1] / "policy.safetensors"
content = bytearray(newest.read_bytes())
content[-1] ^= 1
_ = newest.write_bytes(content)

# %% [markdown]
# ## Resume
#
# On the same machine or another one, with as many ranks as there are then: `accerl train --resume RUN`, or here. It
# takes the newest checkpoint that is whole, says so, and the replay goes back to the same moment.

# %%
run = accerl.launch(run.config, resume=True)
begins = int(first.name.removeprefix("step-"))
until(lambda: run.status().get("updates", 0) > begins)
said = [each for each in run.incidents() if each["role"] == "host"]
print(said[-1]["what"].startswith(f"{newest.parent.name} is damaged"), "-", said[-1]["action"])
print("the damaged one is kept aside:", (run.folder / "checkpoints" / f"damaged-{newest.parent.name}").exists())

# %% tags=["nbval-ignore-output"]
print(said[-1]["what"])

# %%
until(lambda: run.status()["updates"] >= begins + 4)
run.pause()
print("decisions add up:", until(adds_up), "- lost episodes:", run.lost_episodes())
run.stop(timeout_s=120)
print(run.status()["state"])

# %% [markdown]
# ## Slow is wrong too
#
# Each line of the metrics ends with a sentence on what limits the run and what would help; `accerl trace RUN` draws
# where the time went.

# %% tags=["nbval-ignore-output"]
print(run.metrics()[-1]["advice"])

# %% [markdown]
# The advisor knows how busy every part is and what a forward costs, and compares what each part could do alone. So it
# can be asked about a run that does not exist: eight workers, one service, a GPU that trains.

# %%
from accerl.advisor import Readings, advise

imagined = Readings(
    num_workers=8,
    num_slots=32,
    env_s_per_decision=0.4,
    num_services=1,
    batch_size=16,
    forward_base_s=0.2,
    forward_slope_s=0.09,
    train_s_per_decision=0.08,
)
found = advise(imagined)
print({part: round(bound, 1) for part, bound in found.bounds.items()})
print(found.sentence)

# %% [markdown]
# ## Doctor
#
# Before a first run: what is there, what is missing, and the command that mends it. `accerl doctor --libero` looks
# whether LIBERO draws, `accerl doctor --cluster HOST:PORT` at every node of a cluster and the ways between them.

# %%
from accerl.cli import main

# %% tags=["nbval-ignore-output"]
main(["doctor"])

# %%
from accerl.doctor import examine_machine

findings = examine_machine()
print("nothing fails:", all(finding.ok is not False for finding in findings))
print("python" in {finding.subject for finding in findings}, len(findings) > 10)

# %% [markdown]
# | what | where |
# |---|---|
# | five minutes of everything | `accerl chaos RUN --minutes 5 --seed 0` |
# | what went wrong | `run.incidents()`, `RUN/incidents.jsonl`; stacks of what hung: `RUN/logs/*.crash.log` |
# | an environment that raises, hangs or crashes | replaced; after three times its task is given up: `docs/runtime.md` |
# | a full disk, a dead controller, what is not covered | `docs/survival.md` |
