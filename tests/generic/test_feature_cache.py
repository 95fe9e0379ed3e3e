"""Every head on every modality: from cached features it gives what it gives behind tokenizer and trunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from meta_transformer.training import FeatureCache, HeadModel

CACHEABLE = {"classification", "regression", "retrieval"}


def test_a_head_reads_cached_features_as_it_reads_the_trunk(costly_case: Any, tmp_path: Path) -> None:
    model, collator, rows = costly_case.lively_model(), costly_case.collator(), costly_case.data()
    cache = FeatureCache(tmp_path)
    if model.head.layouts or costly_case.head == "multi_task":  # one of its tasks reads hidden states
        assert costly_case.head not in CACHEABLE
        with pytest.raises(ValueError, match="Train it with the trunk"):
            cache.features(model, rows, collator, progress=False)
        return
    features = cache.features(model, rows, collator, batch_size=3, progress=False)
    with torch.no_grad():
        found = HeadModel(model)(**features.collate([features[number] for number in range(len(features))]))
        wanted = model(**collator(rows))
    tree_map(
        lambda one, other: torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5) if one is not None else None,
        dict(found),
        dict(wanted),
    )
