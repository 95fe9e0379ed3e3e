"""Graphs as people have them, turned into one form.

PyTorch Geometric's `Data`, networkx graphs, SMILES strings and RDKit molecules, dicts of arrays (such as rows of a
`datasets` column in OGB's style) and dicts of two pandas tables.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ...extras import needs
from ..graph_fields import to_table
from .arrays import to_array

__all__ = ["RawGraph", "decode", "one_by_one"]

# What the parts of a graph are called in dicts and `Data`, by what they are called here.
_NAMES = {
    "node_features": ("node_features", "node_feat", "x"),
    "edge_features": ("edge_features", "edge_feat", "edge_attr", "edge_weight"),
    "edges": ("edges", "edge_index"),
}
# Parts that may be there and are not looked at.
_IGNORED = ("y", "label", "labels", "name", "idx", "id", "original_nodes")
_MOST_NODES = 2**31  # the square of which int64 holds


@dataclass(frozen=True)
class RawGraph:
    """One graph.

    Attributes:
        num_nodes: At least 1.
        edges: `(edges, 2)` int64, source and target.
        node_table: `(num_nodes, fields)`, see `to_table`.
        edge_table: `(edges, fields)`.
        seed: The node that the graph was sampled around, if it was.
        unused: Names of attributes or columns that the graph has, where none were asked for.
    """

    num_nodes: int
    edges: np.ndarray
    node_table: np.ndarray
    edge_table: np.ndarray
    seed: int | None = None
    unused: frozenset[str] = frozenset()

    def undirected(self) -> "RawGraph":
        """The graph with each undirected edge once, sorted: the same, however often and in which direction it is given.

        Edges that join the same nodes but differ in their features stay side by side.
        """
        if not len(self.edges):
            return self
        edges = np.sort(self.edges, axis=1)
        codes = [np.unique(column, return_inverse=True)[1] for column in self.edge_table.T if len(column)]
        # The pair as one number: less to sort by. _MOST_NODES lets it fit into int64.
        keys = (*codes, edges[:, 0] * self.num_nodes + edges[:, 1])
        order = np.lexsort(keys)
        first = np.ones(len(order), bool)
        first[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
        kept = order[first]
        return replace(self, edges=edges[kept], edge_table=self.edge_table[kept])


def one_by_one(samples: Any) -> Iterator[Any]:
    """The graphs of `samples`, be it one graph, a PyG batch, a data set, a sequence or an iterator.

    Raises:
        ValueError: There is none.
        TypeError: It is nothing of that kind.
    """
    if hasattr(samples, "to_data_list"):
        samples = samples.to_data_list()
    if _is_graph(samples):
        yield samples
        return
    try:
        rest = iter(samples)
    except (TypeError, NotImplementedError):  # the latter is that of HeteroData
        rest = None
    if rest is None or isinstance(samples, np.ndarray | Tensor | bytes) or hasattr(samples, "columns"):
        raise TypeError(
            "graph must be a graph or a list of graphs, each a torch_geometric Data, a networkx graph, a SMILES string "
            f"or a dict such as {{'edges': [[0, 1]], 'num_nodes': 2}}, got {type(samples).__name__}."
        )
    first = next(rest, rest)
    if first is rest:
        raise ValueError("graph is an empty list; give at least one graph.")
    yield from chain([first], rest)


def _is_graph(sample: Any) -> bool:
    return isinstance(sample, str | Mapping) or _is_data(sample) or _is_networkx(sample) or _is_molecule(sample)


def _is_data(sample: Any) -> bool:
    # A data set of PyG has what its graphs have, put together.
    return hasattr(sample, "edge_index") and hasattr(sample, "num_nodes") and not isinstance(sample, Dataset)


def _is_networkx(sample: Any) -> bool:
    return hasattr(sample, "is_multigraph") and hasattr(sample, "number_of_nodes")


def _is_molecule(sample: Any) -> bool:
    return hasattr(sample, "GetAtoms") and hasattr(sample, "GetBonds")


def decode(
    sample: Any, *, directed: bool, node_attributes: Sequence[str] = (), edge_attributes: Sequence[str] = ()
) -> RawGraph:
    """One graph of any kind.

    Args:
        sample: See the module's description.
        directed: Whether direction counts; if not, each edge is kept once, see `RawGraph.undirected`.
        node_attributes: Of networkx graphs and tables, the attributes that are used.
        edge_attributes: As `node_attributes`.

    Raises:
        ValueError: A graph without node, an edge to a node that is not there, values of a wrong shape, NaN or infinity,
            text that is no SMILES, an attribute that a node or an edge lacks.
        TypeError: Another type, of the graph or of its values.
    """
    if isinstance(sample, str) or _is_molecule(sample):
        sample = _from_molecule(sample)
    if _is_networkx(sample):
        graph = _from_networkx(sample, directed, node_attributes, edge_attributes)
    elif isinstance(sample, Mapping):
        graph = _from_mapping(sample, node_attributes, edge_attributes)
    elif _is_data(sample):
        graph = _from_data(sample)
    else:
        raise TypeError(
            "a graph must be a torch_geometric Data, a networkx graph, a SMILES string or a dict such as "
            f"{{'edges': [[0, 1]], 'num_nodes': 2}}, got {type(sample).__name__}."
        )
    return graph if directed else graph.undirected()


def _build(
    edges: np.ndarray,
    num_nodes: Any,
    node_features: Any,
    edge_features: Any,
    seed: Any = None,
    unused: Iterable[Any] = (),
) -> RawGraph:
    """Check the parts against each other. Without `num_nodes`, rows of features count, and else the highest node."""
    if num_nodes is None and node_features is not None:
        try:
            num_nodes = len(node_features)
        except TypeError as error:
            raise TypeError(f"node features must be a table of a row for each node, got {node_features!r}.") from error
    if num_nodes is None and len(edges):
        num_nodes = int(edges.max()) + 1
        if num_nodes > max(10_000, 100 * edges.size):
            raise ValueError(
                f"{len(edges)} edges join nodes of up to {num_nodes - 1}, so that nearly all nodes would have none; "
                "number the nodes from 0, as with numpy.unique(edges, return_inverse=True), or give num_nodes."
            )
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, Integral | None):
        num_nodes = _scalar(num_nodes, "num_nodes")
    if not num_nodes or num_nodes < 1:
        raise ValueError(f"a graph must have at least one node, got num_nodes={num_nodes}; leave empty graphs out.")
    if num_nodes > _MOST_NODES:
        raise ValueError(f"num_nodes must be at most {_MOST_NODES}, got {num_nodes}; number the nodes from 0.")
    num_nodes = int(num_nodes)
    wrong = (edges < 0) | (edges >= num_nodes)
    if wrong.any():
        row = int(np.argwhere(wrong)[0, 0])
        raise ValueError(
            f"edge {row} joins nodes {edges[row].tolist()}, but the graph has {num_nodes} nodes, numbered from 0; "
            "correct the edge, or give num_nodes."
        )
    if seed is not None:
        seed = _scalar(seed, "seed")
        if not 0 <= seed < num_nodes:
            raise ValueError(f"seed must be one of the {num_nodes} nodes, numbered from 0, got {seed}.")
    node_table = to_table(node_features, "node features", num_nodes)
    edge_table = to_table(edge_features, "edge features", len(edges))
    return RawGraph(num_nodes, edges, node_table, edge_table, seed, frozenset(map(str, unused)))


def _scalar(value: Any, name: str) -> int:
    array = to_array(value)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    return int(array.item())


def _edges(values: Any, name: str) -> np.ndarray:
    """`(edges, 2)` int64 from a list of pairs, or from the two rows of an `edge_index`."""
    by_rows = name == "edge_index"
    try:
        array = to_array(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} must be an array of integers: {error}.") from error
    if not array.size:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[0 if by_rows else 1] != 2:
        shape = "(2, edges)" if by_rows else "(edges, 2)"
        other = "'edges'" if by_rows else "'edge_index'"
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}; {other} takes the transposed form.")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, the places of nodes from 0, got {array.dtype}.")
    return (array.T if by_rows else array).astype(np.int64)


def _pick(sample: Mapping, part: str) -> tuple[str | None, Any]:
    """The one name under which a part is given, and its value."""
    given = [name for name in _NAMES[part] if sample.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(map(repr, given))} are both given as {part}; join them into one of the two.")
    return (given[0], sample[given[0]]) if given else (None, None)


def _from_data(data: Any) -> RawGraph:
    if data.edge_index is None or isinstance(data.edge_index, Mapping):
        raise ValueError("this Data has no edge_index of its own; use homogeneous graphs, with edges of shape (2, m).")
    fields = {name: getattr(data, name, None) for names in _NAMES.values() for name in names}
    with warnings.catch_warnings():  # that it has to infer the number of nodes, which the documentation tells
        warnings.simplefilter("ignore")
        num_nodes = data.num_nodes
    node_features, edge_features = _pick(fields, "node_features")[1], _pick(fields, "edge_features")[1]
    pairs = _edges(data.edge_index, "edge_index")
    seed = getattr(data, "seed", None)
    if seed is None and getattr(data, "n_id", None) is not None and getattr(data, "batch_size", None) == 1:
        seed = 0  # a NeighborLoader puts the nodes first that it sampled around
    return _build(pairs, num_nodes, node_features, edge_features, seed)


def _from_mapping(sample: Mapping, node_attributes: Sequence[str], edge_attributes: Sequence[str]) -> RawGraph:
    """A dict of arrays, of two tables, or of a molecule."""
    known = {name for names in _NAMES.values() for name in names} | {"num_nodes", "seed", "nodes", "smiles", *_IGNORED}
    if unknown := [key for key in sample if key not in known]:
        raise ValueError(f"a graph has no part {unknown}; it may have {sorted(known)}.")
    name, edges = _pick(sample, "edges")
    if name is None and isinstance(sample.get("smiles"), str):
        if others := [key for key in sample if key not in ("smiles", *_IGNORED) and sample[key] is not None]:
            raise ValueError(
                f"'smiles' is a whole graph, but the dict holds {others} too; leave them out, or add edges."
            )
        return _from_data(_from_molecule(sample["smiles"]))
    if name is None and sample.get("num_nodes") is None and sample.get("nodes") is None:
        raise ValueError(
            f"a dict must hold 'edges' or 'edge_index', got {sorted(map(str, sample))}; a graph without edges has "
            "'edges': [] and 'num_nodes'."
        )
    if hasattr(edges, "columns") or hasattr(sample.get("nodes"), "columns"):
        return _from_tables(sample, edges, node_attributes, edge_attributes)
    if sample.get("nodes") is not None:
        kind = type(sample["nodes"]).__name__
        raise TypeError(f"'nodes' must be a DataFrame, got {kind}; give arrays as 'node_features'.")
    pairs = np.zeros((0, 2), np.int64) if name is None else _edges(edges, name)
    node_features, edge_features = _pick(sample, "node_features")[1], _pick(sample, "edge_features")[1]
    return _build(pairs, sample.get("num_nodes"), node_features, edge_features, sample.get("seed"))


def _from_tables(
    sample: Mapping, edges: Any, node_attributes: Sequence[str], edge_attributes: Sequence[str]
) -> RawGraph:
    """Two DataFrames: nodes, named by the index, and edges, whose first two columns name the nodes they join."""
    nodes = sample.get("nodes")
    if not hasattr(edges, "columns") or edges.shape[1] < 2 or (nodes is not None and not hasattr(nodes, "columns")):
        raise TypeError("'edges' must be a DataFrame whose first two columns name nodes, and 'nodes' one or absent.")
    ends = edges.iloc[:, :2].to_numpy()
    if nodes is None:
        pairs = _edges(ends, "edges")
    else:
        if not nodes.index.is_unique:
            raise ValueError("the index of 'nodes' names some nodes twice; give every node a row of its own.")
        pairs = nodes.index.get_indexer(ends.ravel()).reshape(-1, 2).astype(np.int64)
        if (pairs < 0).any():
            row, column = np.argwhere(pairs < 0)[0]
            raise ValueError(f"edge {row} names node {ends[row, column]}, which the index of 'nodes' lacks.")
    num_nodes = sample.get("num_nodes") if nodes is None else len(nodes)
    node_features = _columns(sample, "node_features", nodes, node_attributes)
    edge_features = _columns(sample, "edge_features", edges, edge_attributes)
    unused = [*edges.columns[2:]] if edge_features is None else []
    unused += [*nodes.columns] if node_features is None and nodes is not None else []
    return _build(pairs, num_nodes, node_features, edge_features, sample.get("seed"), unused)


def _columns(sample: Mapping, part: str, table: Any, names: Sequence[str]) -> Any:
    """Features in an array of their own, or else the named columns."""
    given, array = _pick(sample, part)
    if table is None or not names:
        return array
    if given is not None:
        raise ValueError(f"{given!r} and the columns {list(names)} are both given as {part}; leave one out.")
    if missing := [name for name in names if name not in table.columns]:
        raise ValueError(f"the table lacks columns {missing} for {part}; it has {list(table.columns)}.")
    return np.stack([table[name].to_numpy(dtype=object) for name in names], axis=1)


def _from_networkx(
    graph: Any, directed: bool, node_attributes: Sequence[str], edge_attributes: Sequence[str]
) -> RawGraph:
    """A networkx graph of any of its four classes, nodes in its own order."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    triples = list(graph.edges(data=True))
    pairs = np.array([(places[u], places[v]) for u, v, _ in triples], np.int64).reshape(-1, 2)
    nodes, links = list(graph.nodes(data=True)), [((u, v), data) for u, v, data in triples]
    node_features = _attributes(nodes, node_attributes, "node")
    edge_features = _attributes(links, edge_attributes, "edge")
    # Those of the first item, as others have the same.
    unused = [
        name
        for items, names in ((nodes, node_attributes), (links, edge_attributes))
        for _, data in items[: 0 if names else 1]
        for name in data
    ]
    if directed and not graph.is_directed():  # then both directions are there
        back = pairs[:, 0] != pairs[:, 1]
        pairs = np.concatenate([pairs, pairs[back, ::-1]])
        edge_features = None if edge_features is None else np.concatenate([edge_features, edge_features[back]])
    return _build(pairs, len(places), node_features, edge_features, unused=unused)


def _attributes(items: list[tuple[Any, dict]], names: Sequence[str], part: str) -> np.ndarray | None:
    """Attributes by name as an array `(items, names)` of objects."""
    if not names:
        return None
    if lacking := next(((item, name) for item, data in items for name in names if name not in data), None):
        raise ValueError(f"{part} {lacking[0]!r} lacks the attribute {lacking[1]!r}; set it, or leave the name out.")
    rows = np.empty((len(items), len(names)), object)
    for column, name in enumerate(names):
        rows[:, column] = [data[name] for _, data in items]
    return rows


def _from_molecule(molecule: Any) -> Any:
    """A SMILES string or RDKit molecule as `Data`: OGB's 9 fields of an atom and 3 of a bond, hydrogens implicit."""
    with needs("RDKit and torch_geometric for SMILES strings", "chem"):
        from rdkit import Chem, rdBase
        from torch_geometric.utils import from_rdmol
    if isinstance(molecule, str):
        smiles = molecule
        with rdBase.BlockLogs():  # RDKit prints what is wrong; here it is an error
            molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            raise ValueError(f"{smiles!r} is no SMILES of a molecule; check it with rdkit.Chem.MolFromSmiles.")
    return from_rdmol(molecule)
