"""Embeddings of node identifiers, for nodes and for edges: the entries of the two ends of an edge to one vector.

A node is an edge from itself to itself (TokenGT, Kim et al. 2022, section 2).
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

__all__ = ["InvariantIdentifiers", "LinearIdentifiers", "redraw"]


class LinearIdentifiers(nn.Module):
    """`W [P_u, P_v]` (TokenGT, section 2); in an undirected graph the mean over both ways, `V (P_u + P_v) / 2`."""

    def __init__(self, num_identifiers: int, hidden_size: int, directed: bool) -> None:
        super().__init__()
        self.directed = directed
        self.projection = nn.Linear((1 + directed) * num_identifiers, hidden_size, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """From ends `(batch, items, k)` to `(batch, items, hidden)`."""
        ends = torch.cat([source, target], dim=-1) if self.directed else (source + target) / 2
        return self.projection(ends.to(self.projection.weight.dtype))


class InvariantIdentifiers(nn.Module):
    """Features of two ends' entries of each eigenvector that know neither its sign nor the basis of its eigenspace.

    For entries `a` and `b` of one vector, `|a + b|` and `|a - b|` tell all but the common sign and which end is which;
    in a directed graph `a**2 - b**2` tells the latter. In an eigenspace of more dimensions these are root mean squares
    and means over its vectors, which are functions of the projection onto the space alone. Spaces that are cut off are
    left out. A layer that all vectors share follows, then one for all vectors together.
    """

    def __init__(self, num_identifiers: int, num_features: int, hidden_size: int, directed: bool) -> None:
        super().__init__()
        self.directed = directed
        self.weight = nn.Parameter(torch.zeros(4 if directed else 3, num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.projection = nn.Linear(num_identifiers * num_features, hidden_size, bias=False)

    def init_parameters(self, std: float) -> None:
        # Inputs are near 1, and the features should differ: the width of the model has nothing to do with it.
        init.normal_(self.weight, std=1.0)
        init.normal_(self.bias, std=1.0)

    def forward(self, source: Tensor, target: Tensor, values: Tensor, spaces: Tensor) -> Tensor:
        """From ends `(batch, items, k)`, eigenvalues and numbers of eigenspaces to `(batch, items, hidden)`."""
        plus, minus, values = (source + target).float(), (source - target).float(), values.float()
        same = (spaces[..., :, None] == spaces[..., None, :]).float()
        same = same / same.sum(dim=-1, keepdim=True)
        squares = [plus.square(), minus.square(), *([plus * minus] if self.directed else [])]
        means = torch.einsum("btij,btfj->btif", same, torch.stack(squares, dim=2))
        inputs = torch.cat([means[..., :2].sqrt(), means[..., 2:], values[..., None]], dim=-1)
        hidden = functional.gelu(inputs @ self.weight.float() + self.bias.float())
        hidden = hidden.masked_fill(spaces.eq(0)[..., None], 0).flatten(2)
        # Else many features would outweigh at the start what else is in a token.
        return self.projection((hidden / sqrt(hidden.shape[2])).to(self.projection.weight.dtype))


def redraw(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """Other orthonormal identifiers `(batch, nodes, k)`, as random as new ones in graphs of at most `k` nodes.

    They are turned by a random rotation. In larger graphs that leaves the angles between nodes as they are, so the
    nodes exchange theirs.
    """
    batch, num_nodes, width = vectors.shape
    keys = torch.rand(batch, num_nodes, device=vectors.device)
    real = keys.new_zeros(batch, num_nodes) if mask is None else (~mask).to(keys.dtype)
    shuffled = (keys + 2 * real).argsort(dim=1)  # real nodes first, at random; then padding
    places = real.argsort(dim=1, stable=True)  # real nodes first, in order
    order = torch.empty_like(shuffled).scatter(1, places, shuffled)
    basis, triangle = torch.linalg.qr(torch.randn(batch, width, width, device=vectors.device))
    basis = basis * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]  # makes it uniform over all rotations
    rotated = (vectors.float() @ basis).to(vectors.dtype)
    return rotated.gather(1, order[:, :, None].expand_as(rotated))
