"""Laplacian identifiers: many small graphs beside TokenGT's loop, and one of 2,000 nodes beside the dense solver."""

import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import torch

from meta_transformer.processors.graph import GraphProcessor

from .bars import Bar

GRAPHS, SMALLEST, LARGEST, K, LARGE = 256, 10, 37, 8, 2000


def measure(repeats: int) -> list[Bar]:
    """Both comparisons, after a check that the two sides find the same; the sides take turns within each round."""
    return [_small_graphs(repeats), _large_graph(repeats)]


def _small_graphs(repeats: int) -> Bar:
    graphs = _molecule_sized()
    check_same(graphs, processed(graphs), [tokengt(**graph) for graph in graphs])
    ours, peer = _rounds(repeats, lambda: processed(graphs), lambda: [tokengt(**graph) for graph in graphs])
    return Bar(
        name=f"identifiers of {GRAPHS} graphs of {SMALLEST} to {LARGEST} nodes, k={K}",
        peer="TokenGT's loop: dense float64 numpy eigh of each graph",
        ours_seconds=ours,
        peer_seconds=peer,
        needed=5.0,
        note="ours is the whole processor, from lists of edges to padded tensors, in float64; both sides wait for "
        "LAPACK most of the time, which takes each small matrix by itself",
    )


def _large_graph(repeats: int) -> Bar:
    network = nx.barabasi_albert_graph(LARGE, 3, seed=0)
    graph = {"edges": np.array(network.edges), "num_nodes": LARGE}
    check_same([graph], processed([graph]), [dense(**graph)])
    ours, peer = _rounds(repeats, lambda: processed([graph]), lambda: dense(**graph))
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


def _rounds(repeats: int, ours: Callable[[], object], peer: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Times of both, in turns, each round begun by the other one; load on the machine then hits both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(repeats):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (ours, peer)[side]()
            times[side].append(time.perf_counter() - start)
    return times
