"""Neighbourhoods: against PyTorch Geometric's subgraphs."""

import os
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.utils import k_hop_subgraph

from meta_transformer.processors.graph import GraphProcessor

GRAPH = {"edges": [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]], "num_nodes": 5}


def plain(**options: Any) -> GraphProcessor:
    """A processor for graphs of structure alone."""
    return GraphProcessor(node_fields=[], edge_fields=[], **options)


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
