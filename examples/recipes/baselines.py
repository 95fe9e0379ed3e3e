"""Baselines that several recipes compare with."""

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from .base import Score, Split


def pixel_svm(splits: dict[str, Split], score: Score, C: float) -> float:
    """A support vector machine on the standardised pixels of images of one size."""
    train, test = (np.stack(splits[name].samples).reshape(len(splits[name].samples), -1) for name in ("train", "test"))
    model = make_pipeline(StandardScaler(), SVC(C=C)).fit(train, splits["train"].labels)
    values = model.decision_function(test)
    return score(np.array(splits["test"].labels), np.stack([-values, values], axis=1) if values.ndim == 1 else values)
