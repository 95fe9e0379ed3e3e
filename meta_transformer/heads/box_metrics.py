"""COCO's metrics of boxes, from pycocotools through torchmetrics."""

from typing import Any

from torch import Tensor

from ..extras import needs
from .metrics import torchmetrics

__all__ = ["BoxMetrics"]


class BoxMetrics:
    """Mean average precision over the classes that occur; it has the methods of a metric of torchmetrics."""

    def __init__(self) -> None:
        with needs("pycocotools for the metrics of boxes", "metrics"):
            import pycocotools  # noqa: F401
        self._metric: Any = torchmetrics("detection").MeanAveragePrecision(backend="pycocotools")
        self._metric.warn_on_many_detections = False

    def keys(self) -> list[str]:
        """Names of the metrics."""
        return ["map", "map_50", "map_75"]

    def __iter__(self):
        return iter(self.keys())

    def reset(self) -> None:
        """Forget all pictures."""
        self._metric.reset()

    def update(self, found: list[dict[str, Tensor]], truth: list[dict[str, Tensor]]) -> None:
        """Take pictures in.

        Args:
            found: For each picture `scores` `(boxes,)`, `labels` `(boxes,)` and `boxes` `(boxes, 4)`.
            truth: Likewise, without scores.
        """
        self._metric.update(found, truth)

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all pictures; -1 where there is no box, as pycocotools has it."""
        values = self._metric.compute()
        return {name: values[name] for name in self.keys()}
