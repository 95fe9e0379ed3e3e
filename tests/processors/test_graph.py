"""Graph processor: fields, settings, and what it owes to any input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.graph import GraphProcessor
from tests.support.fuzz import finite_or_refused

GRAPH = {"edges": [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]], "num_nodes": 5}
SMILES = ["CCO", "c1ccccc1O", "[Na+].[Cl-]", "C"]


def plain(**options: Any) -> GraphProcessor:
    """A processor for graphs of structure alone."""
    return GraphProcessor(node_fields=[], edge_fields=[], **options)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_features_of_atoms_fitted_on_molecules_know_unseen_ones() -> None:
    batch = GraphProcessor().fit(["CCO"])("CCN")
    assert batch["node_categories"][0, :, 0].tolist() == [1, 1, 0]


def test_numbers_are_standardised_over_all_nodes_of_all_graphs() -> None:
    random = np.random.default_rng(0)
    graphs = [
        {"edges": [[0, 1]], "node_features": random.normal(3, 5, (n, 2)), "edge_features": [[0.5, 1.0]]} for n in (2, 9)
    ]
    batch = GraphProcessor().fit(graphs)(graphs)
    values = batch["node_features"][batch["node_mask"]]
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(dim=0, correction=0), torch.ones(2))
    assert batch["edge_features"].abs().max() == 0  # constant: nothing but its distance from the mean
    assert batch["node_features"].dtype == torch.float32


@pytest.mark.parametrize("cell", [np.nan, np.inf, None])
def test_a_missing_cell_among_text_is_refused_in_fit(cell: float | None) -> None:
    nodes = pd.DataFrame({"element": ["C", "O"], "charge": [0.5, cell]})
    graph = {"nodes": nodes, "edges": pd.DataFrame({"u": [0], "v": [1]})}
    with pytest.raises(ValueError, match=r"graph\[0\]: node features\[1, 1\] is (nan|inf)"):
        GraphProcessor(node_attributes=["element", "charge"]).fit([graph])


def test_masked_numbers_are_missing() -> None:
    with pytest.raises(ValueError, match=r"node features\[1, 0\] is nan"):
        GraphProcessor().fit({"edges": [], "node_features": np.ma.masked_equal([[1.5], [-9.0]], -9)})


def test_numbers_beyond_statistics_or_float32_are_refused_with_their_graph() -> None:
    graphs = [{"edges": [], "node_features": [[value], [-value]]} for value in (0.5, 1e300)]
    with pytest.raises(
        ValueError, match=r"node features\[:, 0\] holds numbers too large for statistics, up to 1e\+300"
    ):
        GraphProcessor().fit(graphs)
    with pytest.raises(ValueError, match=r"graph\[1\]: The number 1e\+300 is too large"):
        GraphProcessor().fit(graphs[0])(graphs)


def test_a_failing_fit_changes_nothing() -> None:
    processor = GraphProcessor().fit({"edges": [[0, 1]], "node_features": [1, 2]})
    before = processor.to_dict()
    with pytest.raises(ValueError, match="nan"):
        processor.fit({"edges": [[0, 1]], "node_features": [0.5, np.nan]})
    assert processor.to_dict() == before


def test_integers_are_taken_where_numbers_were_fitted_and_booleans_are_numbers() -> None:
    floats = [{"edges": [], "node_features": [[0.5], [1.5]]}]
    assert GraphProcessor().fit(floats)({"edges": [], "node_features": [[1]]})["node_features"].tolist() == [[[0.0]]]
    mixed = [{"edges": [], "node_features": [[0], [1]]}, *floats]
    assert list(GraphProcessor().fit(mixed).node_fields[0]) == ["mean", "std"]
    flags = {"edges": [], "node_features": torch.tensor([[True], [False]])}
    assert GraphProcessor().fit(flags)(flags)["node_features"].tolist() == [[[1.0], [-1.0]]]


def test_what_was_learned_survives_json(tmp_path: Path) -> None:
    processor = GraphProcessor(num_identifiers=5, identifiers="orthonormal").fit(SMILES)
    MetaTransformerProcessor(graph=processor).save_pretrained(tmp_path)
    restored = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert restored.graph.to_dict() == processor.to_dict()
    assert same(restored(graph=SMILES), processor(SMILES))


def test_the_tokenizer_gets_the_fields() -> None:
    options = GraphProcessor.for_molecules(num_identifiers=3).tokenizer_config()
    assert options["node_cardinalities"] == [120, 10, 12, 13, 10, 6, 9, 3, 3]
    assert options["edge_cardinalities"] == [23, 7, 3]
    assert (options["num_node_features"], options["num_identifiers"]) == (0, 3)


def test_graphs_of_different_fields_cannot_be_fitted() -> None:
    graphs = [{"edges": [], "node_features": [[1]]}, {"edges": [], "node_features": [[1, 2]]}]
    with pytest.raises(ValueError, match=r"as many node features, got \[1, 2\]"):
        GraphProcessor().fit(graphs)


def test_a_processor_that_was_not_fitted_says_so() -> None:
    with pytest.raises(ValueError, match="call fit"):
        GraphProcessor()(GRAPH)
    with pytest.raises(ValueError, match="call fit"):
        GraphProcessor().tokenizer_config()


def test_a_graph_too_large_for_a_sample_is_refused_before_it_takes_memory() -> None:
    with pytest.raises(ValueError, match=r"graph\[0\]: 1000000000 nodes are too many.*neighbourhoods"):
        plain()({"edges": [[0, 1]], "num_nodes": 10**9})


def test_samples_without_the_node_to_mark_are_refused() -> None:
    with pytest.raises(ValueError, match=r"graph\[0\]: the sample has no 'seed'"):
        plain(seed_nodes=True)(GRAPH)


@pytest.mark.parametrize(
    "options",
    [
        {"identifiers": "magic"},
        {"num_identifiers": 0},
        {"num_identifiers": 2.5},
        {"node_fields": []},
        {"node_fields": [{"values": [2, 1]}], "edge_fields": []},
        {"node_fields": [{"mean": 0.0, "std": 0.0}], "edge_fields": []},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* must be|belong together"):
        GraphProcessor(**options)


def test_names_of_attributes_must_be_a_list() -> None:
    with pytest.raises(TypeError, match="node_attributes must be a list of names"):
        GraphProcessor(node_attributes="element")


CELLS = st.one_of(
    st.integers(-5, 5), st.floats(), st.booleans(), st.text(max_size=2), st.none(), st.integers(2**62, 2**65)
)
TABLES = st.one_of(
    st.none(),
    st.lists(CELLS, max_size=4),
    st.lists(st.lists(CELLS, max_size=3), max_size=4),
    st.sampled_from([np.ones((2, 1), np.float16), np.ones((3, 1), np.uint8), torch.ones(2, 1), "no/such/file"]),
)
PARTS = st.fixed_dictionaries(
    {"edges": st.one_of(st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), max_size=6), TABLES)},
    optional={"num_nodes": st.one_of(st.integers(-1, 6), CELLS), "node_features": TABLES, "edge_features": TABLES},
)
ANYTHING = st.one_of(PARTS, CELLS, st.lists(PARTS, max_size=2), st.dictionaries(st.text(max_size=3), CELLS, max_size=2))


@settings(max_examples=40, deadline=None)
@given(ANYTHING, st.booleans())
def test_whatever_goes_in_finite_tensors_or_a_sentence_come_out(samples: Any, fitted: bool) -> None:
    processor = GraphProcessor(num_identifiers=3)
    finite_or_refused(lambda: (processor if fitted else plain()).fit(samples)(samples))


NUMBERS = st.sampled_from([0.0, 0.1, -1.0, 1e38, -1e38, 5e-324]) | st.floats(-1e38, 1e38)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A graph whose nodes have a number and a text, and whose edges have a number."""
    nodes, edges = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    places = st.integers(0, nodes - 1)
    return {
        "edges": [(draw(places), draw(places)) for _ in range(edges)],
        "node_features": [[draw(NUMBERS), draw(st.text("CNO", max_size=2))] for _ in range(nodes)],
        "edge_features": [[draw(NUMBERS)] for _ in range(edges)],
    }


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(graphs(), min_size=1, max_size=3),
    wrong=st.sampled_from([None, None, np.nan, np.inf, -np.inf]),
    identifiers=st.sampled_from(["laplacian", "orthonormal", "none"]),
    directed=st.booleans(),
)
def test_graphs_are_taken_unless_a_number_is_not_finite(
    samples: list[dict[str, Any]], wrong: float | None, identifiers: str, directed: bool
) -> None:
    if wrong is not None:
        samples[-1]["node_features"][-1][0] = wrong
    processor = GraphProcessor(num_identifiers=3, identifiers=identifiers, directed=directed)
    assert finite_or_refused(lambda: processor.fit(samples)(samples)) == (wrong is None)
