"""Token merging: as the paper says, of each sample alone, and never where it would change what is asked for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForSegmentation,
    MetaTransformerProcessor,
)
from meta_transformer.encoder import MetaTransformerEncoder
from meta_transformer.encoder.token_merging import TokenMerging
from meta_transformer.processors.image import ImageProcessor

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
TEXTS = ["a", "some words", "quite a few more words than that", "and so on"]


def naive_merge(
    tokens: list[Tensor], sizes: list[float], keys: list[Tensor], groups: list[set[int]], count: int
) -> Any:
    """Section 3.2 of the paper for one sample, token by token; the first one is protected."""
    b, a = list(range(1, len(tokens), 2)), list(range(2, len(tokens), 2))
    ties = []
    for one in a:
        best = max(b, key=lambda other: torch.cosine_similarity(keys[one], keys[other], dim=0).item())
        ties.append((torch.cosine_similarity(keys[one], keys[best], dim=0).item(), one, best))
    strongest = sorted(ties, reverse=True)[: min(count, (len(tokens) - 1) // 2)]
    partner = {one: other for _, one, other in strongest}
    sums = {each: tokens[each] * sizes[each] for each in b}
    totals, members = {each: sizes[each] for each in b}, {each: set(groups[each]) for each in b}
    for one, other in partner.items():
        sums[other] = sums[other] + tokens[one] * sizes[one]
        totals[other] += sizes[one]
        members[other] |= groups[one]
    kept = [0, *[each for each in a if each not in partner]]
    return (
        [tokens[each] for each in kept] + [sums[each] / totals[each] for each in b],
        [sizes[each] for each in kept] + [totals[each] for each in b],
        [groups[each] for each in kept] + [members[each] for each in b],
    )


@pytest.mark.parametrize("length", [2, 3, 8, 17])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_merges_as_a_loop_over_the_tokens_does(length: int, count: int) -> None:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randn(1, length, 8, generator=generator)
    merging = TokenMerging(count, None, [0])
    found = merging.begin(tokens)
    expected, sizes, groups = list(tokens[0]), [1.0] * length, [{number} for number in range(length)]
    for _ in range(3):
        keys = torch.randn(1, 2, found.shape[1], 4, generator=generator)
        merging.keys = keys
        found = merging.merge(found)
        expected, sizes, groups = naive_merge(expected, sizes, list(keys[0].mean(dim=0)), groups, count)
    torch.testing.assert_close(found[0], torch.stack(expected))
    torch.testing.assert_close(merging.bias(torch.float32)[0, 0, 0].exp(), torch.tensor(sizes))
    restored = merging.restore(found)[0]
    for number in range(length):
        owner = next(place for place, group in enumerate(groups) if number in group)
        torch.testing.assert_close(restored[number], expected[owner])


def test_a_sample_of_twins_is_encoded_as_without_merging() -> None:
    """Equal tokens merge first; proportional attention makes two of them as heavy as before."""
    torch.manual_seed(0)
    trunk = MetaTransformerEncoder(MetaTransformerConfig(**TINY, attn_implementation="sdpa")).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.cat([torch.randn(2, 1, 32), torch.randn(2, 6, 32).repeat_interleave(2, dim=1)], dim=1)
    merging = TokenMerging(6, None, [0])
    trunk.layers[0].register_forward_hook(lambda *arguments: setattr(merging, "count", 0))  # no strangers after twins
    with torch.no_grad():
        wanted, merging.count = trunk(tokens), 6
        torch.testing.assert_close(trunk(tokens, merging=merging), wanted, rtol=1e-4, atol=1e-5)
    assert merging.sizes.tolist() == [[1.0] + [2.0] * 6] * 2


def test_later_blocks_have_fewer_tokens() -> None:
    model = make_model(token_merging=5)
    lengths: list[int] = []
    for layer in model.model.encoder.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    sequence = model.model.tokenize(**MetaTransformerProcessor(text=True)(text=["x" * 30]))
    model.model.encode(sequence)
    assert lengths == [len(sequence) - 5, len(sequence) - 10, len(sequence) - 15]


def make_model(**options: Any) -> Any:
    torch.manual_seed(0)
    modalities = MetaTransformerProcessor(text=True).tokenizer_configs()
    return MetaTransformerForClassification(MetaTransformerConfig(**TINY, modalities=modalities, **options)).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_a_sample_gives_the_same_alone_and_padded(pooling: str, attention: str) -> None:
    heads = {"classification": {"pooling": pooling}}
    model = make_model(token_merging=3, heads=heads, attn_implementation=attention)
    processor = MetaTransformerProcessor(text=True)
    with torch.no_grad():
        together = model(**processor(text=TEXTS)).logits
        alone = torch.cat([model(**processor(text=[text])).logits for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_garbage_in_the_padding_has_no_influence() -> None:
    model = make_model(token_merging=3)
    sequence = model.model.tokenize(**MetaTransformerProcessor(text=True)(text=TEXTS))
    mask = sequence.mask
    assert mask is not None
    garbage = sequence.embeddings.masked_fill(~mask[..., None], 1e4)
    with torch.no_grad():
        found = model.model.encode(sequence.replace_embeddings(garbage)).last_hidden_state
        wanted = model.model.encode(sequence).last_hidden_state
    torch.testing.assert_close(found[mask], wanted[mask])


def test_merging_changes_what_is_found_a_little_and_none_changes_nothing() -> None:
    batch = MetaTransformerProcessor(text=True)(text=TEXTS[:1] * 2)
    with torch.no_grad():
        plain, none, some = (
            make_model(**each)(**batch).logits for each in ({}, {"token_merging": 0}, {"token_merging": 1})
        )
    torch.testing.assert_close(plain, none, rtol=0, atol=0)
    assert not torch.equal(plain, some)


def test_training_merges_nothing() -> None:
    batch = MetaTransformerProcessor(text=True)(text=TEXTS)
    one, other = make_model().train(), make_model(token_merging=3).train()
    torch.testing.assert_close(one(**batch).logits, other(**batch).logits, rtol=1e-5, atol=1e-5)


def test_gradients_flow_to_all_tokens() -> None:
    model = make_model(token_merging=3, heads={"classification": {"pooling": "mean"}})
    sequence = model.model.tokenize(**MetaTransformerProcessor(text=True)(text=TEXTS))
    embeddings = sequence.embeddings.detach().requires_grad_()
    encoded = model.model.encode(sequence.replace_embeddings(embeddings)).last_hidden_state[sequence.mask]
    (encoded * torch.randn_like(encoded)).sum().backward()
    gradient = embeddings.grad
    assert gradient is not None
    assert (gradient[sequence.mask].abs().sum(dim=-1) > 0).all()


def test_dense_heads_get_a_token_for_every_place() -> None:
    processor = MetaTransformerProcessor(image=ImageProcessor(size=32))
    modalities = {"image": {**processor.tokenizer_configs()["image"], "image_size": 32, "patch_size": 4}}
    config = MetaTransformerConfig(**TINY, modalities=modalities, num_labels=3, token_merging=8)
    model = MetaTransformerForSegmentation(config).eval()
    batch = processor(image=processor.image.dummy_samples(2))
    assert model(**batch).logits.shape == (2, 3, *batch["pixel_values"].shape[2:])


@pytest.mark.parametrize(
    ("options", "call", "said"),
    [
        ({"fusion": "bottleneck"}, {}, "fusion='bottleneck'"),
        ({"packing": True}, {}, "packing=True"),
        ({}, {"output_hidden_states": True}, "hidden states"),
        ({"heads": {"classification": {"layers": "all"}}}, {}, "several layers"),
    ],
)
def test_what_does_not_go_with_merging_is_refused(options: Any, call: Any, said: str) -> None:
    model = make_model(token_merging=2, **options)
    with pytest.raises(ValueError, match=said):
        model(**MetaTransformerProcessor(text=True)(text=TEXTS), **call)


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(Exception, match="token_merging must be at least 0, got -1"):
        make_model(token_merging=-1)
