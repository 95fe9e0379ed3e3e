"""The trunk: shapes, equality with timm's stack of blocks, padding, implementations, precision, compilation."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.encoder import MetaTransformerEncoder
from meta_transformer.encoder.layer import LayerScale

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOKENS = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0))
LENGTHS = [9, 5, 1, 8]
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]


def make_config(**options: Any) -> MetaTransformerConfig:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    image = {"image": {"image_size": 16, "patch_size": 8}}
    return MetaTransformerConfig(**{**shape, "modalities": image, "attn_implementation": "sdpa", **options})


def make_encoder(**options: Any) -> MetaTransformerEncoder:
    """A trunk whose weights are all random, also those of the norms, which start as ones and zeros."""
    torch.manual_seed(0)
    encoder = MetaTransformerEncoder(make_config(**options))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def relative_error(output: Tensor, expected: Tensor) -> float:
    return ((output.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    ("shape", "block_parameters"),
    [("tiny", 5_338_368), ("small", 21_293_568), ("base_patch16", 85_054_464), ("large_patch14", 302_309_376)],
)
def test_named_shapes_have_the_published_number_of_parameters(shape: str, block_parameters: int) -> None:
    """Base and large: the tensors of the official checkpoints. Tiny and small: 12 * (12 * width**2 + 13 * width)."""
    with torch.device("meta"):
        encoder = MetaTransformerEncoder(getattr(MetaTransformerConfig, shape)())
    assert sum(parameter.numel() for parameter in encoder.layers.parameters()) == block_parameters
    width = encoder.config.hidden_size
    assert sum(parameter.numel() for parameter in encoder.parameters()) == block_parameters + 2 * width


def test_norms_around_the_blocks_are_optional() -> None:
    with_both = dict(make_encoder(use_pre_layernorm=True).named_parameters())
    assert {"pre_layernorm.weight", "pre_layernorm.bias", "layernorm.weight", "layernorm.bias"} <= set(with_both)
    without = make_encoder(use_final_layernorm=False)
    assert all(name.startswith("layers.") for name, _ in without.named_parameters())


def timm_trunk(encoder: MetaTransformerEncoder) -> nn.Sequential:
    """Norms and blocks of a timm ViT with the weights of ours."""
    config = encoder.config
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        pre_norm=config.use_pre_layernorm,
        final_norm=config.use_final_layernorm,
        global_pool="token",
        init_values=config.layer_scale_init_value,
        norm_layer=nn.LayerNorm,
    )
    pairs = [(vit.norm_pre, encoder.pre_layernorm), (vit.norm, encoder.layernorm)]
    for block, layer in zip(vit.blocks, encoder.layers, strict=True):
        pairs += [(block.norm1, layer.layernorm_before), (block.norm2, layer.layernorm_after)]
        pairs += [(block.mlp.fc1, layer.mlp.fc1), (block.mlp.fc2, layer.mlp.fc2)]
        pairs += [(block.attn.proj, layer.attention.o_proj)]
        for name in ("weight", "bias"):
            ours = [getattr(getattr(layer.attention, f"{part}_proj"), name) for part in "qkv"]
            getattr(block.attn.qkv, name).data = torch.cat(ours).detach()
        if isinstance(layer.layer_scale1, LayerScale):
            block.ls1.gamma.data, block.ls2.gamma.data = layer.layer_scale1.factor.data, layer.layer_scale2.factor.data
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return nn.Sequential(vit.norm_pre, vit.blocks, vit.norm).eval()


@pytest.mark.parametrize("use_pre_layernorm", [False, True])
@pytest.mark.parametrize("use_final_layernorm", [False, True])
@pytest.mark.parametrize("layer_scale_init_value", [None, 0.5])
def test_equals_the_trunk_of_timm(
    use_pre_layernorm: bool, use_final_layernorm: bool, layer_scale_init_value: float | None
) -> None:
    encoder = make_encoder(
        use_pre_layernorm=use_pre_layernorm,
        use_final_layernorm=use_final_layernorm,
        layer_scale_init_value=layer_scale_init_value,
    )
    torch.testing.assert_close(encoder(TOKENS), timm_trunk(encoder)(TOKENS), atol=1e-5, rtol=1e-5)


def test_drop_path_rises_linearly_over_the_depth() -> None:
    encoder = make_encoder(num_hidden_layers=5, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in encoder.layers] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_a_padded_sample_gives_what_it_gives_alone(implementation: str) -> None:
    encoder = make_encoder(attn_implementation=implementation, use_pre_layernorm=True)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        padded = encoder(TOKENS, MASK)
        for sample, length in enumerate(LENGTHS):
            alone = encoder(TOKENS[sample : sample + 1, :length])[0]
            torch.testing.assert_close(padded[sample, :length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_garbage_in_the_padding_changes_nothing(implementation: str) -> None:
    encoder = make_encoder(attn_implementation=implementation)
    garbage = 1e4 * torch.randn(TOKENS.shape, generator=torch.Generator().manual_seed(1))
    spoiled = torch.where(MASK[..., None], TOKENS, garbage)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(encoder(spoiled, MASK)[MASK], encoder(TOKENS, MASK)[MASK], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradients_reach_real_tokens_alone(implementation: str) -> None:
    encoder = make_encoder(attn_implementation=implementation)
    tokens = TOKENS.clone().requires_grad_()
    encoder(tokens, MASK)[MASK].square().sum().backward()
    assert (tokens.grad[~MASK] == 0).all()
    assert (tokens.grad[MASK].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_sample_of_padding_alone_gives_no_nan(implementation: str) -> None:
    encoder = make_encoder(attn_implementation=implementation)
    tokens = TOKENS.clone().requires_grad_()
    output = encoder(tokens, MASK & torch.tensor([[True], [False], [True], [True]]))
    output.sum().backward()
    assert output.isfinite().all()
    assert tokens.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
def test_implementations_agree(implementation: str, mask: Tensor | None) -> None:
    expected = make_encoder(attn_implementation="eager")(TOKENS, mask)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        output = make_encoder(attn_implementation=implementation)(TOKENS, mask)
    torch.testing.assert_close(output[MASK], expected[MASK], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_compiled_flex_attention_agrees_with_eager(mask: Tensor | None) -> None:
    expected = make_encoder(attn_implementation="eager")(TOKENS, mask)
    with torch.no_grad():
        output = make_encoder(attn_implementation="flex_attention")(TOKENS, mask)
    torch.testing.assert_close(output[MASK], expected[MASK], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_bfloat16_is_close_to_float32(implementation: str, mask: Tensor | None) -> None:
    """8 bits of mantissa are a relative error of 0.4 % in each rounding; 1.1 % were measured on a whole ViT-B."""
    expected = make_encoder(attn_implementation=implementation)(TOKENS, mask)
    output = make_encoder(attn_implementation=implementation).bfloat16()(TOKENS.bfloat16(), mask)
    assert output.dtype == torch.bfloat16
    assert relative_error(output[MASK], expected[MASK]) < 0.02


def test_float16_is_close_to_float32() -> None:
    expected = make_encoder()(TOKENS, MASK)
    assert relative_error(make_encoder().half()(TOKENS.half(), MASK)[MASK], expected[MASK]) < 0.003


def test_autocast_is_close_to_float32() -> None:
    encoder = make_encoder()
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(TOKENS, MASK)
    assert relative_error(output[MASK], encoder(TOKENS, MASK)[MASK]) < 0.02


def test_compiles_to_one_graph_for_all_sizes() -> None:
    encoder, graphs = make_encoder(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(encoder, fullgraph=True, dynamic=True, backend=backend)
    fewer = TOKENS[:3, :6].contiguous()
    for tokens in (TOKENS, fewer):
        torch.testing.assert_close(compiled(tokens), encoder(tokens))
    assert len(graphs) == 1
    for tokens, mask in ((TOKENS, MASK), (fewer, MASK[:3, :6].contiguous())):
        torch.testing.assert_close(compiled(tokens, mask), encoder(tokens, mask))
    assert len(graphs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_inductor_gives_what_eager_execution_gives(mask: Tensor | None) -> None:
    encoder = make_encoder()
    compiled = torch.compile(encoder, fullgraph=True, dynamic=True)
    ours, theirs = TOKENS.clone().requires_grad_(), TOKENS.clone().requires_grad_()
    output, expected = compiled(theirs, mask), encoder(ours, mask)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    output[MASK].square().sum().backward()
    expected[MASK].square().sum().backward()
    torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-4, rtol=1e-4)


def make_model(**options: Any) -> tuple[MetaTransformerModel, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = MetaTransformerModel(make_config(**options)).eval()
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def test_hidden_states_are_the_inputs_and_outputs_of_the_blocks() -> None:
    model, batch = make_model(use_pre_layernorm=True)
    states = model(**batch, output_hidden_states=True).hidden_states
    expected = [model.encoder.pre_layernorm(model.tokenize(**batch).embeddings)]
    for layer in model.encoder.layers:
        expected.append(layer(expected[-1]))
    assert len(states) == 3 + 1
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state, reference)
    torch.testing.assert_close(model(**batch).last_hidden_state, model.encoder.layernorm(states[-1]))


def test_attentions_are_one_distribution_for_each_block_head_and_token() -> None:
    model, batch = make_model(attn_implementation="eager")
    attentions = model(**batch, output_attentions=True).attentions
    assert len(attentions) == 3
    assert all(weights.shape == (2, 4, 5, 5) for weights in attentions)
    torch.testing.assert_close(torch.stack(attentions).sum(dim=-1), torch.ones(3, 2, 4, 5))


def test_nothing_is_recorded_unasked() -> None:
    model, batch = make_model(attn_implementation="eager")
    output = model(**batch)
    assert output.hidden_states is None
    assert output.attentions is None


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_cuda_gives_what_the_cpu_gives(implementation: str, mask: Tensor | None) -> None:
    # two heads of 16: the flex kernel takes none that are smaller
    expected = make_encoder(attn_implementation="eager", num_attention_heads=2)(TOKENS, mask)
    encoder = make_encoder(attn_implementation=implementation, num_attention_heads=2).cuda()
    with torch.no_grad():
        output = encoder(TOKENS.cuda(), None if mask is None else mask.cuda()).cpu()
    # the flex kernel multiplies in TF32
    assert relative_error(output[MASK], expected[MASK]) < (3e-3 if implementation == "flex_attention" else 1e-5)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_is_close_to_float32(dtype: torch.dtype) -> None:
    expected = make_encoder()(TOKENS, MASK)
    encoder, tokens = make_encoder().cuda(), TOKENS.cuda().requires_grad_()
    with torch.autocast("cuda", dtype):
        output = encoder(tokens, MASK.cuda())
    output[MASK.cuda()].square().sum().backward()
    assert relative_error(output.cpu()[MASK], expected[MASK]) < 0.02
    assert tokens.grad.isfinite().all()
