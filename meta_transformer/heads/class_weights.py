"""How much each class counts in a loss: for data in which some classes are rare.

A loss with weights stays a mean over labels, `sum_i w[y_i] l_i / n`, where torch's `reduction="mean"` divides by
`sum_i w[y_i]`. Parts of a batch then sum to the whole, on several processes and with accumulated gradients, and a batch
that happens to hold rare classes alone counts more, as it should. With balanced weights both are the same over a whole
data set, because there the weights sum to the number of labels.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from .base import IGNORED

__all__ = ["balanced_class_weights", "check_class_count", "check_class_weights", "weights_like"]


def check_class_weights(weights: list[float | int] | None) -> None:
    """Refuse with `ValueError` what can be no weights, whatever the classes."""
    if weights is not None and not (all(map(isfinite, weights)) and min(weights, default=0) >= 0 < sum(weights)):
        raise ValueError(f"class_weights must be finite numbers, none negative, not all zero, got {weights}.")


def check_class_count(weights: list[float | int] | None, num_labels: int) -> None:
    """Refuse with `ValueError` more or fewer weights than classes."""
    if weights is not None and len(weights) != num_labels:
        raise ValueError(f"class_weights must be {num_labels} numbers, one a class, got {weights}.")


def weights_like(logits: Tensor, weights: list[float | int] | None) -> Tensor | None:
    """The weights as a tensor `(num_labels,)` of the type and on the device of the logits; `None` if there are none."""
    return None if weights is None else logits.new_tensor(weights)


def balanced_class_weights(labels: Any, num_labels: int) -> list[float]:
    """Weights that make all classes count the same: each is inverse to how often its class occurs.

    Args:
        labels: Class numbers of a data set, of any shape or a list of arrays of several lengths; -100 does not count.
            Of a multi-label problem `(samples, num_labels)` floats of zeros and ones.
        num_labels: How many classes there are.

    Returns:
        For `class_weights` of a head. Of class numbers `n / (num_labels * count)`, as scikit-learn's
        `class_weight="balanced"`; of multi-label problems negatives through positives, torch's advice for `pos_weight`.

    Raises:
        ValueError: No labels, some out of range, a class that does not occur, or integers that may be either.
    """
    ragged = isinstance(labels, Sequence) and len({np.shape(each) for each in labels}) > 1
    values = np.concatenate([np.ravel(each) for each in labels]) if ragged else np.asarray(labels)
    several = values.ndim == 2 and values.shape[1] == num_labels
    if several and values.dtype.kind != "f" and np.isin(values, (0, 1)).all():
        raise ValueError(
            f"labels {values.shape} of zeros and ones are either classes of tokens or those that a sample has: give "
            "labels.ravel() for the first, floats for the second."
        )
    multi_label = values.dtype.kind == "f" and several
    if multi_label:
        if not np.isin(values, (0, 1)).all():
            raise ValueError("labels of a multi-label problem must be zeros and ones.")
        counts = values.sum(axis=0)
        total = len(values) - counts
    else:
        values = values[values != IGNORED]
        wrong = (values < 0) | (values >= num_labels) | (values != np.round(values))
        if wrong.any():
            raise ValueError(f"labels must lie in 0..{num_labels - 1}, got {values[wrong][0]}.")
        counts = np.bincount(values.astype(np.int64), minlength=num_labels)
        total = np.full(num_labels, len(values) / num_labels)
    if absent := np.flatnonzero(counts == 0).tolist():
        raise ValueError(
            f"labels hold none of the classes {absent} of {num_labels}, for which no weight follows; leave them out of "
            "num_labels, or write the weights by hand."
        )
    return (total / counts).tolist()
