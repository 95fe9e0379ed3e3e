"""Node identifiers: what tells the nodes of a graph apart, and which of them are neighbours (TokenGT, section 3.1).

Laplacian eigenvectors, of each connected component on its own, or the rows of a random orthogonal matrix.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from ..extras import needs

__all__ = ["laplacian_identifiers", "orthonormal_identifiers"]

_DENSE_LIMIT = 256  # nodes of a component above which a sparse solver for a few eigenvectors is faster
_SAME = 1e-8  # eigenvalues closer than this count as one, with one eigenspace
_SHIFT = 1e-4  # makes a Laplacian invertible
_SIGN_MARGIN = 1e-4  # third moments below this are zero but for rounding


def laplacian_identifiers(edges: np.ndarray, num_nodes: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `k` lowest eigenvectors of the normalised Laplacian of each connected component.

    `L = I - D**-1/2 A D**-1/2`, where `A` has a 1 for nodes that are joined in any direction, however often, and no
    loops. A component's eigenvectors are eigenvectors of the whole graph's Laplacian too. But of the whole graph, the
    lowest `k` would tell components apart and nothing else where there are `k` of them. So a batch of graphs is nothing
    but a graph, too, and all components of one size are decomposed in one call, in float64.

    Signs are chosen so that the third moment of a vector is positive; where it is zero, its first entry that is not.

    Args:
        edges: `(edges, 2)`.
        num_nodes: Of the graph.
        k: At least 1.

    Returns:
        - `(num_nodes, k)` float32 eigenvectors with mean square 1 over the component, in the order of their
          eigenvalues; zero beyond the size of the component.
        - `(num_nodes, k)` float32 eigenvalues of the node's component, 0 to 2.
        - `(num_nodes, k)` int64 numbers of the eigenspaces, from 1. Vectors of one eigenvalue have the same number:
          any rotation of them would do as well. 0 beyond the size of the component, and for an eigenspace that is cut,
          of which more than `k` vectors would be needed.
    """
    adjacency, labels = _components(edges, num_nodes)
    order = np.argsort(labels, kind="stable")  # one component after the other
    sizes = np.bincount(labels)
    values = np.full((len(sizes), k + 1), np.inf)
    vectors = np.zeros((num_nodes, k))
    with _one_blas_thread():
        for components, nodes, own_values, own_vectors in _spectra(adjacency, labels, order, sizes, k):
            size = nodes.shape[1]
            values[components, :size] = own_values[:, : k + 1]
            vectors[nodes, :size] = own_vectors[:, :, :k] * np.sqrt(size)
    vectors[order] = _fix_signs(vectors[order], sizes)
    spaces = _eigenspaces(values)
    return (
        vectors.astype(np.float32),
        np.where(np.isfinite(values[:, :k]), values[:, :k].clip(0, 2), 0).astype(np.float32)[labels],
        spaces[labels],
    )


def _components(edges: np.ndarray, num_nodes: int) -> tuple[Any, np.ndarray]:
    """`D**-1/2 A D**-1/2` as a sparse matrix, and the number of each node's component."""
    csgraph, sparse = _scipy()
    edges = edges[edges[:, 0] != edges[:, 1]]
    source, target = np.concatenate([edges, edges[:, ::-1]]).T
    adjacency = sparse.csr_array((np.ones(len(source)), (source, target)), shape=(num_nodes, num_nodes))
    adjacency.sum_duplicates()
    degrees = np.diff(adjacency.indptr)
    rows = np.repeat(np.arange(num_nodes), degrees)
    adjacency.data = (degrees[rows] * degrees[adjacency.indices]) ** -0.5
    return adjacency, csgraph.connected_components(adjacency, directed=False)[1]


def _spectra(
    adjacency: Any, labels: np.ndarray, order: np.ndarray, sizes: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Components of one size at a time.

    Yields:
        Numbers of the components, their nodes `(components, size)`, rising eigenvalues `(components, found)`, of which
        there are at least `k + 1` or `size`, and unit eigenvectors `(components, size, found)`.
    """
    num_nodes = len(labels)
    rows = np.repeat(np.arange(num_nodes), np.diff(adjacency.indptr))
    starts = sizes.cumsum() - sizes
    place = np.empty(num_nodes, np.int64)  # of a node in its component
    place[order] = np.arange(num_nodes) - np.repeat(starts, sizes)
    entry_sizes = sizes[labels[rows]]
    slot = np.zeros(len(sizes), np.int64)
    for size in np.unique(sizes):
        components = np.flatnonzero(sizes == size)
        nodes = order[starts[components][:, None] + np.arange(size)]
        if size > max(_DENSE_LIMIT, 4 * k):
            for component, own in zip(components, nodes, strict=True):
                found, basis = _sparse_spectrum(adjacency[own][:, own], k + 1)
                yield np.array([component]), own[None], found[None], basis[None]
            continue
        chosen = np.flatnonzero(entry_sizes == size)
        slot[components] = np.arange(len(components))
        laplacian = np.zeros((len(components), size, size))
        if size > 1:  # a lone node has the Laplacian 0
            laplacian[:, np.arange(size), np.arange(size)] = 1
        row, column = rows[chosen], adjacency.indices[chosen]
        laplacian[slot[labels[row]], place[row], place[column]] = -adjacency.data[chosen]
        yield components, nodes, *np.linalg.eigh(laplacian)


def _sparse_spectrum(weights: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` lowest eigenvalues, rising, and eigenvectors of `I - weights`, for a connected graph.

    Lanczos for the largest of `I + weights`, which is `2 I - L`, is many times faster than for the smallest of `L`.
    """
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import ArpackNoConvergence, splu

    identity = eye_array(weights.shape[0], format="csr")
    try:
        found, basis = _largest((identity + weights).dot, weights.shape[0], k, max_restarts=60)
        found = 2 - found
    except ArpackNoConvergence:
        # Long thin graphs, whose lowest eigenvalues are close together. Their factors are sparse, and the inverse
        # spreads those eigenvalues out.
        factors = splu((_SHIFT * identity + identity - weights).tocsc())
        found, basis = _largest(factors.solve, weights.shape[0], k, max_restarts=1000)
        found = 1 / found - _SHIFT
    order = np.argsort(found)
    return found[order], basis[:, order]


def _largest(
    apply: Callable[[np.ndarray], np.ndarray], size: int, k: int, max_restarts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest eigenvalues and eigenvectors of a symmetric positive operator, with their multiplicities.

    From one start, Lanczos sees one vector of each eigenspace. So what was found is taken out of the operator until
    nothing as large is left (deflation; Saad 2011, Numerical Methods for Large Eigenvalue Problems, section 4.2).
    """
    linalg: Any = import_module("scipy.sparse.linalg")
    random = np.random.default_rng(0)  # without a start of ours, ARPACK draws its own
    found, basis = np.zeros(0), np.zeros((size, 0))

    def deflated(vector: np.ndarray) -> np.ndarray:
        vector = vector.ravel()
        return apply(vector) - basis @ (found * (basis.T @ vector))

    wanted = k
    while True:
        operator = linalg.LinearOperator((size, size), matvec=deflated, dtype=np.float64)
        start = random.standard_normal(size)
        options = {"which": "LA", "v0": start, "maxiter": max_restarts, "tol": 1e-10}
        more, vectors = linalg.eigsh(operator, wanted, ncv=min(size, max(3 * wanted, 32)), **options)
        new = np.ones(len(more), bool)
        if len(found):
            new = more > np.sort(found)[-k] * (1 + _SAME)
            if not new.any():
                kept = np.argsort(found)[-k:]
                return found[kept], basis[:, kept]
        basis = np.linalg.qr(np.concatenate([basis, vectors[:, new]], axis=1))[0]
        found = np.concatenate([found, more[new]])
        wanted = min(k, 3)


def _eigenspaces(values: np.ndarray) -> np.ndarray:
    """Numbers `(components, k)` of the eigenspaces of rising eigenvalues `(components, k + 1)`, infinite where none is.

    0 for those, and for a space that is cut.
    """
    present = np.isfinite(values)
    steps = np.diff(np.where(present, values, 3), axis=1) > _SAME
    numbers = np.cumsum(np.concatenate([np.ones((len(values), 1), bool), steps], axis=1), axis=1)
    return np.where((numbers == numbers[:, -1:]) | ~present, 0, numbers)[:, :-1]


def _fix_signs(vectors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Vectors `(nodes, k)` of mean square 1 over components of these sizes, with the signs of the description above."""
    starts = sizes.cumsum() - sizes
    moments = np.add.reduceat(vectors * vectors * vectors, starts) / sizes[:, None]
    places = np.where(np.abs(vectors) > _SIGN_MARGIN, np.arange(len(vectors))[:, None], len(vectors) - 1)
    leading = np.take_along_axis(vectors, np.minimum.reduceat(places, starts), axis=0)
    deciding = np.where(np.abs(moments) > _SIGN_MARGIN, moments, leading)
    return vectors * np.repeat(np.where(deciding < 0, -1.0, 1.0), sizes, axis=0)


def orthonormal_identifiers(sizes: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Random identifiers: rows of an orthogonal matrix, which depend on nothing but a graph's size and the seed.

    Args:
        sizes: Number of nodes of each graph.
        k: Width.
        seed: Of the draw, at least 0.

    Returns:
        `(sum of sizes, k)` float32. In a graph of at most `k` nodes they are orthonormal. A larger one has `k`
        orthonormal columns, scaled so that its rows have mean square length 1.
    """
    drawn = {}
    for size in np.unique(sizes).tolist():
        normal = np.random.default_rng([seed, size]).standard_normal((max(size, k), min(size, k)))
        basis, triangle = np.linalg.qr(normal)
        basis = basis * np.sign(np.diag(triangle))  # makes it uniform over all such matrices
        drawn[size] = (basis.T if size <= k else basis * np.sqrt(size / k)).astype(np.float32)
    return np.concatenate([drawn[size] for size in sizes.tolist()])


def _one_blas_thread() -> AbstractContextManager[Any]:
    """For small matrices: several threads wait for each other many times longer than they compute."""
    return _blas().limit(limits=1)


@cache
def _blas() -> Any:
    with needs("threadpoolctl for Laplacian identifiers", "graph"):
        from threadpoolctl import ThreadpoolController
    return ThreadpoolController().select(user_api="blas")  # looks through all loaded libraries, which takes a while


def _scipy() -> tuple[Any, Any]:
    with needs("scipy for Laplacian identifiers", "graph"):
        from scipy import sparse
        from scipy.sparse import csgraph
    return csgraph, sparse
