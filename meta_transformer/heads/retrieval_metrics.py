"""How well embeddings find what belongs together: recall at k and mean average precision."""

from itertools import permutations

import torch
from torch import Tensor

__all__ = ["RetrievalMetrics"]

_RANKS = (1, 5, 10)
_AT_ONCE = 1024  # queries that are compared with the whole gallery at a time


class RetrievalMetrics:
    """Every embedding is a query, and all others are its gallery.

    With several modalities, the gallery of a query are the embeddings of another one; figures are means over ordered
    pairs of modalities. A query with nothing to find does not count. Recall at k is the share of queries with a right
    answer among the first k, as retrieval between pictures and texts has it (Karpathy and Fei-Fei 2015, section 4.1);
    average precision is the mean, over the right answers, of the share of right ones down to each (Manning et al. 2008,
    section 8.4). It has the methods of a metric of torchmetrics.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._embeds: list[Tensor] = []
        self._labels: list[Tensor] = []

    def keys(self) -> list[str]:
        """Names of the metrics."""
        return ["map", *(f"recall_at_{rank}" for rank in _RANKS)]

    def __iter__(self):
        return iter(self.keys())

    def update(self, embeds: Tensor, labels: Tensor) -> None:
        """Take samples in.

        Args:
            embeds: `(samples, modalities, width)` of length 1.
            labels: `(samples,)`, equal for what belongs together.
        """
        self._embeds.append(embeds.float())
        self._labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all samples; NaN if no query has anything to find."""
        embeds, labels = torch.cat(self._embeds), torch.cat(self._labels)
        alone = embeds.shape[1] == 1
        rows = []
        for query, gallery in list(permutations(range(embeds.shape[1]), 2)) or [(0, 0)]:
            for start in range(0, len(labels), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                similarity = embeds[part, query] @ embeds[:, gallery].T
                right = labels[part, None] == labels
                if alone:
                    itself = torch.arange(len(labels))[part, None] == torch.arange(len(labels))
                    similarity, right = similarity.masked_fill(itself, -torch.inf), right & ~itself
                rows.append(_figures(similarity, right))
        figures = torch.cat(rows)
        figures = figures[~figures.isnan().any(dim=1)].mean(dim=0)
        return dict(zip(self.keys(), figures, strict=True))


def _figures(similarity: Tensor, right: Tensor) -> Tensor:
    """Average precision and recall at each rank `(queries, 1 + ranks)`; NaN for a query with nothing to find."""
    found = right.gather(1, similarity.argsort(dim=1, descending=True, stable=True)).float()
    ranks = torch.arange(1, found.shape[1] + 1)
    precision = (found.cumsum(dim=1) / ranks * found).sum(dim=1) / found.sum(dim=1)
    recalls = [found[:, :rank].amax(dim=1) / found.amax(dim=1) for rank in _RANKS]
    return torch.stack([precision, *recalls], dim=1)
