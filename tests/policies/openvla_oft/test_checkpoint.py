"""Public checkpoints are read and written exactly, and what is not one of discrete OpenVLA-OFT is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accerl.checkpoint import load_policy, save_policy
from accerl.config import ConfigError
from accerl.policies.openvla_oft import OpenVLAOFT
from tests.policies.openvla_oft import reference
from tests.policies.openvla_oft.reference import CASES, KEY, write_checkpoint

SHARD = "model-00001-of-00002.safetensors"


def shards_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("model-*")) for name, tensor in load_file(path).items()}


def changed(policy: OpenVLAOFT) -> OpenVLAOFT:
    """Every parameter moved, as training would."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return policy


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint that may be spoilt."""
    return lambda name: Path(shutil.copytree(checkpoints[name], tmp_path / "copy"))


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_shard(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / SHARD)
    edit(tensors)
    save_file(tensors, folder / SHARD)


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slimmed", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_what_was_trained_comes_back_to_the_bit(name, slimmed, dtype, checkpoints, tmp_path):
    policy = changed(OpenVLAOFT.from_pretrained(checkpoints[name], slimmed=slimmed, dtype=dtype))
    policy.save_pretrained(tmp_path / "trained")
    again = OpenVLAOFT.from_pretrained(tmp_path / "trained")
    assert_equal(policy.state_dict(), again.state_dict())
    differing = {"checkpoint", "tokenizer", "dtype"}
    assert again.config.model_dump(exclude=differing) == policy.config.model_dump(exclude=differing)
    assert again.config.checkpoint == again.config.tokenizer == str(tmp_path / "trained")
    assert again.config.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_has_every_tensor_that_upstream_wants(name, checkpoints, tmp_path):
    policy = changed(OpenVLAOFT.from_pretrained(checkpoints[name]))
    policy.save_pretrained(tmp_path / "trained")
    before, after = shards_of(checkpoints[name]), shards_of(tmp_path / "trained")
    assert {key: tensor.shape for key, tensor in before.items()} == {key: each.shape for key, each in after.items()}
    own = policy.model.state_dict()
    head = after.pop("language_model.lm_head.weight")
    assert torch.equal(head[31744:32000], own["language_model.lm_head.weight"])
    old = before["language_model.lm_head.weight"]
    assert torch.equal(head[:31744], old[:31744])
    assert torch.equal(head[32000:], old[32000:])
    for key, tensor in after.items():
        assert torch.equal(tensor, own.get(key, before[key])), key
    index = json.loads((tmp_path / "trained/model.safetensors.index.json").read_text())
    assert index == json.loads((checkpoints[name] / "model.safetensors.index.json").read_text())
    statistics = json.loads((tmp_path / "trained/dataset_statistics.json").read_text())
    assert statistics == reference.statistics()
    public = json.loads((tmp_path / "trained/config.json").read_text())
    assert public["norm_stats"][KEY]["action"] == statistics[KEY]["action"]
    assert public["text_config"]["vocab_size"] == 32064
    assert (tmp_path / "trained/tokenizer.json").exists()


def test_an_untouched_checkpoint_is_written_as_it_was(checkpoints, tmp_path):
    OpenVLAOFT.from_pretrained(checkpoints["film"]).save_pretrained(tmp_path / "same")
    assert_equal(shards_of(checkpoints["film"]) | vision_part(tmp_path / "same"), shards_of(tmp_path / "same"))


def vision_part(folder: Path) -> dict[str, Tensor]:
    """What FiLM's own file replaced."""
    return {name: tensor for name, tensor in shards_of(folder).items() if name.startswith("vision_backbone.")}


def test_a_film_file_has_the_names_of_its_source_and_additions_that_do_nothing(checkpoints, tmp_path):
    policy = changed(OpenVLAOFT.from_pretrained(checkpoints["film"]))
    policy.save_pretrained(tmp_path / "trained")
    source = torch.load(checkpoints["film"] / "vision_backbone--150000_checkpoint.pt", weights_only=True)
    (path,) = (tmp_path / "trained").glob("vision_backbone--*_checkpoint.pt")
    written = torch.load(path, weights_only=True)
    assert {key: tensor.shape for key, tensor in source.items()} == {key: each.shape for key, each in written.items()}
    assert all(not tensor.any() for key, tensor in written.items() if "lora_B" in key)
    own = policy.model.state_dict()
    key = "vision_backbone.featurizer.blocks.1."
    assert torch.equal(written[f"{key}block.mlp.fc1.base_layer.weight"], own[f"{key}mlp.fc1.weight"])
    assert torch.equal(written[f"{key}shift.bias"], own[f"{key}shift.bias"])


def test_a_checkpoint_can_be_written_over_itself(copy):
    folder = copy("two_images")
    policy = changed(OpenVLAOFT.from_pretrained(folder))
    for _ in range(2):
        policy.save_pretrained(folder)
        assert_equal(policy.state_dict(), OpenVLAOFT.from_pretrained(folder).state_dict())


def test_a_run_continues_from_its_own_checkpoint_and_still_writes_the_public_layout(checkpoints, tmp_path):
    policy = changed(OpenVLAOFT.from_pretrained(checkpoints["two_images"]))
    save_policy(tmp_path / "run", policy.config_dict(), policy.state_dict())
    resumed = load_policy(tmp_path / "run")
    assert isinstance(resumed, OpenVLAOFT)
    assert_equal(policy.state_dict(), resumed.state_dict())
    resumed.save_pretrained(tmp_path / "public")
    assert_equal(policy.state_dict(), OpenVLAOFT.from_pretrained(tmp_path / "public").state_dict())


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_proprio_projectors_are_read_with_and_without_the_prefix(prefix, tmp_path):
    folder = write_checkpoint(tmp_path / "public", CASES["two_images"], prefix)
    policy = OpenVLAOFT.from_pretrained(folder)
    expected = reference.tensors_of(CASES["two_images"])["proprio_projector.fc2.weight"]
    assert torch.equal(policy.model.state_dict()["proprio_projector.fc2.weight"], expected)
    assert policy.config.proprio_dim == 8


def test_nothing_is_held_beyond_the_tensors_that_are_used(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["two_images"])
    for name, parameter in policy.named_parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 4, f"{name} is a view of a file"
        assert parameter.device.type == "cpu"
    assert len(policy.model.language_model.lm_head.weight) == 256


def test_a_single_file_without_an_index_is_read(copy):
    folder = copy("film")
    tensors = shards_of(folder)
    for path in folder.glob("model*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors")
    policy = OpenVLAOFT.from_pretrained(folder)
    policy.save_pretrained(folder)
    assert_equal(policy.state_dict(), OpenVLAOFT.from_pretrained(folder).state_dict())


def test_a_hub_id_is_downloaded(checkpoints, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(checkpoints["film"])
    )
    texts = reference.TEXTS
    policy = OpenVLAOFT.from_pretrained("Haozhan72/Openvla-oft-SFT-libero-spatial-traj1", tokenizer=texts)
    assert asked == ["Haozhan72/Openvla-oft-SFT-libero-spatial-traj1"]
    assert policy.config.checkpoint == asked[0]
    assert_equal(policy.model.state_dict(), OpenVLAOFT.from_pretrained(checkpoints["film"]).model.state_dict())


def test_fields_that_the_files_cannot_know_are_given(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], value_pooling="mean", max_decisions=3, chunk_length=4)
    assert policy.num_tokens == 28
    assert policy.value_head.score is None


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(folder: Path | str, **chosen: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        OpenVLAOFT.from_pretrained(folder, **chosen)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("file", "head"),
    [
        ("action_head--150000_checkpoint.pt", "has an L1-regression head (action_head--150000_checkpoint.pt)"),
        ("noisy_action_projector--5_checkpoint.pt", "has a diffusion head (noisy_action_projector--5_checkpoint.pt)"),
    ],
)
def test_a_checkpoint_with_another_head_is_refused_and_one_that_fits_is_named(file, head, copy):
    folder = copy("film")
    (folder / file).touch()
    message = refusal(folder)
    assert head in message
    assert "SimpleVLA-RL's SFT collection" in message
    assert OpenVLAOFT.from_pretrained(folder, any_head=True).num_tokens == 56


def test_an_autoregressive_checkpoint_is_refused_by_its_code_and_by_its_name(copy, monkeypatch):
    folder = copy("film")
    (folder / "modeling_prismatic.py").write_text("class OpenVLAForActionPrediction: ...")
    message = refusal(folder)
    assert "is autoregressive" in message
    assert "SimpleVLA-RL's SFT collection" in message
    (folder / "modeling_prismatic.py").write_text("from prismatic.vla.constants import NUM_ACTIONS_CHUNK")
    OpenVLAOFT.from_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert "openvla/openvla-7b-finetuned-libero-10 is auto" in refusal("openvla/openvla-7b-finetuned-libero-10")


def test_another_tensor_is_refused_by_its_name(copy):
    folder = copy("two_images")
    edit_shard(folder, lambda tensors: tensors.update({"vision_backbone.featurizer.head.weight": torch.ones(2)}))
    assert "the shards should not have vision_backbone.featurizer.head.weight; give" in refusal(folder)


def test_a_missing_tensor_is_refused_by_its_name(copy):
    folder = copy("two_images")
    gone: list[str] = []
    edit_shard(folder, lambda tensors: gone.append(tensors.popitem()[0]))
    assert f"the shards should have {gone[0]}; give" in refusal(folder, any_head=True)


def test_a_tensor_of_another_shape_is_refused_by_its_name(copy):
    folder = copy("two_images")
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**config["text_config"], "intermediate_size": 65})
    assert "gate_proj.weight is [64, 32], config.json makes it [65, 32]" in refusal(folder)


def test_a_depth_that_is_not_the_checkpoints_is_no_reason_to_drop_more(copy):
    folder = copy("two_images")
    config = json.loads((folder / "config.json").read_text())
    extras = config["accerl"]
    vision = [{**extras["vision"][0], "depth": 2}, extras["vision"][1]]
    edit_json(folder / "config.json", accerl={**extras, "vision": vision})
    assert "vision_backbone.featurizer.blocks.2.attn.proj.bias" in refusal(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llava"}, "config.json has model_type='llava'; OpenVLA-OFT needs 'openvla'"),
        ({"use_fused_vision_backbone": False}, "config.json needs use_fused_vision_backbone=true"),
        (
            {"accerl": {}, "timm_model_ids": ["vit_giant", "vit_so400m_patch14_siglip_224"]},
            "timm_model_ids: 'vit_giant' is unknown",
        ),
        ({"accerl": {}, "timm_model_ids": ["vit_so400m_patch14_siglip_224"]}, "must name two vision towers, not 1"),
        ({"accerl": {"depth": 3}}, "depth"),
        ({"torch_dtype": "float16"}, "dtype"),
    ],
)
def test_a_config_json_of_another_architecture_is_refused(fields, message, copy):
    folder = copy("two_images")
    edit_json(folder / "config.json", **fields)
    assert message in refusal(folder)


def test_statistics_are_found_by_their_key_or_refused(checkpoints):
    policy = OpenVLAOFT.from_pretrained(checkpoints["film"], norm_stats_key="libero_spatial")
    assert policy.config.norm_stats_key == KEY
    message = refusal(checkpoints["film"], norm_stats_key="libero_spatail_no_noops")
    assert message.startswith("norm_stats_key: 'libero_spatail_no_noops' is unknown")
    assert KEY in message
    assert "action_dim: 6, but norm_stats of" in refusal(checkpoints["film"], action_dim=6)


def test_without_a_key_several_data_sets_are_refused_by_name(copy):
    folder = copy("film")
    edit_json(folder / "dataset_statistics.json", other=reference.statistics()[KEY])
    assert refusal(folder) == f"norm_stats_key: give one of the checkpoint's data sets: {KEY}, other"


@pytest.mark.parametrize("fields", [{"proprio_dim": 8}, {"film": True}])
def test_parts_that_no_file_has_are_refused_or_random(fields, checkpoints):
    name = "film" if "proprio_dim" in fields else "two_images"
    message = refusal(checkpoints[name], **fields)
    assert "no file has" in message
    assert "any_head=True" in message
    policy = OpenVLAOFT.from_pretrained(checkpoints[name], any_head=True, **fields)
    assert all(parameter.device.type == "cpu" and parameter.isfinite().all() for parameter in policy.parameters())


def test_incomplete_and_doubtful_folders_are_refused(copy, tmp_path):
    folder = copy("two_images")
    shutil.copy(folder / "proprio_projector--150000_checkpoint.pt", folder / "proprio_projector--5_checkpoint.pt")
    assert "has 2 files proprio_projector*checkpoint*; keep one" in refusal(folder)
    (folder / "proprio_projector--5_checkpoint.pt").unlink()
    (folder / SHARD).unlink()
    assert f"has no {SHARD}; give a complete checkpoint" in refusal(folder)
    (tmp_path / "empty").mkdir()
    assert "cannot read" in refusal(tmp_path / "empty")
    assert "is no folder, and not on the hub" in refusal(str(tmp_path / "no/such/folder"))


def test_a_component_that_would_run_code_is_not_read(copy):
    class Trap:
        def __reduce__(self):
            return (print, ("never",))

    folder = copy("two_images")
    torch.save({"fc1.weight": Trap()}, folder / "proprio_projector--150000_checkpoint.pt")
    assert "checkpoint.pt holds more than tensors" in refusal(folder)


def test_a_value_head_of_other_sizes_is_refused(copy):
    folder = copy("film")
    OpenVLAOFT.from_pretrained(folder).save_pretrained(folder)
    assert refusal(folder, max_decisions=3).startswith("value_pooling, max_decisions: value_head.safetensors was made")


def test_a_policy_from_nowhere_cannot_be_written_without_a_source(checkpoints, tmp_path):
    config = OpenVLAOFT.from_pretrained(checkpoints["film"]).config
    policy = OpenVLAOFT(config.model_copy(update={"checkpoint": None}))
    with pytest.raises(ConfigError, match=r"^source: this policy did not come from a public checkpoint"):
        policy.save_pretrained(tmp_path / "new")
    with pytest.raises(ConfigError, match=r"source: .* has no vision_backbone--\*_checkpoint\.pt"):
        policy.save_pretrained(tmp_path / "new", source=checkpoints["two_images"])
    assert not (tmp_path / "new").exists()
    policy.save_pretrained(tmp_path / "new", source=checkpoints["film"])
    assert_equal(policy.state_dict(), OpenVLAOFT.from_pretrained(tmp_path / "new").state_dict())
