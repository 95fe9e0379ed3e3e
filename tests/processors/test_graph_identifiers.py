"""Node identifiers: against networkx's Laplacian, numpy's eigh and closed forms."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

from meta_transformer.processors.graph import GraphProcessor

PAIRS = [[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]]
GRAPH = {"edges": PAIRS, "num_nodes": 5}


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
