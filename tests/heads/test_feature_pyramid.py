"""Maps of features: where tokens lie in them, their sizes, and that padding changes nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, TokenSequence
from meta_transformer.heads.feature_pyramid import FeatureMap, FeaturePyramid, MapBlock, token_map
from meta_transformer.sequence import ImageLayout, Segment

CONFIG = MetaTransformerConfig(hidden_size=32, num_hidden_layers=8, num_attention_heads=4, intermediate_size=64)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(tokens: torch.Tensor, mask: torch.Tensor | None, grid: tuple[int, int]) -> tuple[TokenSequence, Segment]:
    """Behind a class token, the same in all nine hidden states but for their scale."""
    layout = ImageLayout(grid, (16, 16), (16, 16), (grid[0] * 16, grid[1] * 16))
    segment = Segment("image", 1, grid[0] * grid[1], layout)
    tokens = torch.cat([noise(len(tokens), 1, 32), tokens], dim=1)
    mask = None if mask is None else functional.pad(mask, (1, 0), value=True)
    states = tuple(tokens + noise(1, 1, 32, seed=number) for number in range(9))
    return TokenSequence(tokens, mask, segments=(segment,), hidden_states=states), segment


def padded(tokens: torch.Tensor, grid: tuple[int, int], to: tuple[int, int]) -> tuple[TokenSequence, Segment]:
    """The tokens of a picture at the top left of a larger grid, with garbage around."""
    map_ = noise(1, *to, 32, seed=5) * 100
    map_[:, : grid[0], : grid[1]] = tokens.unflatten(1, grid)
    mask = torch.zeros(1, *to, dtype=torch.bool)
    mask[:, : grid[0], : grid[1]] = True
    return encoded(map_.flatten(1, 2), mask.flatten(1), to)


def pyramid(**options) -> FeaturePyramid:
    torch.manual_seed(0)
    return FeaturePyramid(**{"layers": None, "channels": 8, "doublings": 2, "model_config": CONFIG, **options})


def test_a_token_lies_where_its_patch_lies() -> None:
    tokens = noise(2, 6, 32)
    sequence, segment = encoded(tokens, None, (2, 3))
    features = token_map(sequence.embeddings, sequence, segment).features
    assert features.shape == (2, 32, 2, 3)
    assert torch.equal(features[1, :, 1, 2], tokens[1, 5])
    assert torch.equal(features[0, :, 1, 0], tokens[0, 3])


def test_tokens_of_padding_are_zero() -> None:
    sequence, segment = padded(noise(1, 2, 32), (1, 2), (2, 3))
    features = token_map(sequence.embeddings, sequence, segment).features
    assert features[0, :, 1].abs().max() == features[0, :, 0, 2].abs().max() == 0
    assert features[0, :, 0, :2].abs().min() > 0


def test_each_level_has_half_the_size_of_the_one_before_rounded_up() -> None:
    sequence, segment = encoded(noise(2, 15, 32), None, (3, 5))
    levels = pyramid()(sequence, segment)
    assert [tuple(level.features.shape) for level in levels] == [
        (2, 8, 12, 20),
        (2, 8, 6, 10),
        (2, 8, 3, 5),
        (2, 8, 2, 3),
    ]


def test_by_default_levels_read_the_quarters_of_the_trunk() -> None:
    assert pyramid().numbers == [2, 4, 6, 8]
    assert pyramid(layers=[0, -1]).numbers == [0, 8]


def test_each_level_reads_its_own_layer() -> None:
    sequence, segment = encoded(noise(1, 4, 32), None, (2, 2))
    made = pyramid(layers=[1, 3])
    before = made(sequence, segment)
    states = list(sequence.hidden_states)
    states[3] = noise(*states[3].shape, seed=9)
    after = made(TokenSequence(sequence.embeddings, hidden_states=tuple(states)), segment)
    assert torch.equal(after[0].features, before[0].features)
    assert not torch.allclose(after[1].features, before[1].features)


@pytest.mark.parametrize("grid", [(3, 5), (4, 2), (1, 1)])
def test_a_padded_picture_has_the_maps_that_it_has_alone(grid) -> None:
    tokens = noise(1, grid[0] * grid[1], 32)
    made = pyramid()
    alone = made(*encoded(tokens, None, grid))
    for level, whole in zip(alone, made(*padded(tokens, grid, (6, 7))), strict=True):
        rows, columns = level.size
        assert_close(whole.features[:, :, :rows, :columns], level.features, rtol=1e-5, atol=1e-5)
        assert int(whole.mask.sum()) == rows * columns
        assert whole.features.masked_fill(whole.mask[:, None], 0).abs().max() == 0


def test_resizing_a_padded_map_equals_resizing_it_alone() -> None:
    features = noise(1, 4, 3, 5)
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, :3, :5] = True
    whole = FeatureMap(functional.pad(features, (0, 1, 0, 3)), mask)
    found = whole.resized((6 * 7, 6 * 3))[:, :, :21, :15]
    assert_close(found, FeatureMap(features).resized((21, 15)), rtol=1e-5, atol=1e-6)


def test_a_block_convolves_normalises_and_activates() -> None:
    torch.manual_seed(0)
    block = MapBlock(3, 4, "keep", 1e-5)
    features = noise(1, 3, 5, 5)
    convolved = functional.conv2d(features, block.convolution.weight, block.convolution.bias, padding=1)
    values = convolved.detach().numpy()
    normed = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5)
    assert_close(block(FeatureMap(features)).features, functional.gelu(torch.from_numpy(normed)), rtol=1e-4, atol=1e-5)


def test_a_layer_that_the_trunk_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 9, but the trunk has 8"):
        pyramid(layers=[9])
