"""Metrics of the recipes: labels `(samples,)` and probabilities `(samples, classes)` to a number, more is better."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Share of samples whose most probable class is theirs."""
    return float(accuracy_score(labels, probabilities.argmax(axis=1)))


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of the F1 scores of the classes."""
    return float(f1_score(labels, probabilities.argmax(axis=1), average="macro"))


def area_under_curve(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Of the receiver operating characteristic of the second of two classes."""
    return float(roc_auc_score(labels, probabilities[:, 1]))
