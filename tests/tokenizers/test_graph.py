"""Graph tokenizer: against a loop over nodes and edges, TokenGT's formula, and shuffled nodes."""

import json
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn

from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.sequence import GraphLayout, TokenSequence
from meta_transformer.tokenizers.graph import GraphTokenizer, GraphTokenizerConfig

HIDDEN = 12
STRUCTURE = {"node_fields": [], "edge_fields": []}
# Simple spectra, repeated eigenvalues, eigenspaces that are cut, components, loops, no edges; the sparse solver.
GRAPHS = {
    "tree": nx.random_labeled_tree(12, seed=0),
    "cycle": nx.cycle_graph(7),
    "star": nx.star_graph(9),
    "petersen": nx.petersen_graph(),
    "complete": nx.complete_graph(12),
    "components": nx.disjoint_union(nx.cycle_graph(6), nx.lollipop_graph(4, 3)),
    "loops": nx.Graph([(0, 0), (0, 1), (1, 2), (2, 2)]),
    "no edges": nx.empty_graph(3),
    "grid": nx.grid_2d_graph(17, 17),
}


def make(processor: GraphProcessor, **options: Any) -> GraphTokenizer:
    """A tokenizer for a processor, with random weights."""
    torch.manual_seed(0)
    tokenizer = GraphTokenizer(GraphTokenizerConfig(**processor.tokenizer_config(), **options), HIDDEN)
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.5)
    for content in (tokenizer.node_content, tokenizer.edge_content):
        if content.embedding is not None:
            nn.init.zeros_(content.embedding.weight[:1])
    return tokenizer.eval()


def random_graph(num_nodes: int, seed: int, directed: bool = False) -> dict[str, Any]:
    """A graph with two categorical fields of nodes, and one of numbers on edges."""
    random = np.random.default_rng(seed)
    pairs = np.argwhere(random.random((num_nodes, num_nodes)) < 0.4)
    pairs = pairs if directed else pairs[pairs[:, 0] < pairs[:, 1]]
    return {
        "edges": pairs,
        "num_nodes": num_nodes,
        "node_features": random.integers(0, 5, (num_nodes, 2)),
        "edge_features": random.normal(size=(len(pairs), 1)),
    }


def fitted(directed: bool = False, **options: Any) -> tuple[GraphProcessor, list[dict[str, Any]]]:
    graphs = [random_graph(size, size, directed) for size in (6, 3, 9, 1)]
    return GraphProcessor(directed=directed, num_identifiers=4, **options).fit(graphs), graphs


def shuffled(graph: dict[str, Any], order: np.ndarray) -> dict[str, Any]:
    """The same graph, its node `i` at place `order[i]`, its edges in another order and, if they may be, turned."""
    features = np.empty_like(graph["node_features"])
    features[order] = graph["node_features"]
    kept = np.random.default_rng(0).permutation(len(graph["edges"]))
    return {
        **graph,
        "edges": order[graph["edges"]][kept],
        "node_features": features,
        "edge_features": graph["edge_features"][kept],
    }


def parts(sequence: TokenSequence, row: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens of the real nodes and of the real edges of one graph."""
    layout = sequence.layout
    start, middle = layout.graph_tokens, layout.graph_tokens + layout.nodes
    mask = torch.ones(sequence.embeddings.shape[:2]).bool() if sequence.mask is None else sequence.mask
    return tuple(
        sequence.embeddings[row, part][mask[row, part]] for part in (slice(start, middle), slice(middle, None))
    )


def rows_agree(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    """Two sets of rows are the same in some order."""
    assert len(first) == len(second)
    if len(first):
        distances = torch.cdist(first.double(), second.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.min(dim=1).values.max() < tolerance
        assert distances.min(dim=0).values.max() < tolerance


# What a token is


@torch.no_grad()
@pytest.mark.parametrize("directed", [False, True])
def test_tokens_equal_a_loop_over_nodes_and_edges_with_tokengts_formula(directed: bool) -> None:
    processor, graphs = fitted(directed)
    graph = graphs[2]
    tokenizer = make(processor, laplacian_embedding="linear")
    batch = processor(graph)
    nodes, edges = parts(tokenizer(**batch))
    table = tokenizer.node_content.embedding.weight
    size = tokenizer.sizes(torch.tensor([9.0, len(batch["edge_index"][0])]).log1p())
    content, matrix = [], tokenizer.linear.projection.weight
    halves = matrix.split(4, dim=1) if directed else [matrix / 2, matrix / 2]  # of the two ends
    identifiers = batch["node_identifiers"][0] / 2  # the square root of k
    first_of_second = processor.tokenizer_config()["node_cardinalities"][0] - 1
    for (a, b), own in zip(batch["node_categories"][0].tolist(), identifiers, strict=True):
        content.append(table[a] + table[b + first_of_second])
        expected = content[-1] + tokenizer.kinds[0] + halves[0] @ own + halves[1] @ own + size
        torch.testing.assert_close(nodes[len(content) - 1], expected)
    for token, (u, v), features in zip(edges, batch["edge_index"][0].tolist(), batch["edge_features"][0], strict=True):
        expected = tokenizer.edge_content.projection(features) + tokenizer.kinds[1] + size
        expected = expected + tokenizer.endpoints[0] * content[u] + tokenizer.endpoints[-1] * content[v]
        torch.testing.assert_close(token, expected + halves[0] @ identifiers[u] + halves[1] @ identifiers[v])


@torch.no_grad()
def test_without_edge_tokens_a_node_holds_the_mean_of_its_edges() -> None:
    processor, graphs = fitted()
    tokenizer, short = make(processor), make(processor, edge_tokens=False)
    batch = processor(graphs)
    whole, pooled = tokenizer(**batch), short(**batch)
    assert pooled.layout == GraphLayout(0, 9, 0)
    for row in range(len(graphs)):
        (nodes, edges), (found, rest) = parts(whole, row), parts(pooled, row)
        size = tokenizer.sizes(torch.tensor([float(len(nodes)), float(len(edges))]).log1p())
        assert len(rest) == 0
        for node, token in enumerate(found):
            own = [edge - size for edge, ends in zip(edges, batch["edge_index"][row], strict=False) if node in ends]
            mean = torch.stack(own).mean(dim=0) if own else 0
            torch.testing.assert_close(token, nodes[node] + mean, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_degrees_count_ends_and_higher_ones_share_a_vector() -> None:
    processor = GraphProcessor(**STRUCTURE, identifiers="none")
    tokenizer = make(processor, max_degree=3, endpoint_content=False)
    graph = nx.star_graph(5)
    graph.add_edge(1, 1)
    nodes, _ = parts(tokenizer(**processor(graph)))
    base = make(processor)(**processor(graph)).embeddings[0, :6]
    tokenizer.degrees.weight.requires_grad_(False)
    own = nodes - nodes[2]
    expected = tokenizer.degrees.weight[[3, 3, 1, 1, 1, 1]] - tokenizer.degrees.weight[1]
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(base[0], base[1])


def test_an_unseen_category_is_the_zero_vector_and_stays_it() -> None:
    processor, graphs = fitted()
    tokenizer = make(processor, endpoint_content=False)
    batch = dict(processor(graphs[0]))
    batch["node_categories"] = torch.zeros_like(batch["node_categories"])
    tokenizer(**batch).embeddings.sum().backward()
    assert tokenizer.node_content.embedding.weight.grad[0].abs().max() == 0


def test_graph_tokens_come_first_and_the_layout_says_where_what_is() -> None:
    processor, graphs = fitted()
    sequence = make(processor, num_graph_tokens=2)(**processor(graphs))
    counts = [len(graph["edges"]) for graph in graphs]
    assert sequence.layout == GraphLayout(2, 9, max(counts))
    assert sequence.embeddings.shape == (4, 2 + 9 + max(counts), HIDDEN)
    assert sequence.mask.sum(dim=1).tolist() == [2 + n + m for n, m in zip((6, 3, 9, 1), counts, strict=True)]
    assert sequence.mask[:, :2].all()


@torch.no_grad()
def test_the_seed_is_marked() -> None:
    processor, graphs = fitted(seed_nodes=True)
    tokenizer = make(processor)
    (first, edges), (second, other) = (parts(tokenizer(**processor({**graphs[0], "seed": i}))) for i in (1, 4))
    expected = torch.zeros(6, HIDDEN)
    expected[1], expected[4] = tokenizer.seed, -tokenizer.seed
    torch.testing.assert_close(first - second, expected, atol=1e-5, rtol=0)
    assert torch.equal(edges, other)


# What it does and does not depend on


@torch.no_grad()
@pytest.mark.parametrize("name", GRAPHS)
def test_tokens_do_not_depend_on_the_order_of_nodes_whatever_the_spectrum(name: str) -> None:
    graph = nx.convert_node_labels_to_integers(GRAPHS[name])
    pairs = np.array(graph.edges).reshape(-1, 2).astype(int)
    order = np.random.default_rng(1).permutation(len(graph))
    processor = GraphProcessor(**STRUCTURE, num_identifiers=6)
    tokenizer = make(processor, max_degree=4)
    nodes, edges = parts(tokenizer(**processor({"edges": pairs, "num_nodes": len(graph)})))
    other_nodes, other_edges = parts(tokenizer(**processor({"edges": order[pairs], "num_nodes": len(graph)})))
    torch.testing.assert_close(other_nodes[order], nodes, atol=1e-4, rtol=0)
    rows_agree(edges, other_edges, tolerance=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("edge_tokens", [False, True])
def test_tokens_with_content_do_not_depend_on_the_order_of_nodes(directed: bool, edge_tokens: bool) -> None:
    processor, graphs = fitted(directed)
    tokenizer = make(processor, edge_tokens=edge_tokens)
    order = np.random.default_rng(1).permutation(9)
    nodes, edges = parts(tokenizer(**processor(graphs[2])))
    other_nodes, other_edges = parts(tokenizer(**processor(shuffled(graphs[2], order))))
    torch.testing.assert_close(other_nodes[order], nodes, atol=1e-4, rtol=0)
    rows_agree(edges, other_edges, tolerance=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("directed", [False, True])
def test_signs_and_bases_of_eigenspaces_change_nothing(directed: bool) -> None:
    processor = GraphProcessor(**STRUCTURE, num_identifiers=7, directed=directed)
    tokenizer, batch = make(processor), dict(processor(nx.cycle_graph(7)))
    expected = tokenizer(**batch).embeddings
    generator = torch.Generator().manual_seed(0)
    turned = batch["node_identifiers"].clone()
    for space in batch["node_eigenspaces"][0, 0].unique():
        columns = batch["node_eigenspaces"][0, 0] == space
        width = int(columns.sum())
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        turned[..., columns] = turned[..., columns] @ -basis
    assert (turned - batch["node_identifiers"]).abs().max() > 0.1
    again = tokenizer(**{**batch, "node_identifiers": turned}).embeddings
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_structure_alone_tells_graphs_of_equal_size_and_degrees_apart() -> None:
    """Two triangles and a hexagon: message passing with equal features cannot."""
    processor = GraphProcessor(**STRUCTURE, num_identifiers=6)
    tokenizer = make(processor)
    two = nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    first, second = (tokenizer(**processor(graph)).mean() for graph in (two, nx.cycle_graph(6)))
    assert (first - second).abs().max() > 1e-2


@torch.no_grad()
def test_direction_counts_where_it_should() -> None:
    pairs = {"edges": [[0, 1], [1, 2], [1, 3]], "num_nodes": 4}
    turned = {"edges": [[1, 0], [1, 2], [1, 3]], "num_nodes": 4}
    for directed in (True, False):
        processor = GraphProcessor(**STRUCTURE, num_identifiers=3, directed=directed)
        first, second = (parts(make(processor)(**processor(graph)))[1] for graph in (pairs, turned))
        assert ((first - second).abs().max() > 1e-3) == directed


@torch.no_grad()
@pytest.mark.parametrize("padding", [0.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"laplacian_embedding": "linear"}, {"edge_tokens": False}, {"max_degree": 3}])
def test_a_graph_has_the_same_tokens_alone_and_padded_with_anything(padding: float, options: dict[str, Any]) -> None:
    processor, graphs = fitted()
    tokenizer = make(processor, **options)
    batch = dict(processor(graphs))
    for name, value in batch.items():
        mask = batch["node_mask" if name.startswith("node") else "edge_mask"]
        if value.dim() == 3:
            filler = padding if value.is_floating_point() else 10**9
            batch[name] = torch.where(mask[..., None], value, filler)
    together = tokenizer(**batch)
    for row, graph in enumerate(graphs):
        for found, expected in zip(parts(together, row), parts(tokenizer(**processor(graph))), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_garbage_in_the_padding_does_not_reach_the_gradients() -> None:
    processor, graphs = fitted()
    tokenizer, batch = make(processor), dict(processor(graphs))
    grads = []
    for filler in (0.0, float("nan")):
        for name in ("node_identifiers", "node_eigenvalues", "edge_features"):
            mask = batch["node_mask" if name.startswith("node") else "edge_mask"]
            batch[name] = torch.where(mask[..., None], batch[name], filler)
        tokenizer.zero_grad()
        sequence = tokenizer(**batch)
        sequence.embeddings[sequence.mask].square().sum().backward()
        grads.append([parameter.grad.clone() for parameter in tokenizer.parameters()])
    for clean, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, clean)


# Training


def test_the_invariant_embedding_is_the_same_in_training() -> None:
    processor, graphs = fitted()
    tokenizer, batch = make(processor), processor(graphs)
    assert torch.equal(tokenizer.train()(**batch).embeddings, tokenizer.eval()(**batch).embeddings)


@pytest.mark.parametrize("options", [{}, {"laplacian_embedding": "linear"}, {"edge_tokens": False, "max_degree": 2}])
def test_every_parameter_gets_a_gradient_even_where_no_graph_has_an_edge(options: dict[str, Any]) -> None:
    processor, graphs = fitted()
    tokenizer = make(processor, num_graph_tokens=1, **options)
    tokenizer(**processor(graphs[3])).embeddings.sum().backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


# Precision, compilation, configuration


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 1e-2)])
def test_half_precision_stays_close_to_full(dtype: torch.dtype, tolerance: float) -> None:
    processor, graphs = fitted()
    tokenizer, batch = make(processor), processor(graphs)
    full = tokenizer(**batch).embeddings
    half = tokenizer.to(dtype)(**batch).embeddings
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), full, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_one_graph_compiles_with_masks_and_without_content() -> None:
    for processor, graphs in (fitted(), (GraphProcessor(**STRUCTURE), [nx.path_graph(4), nx.star_graph(5)])):
        tokenizer, batch = make(processor, max_degree=2), dict(processor(graphs))
        torch._dynamo.reset()
        compiled = torch.compile(lambda batch, own=tokenizer: own(**batch).embeddings, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(batch), tokenizer(**batch).embeddings)


def test_weights_are_filled_on_a_module_made_without_memory() -> None:
    processor, _ = fitted(seed_nodes=True)
    config = GraphTokenizerConfig(**processor.tokenizer_config(), num_graph_tokens=2)
    with torch.device("meta"):
        tokenizer = GraphTokenizer(config, 256)
    tokenizer.to_empty(device="cpu")
    for module in (tokenizer, tokenizer.invariant):
        module.init_parameters(0.02)
    for parameter in (tokenizer.kinds, tokenizer.seed, tokenizer.graph_tokens):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.25)
    assert (tokenizer.endpoints == 0.5).all()
    assert tokenizer.invariant.weight.std().item() == pytest.approx(1, rel=0.5)


def test_bad_tensors_are_refused_with_the_remedy() -> None:
    processor, graphs = fitted()
    tokenizer, batch = make(processor), dict(processor(graphs))
    missing = {name: value for name, value in batch.items() if name != "node_categories"}
    bad = [
        (missing, "'node_categories'.* missing"),
        ({**batch, "seed_node": torch.zeros(4).long()}, "'seed_node'.* not expected"),
        ({**batch, "edge_index": batch["edge_index"].transpose(1, 2)}, "edge_index must have shape"),
        ({**batch, "edge_index": batch["edge_index"] + 9}, "edge_index must lie below"),
        ({**batch, "edge_index": batch["edge_index"].float()}, "edge_index must hold integers"),
        ({**batch, "node_categories": batch["node_categories"] + 9}, "node_categories must lie below"),
        ({**batch, "node_identifiers": batch["node_identifiers"][..., :2]}, r"shape \(4, 9, 4\), got \(4, 9, 2\)"),
        ({**batch, "node_mask": batch["node_mask"][:, :3]}, "must have shape"),
        ({**batch, "edge_mask": batch["edge_mask"][:2]}, "edge_mask must have shape"),
    ]
    for tensors, message in bad:
        with pytest.raises(ValueError, match=message):
            tokenizer(**tensors)


def test_edges_and_seeds_at_nodes_that_only_larger_graphs_have_are_refused() -> None:
    processor, graphs = fitted(seed_nodes=True)
    tokenizer, batch = make(processor), dict(processor([{**graph, "seed": 0} for graph in graphs]))
    batch["edge_index"][~batch["edge_mask"]] = 10**9  # padding is not looked at
    tokenizer(**batch)
    batch["edge_index"][1, 0] = torch.tensor([0, 4])  # of three nodes
    with pytest.raises(ValueError, match=r"edge_index of graph 1 is \[0, 4\], a node that node_mask says is not there"):
        tokenizer(**batch)
    batch["edge_index"][1, 0], batch["seed_node"][3] = torch.tensor([0, 1]), 2
    with pytest.raises(ValueError, match="seed_node of graph 3 is 2, a node"):
        tokenizer(**batch)


def test_without_anything_of_the_nodes_their_number_is_asked_for() -> None:
    tokenizer = make(GraphProcessor(**STRUCTURE, identifiers="none"))
    with pytest.raises(ValueError, match="give node_mask"):
        tokenizer(edge_index=torch.zeros(1, 1, 2).long())


@pytest.mark.parametrize(
    "options",
    [{"num_identifiers": 0}, {"max_degree": -1}, {"node_cardinalities": [1]}, {"identifier_features": 0}],
)
def test_options_that_make_no_tokens_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=f"{next(iter(options))} must be at least"):
        GraphTokenizerConfig(**options)


def test_options_survive_json() -> None:
    config = GraphTokenizerConfig(**fitted()[0].tokenizer_config(), max_degree=3, edge_tokens=False)
    assert GraphTokenizerConfig(**json.loads(json.dumps(config.to_dict()))) == config
