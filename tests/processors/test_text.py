"""Text processor: against transformers' own tokenizers, UTF-8 and a loop over windows, on real sentences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    PerceiverTokenizer,
    pipeline,
)

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.processors.text import TextProcessor
from tests.support.fuzz import finite_or_refused
from tests.support.texts import bert, clip, rows

ODD = ["", " ", "Ünïcödé 日本語 🙂", "tab\tand\nline", "UPPER lower", "a\0b", "x" * 300]


@pytest.fixture(scope="module")
def trained(sentences: list[str]) -> TextProcessor:
    return TextProcessor.train_from_iterator(iter(sentences), vocab_size=400)


def restored(processor: TextProcessor, folder: Path) -> TextProcessor:
    """The processor as saved and loaded with others."""
    MetaTransformerProcessor(text=processor).save_pretrained(folder)
    return MetaTransformerProcessor.from_pretrained(folder).text


def test_by_default_tokens_are_the_bytes_of_utf_8_and_an_end(sentences: list[str]) -> None:
    texts = [*sentences[:20], *ODD]
    assert rows(TextProcessor(), texts) == [[byte + 3 for byte in text.encode()] + [1] for text in texts]


@pytest.mark.parametrize("make", [bert, clip])
def test_ids_are_those_of_the_tokenizer(make: object, sentences: list[str]) -> None:
    texts = [*sentences[:20], *ODD]
    assert rows(TextProcessor(tokenizer=make()), texts) == make()(texts)["input_ids"]


def test_a_folder_is_loaded_as_autotokenizer_loads_it(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        assert rows(TextProcessor(tokenizer=folder), "The film!") == [bert()("The film!")["input_ids"]]


def test_a_tokenizer_of_the_library_tokenizers_is_taken(sentences: list[str]) -> None:
    raw = clip().backend_tokenizer
    assert rows(TextProcessor(tokenizer=raw), sentences[:5]) == [each.ids for each in raw.encode_batch(sentences[:5])]


def test_texts_of_different_length_are_padded_and_masked() -> None:
    batch = TextProcessor()(["ab", "a", ""])
    assert batch["input_ids"].tolist() == [[100, 101, 1], [100, 1, 0], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert (batch["input_ids"].dtype, batch["attention_mask"].dtype) == (torch.int64, torch.bool)


def test_texts_of_equal_length_have_no_mask() -> None:
    assert list(TextProcessor()(["abc", "xyz"])) == ["input_ids"]
    assert list(TextProcessor()("abc")) == ["input_ids"]


def test_all_containers_of_texts_are_taken(sentences: list[str]) -> None:
    from datasets import Dataset

    texts = sentences[:5]
    column = Dataset.from_dict({"text": texts})["text"]
    expected = rows(TextProcessor(), texts)
    for samples in (tuple(texts), column, pd.Series(texts), np.array(texts), np.array(texts, object), iter(texts)):
        assert rows(TextProcessor(), samples) == expected


def test_token_ids_are_taken_as_they_are(trained: TextProcessor, sentences: list[str]) -> None:
    expected = rows(trained, sentences[:3])
    arrays = [np.array(ids) for ids in expected]
    for samples in (
        expected,
        arrays,
        [torch.tensor(ids, dtype=torch.int32) for ids in expected],
        [*arrays[:1], *expected[1:]],
    ):
        assert rows(trained, samples) == expected
    assert (
        rows(trained, expected[0])
        == rows(trained, arrays[0])
        == rows(trained, torch.tensor(expected[0]))
        == expected[:1]
    )
    square = [ids[:3] for ids in expected]
    assert rows(trained, np.array(square)) == rows(trained, torch.tensor(square)) == square


def test_texts_and_ids_may_be_mixed() -> None:
    assert rows(TextProcessor(), ["ab", [100, 101, 1], np.array([], int)]) == [[100, 101, 1], [100, 101, 1], [1]]


def test_an_empty_text_is_the_special_tokens_or_else_one_end_token() -> None:
    assert rows(TextProcessor(tokenizer=bert()), "") == [[2, 3]]
    gpt2 = GPT2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1, "b": 2}, merges=[])
    assert rows(TextProcessor(tokenizer=gpt2), ["", "ab"]) == [[0], [1, 2]]


def test_an_empty_text_without_any_special_token_is_refused() -> None:
    bare = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(ValueError, match="no end token to stand for it; leave the text out"):
        TextProcessor(tokenizer=bare)(["ab", ""])


# Trained tokenizers


def test_a_trained_tokenizer_loses_nothing(trained: TextProcessor, sentences: list[str]) -> None:
    for text, ids in zip([*sentences[:20], *ODD], rows(trained, [*sentences[:20], *ODD]), strict=True):
        decoded = trained.tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.removeprefix(" ") == text.removeprefix(" ")


def test_a_trained_tokenizer_is_shorter_than_bytes_and_ends_with_its_end(
    trained: TextProcessor, sentences: list[str]
) -> None:
    ours, bytewise = (sum(map(len, rows(each, sentences))) for each in (trained, TextProcessor()))
    assert ours < 0.8 * bytewise
    assert {ids[-1] for ids in rows(trained, sentences)} == {trained.tokenizer.eos_token_id}


def test_training_is_repeatable_and_keeps_to_the_size(sentences: list[str]) -> None:
    first, again = (TextProcessor.train_from_iterator(sentences, vocab_size=500, max_length=9) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    assert first.tokenizer_config() == {"vocab_size": 500}
    assert first.max_length == 9
    assert TextProcessor.train_from_iterator(["a b"], vocab_size=9999).tokenizer_config()["vocab_size"] < 300


@pytest.mark.parametrize(
    ("texts", "size", "error", "message"),
    [
        ([], 300, ValueError, "no texts to train on"),
        ("one text", 300, TypeError, "got one string"),
        (["a", None], 300, TypeError, r"texts\[1\] must be a string, got NoneType"),
        (["a", "b\ud800"], 300, ValueError, r"texts\[1\]: the text holds half a character, '.ud800' at 1"),
        (["a"], 257, ValueError, "at least 258, got 257"),
        (["a"], 1e4, ValueError, "must be an integer"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(texts: object, size: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TextProcessor.train_from_iterator(texts, vocab_size=size)


# Saving


@pytest.mark.parametrize("make", [ByT5Tokenizer, bert, clip], ids=["bytes", "bert", "clip"])
def test_a_tokenizer_survives_json(make: object, tmp_path: Path) -> None:
    processor = TextProcessor(tokenizer=make(), max_length=40, long_text="error")
    again = restored(processor, tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert (again.max_length, again.long_text) == (40, "error")
    texts = [text for text in ODD if len(text) < 30]
    assert rows(again, texts) == rows(processor, texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["processor_config.json"]


@pytest.mark.slow
def test_a_trained_tokenizer_loads_in_another_process(
    trained: TextProcessor, sentences: list[str], tmp_path: Path
) -> None:
    MetaTransformerProcessor(text=trained).save_pretrained(tmp_path / "here")
    code = (
        "import json, sys\nfrom meta_transformer import MetaTransformerProcessor\n"
        f"processor = MetaTransformerProcessor.from_pretrained({str(tmp_path / 'here')!r})\n"
        f"print(json.dumps(processor(text={sentences[0]!r})['input_ids'].tolist()))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(printed.stdout) == rows(trained, sentences[0])


def test_a_trained_tokenizer_loads_in_another_folder(
    trained: TextProcessor, sentences: list[str], tmp_path: Path
) -> None:
    MetaTransformerProcessor(text=trained).save_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = MetaTransformerProcessor.from_pretrained(tmp_path / "there")
    assert rows(moved.text, sentences[0]) == rows(trained, sentences[0])


def test_the_state_does_not_depend_on_earlier_calls(trained: TextProcessor, sentences: list[str]) -> None:
    before = trained.to_dict()
    trained.tokenizer(sentences[:3], padding=True, truncation=True, max_length=4)
    assert trained.to_dict() == before
    assert TextProcessor(tokenizer=trained.tokenizer).to_dict() == before
    assert rows(trained, sentences[:3]) == rows(TextProcessor.from_dict(before), sentences[:3])


def test_a_slow_tokenizer_is_saved_by_its_name(tmp_path: Path) -> None:
    PerceiverTokenizer().save_pretrained(tmp_path / "perceiver")
    processor = TextProcessor(tokenizer=tmp_path / "perceiver")
    assert processor.to_dict()["tokenizer"] == str(tmp_path / "perceiver")
    assert rows(restored(processor, tmp_path / "saved"), "a") == [PerceiverTokenizer()("a")["input_ids"]]
    with pytest.raises(ValueError, match="saved by its name, and this one has none"):
        TextProcessor(tokenizer=PerceiverTokenizer())


def test_a_tokenizer_stays_as_its_owner_set_it() -> None:
    tokenizer = ByT5Tokenizer(padding_side="left")
    assert TextProcessor(tokenizer=tokenizer)(["abc", "a"])["attention_mask"][1].tolist() == [1, 1, 0, 0]
    assert tokenizer.padding_side == "left"


def test_a_tokenizer_without_any_word_of_its_own_is_refused() -> None:
    silent = Tokenizer(models.BPE({"ab": 0, "cd": 1}, []))  # drops all letters, as no merge makes these of them
    with pytest.raises(ValueError, match="Cannot tell which special tokens"):
        TextProcessor(tokenizer=silent)


def test_a_name_that_cannot_be_fetched_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Cannot load the tokenizer 'no/such/folder'.*'bytes'"):
        TextProcessor(tokenizer="no/such/folder")


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    for source in (tmp_path, CLIPTokenizer(), BertTokenizer()):
        with pytest.raises(ValueError, match="has an empty vocabulary; its files were not found"):
            TextProcessor(tokenizer=source)


@pytest.mark.parametrize("source", [None, 3, b"bytes", ["a"]])
def test_what_is_no_tokenizer_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match="tokenizer must be 'bytes', a name or folder"):
        TextProcessor(tokenizer=source)


@pytest.mark.parametrize("state", [{}, {"json": "{", "special_tokens": {}}, {"json": "{}", "special_tokens": {}}])
def test_a_damaged_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="state must hold 'json'"):
        TextProcessor(tokenizer=state)


def test_a_tokenizer_that_does_more_than_its_json_is_refused() -> None:
    class Reversed(BertTokenizer):
        def __call__(self, texts: list[str], **options: object) -> object:
            return super().__call__([text[::-1] for text in texts], **options)

    with pytest.raises(ValueError, match=r"does more than its tokenizer.json says"):
        TextProcessor(tokenizer=Reversed(vocab={**bert().get_vocab(), "fox": 13, "日": 14}))


# Bad input

BAD_SAMPLES = {
    "none": (None, TypeError, "fill missing cells with ''"),
    "nan": (float("nan"), TypeError, "got float"),
    "bytes": (b"abc", TypeError, "got bytes"),
    "dict": ({"text": "abc"}, TypeError, "got dict"),
    "path": (Path("file.txt"), TypeError, "must be a string"),
    "words": (["a", "b"], TypeError, "join words to a string"),
    "nested ids": ([[1, 2], [3, 4]], TypeError, r"of one dimension, got int64 of shape \(2, 2\)"),
    "ragged ids": ([[1, 2], [3]], ValueError, "inhomogeneous"),
    "floats": ([1.0, 2.0], TypeError, "must be integers"),
    "booleans": ([True, False], TypeError, "must be integers"),
    "scalar": (np.array(3), TypeError, "of one dimension"),
    "huge integer": ([2**70], TypeError, "must be integers"),
    "unknown id": ([5, 384], ValueError, r"must lie in 0\.\.383.*got 5\.\.384"),
    "negative id": (torch.tensor([-100, 5]), ValueError, r"must lie in 0\.\.383"),
    "padded ids": ([100, 1, 0], ValueError, r"hold padding \(0\) at an end; give them without"),
    "half a character": ("ab\ud800", ValueError, "half a character, '.ud800' at 2; replace"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_with_its_index_and_the_remedy(case: str) -> None:
    sample, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=rf"text\[1\]: .*{message}"):
        TextProcessor()(["abc", sample])


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "text is an empty list"),
        (3, TypeError, "got int"),
        (None, TypeError, "got NoneType"),
        (b"abc", TypeError, "got bytes; decode bytes"),
        ({"text": ["abc"]}, TypeError, "got dict; .*one column"),
        ({"b", "a"}, TypeError, "got set"),
        (pd.DataFrame({"text": ["abc"]}), TypeError, "got DataFrame; .*one column"),
        (np.array([1.5]), TypeError, "must be integers"),
    ],
)
def test_what_holds_no_samples_is_refused(samples: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        TextProcessor()(samples)


@pytest.mark.parametrize(
    "options", [{"max_length": 1}, {"max_length": 8.0}, {"long_text": "windows"}, {"max_length": "8"}]
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        TextProcessor(**options)


def test_a_processor_is_not_guessed_for_another_vocabulary() -> None:
    assert MetaTransformerProcessor.from_config(MetaTransformerConfig.tiny(modalities=["text"])).text
    config = MetaTransformerConfig.tiny(modalities={"text": {"vocab_size": 500}})
    with pytest.raises(ValueError, match="vocabulary of 500 tokens does not tell which tokenizer"):
        MetaTransformerProcessor.from_config(config)


def test_transformers_text_pipeline_runs_with_the_processors_tokenizer(trained: TextProcessor) -> None:
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities={"text": trained.tokenizer_config()})
    model = MetaTransformerForClassification(config).eval()
    classify = pipeline("text-classification", model=model, tokenizer=trained.tokenizer, device="cpu")
    texts = ["a good film", "bad"]
    scores = [each["score"] for each in classify(texts, batch_size=2)]
    expected = model(**trained(texts)).logits.softmax(-1).max(dim=1).values
    torch.testing.assert_close(torch.tensor(scores), expected)


IDS = st.lists(st.integers(-2, 400) | st.integers(), max_size=6)
VALUES = st.none() | st.integers() | st.floats() | st.booleans() | st.binary(max_size=4) | st.text(max_size=12) | IDS
ARRAYS = st.builds(
    lambda values, dtype: np.array(values).astype(dtype),
    st.lists(st.integers(0, 120), max_size=5),
    st.sampled_from(["i1", "u1", "i4", "u8", "f4", "f8", "?", "U3", "O", "c8"]),
)


@given(samples=VALUES | st.lists(VALUES | ARRAYS, max_size=4) | ARRAYS, max_length=st.none() | st.integers(-1, 6))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_any_input_is_processed_or_refused_with_a_sentence(samples: object, max_length: int | None) -> None:
    finite_or_refused(lambda: TextProcessor(max_length=max_length)(samples))
