# %% [markdown]
# # 01 · Environments and decisions
#
# **Goal**: know what an environment is here: observations, chunks of actions, decisions, the two ways in which an
# episode ends, states to come back to; Meta-World, LIBERO, and one of your own. **Hardware**: one CPU core.
# **Time**: half a minute. **Needs**: `pip install accerl[libero]`.
#
# An environment is whatever has `spec`, `reset`, `step_chunk`, `render` and `close` (`accerl/protocols.py`). It is
# gymnasium's API, but for one thing: it is stepped one *decision* at a time.

# %%
from dataclasses import asdict

import numpy as np
from PIL import Image

from accerl import demos
from accerl.config import DemosConfig, EnvConfig
from accerl.envs import make_env, make_expert

# %% [markdown]
# ## What is fixed
#
# Meta-World in MuJoCo. The configuration chooses; the environment's `spec` says what a policy must be built for.

# %%
config = EnvConfig(
    suite="metaworld",
    tasks=("drawer-open-v3", "drawer-close-v3"),
    image_size=64,
    chunk_length=4,
    steps_per_action=2,
    max_decisions=12,
)
env = make_env(config)
asdict(env.spec)

# %% [markdown]
# ## What a policy sees
#
# Images of one or more cameras, a few numbers that a real arm would know (here the hand's position and the gripper's
# opening), and what it has been told. Small and plain on the left; on the right, `render` for people.

# %%
observation, info = env.reset(seed=0, options={"task": "drawer-open-v3"})
print(observation["instruction"], "-", info["task"])
print("images", observation["images"].dtype, observation["images"].shape)
print("proprio", observation["proprio"].dtype, observation["proprio"].shape)


def beside(images, height):
    """A row of pictures, all of this height."""
    row = [np.asarray(Image.fromarray(each).resize((height, height), Image.Resampling.NEAREST)) for each in images]
    return Image.fromarray(np.concatenate(row, axis=1)).quantize(128)


# %% tags=["nbval-ignore-output"]
beside([observation["images"][0], env.render(256)], 256)

# %% [markdown]
# ## A decision
#
# The answer is a *chunk* of actions in $[-1, 1]$: here four, each of xyz and gripper, each held for two steps of the
# simulator. So one look leads to eight *environment steps*. Rates are always given in both.

# %%
steps = []
chunk = np.tile([0.5, -1.0, -0.5, 0.0], (4, 1))
result = env.step_chunk(chunk, on_step=lambda: steps.append(1))
print(result.num_actions, "actions,", result.num_env_steps, "environment steps")
assert len(steps) == result.num_env_steps == config.chunk_length * config.steps_per_action
assert result.observation["proprio"][1] < observation["proprio"][1], "the hand has come nearer"

# %% [markdown]
# The picture is drawn once, at the end: nobody looks in between, and drawing costs more than physics. The reward is
# summed over the steps. By default it is 1 at success; `reward="dense"` is Meta-World's own, and shows the sum.

# %%
dense = make_env(config.model_copy(update={"reward": "dense"}))
single = make_env(config.model_copy(update={"reward": "dense", "chunk_length": 1, "max_decisions": 48}))
for each in (dense, single):
    each.reset(seed=0)
whole = dense.step_chunk(chunk)
parts = [single.step_chunk(action[None]) for action in chunk]
print("one decision of", whole.num_actions, "actions, or", len(parts), "of one")
assert np.isclose(whole.reward, sum(part.reward for part in parts))
assert np.array_equal(whole.observation["images"], parts[-1].observation["images"])

# %% [markdown]
# ## Two ways to end
#
# *Truncated*: time is up. The robot might have succeeded later, so its value goes on (`objective.time_limit` decides).

# %%
still = np.zeros((4, 4))
env.reset(seed=0)
ends = [env.step_chunk(still) for _ in range(config.max_decisions)]
print(len(ends), "decisions", {"terminal": ends[-1].terminal, "truncated": ends[-1].truncated})
try:
    env.step_chunk(still)
except RuntimeError as error:
    print(error)

# %% [markdown]
# *Terminal*: there is nothing after it. To see one somebody has to succeed. Meta-World has scripted experts, who look
# into the simulator; `speed` and `noise` make them worse. They choose one action at a time.

# %%
how = DemosConfig(episodes_per_task=1, speed=1.0, noise=0.1, patience=2)
recorder = make_env(demos.single_action(config, how))
expert = make_expert(config, recorder, speed=how.speed, noise=how.noise, seed=0)
opened, closed = demos.record(recorder, expert, how)
for each in (opened, closed):
    print(
        each.instruction,
        "- success:",
        each.success,
        "- a picture for each action:",
        len(each.images) == len(each.action),
    )

# %% tags=["nbval-ignore-output"]
beside([*opened.images[:: len(opened.images) // 7, 0], opened.last_images[0]], 110)

# %% [markdown]
# `accerl demos` records many of them. Now the same expert decides for one step at a time, and its actions are played in
# chunks. Success ends the episode inside a chunk, and the rest of that one is not executed.

# %%
recorder.reset(seed=3, options={"task": "drawer-close-v3"})
actions, ended = [], False
while not ended:
    actions.append(expert(recorder))
    ended = recorder.step_chunk(actions[-1][None]).terminal
missing = -len(actions) % 4
chunks = np.concatenate([actions, np.zeros((missing, 4))]).reshape(-1, 4, 4)

# %%
env.reset(seed=3, options={"task": "drawer-close-v3"})
played = [env.step_chunk(each) for each in chunks]
last = played[-1]
print({"terminal": last.terminal, "truncated": last.truncated, "success": last.success, "reward": last.reward})
assert sum(each.num_actions for each in played) == len(actions) and last.num_actions == 4 - missing
assert last.num_env_steps <= 2 * last.num_actions and not any(each.terminal for each in played[:-1])

# %% [markdown]
# ## The same again
#
# The same seed and the same actions give the same episode, to the last pixel. And a simulator, unlike a robot, can go
# back to any moment: random numbers and counters belong to the state. Dream audits and oracles rest on that.

# %%
first, again, other = (env.reset(seed=seed)[0]["images"] for seed in (7, 7, 8))
print("same seed:", np.array_equal(first, again), "- another:", np.array_equal(first, other))
random = np.random.default_rng(0).uniform(-1, 1, (6, 4, 4))
for each in random[:3]:
    env.step_chunk(each)
state = env.save_state()
future = [env.step_chunk(each).observation["images"] for each in random[3:]]

# %%
elsewhere = make_env(config)
elsewhere.load_state(state)
seen = [elsewhere.step_chunk(each).observation["images"] for each in random[3:]]
same = [np.array_equal(one, other) for one, other in zip(seen, future, strict=True)]
print("the same future in another environment:", same)
assert all(same)

# %% [markdown]
# ## Fifty tasks
#
# A task is a scene and a sentence. Opposite tasks share a scene: only the words tell them apart.

# %%
from accerl.envs.metaworld_tasks import INSTRUCTIONS

print(len(INSTRUCTIONS), "tasks,", len(set(INSTRUCTIONS.values())), "sentences")
shown = tuple(INSTRUCTIONS)[3::8]
for task in shown:
    print(f"{task:24s}", INSTRUCTIONS[task])

# %% tags=["nbval-ignore-output"]
many = make_env(config.model_copy(update={"tasks": shown}))
views = []
for task in shown:
    many.reset(seed=0, options={"task": task})
    views.append(many.render(144))
many.close()
beside(views, 144)

# %% [markdown]
# What does not exist is refused by name, before anything starts.

# %%
from accerl.config import ConfigError

try:
    make_env(EnvConfig(tasks=("drawer-opne-v3",)))
except ConfigError as error:
    print(error)

# %% [markdown]
# ## LIBERO
#
# Five suites of a Panda arm. The extra brings tasks, initial states and assets; nothing is fetched. Listing them starts
# no simulator.

# %%
from accerl.envs.libero.suites import STEP_LIMITS, SUITES, tasks_of

for suite in SUITES:
    example = list(tasks_of(suite).values())[7]
    print(f"{suite:15s} {len(tasks_of(suite)):3d} tasks, {STEP_LIMITS[suite]} steps: {example.instruction}")

# %% [markdown]
# The same class of configuration, with other defaults: two cameras, chunks of eight, one step an action, the step limit
# of published evaluations. The suite's demonstrator plays without cameras, which is quick; then its actions are played
# again, with a look every eight steps.

# %%
libero = EnvConfig(suite="libero_goal", tasks=("7",))
print(libero.tasks, libero.cameras, libero.chunk_length, libero.max_env_steps)
blind = make_env(demos.without_images(demos.single_action(libero, how)))
demonstrator = make_expert(libero, blind)
blind.reset(seed=0)
actions, ended = [], False
while not ended:
    actions.append(demonstrator(blind))
    ended = blind.step_chunk(actions[-1][None]).terminal
chunks = np.concatenate([actions, np.zeros((-len(actions) % 8, 7))]).reshape(-1, 8, 7)

# %%
kitchen = make_env(libero)
observation, info = kitchen.reset(seed=0)
print(observation["instruction"], observation["images"].shape, observation["proprio"].shape, sorted(info))
looks = [observation["images"]]
for each in chunks:
    result = kitchen.step_chunk(each)
    looks.append(result.observation["images"])
print({"terminal": result.terminal, "success": result.success})
assert result.success

# %% tags=["nbval-ignore-output"]
beside([each[0] for each in looks[:: len(looks) // 5]] + [looks[-1][0], looks[-1][1]], 128)

# %%
blind.close()
kitchen.close()

# %% [markdown]
# The last picture is the camera in the hand. Protocols, initial states, evaluation: `docs/libero.md`.
#
# ## One of your own
#
# First something that happens: a lift between two floors, an action is its speed. To arrive at the wrong floor ends the
# episode as well, in failure. Both tasks look alike; only the sentence tells them apart.

# %%
from accerl.envs.decision import DecisionLoop, Step, chosen_task, spec_of
from accerl.types import Observation


class Lift:
    def begin(self, task, random):
        self.task, self.height = task, random.uniform(0.4, 0.6)

    def step(self, action):
        self.height = float(np.clip(self.height + 0.05 * action[0], 0, 1))
        arrived = self.height in (0, 1)
        success = arrived and (self.height == 1) == (self.task == "top")
        return Step(reward=float(success), terminal=arrived, truncated=False, success=success)

    def picture(self, size):
        image = np.full((size, size, 3), 40, np.uint8)
        top = round((1 - self.height) * size * 3 / 4)
        image[top : top + size // 4, size // 3 : -size // 3] = (230, 159, 0)
        return image


# %% [markdown]
# Then the promises around it. `DecisionLoop` does what all simulators share: it clips and holds actions, adds rewards,
# counts, stops at the end and refuses to go past it.


# %%
class LiftEnv:
    def __init__(self, config, tasks):
        self.spec = spec_of(config, tasks, proprio_dim=1, action_dim=1)
        self.lift, self.loop, self.random = Lift(), DecisionLoop(self.spec), np.random.default_rng()

    def reset(self, *, seed=None, options=None):
        self.random = self.random if seed is None else np.random.default_rng(seed)
        self.lift.begin(chosen_task(self.spec, options), self.random)
        self.loop.start()
        return observe(self), {"task": self.lift.task}

    def step_chunk(self, actions, on_step=None):
        return self.loop.run(actions, self.lift.step, lambda: observe(self), on_step)

    def render(self, size):
        return self.lift.picture(size)

    def close(self): ...


# %%
def observe(env):
    return Observation(
        images=env.render(env.spec.image_size)[None],
        proprio=np.array([env.lift.height], np.float32),
        instruction=f"go to the {env.lift.task} floor",
    )


# %% [markdown]
# A suite may be `package.module:name`, anything that takes a configuration and tasks. `__main__` is this notebook; the
# processes of a run need a file beside it, such as `slow_dots.py` of tutorial 04. The conformance check plays some
# episodes and names a promise that is broken.

# %%
from accerl.envs.conformance import check_env

lift_config = EnvConfig(suite="__main__:LiftEnv", tasks=("top", "bottom"), image_size=32, steps_per_action=1)
check_env(make_env(lift_config))


class Forgetful(LiftEnv):
    def step_chunk(self, actions, on_step=None):
        return super().step_chunk(actions)


try:
    check_env(Forgetful(lift_config, lift_config.tasks))
except AssertionError as error:
    print(error)

# %% [markdown]
# ## In a rollout
#
# A rollout worker asks somebody for decisions, somebody for tasks, and puts trajectories somewhere; in a run those are
# other processes. Here is a policy that can read and nothing else. So that it fails at times, every fourth episode is
# planned with the other task's sentence: that is how one finds out whether a policy listens.

# %%
from accerl.config import RolloutConfig
from accerl.rollout import RolloutWorker
from accerl.types import Decision, EpisodePlan


class Reader:
    """In the place of inference."""

    async def act(self, request):
        speed = 1.0 if "top" in request.observation["instruction"] else -1.0
        action = np.full((4, 1), speed, np.float32)
        return Decision(action=action, log_prob=np.zeros(1, np.float32), value=0.0, blob={}, policy_version=0)

    def enter(self): ...
    def leave(self): ...


# %%
class Book:
    """Eight episodes, and what became of them."""

    def __init__(self):
        self.number, self.trajectories, self.episodes = 0, [], []

    async def next_episode(self):
        number, self.number = self.number, self.number + 1
        task, other = lift_config.tasks[number % 2], lift_config.tasks[1 - number % 2]
        told = f"go to the {other} floor" if number % 4 == 3 else None
        return EpisodePlan(task=task, seed=number, number=number, instruction=told) if number < 8 else None

    async def put(self, trajectory):
        self.trajectories.append(trajectory)

    async def report(self, episode):
        self.episodes.append(episode)


# %%
book = Book()
worker = RolloutWorker(
    name="here",
    make_env=lambda: make_env(lift_config),
    config=RolloutConfig(slots_per_worker=1),
    client=Reader(),
    sink=book,
    tasks=book,
    seed=0,
)
await worker.run()
for each in book.episodes[:4]:
    print(f"{each.task:7s} {each.num_decisions} decisions, {each.num_env_steps} environment steps, {each.success}")
print(len(book.episodes), "episodes,", sum(each.success for each in book.episodes), "successes")

# %% [markdown]
# A trajectory has a picture more than decisions: the last one shows what the last decision led to.

# %%
trajectory = book.trajectories[0]
assert len(trajectory.images) == trajectory.num_decisions + 1 and trajectory.terminal and not trajectory.truncated
assert trajectory.num_env_steps.sum() == book.episodes[0].num_env_steps
assert all(each.reward.sum() == each.success for each in book.trajectories)
print("actions", trajectory.action.shape[1:], "images", trajectory.images.shape[1:])

# %% tags=["nbval-ignore-output"]
from accerl.notebook import TrajectoryViewer

TrajectoryViewer(book.trajectories[3:5])

# %% [markdown]
# Next: 02 takes a policy apart that answers such observations; 05 follows the trajectories to the gradient.

# %%
for each in (env, dense, single, recorder, elsewhere):
    each.close()
