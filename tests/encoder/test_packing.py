"""Packed execution of the trunk, against every row alone."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig
from meta_transformer.encoder import MetaTransformerEncoder
from meta_transformer.encoder.packing import Packing

LENGTHS = [5, 1, 7, 5, 3, 7]
MASK = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make_encoder(**options) -> MetaTransformerEncoder:
    torch.manual_seed(0)
    settings = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = MetaTransformerConfig(**{**settings, "attn_implementation": "sdpa", **options})
    encoder = MetaTransformerEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


def tokens() -> torch.Tensor:
    return torch.randn(6, 7, 32, generator=torch.Generator().manual_seed(1))


def test_packing_and_unpacking_are_inverse():
    packing, padded = Packing.of(MASK), tokens()
    packed = packing.pack(padded)
    assert packed.shape == (1, sum(LENGTHS), 32)
    assert_close(packing.unpack(packed), padded * MASK[..., None], rtol=0, atol=0)


def test_rows_of_equal_length_lie_together():
    packing = Packing.of(MASK)
    assert packing.lengths == (1, 3, 5, 5, 7, 7)
    assert packing.groups == [(1, 1), (1, 3), (2, 5), (2, 7)]
    assert packing.borders.tolist() == [0, 1, 4, 9, 14, 21, 28]
    assert packing.rows.bincount().tolist() == list(packing.lengths)


def test_masks_with_holes_and_rows_without_tokens_are_packed():
    mask = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    packing = Packing.of(mask)
    assert packing.lengths == (1, 2)
    assert packing.places.tolist() == [7, 0, 2]


def test_blocks_make_rows_of_their_own():
    packing = Packing.of(torch.ones(2, 4, dtype=torch.bool), torch.tensor([0, 1, 0, 1]))
    assert packing.lengths == (2, 2, 2, 2)
    assert packing.places.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_packed_places_say_where_a_token_went():
    packing = Packing.of(MASK)
    places = MASK.flatten().nonzero().flatten()
    assert_close(packing.places[packing.packed_places(places)], places)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_packed_batch_equals_each_row_alone_in_outputs_and_gradients(implementation):
    encoder, padded = make_encoder(attn_implementation=implementation), tokens()
    packing = Packing.of(MASK)
    together = padded.clone().requires_grad_()
    packed = packing.unpack(encoder(packing.pack(together), packing=packing))
    (packed * padded.cos()).sum().backward()
    for row, length in enumerate(LENGTHS):
        alone = padded[row : row + 1, :length].clone().requires_grad_()
        single = encoder(alone)
        (single * padded[row, :length].cos()).sum().backward()
        assert_close(packed[row, :length], single[0], **TOLERANCE)
        assert_close(together.grad[row, :length], alone.grad[0], **TOLERANCE)
    assert together.grad[~MASK].abs().max() == 0


def test_padded_execution_keeps_blocks_apart_as_packed_does():
    encoder, padded, blocks = make_encoder(), tokens(), torch.tensor([0, 0, 1, 1, 0, 2, 1])
    for mask in (MASK, None):
        packing = Packing.of(torch.ones_like(MASK) if mask is None else mask, blocks)
        packed = packing.unpack(encoder(packing.pack(padded), packing=packing))
        masked = encoder(padded, mask, blocks=blocks)
        keep = slice(None) if mask is None else mask
        assert_close(packed[keep], masked[keep], **TOLERANCE)


def test_stochastic_depth_drops_whole_rows():
    encoder = make_encoder(drop_path_rate=0.9, num_hidden_layers=1)
    packing, padded = Packing.of(MASK), tokens()
    layer = encoder.layers[0]
    layer.drop_path.rate = 0.5
    layer.drop_path.train()
    torch.manual_seed(0)
    dropped = layer.drop_path(packing.pack(padded), packing)
    kept = packing.unpack(dropped).abs().sum(dim=-1) > 0
    rows = [kept[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    assert all(len(set(row)) == 1 for row in rows)
    assert {row[0] for row in rows} == {True, False}


def test_weights_that_need_gradients_get_them_packed():
    encoder, padded, packing = make_encoder(), tokens(), Packing.of(MASK)
    packing.unpack(encoder(packing.pack(padded), packing=packing))[MASK].pow(2).sum().backward()
    packed = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
    encoder.zero_grad()
    encoder(padded, MASK)[MASK].pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert_close(packed[name], parameter.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_variable_length_attention_on_a_gpu_equals_each_row_alone(dtype):
    encoder, padded = make_encoder(num_attention_heads=2).to("cuda", dtype), tokens().to("cuda", dtype)
    mask = MASK.cuda()
    packing = Packing.of(mask)
    packed = packing.unpack(encoder(packing.pack(padded), packing=packing))
    for row, length in enumerate(LENGTHS):
        assert_close(packed[row, :length], encoder(padded[row : row + 1, :length])[0], rtol=3e-2, atol=3e-2)
