# %% [markdown]
# # 07 · A world model from demonstrations
#
# **Goal**: train a world model from nothing but recorded episodes, measure how far it can be trusted, write an
# observation model of your own and let a policy learn in it. **Hardware**: one CPU core. **Time**: a minute.
# **Needs**: `pip install accerl[wm]`.
#
# Two models stand in for a simulator. An *observation model* says what is seen after an action chunk; a *reward model*
# says how likely what is seen is success. Both learn from episodes; nobody needs the simulator's source.

# %%
from pathlib import Path
from shutil import rmtree

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import nn

from accerl import demos
from accerl.config import DemosConfig, EnvConfig
from accerl.envs import make_env, make_expert
from accerl.plots import BLUE, ORANGE, STYLE
from accerl_wm.frames import FrameBuffer, of_demonstration

torch.set_num_threads(1)
_ = torch.manual_seed(0)
plt.rcParams.update(STYLE)

# %% [markdown]
# ## Episodes
#
# Of a slow expert, and of a shaky one, who mostly fails: what does not count as success has to be seen too. What is
# recorded is what a robot would have: pictures, proprioception, actions, and how it ended.

# %%
env_config = EnvConfig(
    suite="metaworld",
    tasks=("handle-press-v3",),
    image_size=64,
    chunk_length=4,
    steps_per_action=2,
    max_decisions=12,
)
spec = make_env(env_config).spec


def record(num, noise, seed):
    how = DemosConfig(episodes_per_task=num, speed=0.45, noise=noise, seed=seed, keep_failures=True, patience=1)
    recorder = make_env(demos.single_action(env_config, how))
    expert = make_expert(env_config, recorder, speed=how.speed, noise=how.noise, seed=seed)
    return demos.record(recorder, expert, how)


# %%
quiet, shaky = record(40, noise=0.2, seed=0), record(20, noise=0.6, seed=1000)
print(len(quiet), "quiet episodes,", len(shaky), "shaky ones")
print("some of the shaky ones fail, not all:", 0 < sum(not each.success for each in shaky) < 20)

# %% [markdown]
# The frame buffer keeps each frame once and cuts windows of decisions when they are asked for. Every fifth episode is
# held out: no training sees it.

# %%
frames = FrameBuffer(env_config.chunk_length, held_out=0.2)
frames.add(map(of_demonstration, [*quiet, *shaky]))
print(len(frames.episodes()), "to learn from,", len(frames.episodes(held_out=True)), "held out")
windows = frames.windows(batch=64, time=3, history=2, generator=np.random.default_rng(0))
print("images", tuple(windows.frames.images.shape), "actions", tuple(windows.actions.shape))

# %% [markdown]
# ## What changes
#
# From one decision to the next nearly everything stays as it is. So copying the last frame is a strong opponent, and a
# model that learned from all pixels alike would learn to copy.

# %%
from accerl_wm.fidelity import CHANGED

before, after = windows.frames.images[:, 1, 0].int(), windows.frames.images[:, 2, 0].int()
changed = (after - before).abs().amax(-1) > CHANGED
print("fewer than one pixel in twenty changes:", bool(changed.float().mean() < 0.05))


def tiled(rows, size):
    """Rows of pictures."""
    picture = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    height, width = picture.shape[0] * size // 64, picture.shape[1] * size // 64
    return (
        Image.fromarray(picture)
        .resize((width, height), Image.Resampling.NEAREST)
        .quantize(192, Image.Quantize.MAXCOVERAGE, kmeans=2)
    )


# %% tags=["nbval-ignore-output"]
mask = (changed[..., None].expand_as(before) * 255).to(torch.uint8)
tiled([images[:7].to(torch.uint8).numpy() for images in (before, after, mask)], 112)

# %% [markdown]
# ## An observation model
#
# The library's small one first predicts where the body will be, draws only a square around it, and copies the rest;
# changed pixels count ten times. `widths` are its channels. This is what `accerl wm train` builds, only smaller.

# %%
from accerl.statistics import summarize
from accerl_wm.observation import DeterministicConfig, DeterministicModel

felt = summarize(np.concatenate([episode.proprio for episode in frames.episodes()]))
observing = DeterministicModel(
    DeterministicConfig.for_env(
        spec,
        history=2,
        window=32,
        widths=(16, 24, 32),
        proprio_bounds=tuple(zip(felt["q01"], felt["q99"], strict=True)),
    )
)
print(f"{sum(each.numel() for each in observing.parameters()) / 1e6:.1f} M parameters")

# %% [markdown]
# It is trained on its own outputs, for at first one decision and then two in a row, because in imagination it will look
# back on what it drew itself. Twenty seconds.

# %%
from accerl_wm.config import ObservationTraining, RewardTraining
from accerl_wm.training import ObservationTrainer, RewardTrainer, fit

how = ObservationTraining(updates=400, batch_size=16, steps=(1, 2), lr=3e-3, warmup_updates=20)
curve = []
fit(ObservationTrainer(observing, frames, how).update, how.updates, on_update=curve.append)
observing.train(False)
early, late = (np.mean([each["psnr"] for each in part]) for part in (curve[:20], curve[-100:]))
print("training pictures are better by 2 dB:", late > early + 2)

# %% [markdown]
# ## A reward model
#
# It sees a frame and an instruction. It learns from real frames and from predicted ones, since it will judge the
# latter; successes are drawn as often as failures. Afterwards one number, a temperature, makes its probabilities fit
# held-out frames as they come.

# %%
from accerl_wm.reward import ConvolutionalReward, ConvolutionalRewardConfig

scene = {"image_size": spec.image_size, "num_cameras": spec.num_cameras, "proprio_dim": spec.proprio_dim}
rewarding = ConvolutionalReward(
    ConvolutionalRewardConfig(**scene, vocabulary=("down", "handle", "press", "the"), width=16)
)
judging = RewardTraining(updates=200, batch_size=32, warmup_updates=10)
trainer = RewardTrainer(rewarding, frames, judging, observing)
fit(trainer.update, judging.updates)
print("a temperature between a third and three:", 1 / 3 < trainer.calibrate(512) < 3)

# %% [markdown]
# ## How far can it be trusted?
#
# On held-out episodes, so many decisions ahead on the model's own outputs, in decibels; 3 dB are half of the squared
# error. The further ahead, the worse both are.

# %%
from accerl_wm.evaluation import drift, film_strip, recognition
from accerl_wm.world import WorldModel

world = WorldModel(observing, rewarding)
rows = drift(world, frames, horizons=(1, 2, 3, 4, 6))
for row in rows:
    print(row["horizon"], "decisions ahead: better than copying by 2 dB:", row["psnr"] > row["copy"] + 2)
assert all(row["psnr"] > row["copy"] + 1 for row in rows)

# %%
horizon = [row["horizon"] for row in rows]
_, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name, label, colour in (("psnr", "world model", BLUE), ("copy", "the last frame, copied", ORANGE)):
    axes.plot(horizon, [row[name] for row in rows], "o-", color=colour, label=label)
axes.set(xlabel="decisions ahead", ylabel="PSNR, dB")
_ = axes.legend()

# %% [markdown]
# Three held-out episodes: what happened, and below it what was imagined from the first frame and the actions alone. The
# handle goes down with the hand; fingers are blurred where they might be in two places.

# %% tags=["nbval-ignore-output"]
tiled([film_strip(world, frames, decisions=7, num_episodes=3)[None]], 96)

# %% [markdown]
# Does it know success? Of a success and a failure, how often is the success scored higher (the area under the curve),
# how far are probabilities from frequencies (the calibration error), and how many episodes end alike in imagination?

# %% tags=["nbval-ignore-output"]
found = recognition(world, frames)
{name: round(value, 2) for name, value in found.items()}

# %%
print("success is recognised, real and imagined:", min(found["auc_real"], found["auc_imagined"]) > 0.8)
print("probabilities are near frequencies:", found["calibration_error_real"] < 0.25)
print("two of three episodes end alike:", found["same_outcome"] > 2 / 3)
assert found["auc_imagined"] > 0.75

# %% [markdown]
# ## A model of your own
#
# Whatever has `history` and `predict` plugs in. With `loss`, it is trained by the same trainer. This one is plain: it
# sees the last frame, hears where the hand is, where it will be and what was done, and draws what is to be added, and a
# mask that says where. It begins by copying.


# %%
from accerl_wm.observation.layers import starting_at_zero


class Painter(nn.Module):
    """The next picture, and where the body will be."""

    def __init__(self, size, colours, body, done, width=32):
        super().__init__()
        self.move = nn.Linear(body + done, body)
        self.see = nn.Sequential(nn.Conv2d(colours, width, 8, stride=4, padding=2), nn.SiLU())
        self.hear = nn.Sequential(nn.Linear(2 * body + done, 64), nn.SiLU(), nn.Linear(64, width * (size // 4) ** 2))
        self.mix = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.SiLU())
        self.draw = starting_at_zero(nn.Conv2d(2 * width, (colours + 1) * 16, 3, padding=1))

    def forward(self, picture, body, done):
        told = torch.cat([body, done], dim=1)
        moved = body + 0.1 * self.move(told)
        seen, heard = self.see(picture), self.hear(torch.cat([moved, told], dim=1))
        mixed = self.mix(torch.cat([seen, heard.view_as(seen)], dim=1))
        drawn = nn.functional.pixel_shuffle(self.draw(mixed), 4)
        return picture + torch.sigmoid(drawn[:, -1:]) * drawn[:, :-1], moved


# %%
def planes(images):
    """uint8 [batch, camera, row, column, 3] as convolutions take it."""
    return images.float().div(255).movedim(-1, 2).flatten(1, 2)


def pictures(planes):
    """And back."""
    return planes.clamp(0, 1).mul(255).round().to(torch.uint8).unflatten(1, (-1, 3)).movedim(2, -1)


def painted(painter, frames, actions):
    """What follows these frames [batch, ...], after these actions."""
    return painter(planes(frames.images), frames.proprio, actions.flatten(1))


# %% [markdown]
# Now the promises. `past` has a row for each decision of the history, here one; a window has one frame more than
# decisions. The keys of the configuration are those that `accerl wm train --kind your_module:Own` hands over.

# %%
from accerl_wm.carriers import Frames


class Own(nn.Module):
    history = 1

    def __init__(self, config):
        super().__init__()
        self.config, done = dict(config), config["chunk_length"] * config["action_dim"]
        self.painter = Painter(config["image_size"], 3 * config["num_cameras"], config["proprio_dim"], done)

    def config_dict(self):
        return self.config

    @torch.no_grad()
    def predict(self, past, actions):
        drawn, moved = painted(self.painter, past[:, -1], actions[:, -1])
        return Frames(images=pictures(drawn), proprio=moved)

    def loss(self, windows):
        after = windows.frames[:, 1]
        drawn, moved = painted(self.painter, windows.frames[:, 0], windows.actions[:, 0])
        loss = 20 * (drawn - planes(after.images)).square().mean() + (moved - after.proprio).abs().mean()
        return loss, {"loss": loss.item()}


# %% [markdown]
# The conformance check asks for shapes, types, a gradient, the same answer twice, and that nothing given is changed.
# Then the same trainer as above; `__main__` is this notebook.

# %%
from accerl_wm import observation
from accerl_wm.conformance import check_observation_model

own = observation.build(
    {"kind": "__main__:Own", **scene, "action_dim": spec.action_dim, "chunk_length": spec.chunk_length}
)
check_observation_model(own, spec)
how = ObservationTraining(updates=400, batch_size=16, steps=(1,), lr=3e-3, warmup_updates=20)
fit(ObservationTrainer(own, frames, how).update, how.updates)
own.train(False)
own_rows = drift(WorldModel(own, rewarding), frames, horizons=(1, 2, 4))
for row in own_rows:
    print(row["horizon"], "decisions ahead: better than copying by half a dB:", row["psnr"] > row["copy"] + 0.5)

# %% tags=["nbval-ignore-output"]
rows_by_horizon = {row["horizon"]: row for row in rows}
for row in own_rows:
    library = rows_by_horizon[row["horizon"]]
    print(f"{row['horizon']} ahead: own {row['psnr']:.1f} dB, library {library['psnr']:.1f}, copy {row['copy']:.1f}")

# %% tags=["nbval-ignore-output"]
tiled([film_strip(WorldModel(own, rewarding), frames, decisions=7, num_episodes=1)[None]], 96)

# %% [markdown]
# Better than copying, and worse than the library's. Its hand turns into a cloud, for it is nowhere told where in the
# picture the hand will be, and the least squared error is the mean of what might be seen.
#
# A world model is a folder of safetensors and JSON; the name of the class is in it.

# %%
from accerl_wm import store

folder = Path("runs/07/world")
rmtree(folder, ignore_errors=True)
store.save(folder, own, rewarding, {"env": env_config.model_dump(mode="json")})
dreamt = store.load(folder)
print(sorted(path.name for path in folder.iterdir()), type(dreamt.observation).__name__)

# %% [markdown]
# ## A policy in it
#
# Cloned for some seconds from the same episodes. An imagined episode begins in a real moment, the policy sees what the
# model draws, and all that wait are answered in one batch.

# %%
from accerl import imitation
from accerl.config import CloneConfig, ImaginationConfig, InferenceConfig
from accerl.policies.tiny_vla import TinyVLA, TinyVLAConfig
from accerl.policy_server import PolicyServer
from accerl_wm.imagination import Imagination

policy = TinyVLA(TinyVLAConfig.for_env(spec, {"press the handle down"}, width=64, num_layers=2))
succeeded = [each for each in [*quiet, *shaky] if each.success]
_ = imitation.clone(policy, succeeded, env_config.chunk_length, CloneConfig(updates=100))
settings = ImaginationConfig(share=0.75, slots=16, horizon=4, threshold=0.7)
imagination = Imagination(dreamt, frames, spec, settings, discount=0.97)
dreams = imagination.imagine(60, PolicyServer(policy, InferenceConfig()))
assert sum(each.num_decisions for each in dreams) >= 60 and all(each.is_imagined for each in dreams)
print("at most", settings.horizon, "decisions:", max(each.num_decisions for each in dreams) <= settings.horizon)

# %% tags=["nbval-ignore-output"]
longest = sorted(dreams, key=lambda each: -each.num_decisions)[:2]
tiled([each.images[:, 0] for each in longest if each.num_decisions == longest[0].num_decisions], 96)

# %% [markdown]
# ## Learning in it
#
# A whole run in this process. Real episodes are played; each is imagined again from its own actions, to judge the
# models; three quarters of a batch are imagined, unless that judgement closes the gate.

# %%
import accerl
from accerl.runtime.inline import InlineRun
from accerl_wm.inline import InlineImagination

run_config = accerl.RunConfig(
    env=env_config.model_dump(),
    rollout={"slots_per_worker": 8},
    replay={"min_decisions": 16, "max_reuse": 2},
    learner={"batch_decisions": 64, "value_warmup_updates": 0},
    limits={"max_updates": 4},
)

# %%
source = InlineImagination(imagination, frames, settings, world=dreamt)
updates = []
run = InlineRun(
    run_config,
    policy,
    lambda: make_env(env_config),
    decisions_per_update=16,
    on_update=updates.append,
    imagination=source,
)
run.run()

# %%
report = source.reliability.report()
print(len(updates), "updates; imagined decisions were trained on:", source.replay.sampled_decisions > 0)
print("every finished real episode was audited:", report["audited"] == len(run.episodes))
assert len(updates) == 4 and all(np.isfinite(each["policy_loss"]) for each in updates)

# %% [markdown]
# What the gate thinks of it by now; below .8 half of the horizon is left, below .65 nothing is imagined:

# %% tags=["nbval-ignore-output"]
print(source.reliability.verdict.reason)

# %% [markdown]
# A model of ten seconds is hardly trusted, and rightly: a policy would learn to please a cloud. Tutorial 08 has one
# that saw four thousand episodes, its dreams beside the simulator, and what the gate makes of it. From the shell:
# `accerl demos`, `accerl wm train`, `accerl wm eval`, `accerl train --imagination` (`docs/world_model.md`).
