"""Recall at k and mean average precision: against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.retrieval import retrieval_hit_rate

from meta_transformer.heads import retrieval_metrics
from meta_transformer.heads.retrieval_metrics import RetrievalMetrics


def drawn(count: int, modalities: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeds = functional.normalize(torch.randn(count, modalities, 16, generator=generator), dim=-1)
    return embeds, torch.randint(0, 12, (count,), generator=generator)


def computed(embeds: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = RetrievalMetrics()
    metrics.update(embeds, labels)
    return {name: value.item() for name, value in metrics.compute().items()}


def references(similarity: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
    found = {"map": [], "recall_at_1": [], "recall_at_5": [], "recall_at_10": []}
    for scores, truth in zip(similarity, right, strict=True):
        if truth.any():
            found["map"].append(average_precision_score(truth, scores))
            for rank in (1, 5, 10):
                hit = retrieval_hit_rate(torch.from_numpy(scores), torch.from_numpy(truth), top_k=rank)
                found[f"recall_at_{rank}"].append(hit.item())
    return found


def test_between_modalities_both_directions_count() -> None:
    embeds, labels = drawn(50, 2)
    similarity = (embeds[:, 0] @ embeds[:, 1].T).numpy()
    right = (labels[:, None] == labels).numpy()
    there, back = references(similarity, right), references(similarity.T.copy(), right)
    for name, value in computed(embeds, labels).items():
        assert value == pytest.approx(np.mean(there[name] + back[name]), abs=1e-6)


def test_within_a_modality_nobody_finds_itself() -> None:
    embeds, labels = drawn(50, 1)
    labels[0] = 99  # has nothing to find
    similarity = (embeds[:, 0] @ embeds[:, 0].T).numpy()
    right = (labels[:, None] == labels).numpy()
    rest = [np.arange(50) != i for i in range(50)]
    rows = [references(similarity[None, i, rest[i]], right[None, i, rest[i]]) for i in range(50)]
    for name, value in computed(embeds, labels).items():
        assert value == pytest.approx(np.mean([each for row in rows for each in row[name]]), abs=1e-6)


def test_batches_and_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    embeds, labels = drawn(50, 1)
    whole = computed(embeds, labels)
    monkeypatch.setattr(retrieval_metrics, "_AT_ONCE", 7)
    metrics = RetrievalMetrics()
    for part in (slice(0, 20), slice(20, 50)):
        metrics.update(embeds[part], labels[part])
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(whole)


def test_after_a_reset_nothing_is_left() -> None:
    embeds, labels = drawn(20, 2)
    metrics = RetrievalMetrics()
    metrics.update(*drawn(50, 2))
    metrics.reset()
    metrics.update(embeds, labels)
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(computed(embeds, labels))
