"""Graphs to tensors: fields of nodes and edges are encoded, nodes get identifiers, all is padded to the largest graph.

Leaves, where B graphs have at most N nodes and M edges:

- `edge_index` `(B, M, 2)`: source and target of each edge, an undirected edge once.
- `node_categories` `(B, N, fields)`, `edge_categories` `(B, M, fields)`: ids, 0 for a value that `fit` did not see.
- `node_features` `(B, N, fields)`, `edge_features` `(B, M, fields)`: numbers in standard deviations from the mean.
- `node_identifiers` `(B, N, k)`: Laplacian eigenvectors, with `node_eigenvalues` and `node_eigenspaces` of the same
  shape; or random orthonormal vectors.
- `node_mask` `(B, N)`, `edge_mask` `(B, M)`: true for what is there, if the graphs differ in their number of it.
- `seed_node` `(B,)`: the node that a sample was drawn around.

What a processor was not asked for or fitted on is absent.
"""

import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from transformers import BatchFeature

from .base import ModalityProcessor, errors_at
from .graph_fields import check_fields, check_table, encode, learn_fields
from .graph_identifiers import laplacian_identifiers, orthonormal_identifiers
from .graph_sampling import ego_graphs
from .readers.graphs import RawGraph, decode, one_by_one

__all__ = ["GraphProcessor"]

Field = dict[str, Any]

# Values of the fields of `torch_geometric.utils.from_smiles`: numbers of atomic numbers, chirality, degree, formal
# charge, hydrogens, radical electrons, hybridisation, aromatic, in a ring; bond type, stereo, conjugated.
_ATOM_SIZES, _BOND_SIZES = (119, 9, 11, 12, 9, 5, 8, 2, 2), (22, 6, 2)
_MOST_NODES = 10**7  # of one sample, whose identifiers alone would take gigabytes


class GraphProcessor(ModalityProcessor):
    """Decode, encode fields, add identifiers, pad. Call `fit` on training graphs first.

    Args:
        node_fields: Learned: what the fields of nodes hold; a list of `{"values": [...]}`, known categories, and
            `{"mean": ..., "std": ...}`, numbers. `[]` for graphs whose nodes have none.
        edge_fields: Learned: as `node_fields`.
        node_attributes: Attributes of networkx graphs, or columns of tables, that are the fields of nodes.
        edge_attributes: As `node_attributes`.
        directed: Whether the direction of edges counts. If not, an edge and its reverse are one.
        identifiers: `"laplacian"` eigenvectors, `"orthonormal"` random vectors, or `"none"`.
        num_identifiers: How many eigenvectors, or the width of the random vectors, which should then be at least the
            number of nodes.
        seed_nodes: Whether samples are drawn around a node that is to be marked, as by `neighbourhoods`.
    """

    node_fields: list[Field] | None
    edge_fields: list[Field] | None
    node_attributes: list[str]
    edge_attributes: list[str]
    directed: bool
    identifiers: str
    num_identifiers: int
    seed_nodes: bool

    def __init__(
        self,
        *,
        node_fields: list[Field] | None = None,
        edge_fields: list[Field] | None = None,
        node_attributes: Sequence[str] = (),
        edge_attributes: Sequence[str] = (),
        directed: bool = False,
        identifiers: str = "laplacian",
        num_identifiers: int = 16,
        seed_nodes: bool = False,
        **kwargs: Any,
    ) -> None:
        if identifiers not in ("laplacian", "orthonormal", "none"):
            raise ValueError(f"identifiers must be 'laplacian', 'orthonormal' or 'none', got {identifiers!r}.")
        if isinstance(num_identifiers, bool) or not isinstance(num_identifiers, Integral) or num_identifiers < 1:
            raise ValueError(f"num_identifiers must be an integer of at least 1, got {num_identifiers!r}.")
        for name, value in (("node_attributes", node_attributes), ("edge_attributes", edge_attributes)):
            if isinstance(value, str) or not all(isinstance(each, str) for each in value):
                raise TypeError(f"{name} must be a list of names, got {value!r}.")
        if (node_fields is None) != (edge_fields is None):
            raise ValueError("node_fields and edge_fields belong together: call fit, or give both, [] for none.")
        check_fields(node_fields, "node_fields")
        check_fields(edge_fields, "edge_fields")
        super().__init__(
            node_fields=node_fields,
            edge_fields=edge_fields,
            node_attributes=list(node_attributes),
            edge_attributes=list(edge_attributes),
            directed=bool(directed),
            identifiers=identifiers,
            num_identifiers=num_identifiers,
            seed_nodes=bool(seed_nodes),
            **kwargs,
        )

    @classmethod
    def for_molecules(cls, **settings: Any) -> "GraphProcessor":
        """A processor for SMILES strings that needs no fit: it knows all values of their fields.

        Args:
            settings: Further ones, such as `num_identifiers`.
        """
        atoms, bonds = ([{"values": list(range(size))} for size in sizes] for sizes in (_ATOM_SIZES, _BOND_SIZES))
        return cls(node_fields=atoms, edge_fields=bonds, **settings)

    def fit(self, samples: Any) -> "GraphProcessor":
        """Learn the fields: the values of categories, mean and standard deviation of numbers.

        Integers and text are categories, whatever has a fraction or is a boolean is a number.

        Args:
            samples: As of `__call__`.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`, or graphs with different numbers of fields.
            TypeError: As `__call__`.
        """
        graphs = [graph for _, graph in self._decode(samples)]
        node_fields = learn_fields([graph.node_table for graph in graphs], "node features")
        edge_fields = learn_fields([graph.edge_table for graph in graphs], "edge features")
        self.node_fields, self.edge_fields = node_fields, edge_fields
        if unused := sorted(set().union(*(graph.unused for graph in graphs))):
            warnings.warn(f"Not used: {unused}. Name what to use in node_attributes and edge_attributes.", stacklevel=2)
        return self

    def __call__(self, samples: Any, *, identifier_seed: int = 0, return_tensors: str | None = "pt") -> BatchFeature:
        """Process one graph or a list of graphs.

        Args:
            samples: Each a `torch_geometric` `Data`; a networkx graph; a SMILES string or RDKit molecule; or a dict of
                `edges` `(edges, 2)` or `edge_index` `(2, edges)`, and if there are any `num_nodes`, `node_features`
                (or `node_feat`, `x`) and `edge_features` (or `edge_feat`, `edge_attr`, `edge_weight`). Instead of
                arrays, a dict may hold two DataFrames: `edges`, whose first two columns name nodes, and `nodes`,
                whose index does.
            identifier_seed: For `"orthonormal"` identifiers, which of them. They depend on nothing else but the size
                of the graph.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            See the module's description.

        Raises:
            ValueError: No graph, one without node, edges to nodes that are not there, other fields than those of
                `fit`, NaN or infinity, text that is no SMILES, or a processor that has not been fitted.
            TypeError: A sample of another type.
        """
        if not isinstance(identifier_seed, int) or identifier_seed < 0:
            raise ValueError(f"identifier_seed must be an integer of at least 0, got {identifier_seed!r}.")
        graphs = self._checked(samples)
        sizes = np.array([graph.num_nodes for graph in graphs])
        data = self._nodes(graphs, sizes) | self._edges(graphs) | self._identifiers(graphs, sizes, identifier_seed)
        if len(set(sizes.tolist())) > 1 or not any(name.startswith("node_") for name in data):
            data["node_mask"] = np.arange(sizes.max()) < sizes[:, None]
        if self.seed_nodes:
            data["seed_node"] = np.array([graph.seed for graph in graphs], np.int64)
        return BatchFeature(data, tensor_type=return_tensors)

    def neighbourhoods(
        self,
        graph: Any,
        nodes: Any,
        *,
        num_hops: int = 2,
        num_neighbors: int | Sequence[int] | None = 10,
        seed: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Samples for tasks on the nodes of a graph that is too large for one sequence.

        Args:
            graph: One graph, as of `__call__`.
            nodes: Places of nodes, or a mask of booleans.
            num_hops: How far to go.
            num_neighbors: Most neighbours of a node that are followed, for all hops or for each; `None` for all.
            seed: Of the draws. A node's sample depends on it and on the node alone.

        Returns:
            For each node a dict that this processor takes: the graph of the nodes that were reached, the node itself at
            place 0 (`seed`), and `original_nodes`, their places in the whole graph. Set `seed_nodes` for the node to be
            marked.

        Raises:
            ValueError: As `__call__`, nodes that are not there, or arguments out of range.
            TypeError: As `__call__`.
        """
        with errors_at("graph"):
            raw = decode(graph, directed=self.directed, **self._attributes())
        return ego_graphs(raw, nodes, num_hops, num_neighbors, seed)

    def tokenizer_config(self) -> dict[str, Any]:
        """Fields and identifiers of the tokenizer that takes this processor's tensors."""
        node_fields, edge_fields = self._fitted()
        return {
            "node_cardinalities": [1 + len(field["values"]) for field in node_fields if "values" in field],
            "edge_cardinalities": [1 + len(field["values"]) for field in edge_fields if "values" in field],
            "num_node_features": sum("mean" in field for field in node_fields),
            "num_edge_features": sum("mean" in field for field in edge_fields),
            "directed": self.directed,
            "identifiers": self.identifiers,
            "num_identifiers": self.num_identifiers,
            "seed_nodes": self.seed_nodes,
        }

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[dict[str, Any]]:
        random = np.random.default_rng(seed)
        category = {"values": list(range(4))}
        number = {"mean": 0.0, "std": 1.0}
        node_fields = [category, category] if self.node_fields is None else self.node_fields
        edge_fields = [number] if self.edge_fields is None else self.edge_fields
        samples = []
        for index in range(batch_size):
            num_nodes = 1 if index % 4 == 2 else int(random.integers(3, 8))
            pairs = np.argwhere(np.triu(random.random((num_nodes, num_nodes)) < 0.5, k=1))
            sample = {"edges": pairs, "num_nodes": num_nodes, "seed": int(random.integers(num_nodes))}
            sample["node_features"] = _dummy_table(node_fields, num_nodes, random)
            sample["edge_features"] = _dummy_table(edge_fields, len(pairs), random)
            samples.append(sample)
        return samples

    def _attributes(self) -> dict[str, list[str]]:
        return {"node_attributes": self.node_attributes, "edge_attributes": self.edge_attributes}

    def _decode(self, samples: Any) -> Iterator[tuple[str, RawGraph]]:
        """Graphs with their names in errors."""
        for index, sample in enumerate(one_by_one(samples)):
            with errors_at(f"graph[{index}]"):
                graph = decode(sample, directed=self.directed, **self._attributes())
            yield f"graph[{index}]", graph

    def _fitted(self) -> tuple[list[Field], list[Field]]:
        if self.node_fields is None or self.edge_fields is None:
            raise ValueError(
                "This GraphProcessor knows no fields yet; call fit(training graphs), load a fitted one, take "
                "GraphProcessor.for_molecules() for SMILES strings, or set node_fields=[] and edge_fields=[]."
            )
        return self.node_fields, self.edge_fields

    def _checked(self, samples: Any) -> list[RawGraph]:
        """Decoded graphs with the fields of `fit`."""
        node_fields, edge_fields = self._fitted()
        graphs = []
        for place, graph in self._decode(samples):
            with errors_at(place):
                check_table(graph.node_table, node_fields, "node features")
                check_table(graph.edge_table, edge_fields, "edge features")
                if self.seed_nodes and graph.seed is None:
                    raise ValueError("the sample has no 'seed' to mark; give it, or set seed_nodes=False.")
                if graph.num_nodes > _MOST_NODES:
                    raise ValueError(f"{graph.num_nodes} nodes are too many for a sample; draw some by neighbourhoods.")
            graphs.append(graph)
        return graphs

    def _nodes(self, graphs: list[RawGraph], sizes: np.ndarray) -> dict[str, np.ndarray]:
        fields, _ = self._fitted()
        ids, features = _encode([graph.node_table for graph in graphs], fields)
        tables = {"node_categories": ids, "node_features": features}
        return {name: _pad(table, sizes) for name, table in tables.items() if table.shape[1]}

    def _edges(self, graphs: list[RawGraph]) -> dict[str, np.ndarray]:
        _, fields = self._fitted()
        counts = np.array([len(graph.edges) for graph in graphs])
        ids, features = _encode([graph.edge_table for graph in graphs], fields)
        data = {"edge_index": _pad(np.concatenate([graph.edges for graph in graphs]), counts)}
        tables = {"edge_categories": ids, "edge_features": features}
        data |= {name: _pad(table, counts) for name, table in tables.items() if table.shape[1]}
        if len(set(counts.tolist())) > 1:
            data["edge_mask"] = np.arange(counts.max()) < counts[:, None]
        return data

    def _identifiers(self, graphs: list[RawGraph], sizes: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        if self.identifiers == "none":
            return {}
        if self.identifiers == "orthonormal":
            return {"node_identifiers": _pad(orthonormal_identifiers(sizes, self.num_identifiers, seed), sizes)}
        offsets = sizes.cumsum() - sizes
        edges = np.concatenate([graph.edges + offset for graph, offset in zip(graphs, offsets, strict=True)])
        arrays = laplacian_identifiers(edges, int(sizes.sum()), self.num_identifiers)
        names = ("node_identifiers", "node_eigenvalues", "node_eigenspaces")
        return {name: _pad(array, sizes) for name, array in zip(names, arrays, strict=True)}


def _encode(tables: list[np.ndarray], fields: list[Field]) -> tuple[np.ndarray, np.ndarray]:
    """Encode the tables of all graphs as one."""
    # Graphs without edges may have tables of another width, as nobody knows it.
    filled = [table for table in tables if len(table)]
    try:
        return encode(np.concatenate(filled) if filled else np.zeros((0, len(fields))), fields)
    except ValueError:
        for index, table in enumerate(tables):  # one by one, to say which it is
            with errors_at(f"graph[{index}]"):
                encode(table, fields)
        raise


def _pad(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of all graphs `(sum of counts, ...)` to `(graphs, most of counts, ...)`, zeros in the padding."""
    padded = np.zeros((len(counts), counts.max(), *rows.shape[1:]), rows.dtype)
    padded[np.arange(counts.max()) < counts[:, None]] = rows
    return padded


def _dummy_table(fields: list[Field], rows: int, random: np.random.Generator) -> np.ndarray:
    columns: list[Any] = [
        random.choice(np.array(field["values"], object), rows)
        if "values" in field
        else random.normal(field["mean"], field["std"], rows)
        for field in fields
    ]
    table = np.empty((rows, len(fields)), object)
    for index, column in enumerate(columns):
        table[:, index] = column
    return table
