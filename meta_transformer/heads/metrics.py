"""Metrics of a task in the form that `Trainer` takes as `compute_metrics`."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..extras import needs

if TYPE_CHECKING:  # it brings in peft
    from transformers import EvalPrediction

__all__ = ["TaskMetrics", "mean_of", "torchmetrics"]


class TaskMetrics:
    """Torchmetrics behind the two calls of `Trainer`: once for a whole set, or batch by batch.

    With `TrainingArguments(batch_eval_metrics=True)` no predictions are kept, which is what maps and boxes ask for.

    Args:
        metrics: Metrics of torchmetrics by name, or something that has the methods of a `MetricCollection`.
        read: From the predictions and labels of an `EvalPrediction`, as tensors, to the arguments of `update`.
    """

    def __init__(self, metrics: Any, read: Callable[[Any, Any], tuple[Any, ...]]) -> None:
        # No groups: two means that are equal over the first batch would count as one ever after.
        if isinstance(metrics, dict):
            metrics = torchmetrics("collections").MetricCollection(metrics, compute_groups=False)
        self.metrics, self.read = metrics, read

    def __call__(self, prediction: "EvalPrediction", compute_result: bool = True) -> dict[str, float]:
        """Take predictions in.

        Args:
            prediction: What the model returned behind the loss, and the labels; arrays or tensors.
            compute_result: Whether these are the last ones.

        Returns:
            The metrics by name over all predictions since the last result, the mean of those that have several values;
            nothing if more are to come.
        """
        self.metrics.update(*self.read(_tensors(prediction.predictions), _tensors(prediction.label_ids)))
        if not compute_result:
            return {}
        values = {name: value.float().mean().item() for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        return values


def torchmetrics(name: str) -> Any:
    """A module of torchmetrics, such as `"classification"`."""
    with needs("torchmetrics for metrics", "metrics"):
        return import_module(f"torchmetrics.{name}")


def mean_of(function: Callable[..., Tensor]) -> Any:
    """A metric: the mean over all elements of a function of predictions and labels."""

    class MeanOf(torchmetrics("aggregation").MeanMetric):
        def update(self, *arguments: Any) -> None:
            super().update(function(*arguments))

    return MeanOf()


def _tensors(values: Any) -> Any:
    """Arrays as tensors on the CPU, in whatever tuples, lists and dicts they stand."""
    if isinstance(values, tuple | list):
        return type(values)(_tensors(each) for each in values)
    if isinstance(values, dict):
        return {name: _tensors(each) for name, each in values.items()}
    return torch.as_tensor(values).cpu() if not isinstance(values, Tensor) else values.detach().cpu()
