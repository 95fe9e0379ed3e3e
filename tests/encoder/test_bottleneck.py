"""The exchange of bottleneck tokens, against a plain loop."""

import torch
from torch.testing import assert_close

from meta_transformer.encoder.bottleneck import Exchange


def test_the_copies_of_a_sample_become_their_mean():
    tokens = torch.randn(3, 6, 4)
    columns = torch.tensor([[0, 1], [3, 4]])  # two bottleneck tokens of two modalities
    present = torch.tensor([[True, True], [True, False], [True, True]])
    places = torch.arange(3)[:, None, None] * 6 + columns
    expected = tokens.clone()
    for sample in range(3):
        own = [columns[each] for each in range(2) if present[sample, each]]
        for token in range(2):
            mean = torch.stack([tokens[sample, each[token]] for each in own]).mean(dim=0)
            for each in own:
                expected[sample, each[token]] = mean
    assert_close(Exchange(places, present)(tokens), expected)


def test_nan_in_absent_tokens_does_not_spread():
    tokens = torch.ones(1, 2, 4)
    tokens[0, 1] = torch.nan
    exchange = Exchange(torch.tensor([[[0], [1]]]), torch.tensor([[True, False]]))
    assert_close(exchange(tokens)[0, 0], torch.ones(4))
