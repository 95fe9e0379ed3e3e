"""Text tokenizer: against transformers' BERT and ALBERT, and a loop over n-grams."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
)

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.processors.text import TextProcessor
from meta_transformer.sequence import StepLayout
from meta_transformer.tokenizers.text import TextTokenizer, TextTokenizerConfig

HIDDEN = 12
NGRAMS = [(1, 1), (3, 1), (4, 4), (7, 4), (5, 2)]
TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make(positions: bool = True, **options: object) -> TextTokenizer:
    """A tokenizer with random weights, its positions zero on request."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer(TextTokenizerConfig(**options), HIDDEN).eval()
    nn.init.normal_(tokenizer.positions.table, std=float(positions))
    return tokenizer


def batch_of(*lengths: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 384, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, padding), mask


@torch.no_grad()
def test_tokens_equal_berts_embeddings() -> None:
    config = BertConfig(
        vocab_size=384, hidden_size=HIDDEN, num_attention_heads=2, num_hidden_layers=1, layer_norm_eps=1e-5
    )
    reference = BertForSequenceClassification(config).eval().bert.embeddings
    nn.init.zeros_(reference.token_type_embeddings.weight)
    tokenizer = make()
    tokenizer.embeddings.weight.copy_(reference.word_embeddings.weight)
    tokenizer.positions.table.copy_(reference.position_embeddings.weight)
    ids, _ = batch_of(20, 20)
    torch.testing.assert_close(tokenizer(ids).embeddings, reference(ids))


@torch.no_grad()
def test_a_table_of_another_width_is_projected_as_alberts() -> None:
    config = AlbertConfig(vocab_size=384, embedding_size=5, hidden_size=HIDDEN, num_attention_heads=2)
    reference = AlbertModel(config).eval()
    tokenizer = make(positions=False, embedding_size=5)
    tokenizer.load_embeddings(reference)
    tokenizer.projection.load_state_dict(reference.encoder.embedding_hidden_mapping_in.state_dict())
    ids, _ = batch_of(6)
    expected = reference.encoder.embedding_hidden_mapping_in(reference.embeddings.word_embeddings(ids))
    torch.testing.assert_close(tokenizer(ids).embeddings, functional.layer_norm(expected, (HIDDEN,)))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize(("size", "rate"), NGRAMS[1:])
def test_tokens_equal_a_loop_over_ngrams(size: int, rate: int, length: int) -> None:
    tokenizer = make(positions=False, ngram_size=size, downsampling_rate=rate, embedding_size=7)
    ids, _ = batch_of(length)
    table, convolution = tokenizer.embeddings.weight, tokenizer.projection.convolution
    expected = []
    for start in range(0, length, rate):  # the ids that the token stands for, and as many on both sides
        total = convolution.bias.clone()
        for offset in range(size):
            place = start - (size - rate) // 2 + offset
            if 0 <= place < length:
                total += convolution.weight[:, :, offset] @ table[ids[0, place]]
        expected.append(functional.layer_norm(functional.gelu(total), (HIDDEN,)))
    torch.testing.assert_close(tokenizer(ids).embeddings[0], torch.stack(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("size", "rate"), NGRAMS)
def test_a_text_has_the_same_tokens_alone_and_in_a_batch(size: int, rate: int) -> None:
    tokenizer = make(ngram_size=size, downsampling_rate=rate, max_positions=4)
    lengths = (3, 30, 1, 17)
    ids, mask = batch_of(*lengths)
    sequence = tokenizer(ids, mask)
    assert sequence.mask.sum(dim=1).tolist() == [-(-length // rate) for length in lengths]
    for index, length in enumerate(lengths):
        alone = tokenizer(ids[index : index + 1, :length])
        assert alone.mask is None
        torch.testing.assert_close(
            sequence.embeddings[index][sequence.mask[index]], alone.embeddings[0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("size", "rate"), NGRAMS)
def test_nothing_in_the_padding_reaches_tokens_or_gradients(size: int, rate: int) -> None:
    found = []
    for padding in (0, 383, -100, 2**40):
        tokenizer = make(ngram_size=size, downsampling_rate=rate)
        ids, mask = batch_of(3, 9, padding=padding)
        sequence = tokenizer(ids, mask)
        sequence.embeddings[sequence.mask].square().sum().backward()
        found.append((sequence.embeddings[sequence.mask], [each.grad for each in tokenizer.parameters()]))
    for tokens, gradients in found[1:]:
        assert torch.equal(tokens, found[0][0])
        assert all(map(torch.equal, gradients, found[0][1]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_masks_of_zeros_and_ones_are_taken(dtype: torch.dtype) -> None:
    ids, mask = batch_of(3, 9)
    sequence = make()(ids.int(), mask.to(dtype))
    assert torch.equal(sequence.embeddings, make()(ids, mask).embeddings)
    assert torch.equal(sequence.mask, mask)


@torch.no_grad()
def test_a_text_without_any_real_id_has_no_real_token() -> None:
    ids, mask = batch_of(0, 5)
    sequence = make(ngram_size=4, downsampling_rate=4)(ids, mask)
    assert sequence.mask.tolist() == [[False, False], [True, True]]
    assert sequence.embeddings.isfinite().all()


def test_the_layout_says_which_ids_a_token_stands_for() -> None:
    ids, mask = batch_of(10, 7)
    layout = make(ngram_size=6, downsampling_rate=4)(ids, mask).layout
    assert layout == StepLayout((3,), (4,), (4,), 0, 10, lengths=layout.lengths)
    assert layout.lengths.tolist() == [10, 7]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"positions": False, "ngram_size": 3}])
def test_order_matters(options: dict[str, object]) -> None:
    ids, _ = batch_of(8)
    tokenizer = make(**options)
    assert (tokenizer(ids.flip(1)).embeddings.flip(1) - tokenizer(ids).embeddings).abs().max() > 0.1


# Precision, compilation


@pytest.mark.parametrize("options", [{}, {"embedding_size": 5}, {"ngram_size": 5, "downsampling_rate": 4}])
def test_a_model_loads_weights_and_makes_those_that_are_missing(options: dict[str, int], tmp_path: Path) -> None:
    config = MetaTransformerConfig(**TRUNK, modalities={"text": options})
    model = MetaTransformerModel(config).eval()
    model.save_pretrained(tmp_path)
    ids, mask = batch_of(3, 9)
    loaded = MetaTransformerModel.from_pretrained(tmp_path)
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(loaded(input_ids=ids, attention_mask=mask).last_hidden_state, expected)
    fresh = MetaTransformerModel.from_pretrained(None, config=config, state_dict={})
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())
    assert fresh.tokenizers["text"].embeddings.weight.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize(("size", "rate"), NGRAMS)
def test_half_precision_stays_close_to_full(size: int, rate: int, dtype: torch.dtype, tolerance: float) -> None:
    tokenizer = make(ngram_size=size, downsampling_rate=rate, max_positions=4)
    full = tokenizer(*batch_of(3, 9)).embeddings
    half = tokenizer.to(dtype)(*batch_of(3, 9)).embeddings
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=tolerance, rtol=tolerance)


@torch.no_grad()
@pytest.mark.parametrize(("size", "rate"), [(1, 1), (7, 4)])
def test_one_graph_compiles_with_and_without_mask(size: int, rate: int) -> None:
    tokenizer = make(ngram_size=size, downsampling_rate=rate, max_positions=4)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *inputs: tokenizer(*inputs).embeddings, fullgraph=True, backend="eager", dynamic=True
    )
    ids, mask = batch_of(3, 9)
    for inputs in ((ids,), (ids, mask), (ids[:, :6],)):
        torch.testing.assert_close(compiled(*inputs), tokenizer(*inputs).embeddings)


@torch.no_grad()
def test_an_exported_graph_takes_texts_of_any_length() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = make(ngram_size=6, downsampling_rate=4, max_positions=4)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.tokenizer(input_ids).embeddings

    module = Embeddings()
    exported = export(module, (batch_of(9, 9)[0],), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)).module()
    for length in (5, 8, 40):
        ids, _ = batch_of(length, length, length)
        torch.testing.assert_close(exported(ids), module(ids))


def test_the_processors_output_is_the_input() -> None:
    processor = TextProcessor()
    batch = processor(processor.dummy_samples(3))
    sequence = make(**processor.tokenizer_config(), ngram_size=4, downsampling_rate=4)(**batch)
    assert torch.equal(sequence.mask.sum(dim=1), (batch["attention_mask"].sum(dim=1) + 3) // 4)


# Bad input


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(3, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 3), torch.zeros(2, 3) > 0],
)
def test_what_are_no_ids_is_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be integers of shape \(batch, length\), got"):
        make()(ids)


@pytest.mark.parametrize("wrong", [-1, 384])
def test_ids_out_of_range_are_refused_with_the_remedy(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.383, got {wrong}; .*processor.tokenizer_configs"):
        make()(torch.tensor([[5, wrong]]))


def test_padding_in_front_and_masks_of_another_shape_are_refused() -> None:
    ids, mask = batch_of(3, 9)
    with pytest.raises(ValueError, match=r"attention_mask has padding in front of sample 0.*padding_side='right'"):
        make()(ids, mask.flip(1))
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 9\).*got \(2, 8\)"):
        make()(ids, mask[:, :8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"embedding_size": 0}, "embedding_size must be at least 1"),
        ({"max_positions": -1}, "max_positions must be at least 1"),
        ({"ngram_size": 0}, "ngram_size must be at least 1"),
        ({"downsampling_rate": 4}, "downsampling_rate 4 is larger than ngram_size 1.*set ngram_size to 4 or more"),
    ],
)
def test_options_that_make_no_tokens_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        TextTokenizerConfig(**options)


def test_options_survive_json() -> None:
    config = TextTokenizerConfig(
        vocab_size=99, embedding_size=7, freeze_embeddings=True, ngram_size=5, downsampling_rate=2
    )
    assert TextTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
