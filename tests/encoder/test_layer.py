"""One block of the trunk against timm's and transformers' own, and its parts against closed forms."""

from typing import Any

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers import ViTConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.vit.modeling_vit import ViTLayer

from meta_transformer import MetaTransformerConfig
from meta_transformer.encoder.layer import DropPath, FeedForward, LayerScale, MetaTransformerLayer

TOKENS = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) < torch.tensor([[7], [4], [1]])


def make_config(**options: Any) -> MetaTransformerConfig:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    return MetaTransformerConfig(**{**shape, "attn_implementation": "sdpa", **options})


def make_layer(drop_path_rate: float = 0.0, **options: Any) -> MetaTransformerLayer:
    """A layer whose weights are all random, also those of the norms, which start as ones and zeros."""
    torch.manual_seed(0)
    layer = MetaTransformerLayer(make_config(**options), drop_path_rate)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer.eval()


def timm_block(layer: MetaTransformerLayer, eps: float = 1e-5, init_values: float | None = None) -> Block:
    """A block of timm with the weights of ours."""
    source = layer.state_dict()
    qkv = [f"attention.{name}_proj" for name in "qkv"]
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    state = {f"{to}.{kind}": source[f"{ours}.{kind}"] for to, ours in names.items() for kind in ("weight", "bias")}
    state |= {f"attn.qkv.{kind}": torch.cat([source[f"{name}.{kind}"] for name in qkv]) for kind in ("weight", "bias")}
    if init_values is not None:
        state |= {f"ls{i}.gamma": source[f"layer_scale{i}.factor"] for i in (1, 2)}

    def norm(size: int, **options: Any) -> nn.LayerNorm:
        return nn.LayerNorm(size, eps=eps, **options)

    block = Block(32, 4, mlp_ratio=2, qkv_bias=True, init_values=init_values, norm_layer=norm)
    block.load_state_dict(state)
    return block.eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_a_timm_block(implementation: str) -> None:
    layer = make_layer(attn_implementation=implementation)
    torch.testing.assert_close(layer(TOKENS), timm_block(layer)(TOKENS), atol=1e-5, rtol=1e-5)


def test_equals_a_timm_block_with_layer_scale() -> None:
    layer = make_layer(layer_scale_init_value=0.1)
    block = timm_block(layer, init_values=0.1)
    torch.testing.assert_close(layer(TOKENS), block(TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
def test_norms_use_the_configured_epsilon(eps: float) -> None:
    """Tokens of variance 1e-4 or so, beside which an epsilon counts."""
    layer = make_layer(layer_norm_eps=eps)
    tokens = TOKENS / 100
    torch.testing.assert_close(layer(tokens), timm_block(layer, eps)(tokens), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(tokens), timm_block(layer, eps * 10)(tokens), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_a_timm_block() -> None:
    layer = make_layer()
    block = timm_block(layer)
    ours, theirs = TOKENS.clone().requires_grad_(), TOKENS.clone().requires_grad_()
    weights = torch.linspace(-1, 1, TOKENS.numel()).view_as(TOKENS)
    (layer(ours) * weights).sum().backward()
    (block(theirs) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    qkv = torch.cat([getattr(layer.attention, f"{name}_proj").weight.grad for name in "qkv"])
    torch.testing.assert_close(qkv, block.attn.qkv.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.mlp.fc2.weight.grad, block.mlp.fc2.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_equals_a_transformers_layer(implementation: str, mask: Tensor | None) -> None:
    layer = make_layer(attn_implementation=implementation)
    config = ViTConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, layer_norm_eps=1e-5)
    config._attn_implementation = implementation
    reference = ViTLayer(config).eval()
    reference.load_state_dict(layer.state_dict())
    attention_mask = create_bidirectional_mask(config=config, inputs_embeds=TOKENS, attention_mask=mask)
    output, expected = layer(TOKENS, attention_mask), reference(TOKENS, attention_mask)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("quick_gelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("relu", lambda x: x * (x > 0)),
    ],
)
def test_feed_forward_is_two_products_and_the_named_activation(name: str, function: Any) -> None:
    torch.manual_seed(0)
    mlp = FeedForward(make_config(hidden_act=name))
    inner = function(TOKENS @ mlp.fc1.weight.T + mlp.fc1.bias)
    torch.testing.assert_close(mlp(TOKENS), inner @ mlp.fc2.weight.T + mlp.fc2.bias, atol=1e-5, rtol=1e-5)


def test_layer_scale_starts_at_its_value_and_multiplies_channels() -> None:
    scale = LayerScale(32, 0.1)
    init.zeros_(scale.factor)
    scale.init_parameters(std=0.02)
    torch.testing.assert_close(scale(TOKENS), TOKENS * 0.1)
    scale.factor.data = torch.arange(32.0)
    torch.testing.assert_close(scale(TOKENS)[..., 5], TOKENS[..., 5] * 5)


def test_no_layer_scale_costs_no_parameter() -> None:
    assert not [name for name, _ in make_layer().named_parameters() if "scale" in name]
    assert len([name for name, _ in make_layer(layer_scale_init_value=1.0).named_parameters() if "scale" in name]) == 2


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_path_equals_timm_under_the_same_seed(rate: float) -> None:
    branch = TOKENS.repeat(10, 1, 1)
    torch.manual_seed(0)
    output = DropPath(rate).train()(branch)
    torch.manual_seed(0)
    torch.testing.assert_close(output, timm.layers.DropPath(rate).train()(branch))


def test_drop_path_drops_whole_samples_and_scales_the_others() -> None:
    torch.manual_seed(0)
    factors = DropPath(0.25).train()(torch.ones(8000, 5, 4))
    assert (factors == factors[:, :1, :1]).all()
    dropped = factors[:, 0, 0] == 0
    torch.testing.assert_close(factors[~dropped], torch.full_like(factors[~dropped], 1 / 0.75))
    # five standard deviations of a binomial share
    assert abs(dropped.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 8000) ** 0.5


def test_drop_path_does_nothing_in_evaluation() -> None:
    assert DropPath(0.9).eval()(TOKENS) is TOKENS
    assert DropPath(0.0).train()(TOKENS) is TOKENS


def test_a_sample_whose_branches_are_dropped_passes_unchanged() -> None:
    layer = make_layer(drop_path_rate=0.999).train()
    torch.testing.assert_close(layer(TOKENS), TOKENS, atol=0, rtol=0)


def test_drop_path_draws_anew_for_each_branch() -> None:
    """A half of the samples loses attention, a half loses the feed-forward part, and so a quarter loses both."""
    layer = make_layer(drop_path_rate=0.5).train()
    with torch.no_grad():
        output = layer(TOKENS[:1].expand(4000, -1, -1))
    unchanged = (output == TOKENS[0]).all(dim=(1, 2)).double().mean()
    assert abs(unchanged - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
