"""Tokenizers of text: loaded, trained, and kept as JSON, so that a saved processor needs no other file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from os import PathLike
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .base import errors_at

__all__ = ["BYTES", "check_characters", "encode", "load_tokenizer", "special_frame", "train_bpe"]

BYTES = "bytes"
_PAD, _END = "<pad>", "</s>"  # special tokens of trained tokenizers
# Ids of these must survive storing: case, accents, numbers, runs of spaces, other scripts, nothing at all.
_PROBES = ["Ein Café, 3.14  NAÏVE\n fox's", "日本語 и русский 🙂", "", " "]


def load_tokenizer(source: Any) -> tuple[PreTrainedTokenizerBase, str | dict[str, Any]]:
    """A tokenizer and its JSON state, from which this function makes it again.

    Args:
        source: `"bytes"`, a name or folder, a tokenizer as an object, or the state of one.

    Returns:
        The tokenizer, and its state: of a fast one all of it, of a slow one its name.

    Raises:
        ValueError: It cannot be loaded or saved, or has no vocabulary.
        TypeError: `source` is something else.
    """
    if isinstance(source, Mapping):
        return _from_state(source), dict(source)
    if isinstance(source, str) and source == BYTES:
        return ByT5Tokenizer(), BYTES
    if isinstance(source, Tokenizer):
        source = PreTrainedTokenizerFast(tokenizer_object=source)
    elif isinstance(source, str | PathLike):
        source = _from_name(str(source))
    if not isinstance(source, PreTrainedTokenizerBase):
        raise TypeError(
            "tokenizer must be 'bytes', a name or folder, a tokenizer of transformers or of the library tokenizers, "
            f"got {type(source).__name__}."
        )
    vocabulary = source.get_vocab()
    if len(set(vocabulary) - set(source.all_special_tokens)) < 2:
        # transformers makes such a tokenizer, without a word, where it finds the tokenizer's settings but no files.
        raise ValueError(
            f"The {type(source).__name__} of {source.name_or_path or 'this object'!r} has an empty vocabulary; its "
            "files were not found. Download them again, or name a folder that holds tokenizer.json."
        )
    if isinstance(source, PreTrainedTokenizerFast):
        return _stored(source)
    if type(source) is ByT5Tokenizer and vocabulary == ByT5Tokenizer().get_vocab():
        return source, BYTES
    if not source.name_or_path:
        raise ValueError(
            f"A slow tokenizer such as this {type(source).__name__} is saved by its name, and this one has none; save "
            "it with save_pretrained and give the folder, or give a fast tokenizer."
        )
    return source, str(source.name_or_path)


def _from_name(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Cannot load the tokenizer {name!r}: {error} Give 'bytes', the folder of a tokenizer, or a name on the "
            "hub while it can be reached."
        ) from error


def _stored(source: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """A fast tokenizer as it will be when loaded again, and its state."""
    content = json.loads(source.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None  # of the last call, not of the tokenizer
    state = {"json": json.dumps(content, ensure_ascii=False), "special_tokens": dict(source.special_tokens_map)}
    tokenizer = _from_state(state)
    if encode(tokenizer, _PROBES) != encode(source, _PROBES):
        raise ValueError(
            f"A {type(source).__name__} does more than its tokenizer.json says, and so cannot be saved with the "
            "processor; give token ids that it made."
        )
    return tokenizer, state


def _from_state(state: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    try:
        backend = Tokenizer.from_str(state["json"])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **state["special_tokens"])
    except Exception as error:  # the library raises nothing more special
        raise ValueError(
            f"The tokenizer's state must hold 'json', the contents of a tokenizer.json, and 'special_tokens', as saved "
            f"by TextProcessor: {error}"
        ) from error


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each text, however long."""
    return tokenizer(
        texts,
        add_special_tokens=special_tokens,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def check_characters(text: str) -> None:
    """Refuse a text that has no UTF-8 form, with `ValueError`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds half a character, {text[error.start]!r} at {error.start}; replace such with "
            "text.encode('utf-8', 'replace').decode()."
        ) from error


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after every text.

    Raises:
        ValueError: No text is left whole between them.
    """
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    # A tokenizer without a token for unknown text drops what it does not know, so its own tokens are tried too.
    for text in chain("a", (str(tokenizer.decode([each])) for each in ordinary)):
        (framed,), (bare,) = (encode(tokenizer, [text], special) for special in (True, False))
        starts = [i for i in range(len(framed)) if bare and framed[i : i + len(bare)] == bare]
        if starts:
            return framed[: starts[0]], framed[starts[0] + len(bare) :]
    raise ValueError(
        f"Cannot tell which special tokens the {type(tokenizer).__name__} puts around a text; give another tokenizer."
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer that ends each text with `</s>`; see `TextProcessor.train_from_iterator`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # the first word is a word like the others
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_PAD, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_strings(texts), trainer)
    end = (_END, bpe.token_to_id(_END))
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[end])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=_PAD, eos_token=_END)


def _strings(texts: Iterable[str]) -> Iterator[str]:
    """The texts, each checked when its turn comes."""
    if isinstance(texts, str):
        raise TypeError("texts must be many texts, got one string; give a list of them.")
    index = -1
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{index}] must be a string, got {type(text).__name__}; leave missing texts out.")
        with errors_at(f"texts[{index}]"):
            check_characters(text)
        yield text
    if index < 0:
        raise ValueError("There are no texts to train on; an iterator can be read only once.")
