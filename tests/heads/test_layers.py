"""Which layers a head reads: against the definition of ELMo's scalar mixture."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification
from meta_transformer.heads.layers import LayerMixture

STATES = tuple(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4))


def model(layers) -> MetaTransformerForClassification:
    config = MetaTransformerConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        heads={"classification": {"layers": layers}},
    )
    torch.manual_seed(0)
    return MetaTransformerForClassification(config).eval()


def test_a_mixture_is_the_softmax_weighted_sum_of_normalised_layers() -> None:
    mixture = LayerMixture("all", 3, 1e-5)
    torch.nn.init.normal_(mixture.weights)
    shares = torch.softmax(mixture.weights, 0)
    expected = sum(
        share * (state - state.mean(-1, keepdim=True)) / (state.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        for share, state in zip(shares, STATES, strict=True)
    )
    assert_close(mixture(STATES), expected)


@pytest.mark.parametrize(("layer", "state"), [(0, 0), (2, 2), (-1, 3), (-4, 0)])
def test_one_layer_is_that_layer_alone(layer: int, state: int) -> None:
    mixture = LayerMixture([layer], 3, 1e-5)
    assert not list(mixture.parameters())
    assert_close(mixture(STATES), functional.layer_norm(STATES[state], (8,)))


def test_a_head_reads_the_chosen_layers_of_the_trunk() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    made = model([1, -1])
    with torch.no_grad():
        made.head.layer_mixture.weights.copy_(torch.tensor([0.3, -0.7]))
    states = made.model(pixel_values=pixels, output_hidden_states=True).hidden_states
    shares = torch.tensor([0.3, -0.7]).softmax(0)
    token = sum(share * functional.layer_norm(states[i][:, 0], (32,)) for share, i in zip(shares, (1, 3), strict=True))
    expected = made.head.classifier(made.head.layernorm(token))
    output = made(pixel_values=pixels)
    assert_close(output.logits, expected)
    assert "hidden_states" not in output  # nobody asked for them
    assert len(made(pixel_values=pixels, output_hidden_states=True).hidden_states) == 4


def test_the_weights_of_layers_are_learned_and_saved(tmp_path) -> None:
    made = model("all").train()
    made(pixel_values=torch.rand(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    assert made.head.layer_mixture.weights.grad.abs().max() > 0
    with torch.no_grad():
        made.head.layer_mixture.weights.copy_(torch.arange(4.0))
    made.save_pretrained(tmp_path)
    loaded = MetaTransformerForClassification.from_pretrained(tmp_path)
    assert_close(loaded.head.layer_mixture.weights, torch.arange(4.0))


@pytest.mark.parametrize("layers", ["first", [], "weighted"])
def test_what_names_no_layer_is_refused(layers) -> None:
    with pytest.raises(Exception, match="layers must be"):
        model(layers)


def test_a_layer_that_the_trunk_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="layers names layer 4, but the trunk has 3"):
        model([4])
