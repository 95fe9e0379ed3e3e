"""Identifiers that are drawn anew in training: signs of eigenvectors, as TokenGT's, and orthonormal vectors."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.tokenizers.graph import GraphTokenizer, GraphTokenizerConfig
from meta_transformer.tokenizers.graph_identifiers import LinearIdentifiers

PROCESSOR = GraphProcessor(node_fields=[], edge_fields=[], num_identifiers=3)


def make(processor: GraphProcessor = PROCESSOR) -> GraphTokenizer:
    """A tokenizer with random weights, in training."""
    torch.manual_seed(0)
    options = {**processor.tokenizer_config(), "laplacian_embedding": "linear", "size_features": False}
    tokenizer = GraphTokenizer(GraphTokenizerConfig(**options), hidden_size=12)
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return tokenizer.train()


def outcomes(tokenizer: GraphTokenizer, graph: nx.Graph | dict) -> Tensor:
    """Tokens of the nodes by each draw of the signs, which are all equally likely: `(draws, nodes, hidden)`."""
    batch = PROCESSOR(graph)
    size = batch["node_identifiers"].shape[1]
    return torch.stack([tokenizer(**batch).embeddings[0, :size] for _ in range(80)]).unique(dim=0)


@torch.no_grad()
def test_signs_are_flipped_in_training_one_for_each_eigenvector() -> None:
    tokenizer, graph = make(), nx.lollipop_graph(4, 3)
    own = PROCESSOR(graph)["node_identifiers"][0] / 3**0.5
    inverse = torch.linalg.pinv(tokenizer.linear.projection.weight)
    found = set()
    for nodes in outcomes(tokenizer, graph):
        vectors = (nodes - tokenizer.kinds[0]) @ inverse.T
        matrix = torch.linalg.lstsq(own.double(), vectors.double()).solution
        torch.testing.assert_close(matrix.abs(), torch.eye(3).double(), atol=1e-4, rtol=0)
        found.add(tuple(matrix.diagonal().sign().tolist()))
    assert len(found) == 8


@torch.no_grad()
def test_over_all_signs_the_order_of_nodes_changes_nothing_on_average_where_no_eigenvalue_is_repeated() -> None:
    """A path is symmetric, so that nothing tells which sign half of its eigenvectors should have."""
    tokenizer, pairs = make(), np.array(nx.path_graph(7).edges)
    order = np.random.default_rng(1).permutation(7)
    first, second = (outcomes(tokenizer, {"edges": edges, "num_nodes": 7}) for edges in (pairs, order[pairs]))
    assert len(first) == len(second) == 8
    # The mean of something that is not linear: that of the tokens themselves holds no identifier any more.
    means = [nn.functional.gelu(each).mean(dim=0) for each in (first, second)]
    torch.testing.assert_close(means[1][order], means[0], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("directed", [False, True])
def test_no_weight_of_the_linear_embedding_is_redundant(directed: bool) -> None:
    embedding = LinearIdentifiers(3, 5, directed)
    source, target = torch.randn(2, 1, 4, 3)
    weight = embedding.projection.weight
    assert weight.shape == (5, 6 if directed else 3)
    expected = source @ weight[:, :3].T + target @ weight[:, 3:].T if directed else (source + target) / 2 @ weight.T
    torch.testing.assert_close(embedding(source, target), expected)


def test_orthonormal_identifiers_are_drawn_anew_in_training_and_stay_orthonormal() -> None:
    processor = GraphProcessor(node_fields=[], edge_fields=[], identifiers="orthonormal", num_identifiers=12)
    tokenizer = make(processor)
    seen = []
    tokenizer.linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = processor([nx.path_graph(5), nx.path_graph(12)])
    tokenizer(**batch)
    tokenizer(**batch)
    for vectors, again in ((seen[0], seen[2]),):
        assert (vectors - again).abs().max() > 0.1
        for row, size in enumerate((5, 12)):
            own = vectors[row, :size]
            torch.testing.assert_close(own @ own.T, torch.eye(size), atol=1e-5, rtol=0)
        assert vectors[0, 5:].abs().max() == 0
    tokenizer.eval()
    assert torch.equal(tokenizer(**batch).embeddings, tokenizer(**batch).embeddings)
