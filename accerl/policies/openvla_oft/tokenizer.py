r"""Prompts to ids: the tokenizer of a checkpoint, or one in the same layout that is trained offline.

In: What action should the robot take to {instruction}?\nOut:  ─►  [BOS, …, ▁]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from accerl.config import ConfigError
from accerl.policies.openvla_oft.config import ACTION_TOKENS
from accerl.policies.openvla_oft.layout import BOS, PAD, SPACE, Prompts, pad_prompts

PROMPT = "In: What action should the robot take to {}?\nOut:"
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARK = "▁"
"""Stands for a space."""


def load_tokenizer(source: str | Sequence[str]) -> Any:
    """The tokenizer of a directory or hub id; or, of texts, one that is trained on them.

    Raises:
        ConfigError: it cannot be read, or its ids are not Llama 2's.
    """
    if not isinstance(source, str):
        return train_tokenizer(tuple(source))
    try:
        # a configuration of Llama's, as config.json is of a kind that would have code from the checkpoint run
        tokenizer = AutoTokenizer.from_pretrained(source, config=LlamaConfig(), trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"tokenizer: cannot read that of {source} ({reason:.200})") from None
    if (space := tokenizer.convert_tokens_to_ids(MARK)) != SPACE:
        raise ConfigError(f"tokenizer: in {source} '{MARK}' is {space}, in Llama 2's it is {SPACE}; use that one")
    return tokenizer


def prompt_ids(tokenizer: Any, instruction: str) -> list[int]:
    """Ids of a whole prompt: BOS first, `▁` last, which is added if the tokenizer does not end with it.

    Raises:
        ConfigError: the tokenizer does not begin with BOS.
    """
    ids = list(tokenizer(PROMPT.format(instruction.lower())).input_ids)
    if ids[0] != BOS:
        raise ConfigError(f"tokenizer: prompts begin with {ids[0]}, Llama 2's with {BOS} (add_bos_token=true)")
    return ids if ids[-1] == SPACE else [*ids, SPACE]


class PromptEncoder:
    """Instructions to padded prompts; each text is tokenized once.

    Args:
        places: for the text of a prompt.
    """

    def __init__(self, places: int):
        self._places = places
        self._known: dict[str, list[int]] = {}

    def __call__(self, tokenizer: Any, instructions: Sequence[str], device: torch.device) -> Prompts:
        """Raises ValueError: a prompt is longer than there are places for it."""
        for text in set(instructions) - self._known.keys():
            prompt = prompt_ids(tokenizer, text)
            if (length := len(prompt) - 2) > self._places:
                raise ValueError(f"policy.prompt_length: {self._places} places, but {text!r} takes {length}; raise it")
            self._known[text] = prompt
        ids, length = pad_prompts([self._known[text] for text in instructions], self._places)
        return Prompts(ids.to(device), length.to(device))


@lru_cache(maxsize=8)
def train_tokenizer(texts: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of instructions with byte fallback, in Llama 2's layout of ids, for tests and tutorials.

    `<unk> <s> </s>` are 0 to 2, bytes 3 to 258, `▁` is 29871, the last 256 below 32000 are actions, padding is 32000.
    The same texts give the same ids, on every machine. `save_pretrained` writes it, `AutoTokenizer` reads it.
    """
    trained = _train([PROMPT.format(text.lower()) for text in texts])
    pieces = [piece for piece in sorted(trained["vocab"], key=trained["vocab"].get) if piece not in (*SPECIAL, MARK)]
    first = len(SPECIAL) + len(BYTES)
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL, *BYTES, *pieces))}
    vocabulary |= {f"<unused_{number}>": number for number in range(first + len(pieces), ACTION_TOKENS.start)}
    vocabulary.pop(f"<unused_{SPACE}>")
    vocabulary[MARK] = SPACE
    vocabulary |= {f"<action_{number - ACTION_TOKENS.start}>": number for number in ACTION_TOKENS}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for left, right in trained["merges"]],
            unk_token=SPECIAL[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token="<pad>"
    )
    if fast.pad_token_id != PAD:
        raise ConfigError(f"tokenizer: padding became {fast.pad_token_id}, not {PAD}")
    return fast


def _train(texts: Iterable[str]) -> dict[str, Any]:
    """Merges, which never cross a space or a line break, and the pieces they make."""
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=[*SPECIAL, MARK], show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    words = [MARK + word for text in texts for word in text.replace("\n", " ").split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    return json.loads(tokenizer.to_str())["model"]
