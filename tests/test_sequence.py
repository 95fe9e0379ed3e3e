"""Sequences of tokens: joining and pooling, against plain loops."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import TokenSequence
from meta_transformer.sequence import GridLayout

PREFIX = TokenSequence(torch.randn(2, 1, 4))
FIRST, SECOND = torch.randn(2, 3, 4), torch.randn(2, 2, 4)
MASK = torch.tensor([[True, False], [True, True]])


def test_segments_are_joined_in_order_behind_the_prefix():
    layout = GridLayout((1, 3), (16, 16), (16, 16))
    parts = {"a": TokenSequence(FIRST, layout=layout), "b": TokenSequence(SECOND, MASK)}
    joined = TokenSequence.concatenate(PREFIX, parts.items())
    assert_close(joined.embeddings, torch.cat([PREFIX.embeddings, FIRST, SECOND], dim=1))
    assert [(s.modality, s.start, s.length, s.layout) for s in joined.segments] == [
        ("a", 1, 3, layout),
        ("b", 4, 2, None),
    ]
    assert joined.mask.tolist() == [[True] * 5 + [False], [True] * 6]


def test_without_padding_there_is_no_mask():
    assert TokenSequence.concatenate(PREFIX, {"a": TokenSequence(FIRST)}.items()).mask is None


def test_modalities_are_selected_behind_the_prefix():
    parts = {"a": TokenSequence(FIRST), "b": TokenSequence(SECOND, MASK), "c": TokenSequence(FIRST + 9)}
    joined = TokenSequence.concatenate(PREFIX, parts.items())
    assert joined.select(["a", "b", "c"]) is joined
    chosen = joined.select(["b", "c"])
    expected = TokenSequence.concatenate(PREFIX, {"b": parts["b"], "c": parts["c"]}.items())
    assert_close(chosen.embeddings, expected.embeddings)
    assert_close(chosen.mask, expected.mask)
    assert chosen.segments == expected.segments
    assert chosen.modalities == ("b", "c")


def test_the_mean_leaves_out_padding_and_prefix():
    joined = TokenSequence.concatenate(PREFIX, {"a": TokenSequence(FIRST), "b": TokenSequence(SECOND, MASK)}.items())
    expected = [
        torch.stack([*FIRST[row], *(token for token, real in zip(SECOND[row], MASK[row], strict=True) if real)]).mean(0)
        for row in range(2)
    ]
    assert_close(joined.mean(), torch.stack(expected))
    unpadded = TokenSequence.concatenate(PREFIX, {"a": TokenSequence(FIRST)}.items())
    assert_close(unpadded.mean(), FIRST.mean(dim=1))


def test_a_sample_without_any_token_has_mean_zero():
    sequence = TokenSequence(FIRST, torch.zeros(2, 3, dtype=torch.bool))
    assert_close(sequence.mean(), torch.zeros(2, 4))


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_of_large_numbers_does_not_overflow_in_half_precision(masked):
    tokens = torch.full((1, 4, 2), 40_000.0, dtype=torch.float16)
    mean = TokenSequence(tokens, torch.ones(1, 4, dtype=torch.bool) if masked else None).mean()
    assert mean.dtype == torch.float16
    assert_close(mean, tokens[:, 0])


def test_nan_in_padding_does_not_reach_the_mean():
    tokens = SECOND.clone()
    tokens[0, 1] = torch.nan
    assert_close(TokenSequence(tokens, MASK).mean(), torch.stack([SECOND[0, 0], SECOND[1].mean(dim=0)]))


@pytest.mark.parametrize("blocks", [[], ["a", "b"]])
def test_what_stands_behind_all_segments_is_selected_with_its_block(blocks):
    prefix = TokenSequence(torch.randn(2, 2, 4))
    parts = {"a": TokenSequence(FIRST), "b": TokenSequence(SECOND, MASK)}
    tokens = torch.randn(3, 4)
    extended = TokenSequence.concatenate(prefix, parts.items(), blocks=blocks).append(tokens, "a")
    assert extended.blocks[-3:] == (("a",) * 3 if blocks else ())
    assert_close(extended.select(["a"]).embeddings[:, -3:], tokens.expand(2, -1, -1))
    assert len(extended.select(["b"])) == (1 + 2 if blocks else 2 + 2 + 3)
