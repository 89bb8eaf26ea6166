"""A pretrained video model as an observation model, at random weights and a few kilobytes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch
from diffusers import CosmosTransformer3DModel

from accerl import demos
from accerl.config import (
    ConfigError,
    DemosConfig,
    ImaginationConfig,
    LearnerConfig,
    LimitsConfig,
    ReplayConfig,
    RunConfig,
)
from accerl.envs import make_env, make_expert
from accerl.runtime.inline import InlineRun
from accerl_wm import reward, store
from accerl_wm.cli import main
from accerl_wm.config import ObservationTraining
from accerl_wm.conformance import check_observation_model, random_windows
from accerl_wm.frames import FrameBuffer
from accerl_wm.imagination import Imagination
from accerl_wm.inline import InlineImagination
from accerl_wm.observation import build
from accerl_wm.observation.cosmos import CosmosModel
from accerl_wm.online import OnlineTraining
from accerl_wm.training import ObservationTrainer
from accerl_wm.world import WorldModel
from tests.wm.observation.cosmos_folder import LATENT, SIZES, write
from tests.wm.observation.moving_dot import CHUNK, SIZE, windows
from tests.wm.scenes import DOTS, SPEC, policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cosmos"))


def model(folder: Path, **settings: Any) -> CosmosModel:
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "proprio_dim": 2, "action_dim": 2, "chunk_length": CHUNK}
    config = {"kind": "cosmos", **sizes, "pretrained": folder, "dtype": "float32", "rank": 4, "num_steps": 2}
    return cast(CosmosModel, build(config | settings))


def spec(num_cameras: int = 1) -> Any:
    return SPEC.__class__(**{**_fields(SPEC), "num_cameras": num_cameras})


def _fields(of: Any) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


@pytest.mark.parametrize("settings", [{}, {"num_cameras": 2, "history": 3, "gradient_checkpointing": True}])
def test_it_keeps_the_promises_of_an_observation_model(folder: Path, settings: dict[str, Any]):
    check_observation_model(model(folder, **settings), spec(settings.get("num_cameras", 1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_first_it_says_what_the_pretrained_model_says_whatever_the_actions(folder: Path, dtype: str):
    """The bare transformer, its padding mask given as a channel of zeros and nothing in the prompt's place."""
    kind = getattr(torch, dtype)
    bare: Any = CosmosTransformer3DModel.from_pretrained(
        folder / "transformer", concat_padding_mask=False, in_channels=LATENT + 2, torch_dtype=kind
    )
    ours = model(folder, dtype=dtype)
    given, noisy = torch.randn(2, LATENT, 2, 8, 8), torch.randn(2, LATENT, 1, 8, 8)
    time = torch.tensor([0.3, 0.9])
    told = ours.actions(torch.randn(2, 2, 2), torch.rand(2, 2, CHUNK, 2))
    zeros, mask = torch.zeros(2, 1, 3, 8, 8), torch.zeros(2, 1, 3, 8, 8)
    mask[:, :, :2] = 1.0
    times = torch.full((2, 1, 3, 1, 1), 1e-4)
    times[:, 0, 2, 0, 0] = time
    with torch.no_grad():
        expected = bare(
            hidden_states=torch.cat([given, noisy], 2).to(kind),
            timestep=times.to(kind),
            encoder_hidden_states=torch.zeros(2, 5, SIZES["text_embed_dim"], dtype=kind),
            fps=16,
            condition_mask=torch.cat([mask, zeros], 1).to(kind),
            return_dict=False,
        )[0]
        found = ours.velocity(given, noisy, time, told)
    assert torch.allclose(found, expected[:, :, 2:].float(), atol=1e-5)


def test_steps_from_noise_to_picture_are_those_of_diffusers_pipeline(folder: Path):
    """There x = y + sigma n moves in sigma, denoised to (1 - t) x - t F; here x / (1 + sigma) moves in t."""
    ours = model(folder, num_steps=3)
    given = torch.randn(1, LATENT, 2, 8, 8)
    told = torch.zeros(1, 3, 4 * 24)
    with torch.no_grad():
        torch.manual_seed(2)
        found = ours._sample(given, told)
        torch.manual_seed(2)
        x = 80.0 * torch.randn(1, LATENT, 1, 8, 8)
        middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
        for sigma, lower in pairwise((80.0, middle, 0.002, 0.0)):
            time = sigma / (1 + sigma)
            output = ours.velocity(given, (1 - time) * x, torch.tensor([time]), told)
            denoised = (1 - time) * x - time * output
            x = x + (lower - sigma) * (x - denoised) / sigma
    assert torch.allclose(found, x, atol=1e-4)


def test_only_what_was_added_learns_and_the_loss_falls_on_a_moving_dot(folder: Path):
    observing = model(folder)
    before = {name: value.clone() for name, value in observing.named_parameters()}
    optimizer = torch.optim.AdamW(observing.parameters(), lr=3e-3)
    data = windows(16, 3, seed=0)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return observing.loss(data)[0]

    first = loss()
    first.backward()
    optimizer.step()
    second = loss()
    assert second < first
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.9 * first
    moved = {name for name, value in observing.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(observing.state_dict())
    assert any("lora" in name for name in moved) and "context" in moved and "actions.layers.2.weight" in moved


def test_actions_change_what_is_predicted_once_it_has_learned(folder: Path):
    observing = model(folder, rank=0)
    optimizer = torch.optim.AdamW(observing.parameters(), lr=1e-2)
    for seed in range(3):
        optimizer.zero_grad()
        observing.loss(windows(8, 2, seed))[0].backward()
        optimizer.step()
    given, noisy, time = torch.randn(1, LATENT, 2, 8, 8), torch.randn(1, LATENT, 1, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        one, other = (
            observing.velocity(
                given, noisy, time, observing.actions(torch.zeros(1, 2, 2), torch.full((1, 2, 2, 2), to))
            )
            for to in (-1.0, 1.0)
        )
    assert (one - other).abs().max() > 1e-3


def test_cameras_stand_side_by_side_and_come_back_in_order(folder: Path):
    observing = model(folder, num_cameras=2)
    frames = random_windows(spec(2), 1).frames
    latents = observing.encode(frames.images)
    assert latents.shape == (3, LATENT, 2, SIZE // 2, 2 * SIZE // 2)
    alone = observing.encode(frames.images[:, 1:])
    assert torch.allclose(latents[:, :, 1:], alone, atol=1e-5)  # each frame by itself
    assert observing.decode(latents[:, :, :1]).shape == (3, 2, SIZE, SIZE, 3)


def test_what_was_added_is_kept_by_itself_and_predicts_the_same(folder: Path, tmp_path: Path):
    observing = model(folder)
    optimizer = torch.optim.AdamW(observing.parameters(), lr=1e-2)
    observing.loss(windows(4, 2, 0))[0].backward()
    optimizer.step()
    rewarding = reward.build(
        {"kind": "convolutional", "image_size": SIZE, "num_cameras": 1, "proprio_dim": 2, "vocabulary": ["go"]}
    )
    store.save(tmp_path / "world", observing.train(False), rewarding, {})
    written = (tmp_path / "world" / "observation.safetensors").stat().st_size
    assert written < 4 * sum(value.numel() for value in observing.state_dict().values()) + 10_000
    again = store.load_model(tmp_path / "world", "observation")
    data = windows(4, 2, 1)
    answers = []
    for each in (observing, again):
        torch.manual_seed(3)
        answers.append(each.predict(data.frames[:, :2], data.actions[:, :2]))
    assert torch.equal(answers[0].images, answers[1].images) and torch.equal(answers[0].proprio, answers[1].proprio)


def test_other_weights_below_the_added_layers_are_refused(folder: Path, tmp_path: Path):
    known = model(folder).config_dict()
    assert json.loads(json.dumps(known)) == known
    other = write(tmp_path / "other", num_layers=1)
    with pytest.raises(ConfigError, match="other weights than the added layers were trained on"):
        build(known | {"pretrained": str(other)})


def test_a_run_trains_on_what_it_imagines_and_trains_it(folder: Path):
    frames = FrameBuffer(chunk_length=2, held_out=0.0)
    observing = model(folder, image_size=16)
    world = WorldModel(observing, _Judge())
    imagining = ImaginationConfig(share=0.5, slots=4, horizon=2, max_reuse=1)
    trainer = ObservationTrainer(observing, frames, ObservationTraining(batch_size=4, steps=(1,)))
    training = OnlineTraining(trainer, 0.1)
    source = InlineImagination(
        Imagination(world, frames, SPEC, imagining, discount=0.99), frames, imagining, training=[training]
    )
    run = InlineRun(
        RunConfig(
            env=DOTS,
            replay=ReplayConfig(min_decisions=16, max_reuse=2),
            learner=LearnerConfig(batch_decisions=32, value_warmup_updates=0),
            limits=LimitsConfig(max_updates=2),
        ),
        policy(),
        lambda: make_env(DOTS),
        decisions_per_update=16,
        imagination=source,
    )
    run.run()
    assert source.replay.sampled_decisions >= 2 * 14
    assert training.updates > 0
    assert max(episode.num_decisions for episode in source.imagination.episodes) == 2


def test_it_is_trained_and_evaluated_from_the_command_line(folder: Path, tmp_path: Path):
    recording = DemosConfig(episodes_per_task=4)
    env = make_env(demos.single_action(DOTS, recording))
    expert = make_expert(DOTS, env, speed=recording.speed, noise=recording.noise, seed=0)
    demos.save(tmp_path / "demos", demos.record(env, expert, recording), DOTS, recording)
    data = ["--demos", str(tmp_path / "demos"), "--held-out", "0.5"]
    train = ["train", *data, "--out", str(tmp_path / "world"), "--kind", "cosmos"]
    with pytest.raises(ConfigError, match=r"cosmos\.pretrained: is missing"):
        main(train)
    few = "--observation.updates 2 --observation.batch-size 4 --reward.updates 2 --cosmos.num-steps 1"
    assert main([*train, "--cosmos.pretrained", str(folder), *few.split()]) == 0
    assert store.load_model(tmp_path / "world", "observation").config.dtype == "bfloat16"
    assert main(["eval", *data, "--world-model", str(tmp_path / "world")]) == 0


class _Judge:
    """Finds success nowhere."""

    def predict(self, frames: Any, instructions: Any) -> torch.Tensor:
        return torch.zeros(len(frames))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": LATENT}, "takes 4 channels, not the 4 of the autoencoder and one"),
        ({"use_crossattn_projection": True}, r"Cosmos 2\.5"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        model(write(tmp_path, **changes))


def test_a_folder_that_lacks_something_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cosmos\.pretrained: .*is no folder"):
        model(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        model(tmp_path)
    with pytest.raises(ConfigError, match=r"cosmos\.revision: .*without revisions"):
        model(folder, revision="main")
    pickled = write(tmp_path / "pickled")
    weights = next((pickled / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigError, match=r"no \*\.safetensors; other formats are not read"):
        model(pickled)
    cut = write(tmp_path / "cut")
    weights = next((cut / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        model(cut)


def test_a_revision_of_the_hubs_cache_is_found_by_its_name(tmp_path: Path):
    cache = tmp_path / "models--someone--cosmos"
    write(cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert model(cache).config.fingerprint == model(cache, revision="abc").config.fingerprint
    with pytest.raises(ConfigError, match=r"cosmos\.revision: .* has no old; there are abc"):
        model(cache, revision="old")


def test_sizes_that_do_not_fit_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="window: cosmos draws whole pictures"):
        model(folder, window=8)
    coarse = write(folder.parent / "coarse", patch_size=(1, 8, 8))
    with pytest.raises(ConfigError, match=r"env\.image_size: 24 is no multiple of the 16 pixels"):
        model(coarse, image_size=24)

    class Little:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(
        ConfigError, match=r"cosmos\.pretrained: the weights of .* GiB as float32, cpu has 0\.0 GiB free"
    ):
        model(folder)
