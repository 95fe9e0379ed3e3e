"""The tabular tokenizer against rtdl_num_embeddings, the paper's equations in loops, and itself in other company."""

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from rtdl_num_embeddings import LinearEmbeddings, PeriodicEmbeddings, PiecewiseLinearEmbeddings
from torch import Tensor, nn

from meta_transformer.configuration import MetaTransformerConfig
from meta_transformer.modeling import MetaTransformerModel
from meta_transformer.processors.tabular import TabularProcessor
from meta_transformer.sequence import ColumnLayout
from meta_transformer.tokenizers.tabular import TabularTokenizer, TabularTokenizerConfig

HIDDEN = 16
EDGES = [[-2.0, -0.5, 0.0, 0.25, 3.0], [-1.0, 0.0, 1.0], [-1.5, 0.5, 1.0, 2.0]]
COLUMNS = {
    "numerical_columns": ["a", "b", "c"],
    "categorical_columns": ["d", "e"],
    "cardinalities": [4, 3],
    "bin_edges": EDGES,
}
EMBEDDINGS = ["linear", "periodic", "piecewise_linear"]


def make_tokenizer(std: float = 0.5, **options: Any) -> TabularTokenizer:
    """Three columns of numbers and two of categories, unless `options` say otherwise."""
    torch.manual_seed(0)
    tokenizer = TabularTokenizer(TabularTokenizerConfig(**{**COLUMNS, **options}), HIDDEN)
    for module in tokenizer.modules():
        if hasattr(module, "init_parameters"):
            module.init_parameters(std)
    return tokenizer


def make_inputs(batch_size: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "numerical_features": 2 * torch.randn(batch_size, 3, generator=generator),
        "categorical_ids": torch.stack([torch.arange(batch_size) % 4, torch.arange(batch_size) % 3], dim=1),
        "numerical_mask": torch.rand(batch_size, 3, generator=generator) > 0.3,
    }


def make_model(**options: Any) -> tuple[MetaTransformerModel, dict[str, Tensor]]:
    """A nano model for the tables of `TabularProcessor.dummy_samples`, and a batch for it."""
    processor = TabularProcessor().fit(TabularProcessor().dummy_samples(32))
    config = MetaTransformerConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        modalities={"tabular": {**processor.tokenizer_config(), **options}},
    )
    return MetaTransformerModel(config).eval(), dict(processor(TabularProcessor().dummy_samples(5, seed=1)))


def test_linear_tokens_equal_the_reference():
    tokenizer, values = make_tokenizer(), make_inputs()["numerical_features"]
    reference = LinearEmbeddings(3, HIDDEN)
    with torch.no_grad():
        reference.weight.copy_(tokenizer.numerical.weight[:, 0])
        reference.bias.copy_(tokenizer.numerical.bias)
    tokens = tokenizer(values, make_inputs()["categorical_ids"]).embeddings[:, :3]
    torch.testing.assert_close(tokens, reference(values))


def test_periodic_tokens_equal_the_reference():
    tokenizer = make_tokenizer(numerical_embedding="periodic", num_frequencies=5, frequency_scale=0.7)
    values = make_inputs()["numerical_features"]
    reference = PeriodicEmbeddings(3, HIDDEN, n_frequencies=5, lite=False)
    with torch.no_grad():
        reference.periodic.weight.copy_(tokenizer.numerical.features.frequencies)
        reference.linear.weight.copy_(tokenizer.numerical.weight)
        reference.linear.bias.copy_(tokenizer.numerical.bias)
    tokens = tokenizer(values, make_inputs()["categorical_ids"]).embeddings[:, :3]
    torch.testing.assert_close(tokens, reference(values), rtol=1e-5, atol=1e-5)


def test_piecewise_linear_tokens_equal_the_reference():
    tokenizer, values = make_tokenizer(numerical_embedding="piecewise_linear"), make_inputs()["numerical_features"]
    reference = PiecewiseLinearEmbeddings(
        [torch.tensor(edges) for edges in EDGES], HIDDEN, activation=False, version="A"
    )
    with torch.no_grad():
        for column, edges in enumerate(EDGES):
            num_bins = len(edges) - 1
            weight = tokenizer.numerical.weight[column]
            reference.linear.weight[column, : num_bins - 1] = weight[: num_bins - 1]
            reference.linear.weight[column, -1] = weight[num_bins - 1]  # the reference keeps the last bin at the end
        reference.linear.bias.copy_(tokenizer.numerical.bias)
    tokens = tokenizer(values, make_inputs()["categorical_ids"]).embeddings[:, :3]
    torch.testing.assert_close(tokens, reference(values), rtol=1e-5, atol=1e-5)


def test_piecewise_linear_features_follow_equation_one():
    features = make_tokenizer(numerical_embedding="piecewise_linear").numerical.features
    for value in (-7.0, -2.0, -1.2, 0.0, 0.1, 0.25, 2.9, 50.0):
        found = features(torch.full((1, 3), value))[0]
        for column, edges in enumerate(EDGES):
            num_bins = len(edges) - 1
            for index in range(found.shape[1]):
                expected = 0.0
                if index < num_bins:
                    expected = (value - edges[index]) / (edges[index + 1] - edges[index])
                    expected = max(expected, 0.0) if index > 0 else expected
                    expected = min(expected, 1.0) if index < num_bins - 1 else expected
                assert found[column, index].item() == pytest.approx(expected, abs=1e-5)


def test_each_category_has_its_own_row_plus_the_bias_of_its_column():
    tokenizer, inputs = make_tokenizer(), make_inputs(12)
    table, bias = tokenizer.categorical.embedding.weight, tokenizer.categorical.bias
    assert table.shape == (4 + 3, HIDDEN)
    tokens = tokenizer(**inputs).embeddings[:, 3:]
    for row, ids in enumerate(inputs["categorical_ids"].tolist()):
        torch.testing.assert_close(tokens[row, 0], table[ids[0]] + bias[0])
        torch.testing.assert_close(tokens[row, 1], table[4 + ids[1]] + bias[1])


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_missing_number_is_the_learned_vector_of_its_column_plus_bias(embedding: str):
    tokenizer, inputs = make_tokenizer(numerical_embedding=embedding), make_inputs()
    tokens = tokenizer(**inputs).embeddings
    assert not inputs["numerical_mask"].all()
    for row, column in (~inputs["numerical_mask"]).nonzero().tolist():
        torch.testing.assert_close(
            tokens[row, column], tokenizer.numerical.missing[column] + tokenizer.numerical.bias[column]
        )


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("garbage", [1e4, float("nan"), float("inf")])
def test_what_stands_in_missing_cells_changes_neither_tokens_nor_gradients(embedding: str, garbage: float):
    inputs = make_inputs()
    dirty = {
        **inputs,
        "numerical_features": inputs["numerical_features"].masked_fill(~inputs["numerical_mask"], garbage),
    }
    results = []
    for batch in (inputs, dirty):
        tokenizer = make_tokenizer(numerical_embedding=embedding)
        tokens = tokenizer(**batch).embeddings
        tokens.square().sum().backward()
        results.append([tokens, *(parameter.grad for parameter in tokenizer.parameters())])
    for clean_value, dirty_value in zip(*results, strict=True):
        torch.testing.assert_close(clean_value, dirty_value, rtol=0, atol=0)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_row_has_the_same_tokens_alone_and_in_a_batch(embedding: str):
    tokenizer, inputs = make_tokenizer(numerical_embedding=embedding), make_inputs()
    tokens = tokenizer(**inputs).embeddings
    for row in range(len(tokens)):
        alone = tokenizer(**{name: value[row : row + 1] for name, value in inputs.items()}).embeddings
        torch.testing.assert_close(alone[0], tokens[row], rtol=1e-5, atol=1e-5)


def test_without_a_mask_every_number_was_observed():
    tokenizer, inputs = make_tokenizer(), make_inputs()
    inputs["numerical_mask"] = torch.ones_like(inputs["numerical_mask"])
    expected = tokenizer(**inputs).embeddings
    del inputs["numerical_mask"]
    torch.testing.assert_close(tokenizer(**inputs).embeddings, expected, rtol=0, atol=0)


def test_equal_cells_of_two_columns_have_different_tokens():
    tokens = make_tokenizer(categorical_columns=["d", "e"], cardinalities=[3, 3])(
        torch.ones(1, 3), torch.ones(1, 2, dtype=torch.long)
    ).embeddings[0]
    assert torch.pdist(tokens).min() > 0.1


def test_tokens_come_with_the_names_of_their_columns_and_without_mask():
    sequence = make_tokenizer()(**make_inputs())
    assert sequence.layout == ColumnLayout(("a", "b", "c", "d", "e"))
    assert sequence.embeddings.shape == (6, 5, HIDDEN)
    assert sequence.mask is None


def test_tables_of_one_kind_of_columns_are_tokenized():
    inputs = make_inputs()
    numbers = make_tokenizer(categorical_columns=[], cardinalities=[])
    assert numbers(inputs["numerical_features"]).layout.names == ("a", "b", "c")
    categories = make_tokenizer(numerical_columns=[], bin_edges=None)
    assert categories(categorical_ids=inputs["categorical_ids"]).embeddings.shape == (6, 2, HIDDEN)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_every_parameter_gets_a_gradient_even_where_nothing_is_missing(embedding: str):
    tokenizer, inputs = make_tokenizer(numerical_embedding=embedding), make_inputs()
    tokenizer(inputs["numerical_features"], inputs["categorical_ids"]).embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tokenizer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_half_precision_stays_finite_and_close(embedding: str, dtype: torch.dtype):
    # Neighbouring edges, and numbers between them, that half precision cannot tell apart
    options = {"numerical_embedding": embedding, "bin_edges": [[-2.0, 1.0, 1.0001, 1.0002], *EDGES[1:]]}
    inputs = make_inputs()
    inputs["numerical_features"][:, 0] = torch.linspace(0.99995, 1.00025, 6)
    inputs["numerical_mask"][:, 0] = True
    expected = make_tokenizer(**options)(**inputs).embeddings
    found = make_tokenizer(**options).to(dtype)(**inputs).embeddings
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_tells_numbers_of_narrow_bins_apart(dtype: torch.dtype):
    model, batch = make_model(numerical_embedding="piecewise_linear")
    edges = model.tokenizers["tabular"].numerical.features.bin_edges
    edges[0][:] = [1.0, 1.0001, 1.0002, *(2.0 + i for i in range(len(edges[0]) - 3))]
    batch["numerical_features"][:, 0] = torch.tensor([1.0, 1.00005, 1.0001, 1.00015, 1.0002])
    batch["numerical_mask"][:, 0] = True
    nn.init.normal_(model.tokenizers["tabular"].numerical.weight)
    full, half = model.tokenize(**batch).embeddings, model.to(dtype).tokenize(**batch).embeddings
    torch.testing.assert_close(half[:, 1].float(), full[:, 1], rtol=0.03, atol=0.03)


def test_frequencies_start_with_the_configured_spread():
    tokenizer = make_tokenizer(numerical_embedding="periodic", num_frequencies=4000, frequency_scale=0.3)
    assert tokenizer.numerical.features.frequencies.std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_a_saved_model_gives_the_same_after_loading(embedding: str, tmp_path):
    model, batch = make_model(numerical_embedding=embedding)
    model.save_pretrained(tmp_path)
    loaded = MetaTransformerModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).last_hidden_state, model(**batch).last_hidden_state, rtol=0, atol=1e-6)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_weights_and_buffers_are_filled_when_a_model_is_built_without_memory(embedding: str):
    model, batch = make_model(numerical_embedding=embedding)
    empty = MetaTransformerModel.from_pretrained(None, config=model.config, state_dict={})
    tokenizer, filled = model.tokenizers["tabular"], empty.tokenizers["tabular"]
    for name, buffer in tokenizer.named_buffers():
        torch.testing.assert_close(filled.get_buffer(name), buffer, rtol=0, atol=0)
    for name, parameter in filled.named_parameters():
        scale = model.config.modalities["tabular"].frequency_scale if "frequencies" in name else 0.02
        assert 0.3 * scale < parameter.std() < 3 * scale, name
    assert empty.eval()(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_one_graph_serves_compilation_and_export(embedding: str):
    tokenizer, inputs = make_tokenizer(numerical_embedding=embedding), make_inputs()

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        def forward(self, numerical_features: Tensor, categorical_ids: Tensor, numerical_mask: Tensor) -> Tensor:
            return self.tokenizer(numerical_features, categorical_ids, numerical_mask).embeddings

    expected, module = tokenizer(**inputs).embeddings, Tokens()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(compiled, expected)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(module, (), inputs, dynamic_shapes={name: {0: rows} for name in inputs})
    more = make_inputs(9)
    torch.testing.assert_close(exported.module()(**more), tokenizer(**more).embeddings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"numerical_features": None, "numerical_mask": None},
            "numerical_features must have shape .batch, 3.*got None",
        ),
        ({"numerical_features": torch.zeros(6, 4)}, r"numerical_features must have shape \(batch, 3\).*got \(6, 4\)"),
        ({"numerical_mask": torch.ones(1, 3)}, r"numerical_mask has shape \(1, 3\), but numerical_features \(6, 3\)"),
        ({"categorical_ids": None}, "categorical_ids must have shape .batch, 2.*got None"),
        ({"categorical_ids": torch.zeros(6, dtype=torch.long)}, r"categorical_ids must have shape.*got \(6,\)"),
        ({"categorical_ids": torch.zeros(6, 2)}, "categorical_ids must be integers"),
        ({"categorical_ids": torch.zeros(5, 2, dtype=torch.long)}, r"differ in rows: \[6, 5\]"),
        ({"categorical_ids": torch.tensor([[0, 0]] * 5 + [[0, 3]])}, "column 'e' must lie in 0..2, got 3"),
        ({"categorical_ids": torch.tensor([[0, 0]] * 5 + [[-1, 0]])}, "column 'd' must lie in 0..3, got -1"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str):
    with pytest.raises(ValueError, match=message):
        make_tokenizer()(**{**make_inputs(), **change})


def test_tensors_of_columns_that_the_table_lacks_are_refused():
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"categorical_ids must have shape \(batch, 0\)"):
        make_tokenizer(categorical_columns=[], cardinalities=[])(
            inputs["numerical_features"], inputs["categorical_ids"]
        )
    with pytest.raises(ValueError, match="numerical_mask has shape"):
        make_tokenizer(numerical_columns=[], bin_edges=None)(None, inputs["categorical_ids"], inputs["numerical_mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categorical_columns": ["a", "d"]}, r"Columns \['a'\] are named twice"),
        ({"cardinalities": [4]}, r"cardinalities must hold one positive number.*got \[4\]"),
        ({"cardinalities": [4, 0]}, r"cardinalities must hold one positive number.*got \[4, 0\]"),
        ({"bin_edges": None, "numerical_embedding": "piecewise_linear"}, "needs bin_edges"),
        ({"bin_edges": EDGES[:2]}, "one list for each of the 3 numerical_columns, got 2"),
        ({"bin_edges": [[1.0, 1.0], *EDGES[1:]]}, "bin_edges of column 'a' must be at least two rising"),
        ({"bin_edges": [[1.0], *EDGES[1:]]}, "bin_edges of column 'a' must be at least two rising"),
        ({"num_frequencies": 0}, "num_frequencies and frequency_scale must be positive, got 0"),
        ({"frequency_scale": 0}, "num_frequencies and frequency_scale must be positive, got 48 and 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        TabularTokenizerConfig(**{**COLUMNS, **options})


def test_a_model_without_columns_says_where_they_come_from():
    config = MetaTransformerConfig(modalities=["tabular"])
    with pytest.raises(ValueError, match=r"fit a TabularProcessor and pass.*processor.tokenizer_config\(\)"):
        MetaTransformerModel(config)
