"""Texts that are too long: against transformers' own truncation and a loop over windows, on real sentences."""

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from meta_transformer.processors.text import TextProcessor, pool_windows
from tests.support.texts import bert, clip, japanese, rows


@pytest.mark.parametrize("make", [bert, clip, ByT5Tokenizer])
def test_truncation_is_transformers(make: object, sentences: list[str]) -> None:
    tokenizer: PreTrainedTokenizerBase = make()
    processor = TextProcessor(tokenizer=tokenizer, max_length=7)
    with pytest.warns(UserWarning):
        ours = rows(processor, sentences[:20])
    assert ours == make()(sentences[:20], truncation=True, max_length=7)["input_ids"]


def test_truncation_says_once_how_many_texts_it_cut() -> None:
    with pytest.warns(UserWarning) as warned:
        TextProcessor(max_length=4)(["abc", "abcd", "abcdef"])
    assert [str(each.message) for each in warned] == [
        "2 of 3 texts were cut to max_length=4 tokens, the longest of 7. windows() would keep all of them."
    ]


@pytest.mark.filterwarnings("error")
def test_texts_that_fit_are_not_warned_about() -> None:
    TextProcessor(max_length=4)(["abc", ""])


def test_long_texts_are_refused_on_request() -> None:
    with pytest.raises(ValueError, match=r"text\[1\]: 5 tokens are more than max_length=4; enlarge it"):
        TextProcessor(max_length=4, long_text="error")(["abc", "abcd"])


@pytest.mark.parametrize("stride", [0, 1, 4])
@pytest.mark.parametrize("make", [bert, clip])
def test_windows_are_those_of_transformers(make: object, stride: int, sentences: list[str]) -> None:
    batch, mapping = TextProcessor(tokenizer=make(), max_length=8).windows(sentences[:20], stride=stride)
    theirs = make()(
        sentences[:20],
        truncation=True,
        max_length=8,
        stride=stride,
        return_overflowing_tokens=True,
        padding=True,
        return_tensors="pt",
    )
    assert torch.equal(batch["attention_mask"].long(), theirs["attention_mask"])
    assert torch.equal(batch["input_ids"][batch["attention_mask"]], theirs["input_ids"][batch["attention_mask"]])
    assert torch.equal(mapping, theirs["overflow_to_sample_mapping"])


def test_windows_keep_every_byte() -> None:
    text = "".join(chr(97 + i % 26) for i in range(100))
    batch, mapping = TextProcessor(max_length=8).windows([text, "ab"])
    assert mapping.tolist() == [0] * 15 + [1]
    kept = [row[mask][:-1] - 3 for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert bytes(torch.cat(kept).tolist()).decode() == text + "ab"
    assert all(row[mask][-1] == 1 for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True))


def test_ids_without_special_tokens_are_cut_without() -> None:
    batch, _ = TextProcessor(tokenizer=bert(), max_length=4).windows([[5, 6, 7, 8, 5]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 0, 0, 0]]


def test_pooled_windows_are_the_mean_of_each_sample() -> None:
    values = torch.randn(6, 2, 3, requires_grad=True)
    mapping = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = torch.stack([values[mapping == index].mean(dim=0) for index in range(3)])
    torch.testing.assert_close(pool_windows(values, mapping), expected)
    pool_windows(values, mapping).sum().backward()
    torch.testing.assert_close(values.grad[:, 0, 0], torch.tensor([1 / 3] * 3 + [1] + [1 / 2] * 2))


@pytest.mark.parametrize("mapping", [[0, 1], [0.0, 0.0, 1.0], [[0, 0, 1]], [0, 2, 2]])
def test_a_mapping_that_does_not_fit_is_refused(mapping: list) -> None:
    with pytest.raises(ValueError, match="one integer for each of the 3 windows|Sample 1 has no window"):
        pool_windows(torch.zeros(3, 2), torch.tensor(mapping))


def test_windows_need_a_length_and_room() -> None:
    with pytest.raises(ValueError, match=r"set TextProcessor\(max_length="):
        TextProcessor().windows("abc")
    with pytest.raises(ValueError, match=r"stride must be an integer in 0\.\.1 for this max_length, got 2"):
        TextProcessor(tokenizer=bert(), max_length=4).windows("the film", stride=2)


def test_windows_keep_the_special_tokens_of_a_tokenizer_that_knows_no_latin_letter() -> None:
    processor = TextProcessor(tokenizer=japanese(), max_length=4)
    batch, _ = processor.windows("日本語日本語")
    assert batch["input_ids"].tolist() == [[0, 5, 4, 1], [0, 5, 4, 1]]
    with pytest.warns(UserWarning, match="were cut"):
        assert processor("日本語日本語")["input_ids"].tolist() == [[0, 5, 4, 1]]
