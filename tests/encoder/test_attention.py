"""Self-attention against a loop over samples and heads, with every implementation that runs here."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, create_bidirectional_mask, flash_attention_mask

from meta_transformer import MetaTransformerConfig
from meta_transformer.encoder.attention import SelfAttention

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOKENS = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) < torch.tensor([[7], [4], [1]])


def make_attention(implementation: str = "sdpa", **options: Any) -> SelfAttention:
    config = MetaTransformerConfig(hidden_size=32, num_attention_heads=4, attn_implementation=implementation, **options)
    torch.manual_seed(0)
    return SelfAttention(config).eval()


def backend_mask(attention: SelfAttention, tokens: Tensor, mask: Tensor | None) -> Any:
    return create_bidirectional_mask(config=attention.config, inputs_embeds=tokens, attention_mask=mask)


def project(linear: nn.Linear, tokens: Tensor, rows: slice) -> Tensor:
    bias = 0 if linear.bias is None else linear.bias[rows].double()
    return tokens @ linear.weight[rows].double().T + bias


def naive_attention(attention: SelfAttention, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of one sample `(tokens, hidden)` without padding, head by head and in double precision."""
    tokens, outputs, all_weights = tokens.double(), [], []
    for head in range(attention.config.num_attention_heads):
        rows = slice(8 * head, 8 * head + 8)
        query = project(attention.q_proj, tokens, rows)
        key = project(attention.k_proj, tokens, rows)
        weights = torch.exp(query @ key.T / 8**0.5)
        weights = weights / weights.sum(dim=1, keepdim=True)
        all_weights.append(weights)
        outputs.append(weights @ project(attention.v_proj, tokens, rows))
    return project(attention.o_proj, torch.cat(outputs, dim=1), slice(None)), torch.stack(all_weights)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_equals_a_loop_over_heads(implementation: str, qkv_bias: bool) -> None:
    attention = make_attention(implementation, qkv_bias=qkv_bias)
    output, _ = attention(TOKENS, None)
    for sample in range(len(TOKENS)):
        expected, _ = naive_attention(attention, TOKENS[sample])
        torch.testing.assert_close(output[sample].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padded_samples_equal_a_loop_over_their_real_tokens(implementation: str) -> None:
    attention = make_attention(implementation)
    output, _ = attention(TOKENS, backend_mask(attention, TOKENS, MASK))
    for sample, length in enumerate(MASK.sum(dim=1)):
        expected, _ = naive_attention(attention, TOKENS[sample, :length])
        torch.testing.assert_close(output[sample, :length].double(), expected, atol=1e-5, rtol=1e-5)


def test_eager_returns_the_weights_of_the_loop() -> None:
    attention = make_attention("eager")
    _, weights = attention(TOKENS, backend_mask(attention, TOKENS, MASK))
    assert weights.shape == (3, 4, 7, 7)
    for sample, length in enumerate(MASK.sum(dim=1)):
        _, expected = naive_attention(attention, TOKENS[sample, :length])
        torch.testing.assert_close(weights[sample, :, :length, :length].double(), expected, atol=1e-6, rtol=1e-5)
        assert (weights[sample, :, :length, length:] == 0).all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_without_mask_the_first_token_sees_the_last(implementation: str) -> None:
    """An implementation that took the module for causal would compute the first token from itself alone."""
    attention = make_attention(implementation)
    changed = TOKENS.clone()
    changed[:, -1] += 1
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        difference = (attention(changed, None)[0] - attention(TOKENS, None)[0])[:, 0].abs().amax(dim=1)
    assert (difference > 1e-3).all()


def test_only_query_key_and_value_lose_their_bias() -> None:
    attention = make_attention(qkv_bias=False)
    assert [name for name, _ in attention.named_parameters() if name.endswith("bias")] == ["o_proj.bias"]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_is_drawn_in_training_alone(implementation: str) -> None:
    attention = make_attention(implementation, attention_dropout=0.5)
    expected, _ = make_attention(implementation)(TOKENS, None)
    torch.testing.assert_close(attention(TOKENS, None)[0], expected)
    attention.train()
    assert not torch.equal(attention(TOKENS, None)[0], attention(TOKENS, None)[0])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dropout_keeps_the_expectation(implementation: str) -> None:
    attention = make_attention(implementation, attention_dropout=0.25).train()
    with torch.no_grad():
        draws = attention(TOKENS[:1].expand(4000, -1, -1), None)[0]
    expected, _ = naive_attention(attention, TOKENS[0])
    # five standard errors of the mean, each measured on the draws themselves
    assert ((draws.mean(dim=0) - expected).abs() < 5 * draws.std(dim=0) / 4000**0.5).all()


def attend_by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What flash attention does with packed sequences: documents lie one behind the other, marked by their borders."""
    assert module.is_causal is False
    assert mask is None
    assert options["dropout"] == 0.0
    borders = options["cu_seq_lens_q"].tolist()
    outputs = []
    for start, stop in pairwise(borders):
        scores = query[:, :, start:stop] @ key[:, :, start:stop].transpose(2, 3) * options["scaling"]
        outputs.append(scores.softmax(dim=-1) @ value[:, :, start:stop])
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def test_a_custom_implementation_gets_the_borders_of_packed_sequences() -> None:
    AttentionInterface.register("by_document", attend_by_document)
    AttentionMaskInterface.register("by_document", flash_attention_mask)
    attention = make_attention("by_document", attention_dropout=0.5)
    packed = torch.cat([TOKENS[0], TOKENS[1, :4]])[None]
    borders = torch.tensor([0, 7, 11], dtype=torch.int32)
    output, weights = attention(packed, backend_mask(attention, packed, None), cu_seq_lens_q=borders)
    assert weights is None
    expected = [naive_attention(attention, document)[0] for document in (TOKENS[0], TOKENS[1, :4])]
    torch.testing.assert_close(output[0].double(), torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_padded_samples_equal_the_loop_on_cuda(implementation: str) -> None:
    attention = make_attention(implementation)
    expected = [naive_attention(attention, TOKENS[i, :length])[0] for i, length in enumerate(MASK.sum(dim=1))]
    attention.cuda()
    tokens = TOKENS.cuda()
    with torch.no_grad():
        output = attention(tokens, backend_mask(attention, tokens, MASK.cuda()))[0].cpu()
    for sample, reference in enumerate(expected):
        torch.testing.assert_close(output[sample, : len(reference)].double(), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@cuda
def test_sdpa_runs_the_flash_kernel_where_nothing_is_padded() -> None:
    attention = make_attention("sdpa").to("cuda", torch.bfloat16)
    tokens = TOKENS.to("cuda", torch.bfloat16)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION), torch.no_grad():
        output, _ = attention(tokens, backend_mask(attention, tokens, torch.ones_like(MASK).cuda()))
    for sample in range(len(TOKENS)):
        expected, _ = naive_attention(attention, tokens[sample])
        torch.testing.assert_close(output[sample].double(), expected, atol=2e-2, rtol=2e-2)
