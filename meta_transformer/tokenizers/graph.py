"""Graphs to tokens: one for each node, one for each edge.

Arrives: what `GraphProcessor` makes, see there. Leaves: `(batch, graph tokens + nodes + edges, hidden)` with a mask if
the graphs differ in size.

TokenGT (Kim et al. 2022, section 2): a token is the sum of what the node or edge holds, of a vector for its kind, and
of the identifiers of the node, or of the two nodes that the edge joins, by which attention can find out what touches
what. Different from the original:

- Eigenvectors enter by what does not depend on their signs, nor on the basis of an eigenspace, so that the order of
  nodes changes nothing (after SignNet and BasisNet, Lim et al. 2023). `laplacian_embedding="linear"` is the original,
  with random signs in training: where no eigenvalue is repeated, the order of nodes changes nothing on average over the
  signs; where one is, as in a cycle, it does, because the basis of its eigenspace is the solver's choice.
- An undirected edge is one token, not two.
- Edge tokens also hold what their two nodes hold, because a frozen trunk cannot learn to fetch it.
- Every token holds the logarithms of the numbers of nodes and edges, because averages, which attention and pooling
  are, cannot count (Xu et al. 2019, section 5).
"""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from ..sequence import GraphLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig
from .graph_identifiers import InvariantIdentifiers, LinearIdentifiers, redraw

__all__ = ["GraphTokenizer", "GraphTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class GraphTokenizerConfig(TokenizerConfig):
    """Options of the graph tokenizer; those up to `seed_nodes` come from `GraphProcessor.tokenizer_config`.

    Attributes:
        node_cardinalities: For each categorical field of nodes, how many ids it has, that for unseen values included.
        edge_cardinalities: As `node_cardinalities`.
        num_node_features: Fields of nodes that are numbers.
        num_edge_features: Fields of edges that are numbers.
        directed: Whether an edge's two ends are told apart.
        identifiers: What `node_identifiers` are: `"laplacian"` eigenvectors, `"orthonormal"` vectors, `"none"`.
        num_identifiers: How many there are.
        seed_nodes: Whether one node of each graph is marked.
        laplacian_embedding: `"invariant"` to signs and bases, or `"linear"` as in TokenGT, which is invariant to signs
            on average over training, and not to bases.
        identifier_features: Learned features of each eigenvector, of the invariant embedding.
        edge_tokens: Whether edges are tokens. If not, a node's token also holds the mean of what the tokens of its
            edges would be, which makes sequences some three times shorter and costs the edges their own attention.
        endpoint_content: Whether an edge's token holds what its two nodes hold.
        size_features: Whether tokens hold the numbers of nodes and edges.
        max_degree: Highest degree with a vector of its own, which is added to the node; higher ones share it. 0 for no
            such vectors (Graphormer, Ying et al. 2021, section 3.1.1).
        num_graph_tokens: Learned tokens in front of the nodes. None by default: TokenGT's one for the whole graph is
            the trunk's class token here, which comes first anyway.
    """

    node_cardinalities: list[int] = field(default_factory=list)
    edge_cardinalities: list[int] = field(default_factory=list)
    num_node_features: int = 0
    num_edge_features: int = 0
    directed: bool = False
    identifiers: Literal["laplacian", "orthonormal", "none"] = "laplacian"
    num_identifiers: int = 16
    seed_nodes: bool = False
    laplacian_embedding: Literal["invariant", "linear"] = "invariant"
    identifier_features: int = 16
    edge_tokens: bool = True
    endpoint_content: bool = True
    size_features: bool = True
    max_degree: int = 0
    num_graph_tokens: int = 0

    def validate_sizes(self) -> None:
        for name in ("num_node_features", "num_edge_features", "max_degree", "num_graph_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        for name in ("num_identifiers", "identifier_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("node_cardinalities", "edge_cardinalities"):
            if min(getattr(self, name), default=2) < 2:
                raise ValueError(
                    f"{name} must be at least 2 each, the id 0 for unseen values and one known, got "
                    f"{getattr(self, name)}."
                )


class _Content(nn.Module):
    """What a node or an edge holds, `(batch, items, hidden)`: categories embedded, numbers projected, summed."""

    def __init__(self, cardinalities: list[int], num_features: int, hidden_size: int) -> None:
        super().__init__()
        self.cardinalities = cardinalities
        # One table for all fields, in which id 0, unseen, has the zero vector.
        self.offsets = [sum(cardinalities[:index]) - index for index in range(len(cardinalities))]
        rows = 1 + sum(cardinalities) - len(cardinalities)
        self.embedding = nn.Embedding(rows, hidden_size, padding_idx=0) if cardinalities else None
        self.projection = nn.Linear(num_features, hidden_size) if num_features else None

    def forward(self, categories: Tensor | None, features: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """`None` where there are no fields; padding is zero before the weights."""
        parts = []
        if self.embedding is not None and categories is not None:
            ids = _fill(categories, mask).long()
            ids = torch.where(ids > 0, ids + ids.new_tensor(self.offsets), 0)
            parts.append(self.embedding(ids).sum(dim=2))
        if self.projection is not None and features is not None:
            parts.append(self.projection(_fill(features, mask).to(self.projection.weight.dtype)))
        return sum(parts[1:], parts[0]) if parts else None


class GraphTokenizer(ModalityTokenizer):
    """Node and edge tokens; see the module's description."""

    config: GraphTokenizerConfig
    config_class: ClassVar[type[TokenizerConfig]] = GraphTokenizerConfig

    def __init__(self, config: GraphTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.node_content = _Content(config.node_cardinalities, config.num_node_features, hidden_size)
        self.edge_content = _Content(config.edge_cardinalities, config.num_edge_features, hidden_size)
        self.invariant: InvariantIdentifiers | None = None
        self.linear: LinearIdentifiers | None = None
        if config.identifiers == "laplacian" and config.laplacian_embedding == "invariant":
            sizes = (config.num_identifiers, config.identifier_features, hidden_size)
            self.invariant = InvariantIdentifiers(*sizes, config.directed)
        elif config.identifiers != "none":
            self.linear = LinearIdentifiers(config.num_identifiers, hidden_size, config.directed)
        self.kinds = nn.Parameter(torch.zeros(2, hidden_size))  # node, edge
        self.sizes = nn.Linear(2, hidden_size) if config.size_features else None
        self.degrees = nn.Embedding(config.max_degree + 1, hidden_size) if config.max_degree else None
        has_content = config.node_cardinalities or config.num_node_features or config.max_degree
        self.endpoints: nn.Parameter | None = None
        if config.endpoint_content and has_content:
            self.endpoints = nn.Parameter(torch.zeros(2 if config.directed else 1, hidden_size))
        self.seed = nn.Parameter(torch.zeros(hidden_size)) if config.seed_nodes else None
        self.graph_tokens: nn.Parameter | None = None
        if config.num_graph_tokens:
            self.graph_tokens = nn.Parameter(torch.zeros(config.num_graph_tokens, hidden_size))

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.kinds, std=std)
        for parameter in (self.seed, self.graph_tokens):
            if parameter is not None:
                init.trunc_normal_(parameter, std=std)
        if self.endpoints is not None:
            init.constant_(self.endpoints, 0.5)

    def forward(
        self,
        edge_index: Tensor,
        node_categories: Tensor | None = None,
        node_features: Tensor | None = None,
        node_identifiers: Tensor | None = None,
        node_eigenvalues: Tensor | None = None,
        node_eigenspaces: Tensor | None = None,
        node_mask: Tensor | None = None,
        edge_categories: Tensor | None = None,
        edge_features: Tensor | None = None,
        edge_mask: Tensor | None = None,
        seed_node: Tensor | None = None,
    ) -> TokenSequence:
        """Tokenize a batch of graphs.

        Args:
            edge_index: `(batch, edges, 2)` integers, source and target of each edge.
            node_categories: `(batch, nodes, fields)` integers below the field's cardinality.
            node_features: `(batch, nodes, fields)`.
            node_identifiers: `(batch, nodes, k)`.
            node_eigenvalues: `(batch, nodes, k)`, of Laplacian identifiers.
            node_eigenspaces: `(batch, nodes, k)` integers, equal for eigenvectors of one eigenvalue, 0 for those that
                are to be left out.
            node_mask: `(batch, nodes)`, true for nodes that are there; `None` if all are.
            edge_categories: `(batch, edges, fields)` integers.
            edge_features: `(batch, edges, fields)`.
            edge_mask: `(batch, edges)`, true for edges that are there; `None` if all are.
            seed_node: `(batch,)` integers, the node that is marked.

        Returns:
            `(batch, graph tokens + nodes + edges, hidden)`, with a `GraphLayout`.

        Raises:
            ValueError: A tensor that is missing, superfluous or of another shape, or a node or an id out of range.
        """
        given = {
            "edge_index": edge_index,
            "node_categories": node_categories,
            "node_features": node_features,
            "node_identifiers": node_identifiers,
            "node_eigenvalues": node_eigenvalues,
            "node_eigenspaces": node_eigenspaces,
            "node_mask": node_mask,
            "edge_categories": edge_categories,
            "edge_features": edge_features,
            "edge_mask": edge_mask,
            "seed_node": seed_node,
        }
        batch, num_nodes = self._check({name: value for name, value in given.items() if value is not None})
        node_mask = None if node_mask is None else node_mask.bool()
        edge_mask = None if edge_mask is None else edge_mask.bool()
        ends = _fill(edge_index.long(), edge_mask)
        nodes = self.node_content(node_categories, node_features, node_mask)
        if self.degrees is not None:
            degrees = self.degrees(_degrees(ends, edge_mask, num_nodes).clamp(max=self.config.max_degree))
            nodes = degrees if nodes is None else nodes + degrees
        edges = self.edge_content(edge_categories, edge_features, edge_mask)
        node_tokens = self.kinds[0].expand(batch, num_nodes, -1)
        edge_tokens = self.kinds[1].expand(batch, ends.shape[1], -1)
        edge_tokens = edge_tokens if edges is None else edge_tokens + edges
        if nodes is not None:
            node_tokens = node_tokens + nodes
            if self.endpoints is not None:
                source, target = _at_ends(nodes, ends)
                edge_tokens = edge_tokens + self.endpoints[0] * source + self.endpoints[-1] * target
        if node_identifiers is not None:
            of_nodes, of_edges = self._identify(node_identifiers, node_eigenvalues, node_eigenspaces, ends, node_mask)
            node_tokens, edge_tokens = node_tokens + of_nodes, edge_tokens + of_edges
        if self.seed is not None and seed_node is not None:
            marked = torch.arange(num_nodes, device=seed_node.device) == seed_node[:, None]
            node_tokens = node_tokens + torch.where(marked[..., None], self.seed, 0)
        if not self.config.edge_tokens:
            node_tokens = node_tokens + _mean_at_nodes(edge_tokens, ends, edge_mask, num_nodes)
        return self._assemble(node_tokens, edge_tokens, node_mask, edge_mask, seed_node)

    def _identify(
        self, vectors: Tensor, values: Tensor | None, spaces: Tensor | None, ends: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of the identifiers for nodes and for edges."""
        vectors = _fill(vectors, mask)
        if self.invariant is not None and values is not None and spaces is not None:
            spaces = _fill(spaces, mask)
            absent = spaces.eq(0)
            vectors, values = vectors.masked_fill(absent, 0), values.masked_fill(absent, 0)
            source, target = _at_ends(vectors, ends)
            # The two ends of an edge lie in one component, and have the same eigenvalues.
            own_values, own_spaces = _at_ends(values, ends)[0], _at_ends(spaces, ends)[0]
            of_nodes = self.invariant(vectors, vectors, values, spaces)
            return of_nodes, self.invariant(source, target, own_values, own_spaces)
        if self.training and self.config.identifiers == "orthonormal":
            vectors = redraw(vectors, mask)
        elif self.training:
            signs = torch.randint(0, 2, (len(vectors), 1, vectors.shape[2]), device=vectors.device) * 2 - 1
            vectors = vectors * signs.to(vectors.dtype)
        if self.config.identifiers == "laplacian":
            vectors = vectors / sqrt(vectors.shape[2])  # rows of length near 1, as the orthonormal ones have
        source, target = _at_ends(vectors, ends)
        linear: Any = self.linear
        return linear(vectors, vectors), linear(source, target)

    def _assemble(
        self, nodes: Tensor, edges: Tensor, node_mask: Tensor | None, edge_mask: Tensor | None, seed: Tensor | None
    ) -> TokenSequence:
        """Graph tokens, nodes and edges in one sequence, with the numbers of nodes and edges."""
        batch, tokens = len(nodes), [nodes, edges] if self.config.edge_tokens else [nodes]
        if self.graph_tokens is not None:
            tokens.insert(0, self.graph_tokens.expand(batch, -1, -1))
        embeddings = torch.cat(tokens, dim=1)
        num_edges = edges.shape[1] if self.config.edge_tokens else 0
        layout = GraphLayout(self.config.num_graph_tokens, nodes.shape[1], num_edges, seed)
        padded = node_mask is not None or (edge_mask is not None and num_edges > 0)
        node_mask = nodes.new_ones(nodes.shape[:2], dtype=torch.bool) if node_mask is None else node_mask
        edge_mask = edges.new_ones(edges.shape[:2], dtype=torch.bool) if edge_mask is None else edge_mask
        if self.sizes is not None:
            counts = torch.stack([node_mask.sum(dim=1), edge_mask.sum(dim=1)], dim=1)
            embeddings = embeddings + self.sizes(counts.float().log1p().to(embeddings.dtype))[:, None]
        own = node_mask.new_ones(batch, self.config.num_graph_tokens)
        mask = torch.cat([own, node_mask, edge_mask[:, :num_edges]], dim=1) if padded else None
        return TokenSequence(embeddings, mask, layout)

    def _check(self, given: dict[str, Tensor]) -> tuple[int, int]:
        """Refuse tensors that do not fit; numbers of graphs and of nodes of those that do."""
        config = self.config
        widths = {
            "node_categories": len(config.node_cardinalities),
            "node_features": config.num_node_features,
            "node_identifiers": config.num_identifiers * (config.identifiers != "none"),
            "node_eigenvalues": config.num_identifiers * (config.identifiers == "laplacian"),
            "node_eigenspaces": config.num_identifiers * (config.identifiers == "laplacian"),
            "edge_categories": len(config.edge_cardinalities),
            "edge_features": config.num_edge_features,
        }
        remedy = "process the graphs with the processor whose tokenizer_config() this model was made with."
        wanted = {name for name, width in widths.items() if width} | ({"seed_node"} if config.seed_nodes else set())
        if wrong := sorted(wanted.symmetric_difference(given.keys() - {"edge_index", "node_mask", "edge_mask"})):
            raise ValueError(f"{wrong} are missing, or given but not expected; {remedy}")
        sizes = [value.shape[1] for name, value in given.items() if name.startswith("node_") and value.dim() > 1]
        if not sizes:
            raise ValueError("Nothing tells the number of nodes; give node_mask.")
        edge_index = given["edge_index"]
        batch, num_edges = edge_index.shape[0], edge_index.shape[1] if edge_index.dim() > 1 else 0
        expected: dict[str, tuple[int, ...]] = {
            name: (batch, sizes[0] if "node" in name else num_edges, width) for name, width in widths.items()
        }
        expected |= {"edge_index": (batch, num_edges, 2), "seed_node": (batch,)}
        expected |= {"node_mask": (batch, sizes[0]), "edge_mask": (batch, num_edges)}
        for name, value in given.items():
            if tuple(value.shape) != expected[name]:
                raise ValueError(f"{name} must have shape {expected[name]}, got {tuple(value.shape)}; {remedy}")
        if not torch.compiler.is_compiling():  # values are unknown while a graph is traced
            self._check_values(given, sizes[0])
        return batch, sizes[0]

    def _check_values(self, given: dict[str, Tensor], num_nodes: int) -> None:
        """Refuse nodes and ids out of range, which would silently be others; those in padding are not looked at."""
        node_mask, edge_mask = given.get("node_mask"), given.get("edge_mask")
        limits = {"edge_index": [num_nodes] * 2, "seed_node": num_nodes}
        limits |= {"node_categories": self.config.node_cardinalities, "edge_categories": self.config.edge_cardinalities}
        for name, limit in limits.items():
            if name not in given:
                continue
            mask = node_mask if name == "node_categories" else edge_mask
            values = given[name] if name == "seed_node" else _fill(given[name], None if mask is None else mask.bool())
            if values.is_floating_point():
                raise ValueError(f"{name} must hold integers, got {values.dtype}.")
            wrong = (values < 0) | (values >= values.new_tensor(limit))
            if wrong.any():
                raise ValueError(f"{name} must lie below {limit} and not below 0, got {values[wrong][0].item()}.")
        if node_mask is not None:
            self._check_presence(given, node_mask.bool(), None if edge_mask is None else edge_mask.bool())

    def _check_presence(self, given: dict[str, Tensor], node_mask: Tensor, edge_mask: Tensor | None) -> None:
        """Refuse edges and seeds at nodes that a graph has only as padding."""
        ends, seed = _fill(given["edge_index"], edge_mask).long(), given.get("seed_node")
        present = {"edge_index": torch.cat(_at_ends(node_mask[:, :, None], ends), dim=2).all(dim=2)}
        if edge_mask is not None:
            present["edge_index"] |= ~edge_mask
        if seed is not None:
            present["seed_node"] = node_mask.gather(1, seed.long()[:, None])
        for name, each in present.items():
            if not each.all():
                graph, place = (~each).nonzero()[0].tolist()
                wrong = ends[graph, place].tolist() if name == "edge_index" else given[name][graph].item()
                raise ValueError(f"{name} of graph {graph} is {wrong}, a node that node_mask says is not there.")


def _fill(values: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros in the padding of `(batch, items, ...)`. Not by a product: zero times NaN is NaN."""
    return values if mask is None else values.masked_fill(~mask[:, :, None], 0)


def _at_ends(values: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """From `(batch, nodes, width)` the rows of the sources and of the targets, `(batch, edges, width)` each."""
    width = values.shape[2]
    source, target = (values.gather(1, ends[:, :, end, None].expand(-1, -1, width)) for end in (0, 1))
    return source, target


def _mean_at_nodes(edges: Tensor, ends: Tensor, mask: Tensor | None, num_nodes: int) -> Tensor:
    """The mean over each node's edges of `(batch, edges, width)`, zero without edges, `(batch, nodes, width)`."""
    width = edges.shape[2]
    edges = _fill(edges, mask)
    places = ends.transpose(1, 2).flatten(1)[:, :, None].expand(-1, -1, width)  # all sources, then all targets
    sums = edges.new_zeros(len(edges), num_nodes, width).scatter_add(1, places, torch.cat([edges, edges], dim=1))
    return sums / _degrees(ends, mask, num_nodes).clamp(min=1)[:, :, None].to(sums.dtype)


def _degrees(ends: Tensor, mask: Tensor | None, num_nodes: int) -> Tensor:
    """How often each node is an end of an edge, `(batch, nodes)`; a loop counts twice."""
    counted = torch.ones_like(ends) if mask is None else mask[:, :, None].expand_as(ends).to(ends.dtype)
    return ends.new_zeros(len(ends), num_nodes).scatter_add(1, ends.flatten(1), counted.flatten(1))
