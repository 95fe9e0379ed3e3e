"""Graph processor: against networkx, numpy's eigh, PyTorch Geometric's loader and closed forms."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import FakeDataset
from torch_geometric.utils import from_networkx, from_smiles, k_hop_subgraph

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.graph import GraphProcessor
from tests.support.fuzz import finite_or_refused

PAIRS = [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]]
GRAPH = {"edges": PAIRS, "num_nodes": 5}
SMILES = ["CCO", "c1ccccc1O", "[Na+].[Cl-]", "C"]


def plain(**options: Any) -> GraphProcessor:
    """A processor for graphs of structure alone."""
    return GraphProcessor(node_fields=[], edge_fields=[], **options)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def laplacian(graph: nx.Graph) -> np.ndarray:
    return nx.normalized_laplacian_matrix(graph).toarray()


def spectrum(graph: nx.Graph, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit eigenvectors, eigenvalues and numbers of eigenspaces that the processor gives a connected graph."""
    graph = nx.convert_node_labels_to_integers(graph)
    batch = plain(num_identifiers=k)(graph)
    arrays = [batch[f"node_{name}"][0].numpy() for name in ("identifiers", "eigenvalues", "eigenspaces")]
    return arrays[0].astype(np.float64) / np.sqrt(len(graph)), arrays[1][0], arrays[2][0]


@pytest.fixture(scope="module")
def citations() -> dict[str, Any]:
    """Cora, or a random graph of its size where there is no data."""
    folder = os.environ.get("META_TRANSFORMER_DATA")
    if folder:
        nodes = pd.read_csv(Path(folder) / "graph_nodes/cora/nodes.csv")
        edges = pd.read_csv(Path(folder) / "graph_nodes/cora/edges.csv")
        return {"edges": edges[["source", "target"]].to_numpy(), "node_features": nodes[["node"]].to_numpy()}
    graph = nx.barabasi_albert_graph(2700, 2, seed=0)
    return {"edges": np.array(graph.edges), "node_features": np.arange(2700)[:, None]}


# What goes in


def test_all_forms_of_one_graph_give_the_same() -> None:
    both = torch.tensor(PAIRS).T
    both = torch.cat([both, both.flip(0)], dim=1)
    network = nx.Graph()
    network.add_nodes_from(range(5))
    network.add_edges_from(PAIRS)
    forms = [
        {"edge_index": np.array(PAIRS).T, "num_nodes": 5},
        {"edge_index": both, "num_nodes": torch.tensor(5)},
        {"edges": [[b, a] for a, b in reversed(PAIRS)], "num_nodes": 5},
        {"edges": pd.DataFrame(PAIRS), "nodes": pd.DataFrame(index=range(5))},
        Data(edge_index=both, num_nodes=5),
        network,
        from_networkx(network),
    ]
    expected = plain()(GRAPH)
    assert expected["edge_index"].tolist() == [sorted(PAIRS)]
    for form in forms:
        assert same(plain()(form), expected)
        assert same(plain()([form]), expected)
    assert same(plain()(Batch.from_data_list([forms[4]] * 2)), plain()([GRAPH] * 2))


def test_a_pytorch_geometric_data_set_is_a_list_of_graphs() -> None:
    dataset = FakeDataset(num_graphs=3, avg_num_nodes=6, edge_dim=2)
    processor = GraphProcessor(directed=True).fit(dataset)
    batch = processor(dataset)
    assert same(batch, processor([dataset[0], dataset[1], dataset[2]]))
    assert batch["edge_index"][0, : dataset[0].num_edges].T.tolist() == dataset[0].edge_index.tolist()
    columns = torch.cat([data.x for data in dataset])
    expected = (dataset[1].x - columns.mean(dim=0)) / columns.std(dim=0, correction=0)
    torch.testing.assert_close(batch["node_features"][1, : dataset[1].num_nodes], expected, atol=1e-4, rtol=1e-4)


def test_nodes_without_features_or_edges_are_counted_by_their_coordinates() -> None:
    batch = plain()(Data(edge_index=torch.tensor([[0], [1]]), pos=torch.zeros(4, 3)))
    assert batch["node_identifiers"].shape[1] == 4


def test_a_datasets_column_in_the_style_of_ogb_is_taken() -> None:
    from datasets import Dataset

    rows = [
        {"edge_index": [[0, 1], [1, 0]], "node_feat": [[6, 0], [8, 1]], "edge_attr": [[3], [3]], "num_nodes": 2},
        {"edge_index": [[], []], "node_feat": [[7, 1]], "edge_attr": [], "num_nodes": 1},
    ]
    column = Dataset.from_dict({"graph": rows})["graph"]
    batch = GraphProcessor().fit(column)(column)
    assert batch["node_categories"].tolist() == [[[1, 1], [3, 2]], [[2, 2], [0, 0]]]
    assert batch["edge_index"].tolist() == [[[0, 1]], [[0, 0]]]
    assert batch["edge_categories"].tolist() == [[[1]], [[0]]]
    assert batch["node_mask"].tolist() == [[True, True], [True, False]]
    assert batch["edge_mask"].tolist() == [[True], [False]]


def test_named_attributes_of_networkx_graphs_and_tables_may_mix_text_and_numbers() -> None:
    network = nx.Graph()
    network.add_node("a", element="C", charge=0.5)
    network.add_node("b", element="O", charge=-0.5)
    network.add_edge("b", "a", order=2)
    nodes = pd.DataFrame({"element": ["C", "O"], "charge": [0.5, -0.5], "other": [1, 2]}, index=["a", "b"])
    tables = {"nodes": nodes, "edges": pd.DataFrame({"from": ["b"], "to": ["a"], "order": [2]})}
    processor = GraphProcessor(node_attributes=["element", "charge"], edge_attributes=["order"]).fit(network)
    batch = processor(network)
    assert batch["node_categories"].tolist() == [[[1], [2]]]
    assert batch["node_features"].tolist() == [[[1.0], [-1.0]]]
    assert batch["edge_categories"].tolist() == [[[1]]]
    assert same(processor(tables), batch)


def test_smiles_are_the_atoms_and_bonds_of_pytorch_geometric() -> None:
    from rdkit import Chem

    processor = GraphProcessor.for_molecules()
    batch = processor(SMILES)
    for index, smiles in enumerate(SMILES):
        data = from_smiles(smiles)
        assert torch.equal(batch["node_categories"][index, : data.num_nodes], data.x + 1)
        once = data.edge_index[0] < data.edge_index[1]
        bonds = batch["edge_mask"][index]
        found = {
            tuple(row) for row in torch.cat([batch["edge_index"], batch["edge_categories"]], 2)[index][bonds].tolist()
        }
        expected = {tuple(row) for row in torch.cat([data.edge_index.T, data.edge_attr + 1], 1)[once].tolist()}
        assert found == expected
    assert same(processor([Chem.MolFromSmiles(smiles) for smiles in SMILES]), batch)
    assert same(processor([{"smiles": smiles} for smiles in SMILES]), batch)


def test_features_of_atoms_fitted_on_molecules_know_unseen_ones() -> None:
    batch = GraphProcessor().fit(["CCO"])("CCN")
    assert batch["node_categories"][0, :, 0].tolist() == [1, 1, 0]


# Edges


def test_an_undirected_edge_is_there_once_and_loops_and_different_parallel_edges_stay() -> None:
    edges = [[1, 0], [0, 1], [1, 0], [1, 1], [1, 1], [0, 1]]
    graph = {"edges": edges, "num_nodes": 2, "edge_features": [5, 5, 5, 7, 7, 6]}
    batch = GraphProcessor().fit(graph)(graph)
    rows = torch.cat([batch["edge_index"], batch["edge_categories"]], dim=2)[0].tolist()
    assert sorted(rows) == [[0, 1, 1], [0, 1, 2], [1, 1, 3]]


def test_directed_edges_stay_as_they_are_and_undirected_networkx_graphs_get_both_directions() -> None:
    edges = [[1, 0], [0, 1], [1, 0], [1, 1]]
    batch = plain(directed=True)({"edges": edges, "num_nodes": 2})
    assert batch["edge_index"].tolist() == [edges]
    network = nx.Graph([(0, 1), (1, 1)])
    assert sorted(plain(directed=True)(network)["edge_index"][0].tolist()) == [[0, 1], [1, 0], [1, 1]]
    assert plain(directed=True)(nx.DiGraph([(0, 1)]))["edge_index"].tolist() == [[[0, 1]]]


def test_loops_parallel_edges_and_directions_do_not_change_the_laplacian() -> None:
    extra = {"edges": [*PAIRS, [1, 0], [1, 1]], "num_nodes": 5}
    for name in ("node_identifiers", "node_eigenvalues", "node_eigenspaces"):
        assert torch.equal(plain(directed=True)(extra)[name], plain()(GRAPH)[name])


def test_a_lone_node_and_a_graph_without_edges() -> None:
    batch = plain(num_identifiers=2)([{"edges": [], "num_nodes": 1}, {"edges": [], "num_nodes": 3}])
    assert batch["edge_index"].shape == (2, 0, 2)
    assert "edge_mask" not in batch
    assert batch["node_identifiers"].tolist() == [[[1, 0], [0, 0], [0, 0]], [[1, 0]] * 3]
    assert batch["node_eigenspaces"].tolist() == [[[1, 0], [0, 0], [0, 0]], [[1, 0]] * 3]


# Identifiers


@pytest.mark.parametrize(
    "graph",
    [nx.path_graph(9), nx.lollipop_graph(5, 4), nx.barabasi_albert_graph(40, 2, seed=0), nx.tutte_graph()],
    ids=["path", "lollipop", "scale-free", "tutte"],
)
def test_eigenvectors_are_those_of_networkx_laplacian(graph: nx.Graph) -> None:
    vectors, values, spaces = spectrum(graph, 8)
    expected, basis = np.linalg.eigh(laplacian(graph))
    np.testing.assert_allclose(values, expected[:8], atol=1e-6)
    for space in set(spaces.tolist()) - {0}:
        own = vectors[:, spaces == space]
        theirs = basis[:, np.isclose(expected, values[spaces == space][0], atol=1e-6)]
        np.testing.assert_allclose(own @ own.T, theirs @ theirs.T, atol=1e-5)


@pytest.mark.parametrize(
    "graph",
    [
        nx.barabasi_albert_graph(600, 3, seed=0),
        nx.grid_2d_graph(20, 20),
        nx.grid_2d_graph(18, 18, periodic=True),
        nx.cycle_graph(400),
        nx.path_graph(700),
        nx.star_graph(300),
        nx.hypercube_graph(9),
    ],
    ids=["scale-free", "grid", "torus", "cycle", "path", "star", "hypercube"],
)
def test_the_sparse_solver_finds_every_eigenvalue_as_often_as_it_is_there(graph: nx.Graph) -> None:
    """Lanczos alone finds one vector of each eigenspace: on the torus, a fourth of them."""
    vectors, values, _ = spectrum(graph, 8)
    matrix = laplacian(graph)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[:8], atol=1e-6)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-4)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-5)


def test_eigenspaces_are_numbered_and_one_that_is_cut_is_zero() -> None:
    # A cycle of 7 has the eigenvalue 0 once and three more twice.
    assert spectrum(nx.cycle_graph(7), 7)[2].tolist() == [1, 2, 2, 3, 3, 4, 4]
    assert spectrum(nx.cycle_graph(7), 4)[2].tolist() == [1, 2, 2, 0]
    assert spectrum(nx.complete_graph(9), 4)[2].tolist() == [1, 0, 0, 0]


def test_each_component_has_the_identifiers_that_it_has_alone() -> None:
    parts = [nx.path_graph(4), nx.lollipop_graph(4, 3), nx.empty_graph(1)]
    whole = plain(num_identifiers=5)(nx.disjoint_union_all(parts))
    start = 0
    for part in parts:
        alone = plain(num_identifiers=5)(part)
        for name in ("node_identifiers", "node_eigenvalues", "node_eigenspaces"):
            torch.testing.assert_close(whole[name][:, start : start + len(part)], alone[name], atol=1e-5, rtol=0)
        start += len(part)


def test_signs_do_not_depend_on_the_order_of_nodes() -> None:
    graph = nx.lollipop_graph(5, 6)
    order = np.random.default_rng(0).permutation(len(graph))
    other = plain(num_identifiers=4)({"edges": order[np.array(graph.edges)], "num_nodes": len(graph)})
    first = plain(num_identifiers=4)(graph)
    kept = first["node_eigenspaces"][0, 0] > 0
    ours, theirs = first["node_identifiers"][0], other["node_identifiers"][0][order]
    torch.testing.assert_close(ours[:, kept], theirs[:, kept], atol=1e-4, rtol=0)


def test_identifiers_do_not_depend_on_the_batch() -> None:
    graphs = [nx.path_graph(n) for n in (3, 3, 9, 5)]
    together = plain()(graphs)
    for index, graph in enumerate(graphs):
        alone = plain()(graph)
        for name in ("node_identifiers", "node_eigenvalues", "node_eigenspaces"):
            torch.testing.assert_close(together[name][index, : len(graph)], alone[name][0], atol=1e-6, rtol=0)


def test_orthonormal_identifiers_are_orthonormal_and_follow_the_seed() -> None:
    processor = plain(identifiers="orthonormal", num_identifiers=12)
    vectors = processor([nx.path_graph(n) for n in (4, 12, 30)])["node_identifiers"].double()
    for index, size in enumerate((4, 12)):
        own = vectors[index, :size]
        torch.testing.assert_close(own @ own.T, torch.eye(size).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors[2].T @ vectors[2], torch.eye(12).double() * 30 / 12, atol=1e-5, rtol=0)
    assert same(processor(GRAPH), processor(GRAPH, identifier_seed=0))
    assert not same(processor(GRAPH), processor(GRAPH, identifier_seed=1))


def test_without_identifiers_the_mask_tells_the_number_of_nodes() -> None:
    batch = plain(identifiers="none")(GRAPH)
    assert sorted(batch) == ["edge_index", "node_mask"]
    assert batch["node_mask"].tolist() == [[True] * 5]


# Fields


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


# Neighbourhoods


def test_unlimited_neighbourhoods_are_the_k_hop_subgraphs_of_pytorch_geometric(citations: dict[str, Any]) -> None:
    processor = GraphProcessor(seed_nodes=True).fit(citations)
    edge_index = torch.from_numpy(np.asarray(citations["edges"])).T
    edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    nodes = [0, 7, 1500]
    samples = list(processor.neighbourhoods(citations, nodes, num_hops=2, num_neighbors=None))
    for node, sample in zip(nodes, samples, strict=True):
        expected, edges, _, _ = k_hop_subgraph(node, 2, edge_index, num_nodes=len(citations["node_features"]))
        assert sample["original_nodes"][0] == node
        assert sorted(sample["original_nodes"].tolist()) == expected.tolist()
        found = {frozenset(pair) for pair in sample["original_nodes"][sample["edges"]].tolist()}
        assert found == {frozenset(pair) for pair in edges.T.tolist()}
        assert len(sample["edges"]) == len(found)
        assert np.array_equal(sample["node_features"], np.asarray(citations["node_features"])[sample["original_nodes"]])
    assert processor(samples)["seed_node"].tolist() == [0, 0, 0]


def test_sampled_neighbourhoods_are_small_repeatable_and_independent_of_the_other_nodes(citations: Any) -> None:
    processor = GraphProcessor().fit(citations)

    def draw(nodes: list[int], seed: int) -> list[list[int]]:
        samples = processor.neighbourhoods(citations, nodes, num_hops=2, num_neighbors=[5, 2], seed=seed)
        return [sample["original_nodes"].tolist() for sample in samples]

    nodes = list(range(100))
    first = draw(nodes, 0)
    assert max(map(len, first)) <= 1 + 5 + 10
    assert draw(nodes, 0) == first
    assert draw([42], 0) == [first[42]]
    assert draw(nodes, 1) != first


def test_a_mask_of_nodes_is_taken() -> None:
    mask = torch.tensor([False, True, False, True, False])
    samples = list(plain().neighbourhoods(GRAPH, mask, num_hops=1, num_neighbors=None))
    assert [sample["original_nodes"].tolist() for sample in samples] == [[1, 0, 2, 3], [3, 0, 1, 2]]


@pytest.mark.parametrize(
    ("nodes", "options", "error", "message"),
    [
        ([5], {}, ValueError, "places from 0 to 4"),
        ([], {}, ValueError, "at least one"),
        ([0.5], {}, TypeError, "nodes must be places"),
        ([0], {"num_hops": 0}, ValueError, "num_hops must be"),
        ([0], {"num_neighbors": 0}, ValueError, "num_neighbors must be"),
        ([0], {"num_neighbors": [3]}, ValueError, "a list of 2 of them"),
        ([0], {"seed": -1}, ValueError, "seed must be"),
    ],
)
def test_bad_neighbourhoods_are_refused(nodes: Any, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain().neighbourhoods(GRAPH, nodes, **options)


# Bad input

BAD_GRAPHS = {
    "edge out of range": ({"edges": [[0, 5]], "num_nodes": 5}, ValueError, r"edge 0 joins nodes \[0, 5\].*5 nodes"),
    "negative edge": ({"edges": [[0, -1]], "num_nodes": 5}, ValueError, "edge 0 joins"),
    "no node": ({"edges": [], "num_nodes": 0}, ValueError, "at least one node"),
    "unknown size": ({"edges": []}, ValueError, "at least one node"),
    "no edges key": ({"node_features": [[1]]}, ValueError, "must hold 'edges'"),
    "unknown part": ({"edges": [], "num_nodes": 1, "node_feature": [[1]]}, ValueError, "no part .*node_feature"),
    "transposed": ({"edges": [[0, 1, 2], [1, 2, 0]]}, ValueError, r"shape \(edges, 2\).*'edge_index'"),
    "float edges": ({"edges": [[0.0, 1.0]]}, TypeError, "must hold integers"),
    "ragged edges": ({"edges": [[0, 1], [2]]}, ValueError, "array of integers"),
    "nan": ({"edges": [], "node_features": [[np.nan]]}, ValueError, r"node features\[0, 0\] is nan"),
    "infinite": ({"edges": [], "node_features": [[np.inf]]}, ValueError, "inf; replace"),
    "ragged rows": ({"edges": [], "node_features": [[1, 2], [3]]}, ValueError, "as many values in every row"),
    "too few rows": ({"edges": [], "num_nodes": 3, "node_features": [[1]]}, ValueError, r"shape \(3, fields\)"),
    "edge rows": ({"edges": [[0, 1]], "edge_features": [[1], [2]]}, ValueError, r"shape \(1, fields\)"),
    "other width": ({"edges": [], "node_features": [[1, 2]]}, ValueError, "2 fields, but .* fitted on 1"),
    "missing fields": ({"edges": [], "num_nodes": 2}, ValueError, "0 fields, but .* fitted on 1"),
    "floats for ids": ({"edges": [], "node_features": [[0.5]]}, ValueError, "holds floats, but was fitted on integers"),
    "text for ids": ({"edges": [], "node_features": [["C"]]}, ValueError, "holds text, but was fitted on integers"),
    "missing cell": ({"edges": [], "node_features": [[None]]}, TypeError, "row 0 is None"),
    "twice": ({"edges": [], "edge_index": [[], []], "num_nodes": 1}, ValueError, "both given as edges"),
    "complex": ({"edges": [], "node_features": np.ones((1, 1), complex)}, TypeError, "complex128"),
    "no smiles": ("no such molecule", ValueError, "is no SMILES"),
    "empty smiles": ("", ValueError, "is no SMILES"),
    "networkx without node": (nx.Graph(), ValueError, "at least one node"),
    "heterogeneous": (SimpleNamespace(edge_index=None, num_nodes=3), ValueError, "no edge_index"),
    "bad seed": ({"edges": [], "num_nodes": 1, "seed": 1}, ValueError, "seed must be one of the 1 nodes"),
    "nodes as a list": ({"nodes": [1], "edges": []}, TypeError, "'nodes' must be a DataFrame"),
    "a number": (3, TypeError, "got int"),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_a_bad_graph_is_named_with_its_index_and_the_remedy(case: str) -> None:
    graph, error, message = BAD_GRAPHS[case]
    good = {"edges": [], "node_features": [[1]]}
    with pytest.raises(error, match=rf"graph\[1\]: (.|\n)*{message}"):
        GraphProcessor().fit(good)([good, graph])


def test_an_attribute_that_is_not_there_is_named() -> None:
    processor = plain(node_attributes=["element"])
    with pytest.raises(ValueError, match="node 0 lacks the attribute 'element'"):
        processor(nx.path_graph(2))
    tables = {"nodes": pd.DataFrame({"a": [1]}), "edges": pd.DataFrame({"u": [0], "v": [0]})}
    with pytest.raises(ValueError, match=r"lacks columns \['element'\]"):
        processor(tables)
    with pytest.raises(ValueError, match="edge 0 names node 7"):
        plain()({**tables, "edges": pd.DataFrame({"u": [0], "v": [7]})})


@pytest.mark.parametrize("samples", [3, None, np.ones((3, 3)), torch.ones(3, 3), pd.DataFrame({"a": [1]}), b"x"])
def test_what_is_no_graph_is_refused(samples: Any) -> None:
    with pytest.raises(TypeError, match="a graph or a list of graphs"):
        plain()(samples)


def test_graphs_of_different_fields_cannot_be_fitted() -> None:
    graphs = [{"edges": [], "node_features": [[1]]}, {"edges": [], "node_features": [[1, 2]]}]
    with pytest.raises(ValueError, match=r"as many node features, got \[1, 2\]"):
        GraphProcessor().fit(graphs)


def test_a_processor_that_was_not_fitted_says_so() -> None:
    with pytest.raises(ValueError, match="call fit"):
        GraphProcessor()(GRAPH)
    with pytest.raises(ValueError, match="call fit"):
        GraphProcessor().tokenizer_config()


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


@pytest.mark.parametrize(("module", "extra"), [("rdkit", "chem"), ("scipy", "graph")])
def test_a_missing_package_is_named_with_its_extra(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "meta_transformer\[{extra}\]"'):
        GraphProcessor.for_molecules()("CCO")


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
