"""Graphs in all their forms: against PyTorch Geometric, networkx and each other."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset
from torch_geometric.datasets import FakeDataset, TUDataset
from torch_geometric.utils import from_networkx, from_smiles

from meta_transformer.processors.graph import GraphProcessor

PAIRS = [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]]
GRAPH = {"edges": PAIRS, "num_nodes": 5}
SMILES = ["CCO", "c1ccccc1O", "[Na+].[Cl-]", "C"]


def plain(**options: Any) -> GraphProcessor:
    """A processor for graphs of structure alone."""
    return GraphProcessor(node_fields=[], edge_fields=[], **options)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


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


class Stored(InMemoryDataset):
    """A data set as users make them, in which PyTorch Geometric puts all graphs together."""

    def __init__(self, graphs: list[Data]) -> None:
        super().__init__()
        self.data, self.slices = self.collate(graphs)


def test_a_data_set_that_stores_numbers_of_nodes_is_a_list_of_graphs_too() -> None:
    graphs = [from_networkx(nx.path_graph(size)) for size in (7, 3, 5)]
    assert same(plain()(Stored(graphs)), plain()(graphs))


def test_a_tu_data_set_without_labels_of_nodes_is_a_list_of_graphs(tmp_path: Path) -> None:
    folder = tmp_path / "TINY/raw"
    folder.mkdir(parents=True)
    (folder / "TINY_A.txt").write_text("1, 2\n2, 1\n3, 4\n4, 3\n4, 5\n5, 4\n6, 7\n7, 6\n")
    (folder / "TINY_graph_indicator.txt").write_text("1\n1\n2\n2\n2\n3\n3\n")
    (folder / "TINY_graph_labels.txt").write_text("0\n1\n0\n")
    batch = plain()(TUDataset(str(tmp_path), "TINY"))
    assert batch["edge_index"].tolist() == [[[0, 1], [0, 0]], [[0, 1], [1, 2]], [[0, 1], [0, 0]]]
    assert batch["node_mask"].sum(dim=1).tolist() == [2, 3, 2]


def test_the_seed_of_a_neighbor_loader_is_its_first_node() -> None:
    sampled = Data(edge_index=torch.tensor([[1, 2], [0, 0]]), n_id=torch.tensor([17, 4, 9]), batch_size=1)
    assert plain(seed_nodes=True)(sampled)["seed_node"].tolist() == [0]
    sampled.batch_size = 2
    with pytest.raises(ValueError, match="'seed' to mark"):
        plain(seed_nodes=True)(sampled)


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


def test_arrays_beside_tables_are_the_features() -> None:
    edges = pd.DataFrame({"from": [0, 1], "to": [1, 2]})
    arrays = {"node_features": [[6], [7], [6]], "edge_features": [[1], [2]]}
    processor = GraphProcessor().fit({"edges": edges, **arrays})
    batch = processor({"edges": edges, **arrays})
    assert batch["node_categories"].tolist() == [[[1], [2], [1]]]
    assert same(processor({"edges": edges.to_numpy(), **arrays}), batch)
    with pytest.raises(ValueError, match=r"'edge_features' and the columns \['to'\] are both given"):
        plain(edge_attributes=["to"])({"edges": edges, **arrays})


def test_fit_names_attributes_that_it_leaves_out() -> None:
    network = nx.Graph()
    network.add_node("a", element="C", charge=0.5)
    network.add_edge("a", "a", order=2)
    nodes = pd.DataFrame({"element": ["C"], "charge": [0.5]}, index=["a"])
    tables = {"nodes": nodes, "edges": pd.DataFrame({"from": ["a"], "to": ["a"], "order": [2]})}
    for graph in (network, tables):
        with pytest.warns(UserWarning, match=r"Not used: \['charge', 'element', 'order'\].*node_attributes") as found:
            GraphProcessor().fit([graph, graph])
        assert len(found) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            GraphProcessor(node_attributes=["element"], edge_attributes=["order"]).fit(graph)


def test_smiles_beside_edges_are_a_name() -> None:
    assert same(plain()({**GRAPH, "smiles": "CCO"}), plain()(GRAPH))


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
    "number for a table": ({"edges": [], "node_features": 5}, TypeError, "a row for each node, got 5"),
    "masked": ({"edges": [], "node_features": np.ma.masked_equal([[9]], 9)}, ValueError, "is nan; replace"),
    "masked edges": ({"edges": np.ma.masked_equal([[0, 9]], 9), "num_nodes": 2}, TypeError, "must hold integers"),
    "ids of another list": ({"edges": [[7, 2_000_000_011]]}, ValueError, "up to 2000000011.*number the nodes from 0"),
    "far too many nodes": ({"edges": [[0, 1]], "num_nodes": 10**12}, ValueError, "num_nodes must be at most"),
    "molecule and more": ({"smiles": "C", "node_features": [[1]]}, ValueError, r"holds \['node_features'\] too"),
    "heterogeneous data": (HeteroData(), TypeError, "got HeteroData"),
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


NO_GRAPHS = [3, None, np.ones((3, 3)), torch.ones(3, 3), pd.DataFrame({"a": [1]}), b"x", HeteroData()]


@pytest.mark.parametrize("samples", NO_GRAPHS)
def test_what_is_no_graph_is_refused(samples: Any) -> None:
    with pytest.raises(TypeError, match="a graph or a list of graphs"):
        plain()(samples)


@pytest.mark.parametrize(("module", "extra"), [("rdkit", "chem"), ("scipy", "graph")])
def test_a_missing_package_is_named_with_its_extra(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "meta_transformer\[{extra}\]"'):
        GraphProcessor.for_molecules()("CCO")
