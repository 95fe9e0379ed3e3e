"""Laplacian identifiers: many small graphs beside loops over them, and one of 2,000 nodes beside the dense solver."""

from typing import Any

import networkx as nx
import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import AddLaplacianEigenvectorPE
from torch_geometric.utils import to_undirected

from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.processors.graph_identifiers import laplacian_identifiers

from .bars import Bar, in_turns

GRAPHS, SMALLEST, LARGEST, K, LARGE = 256, 10, 37, 8, 2000


def measure(repeats: int) -> list[Bar]:
    """All comparisons, after a check that the sides find the same; the sides take turns within each round."""
    return [*_small_graphs(repeats), _large_graph(repeats)]


def _small_graphs(repeats: int) -> list[Bar]:
    """Edges of all graphs in, identifiers out; nobody decodes, encodes or pads anything."""
    graphs = _molecule_sized()
    check_same(graphs, processed(graphs), [tokengt(**graph) for graph in graphs])
    sizes = np.array([graph["num_nodes"] for graph in graphs])
    edges = np.concatenate(
        [graph["edges"] + offset for graph, offset in zip(graphs, sizes.cumsum() - sizes, strict=True)]
    )
    data = [
        Data(edge_index=to_undirected(torch.from_numpy(graph["edges"].T)), num_nodes=graph["num_nodes"])
        for graph in graphs
    ]
    transform = AddLaplacianEigenvectorPE(K, is_undirected=True)
    check_same_as_transform(laplacian_identifiers(edges, int(sizes.sum()), K), [transform(each) for each in data])

    ours, pyg, numpy = in_turns(
        repeats,
        lambda: laplacian_identifiers(edges, int(sizes.sum()), K),
        lambda: [transform(each) for each in data],
        lambda: [tokengt(**graph) for graph in graphs],
    )
    name = f"identifiers of {GRAPHS} graphs of {SMALLEST} to {LARGEST} nodes, k={K}"
    return [
        Bar(name, "PyTorch Geometric's AddLaplacianEigenvectorPE, graph by graph", ours, pyg, 5.0, "ours in float64"),
        Bar(
            name,
            "TokenGT's preprocessing: numpy's dense eigh, graph by graph",
            ours,
            numpy,
            None,
            "no bar: most of the time of both is LAPACK's, which takes small matrices one by one for all alike",
        ),
    ]


def _large_graph(repeats: int) -> Bar:
    network = nx.barabasi_albert_graph(LARGE, 3, seed=0)
    graph = {"edges": np.array(network.edges), "num_nodes": LARGE}
    check_same([graph], processed([graph]), [dense(**graph)])
    ours, peer = in_turns(repeats, lambda: processed([graph]), lambda: dense(**graph))
    return Bar(
        name=f"identifiers of a graph of {LARGE} nodes, k={K}",
        peer="dense torch.linalg.eigh in float32",
        ours_seconds=ours,
        peer_seconds=peer,
        needed=5.0,
        note="ours is the whole processor; the sparse solver looks for multiple eigenvalues, too",
    )


def _molecule_sized() -> list[dict[str, Any]]:
    """Trees with a few rings, connected, as molecules are."""
    random = np.random.default_rng(0)
    graphs = []
    for _ in range(GRAPHS):
        size = int(random.integers(SMALLEST, LARGEST + 1))
        parents = [random.integers(max(0, node - 3), node) for node in range(1, size)]
        edges = np.stack([parents, np.arange(1, size)], axis=1)
        rings = random.integers(0, size, (3, 2))
        graphs.append({"edges": np.concatenate([edges, rings[rings[:, 0] != rings[:, 1]]]), "num_nodes": size})
    return graphs


def processed(graphs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Ours, from edges to padded tensors."""
    return GraphProcessor(node_fields=[], edge_fields=[], num_identifiers=K)(graphs)


def tokengt(edges: np.ndarray, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors of one graph, in the steps of TokenGT's preprocessing."""
    adjacency = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    adjacency[edges[:, 0], edges[:, 1]] = True
    adjacency[edges[:, 1], edges[:, 0]] = True
    degrees = adjacency.long().sum(dim=1).float().numpy()
    scale = np.diag(degrees.clip(1).astype(np.float64) ** -0.5)
    values, vectors = np.linalg.eigh(np.eye(num_nodes) - scale @ adjacency.double().numpy() @ scale)
    return torch.from_numpy(values), torch.from_numpy(vectors).float()


def dense(edges: np.ndarray, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `tokengt`, in float32 and by torch."""
    adjacency = torch.zeros(num_nodes, num_nodes)
    adjacency[edges[:, 0], edges[:, 1]] = 1
    adjacency[edges[:, 1], edges[:, 0]] = 1
    scale = adjacency.sum(dim=1).clamp(min=1).rsqrt()
    values, vectors = torch.linalg.eigh(torch.eye(num_nodes) - scale[:, None] * adjacency * scale)
    return values, vectors


def check_same(graphs: list[dict[str, Any]], ours: dict[str, torch.Tensor], peer: list[tuple[Any, Any]]) -> None:
    """Raise `AssertionError` unless eigenvalues agree, and the subspaces of all eigenspaces that are not cut."""
    for index, (graph, (values, vectors)) in enumerate(zip(graphs, peer, strict=True)):
        size = graph["num_nodes"]
        own = ours["node_eigenvalues"][index, 0].double()
        torch.testing.assert_close(own, values[:K].double(), atol=1e-4, rtol=0)
        kept = int((ours["node_eigenspaces"][index, 0] > 0).sum())  # those that are cut come last
        basis = ours["node_identifiers"][index, :size, :kept].double() / size**0.5
        theirs = vectors[:, :kept].double()
        torch.testing.assert_close(basis @ (basis.T @ theirs), theirs, atol=1e-3, rtol=0)


def check_same_as_transform(ours: tuple[np.ndarray, np.ndarray, np.ndarray], peer: list[Data]) -> None:
    """Raise `AssertionError` unless vectors of single eigenvalues agree but for sign and length.

    The transform leaves the first one out; what it gives for a graph of several components is another thing.
    """
    vectors, values, _ = ours
    end, compared = 0, 0
    for data in peer:
        start, end = end, end + data.num_nodes
        own, gaps = values[start], np.diff(values[start], append=3)
        for place in range(1, K - 1):
            if data.num_nodes > K and own[1] > 1e-3 and min(gaps[place - 1], gaps[place]) > 1e-2:
                vector = vectors[start:end, place] / np.linalg.norm(vectors[start:end, place])
                theirs = data.laplacian_eigenvector_pe[:, place - 1].numpy()
                np.testing.assert_allclose(abs(vector @ theirs), 1, atol=1e-4)
                compared += 1
    if compared < len(peer):
        raise AssertionError(f"Only {compared} eigenvectors of {len(peer)} graphs could be compared.")
