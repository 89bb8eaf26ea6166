"""Prompts, and the tokenizer in Llama's layout that is trained offline."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from accerl.config import ConfigError
from accerl.policies.openvla_oft.tokenizer import load_tokenizer, prompt_ids, train_tokenizer
from tests.policies.openvla_oft.reference import TEXTS


def test_ids_are_in_llamas_layout():
    tokenizer = train_tokenizer(TEXTS)
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]) == [0, 1, 2, 3, 258]
    assert tokenizer.convert_tokens_to_ids(["▁", "<action_0>", "<action_255>", "<pad>"]) == [29871, 31744, 31999, 32000]
    assert len(tokenizer) == 32001


def test_a_prompt_begins_with_bos_and_ends_with_a_space():
    tokenizer = train_tokenizer(TEXTS)
    ids = prompt_ids(tokenizer, "Turn on the STOVE")
    assert ids[0] == 1
    assert ids[-1] == 29871
    assert ids.count(13) == 1, "the line break is a byte"
    assert tokenizer.decode(ids[1:-1]) == "In: What action should the robot take to turn on the stove?\nOut:"
    assert ids == prompt_ids(tokenizer, "turn on the stove")


def test_a_space_at_the_end_is_not_added_twice():
    class Ending:
        def __call__(self, text: str):
            return type("Encoding", (), {"input_ids": [1, 5, 29871]})

    assert prompt_ids(Ending(), "x") == [1, 5, 29871]


def test_a_tokenizer_without_bos_is_refused():
    class Bare:
        def __call__(self, text: str):
            return type("Encoding", (), {"input_ids": [5, 6]})

    with pytest.raises(ConfigError, match=r"^tokenizer: prompts begin with 5, Llama 2's with 1"):
        prompt_ids(Bare(), "x")


def test_words_that_were_never_seen_fall_back_to_bytes():
    tokenizer = train_tokenizer(TEXTS)
    ids = tokenizer("zß").input_ids
    assert ids == [1, 29871, 3 + ord("z"), 3 + 0xC3, 3 + 0x9F]
    assert tokenizer.decode(ids[1:]) == "zß"


@pytest.mark.parametrize("tokenizer_class", [None, "LlamaTokenizer", "LlamaTokenizerFast"])
def test_it_reloads_beside_a_config_json_with_code_of_its_own(tokenizer_class, tmp_path):
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    automap = {"AutoConfig": "configuration_prismatic.OpenVLAConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla", "auto_map": automap}))
    if tokenizer_class:
        path = tmp_path / "tokenizer_config.json"
        fields = {"tokenizer_class": tokenizer_class, "auto_map": {"AutoProcessor": "processing_prismatic.Processor"}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    again = load_tokenizer(str(tmp_path))
    for text in (*TEXTS, "zß  twice"):
        assert prompt_ids(again, text) == prompt_ids(tokenizer, text)


def test_another_process_makes_the_same_ids():
    code = (
        "from accerl.policies.openvla_oft.tokenizer import prompt_ids, train_tokenizer\n"
        f"texts = {TEXTS!r}\nprint(prompt_ids(train_tokenizer(texts), texts[0]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == prompt_ids(train_tokenizer(TEXTS), TEXTS[0])


def test_a_folder_without_a_tokenizer_or_with_another_layout_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^tokenizer: cannot read that of "):
        load_tokenizer(str(tmp_path))
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["▁"], vocabulary["<unused_29872>"] = 29872, 29871
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"'▁' is 29872, in Llama 2's it is 29871; use that one$"):
        load_tokenizer(str(tmp_path))
