"""Ego-graphs: what lies within a few hops of a node, sampled where that is too much (GraphSAGE, section 3.1)."""

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from .readers.arrays import to_array
from .readers.graphs import RawGraph

__all__ = ["ego_graphs"]


def ego_graphs(
    graph: RawGraph, nodes: Any, num_hops: int, num_neighbors: int | Sequence[int] | None, seed: int
) -> Iterator[dict[str, Any]]:
    """One sample for each node, as `GraphProcessor` takes it, with the node itself at place 0.

    Args:
        graph: To sample from; edges are followed in both directions.
        nodes: Nodes to sample around.
        num_hops: At least 1.
        num_neighbors: Most neighbours of a node that are followed, for all hops or for each; `None` for all.
        seed: Of the draws, at least 0. A node's sample depends on it and on the node alone.

    Yields:
        `edges`, `num_nodes`, `node_features`, `edge_features`, `seed`, and `original_nodes`, their places in the
        whole graph.

    Raises:
        ValueError: Arguments out of range.
        TypeError: Arguments of another type.
    """
    if not isinstance(num_hops, Integral) or num_hops < 1:
        raise ValueError(f"num_hops must be an integer of at least 1, got {num_hops!r}.")
    limits = list(num_neighbors) if isinstance(num_neighbors, Sequence) else [num_neighbors] * int(num_hops)
    if len(limits) != num_hops or not all(each is None or (isinstance(each, Integral) and each > 0) for each in limits):
        raise ValueError(
            f"num_neighbors must be a positive integer, None for all, or a list of {num_hops} of them, one for each "
            f"hop, got {num_neighbors!r}."
        )
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}.")
    chosen = _places(nodes, graph.num_nodes)
    return _samples(graph, chosen, limits, int(seed))


def _places(nodes: Any, num_nodes: int) -> np.ndarray:
    array = np.atleast_1d(to_array(nodes))
    if array.dtype == bool and array.shape == (num_nodes,):
        return np.flatnonzero(array)  # as PyG's train_mask
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(f"nodes must be places of nodes, or a mask of {num_nodes} booleans, got {nodes!r}.")
    if not array.size or array.min() < 0 or array.max() >= num_nodes:
        raise ValueError(f"nodes must be places from 0 to {num_nodes - 1}, at least one, got {array.tolist()[:8]}.")
    return array.astype(np.int64)


def _samples(
    graph: RawGraph, nodes: Iterable[int], limits: Sequence[int | None], seed: int
) -> Iterator[dict[str, Any]]:
    """See `ego_graphs`. Each sample costs as much as the neighbours it looks at, not as much as the graph."""
    ends = np.concatenate([graph.edges, graph.edges[:, ::-1]])
    order = np.argsort(ends[:, 0], kind="stable")
    neighbors, numbers = ends[order, 1], order % max(len(graph.edges), 1)
    starts = np.concatenate([[0], np.bincount(ends[:, 0], minlength=graph.num_nodes).cumsum()])
    for node in nodes:
        random = np.random.default_rng([seed, int(node)])
        found = frontier = np.array([node])
        for limit in limits:
            slots, owner = _slots(starts, frontier)
            if limit is not None:
                slots = _draw(slots, owner, limit, random)
            frontier = np.setdiff1d(neighbors[slots], found)
            found = np.concatenate([found, frontier])
        # All edges between the nodes that were found, not only those that were followed.
        slots, _ = _slots(starts, found)
        inside = np.unique(numbers[slots[np.isin(neighbors[slots], found)]])
        place = np.argsort(found)
        edges = place[np.searchsorted(found[place], graph.edges[inside])]
        yield {
            "edges": edges.reshape(-1, 2),
            "num_nodes": len(found),
            "node_features": graph.node_table[found],
            "edge_features": graph.edge_table[inside],
            "seed": 0,
            "original_nodes": found,
        }


def _slots(starts: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of all neighbours of `nodes` in the list of neighbours, and for each the number of its node."""
    counts = starts[nodes + 1] - starts[nodes]
    owner = np.repeat(np.arange(len(nodes)), counts)
    return np.arange(counts.sum()) + np.repeat(starts[nodes] - counts.cumsum() + counts, counts), owner


def _draw(slots: np.ndarray, owner: np.ndarray, limit: int, random: np.random.Generator) -> np.ndarray:
    """At most `limit` slots of each owner, drawn without replacement."""
    order = np.lexsort((random.random(len(slots)), owner))  # shuffled within each owner
    first = np.searchsorted(owner, owner)  # owners lie together, so this is where each begins
    return slots[order[np.arange(len(slots)) - first < limit]]
