"""The model class of every task: `MetaTransformerForTask` with the name of its head."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .modeling import MetaTransformerForTask

__all__ = [
    "MetaTransformerForClassification",
    "MetaTransformerForForecasting",
    "MetaTransformerForMultiTask",
    "MetaTransformerForObjectDetection",
    "MetaTransformerForRegression",
    "MetaTransformerForRetrieval",
    "MetaTransformerForSegmentation",
    "MetaTransformerForTokenClassification",
]


class MetaTransformerForClassification(MetaTransformerForTask):
    """Single-label or multi-label classification of samples of any modality; see `heads/classification.py`."""

    head_name = "classification"


class MetaTransformerForForecasting(MetaTransformerForTask):
    """What follows in a time series, or what is missing in it; see `heads/forecasting.py`."""

    head_name = "forecasting"


class MetaTransformerForMultiTask(MetaTransformerForTask):
    """Several named heads behind one pass of the trunk; see `heads/multi_task.py`."""

    head_name = "multi_task"


class MetaTransformerForObjectDetection(MetaTransformerForTask):
    """Boxes and their classes in a picture; see `heads/object_detection.py`."""

    head_name = "object_detection"


class MetaTransformerForRetrieval(MetaTransformerForTask):
    """Embeddings to search by, of samples of any modality and between modalities; see `heads/retrieval.py`."""

    head_name = "retrieval"

    @torch.no_grad()
    def get_embeds(self, **inputs: Any) -> dict[str, Tensor]:
        """Embeddings `(batch, embed_dim)` of length 1 by modality, without gradients; arguments as of `forward`."""
        output = self(**{**inputs, "return_dict": True})
        present = [name for name, own in self.model.input_names.items() if any(each in inputs for each in own)]
        return dict(zip(present, output.embeds.unbind(dim=1), strict=True))

    @staticmethod
    def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
        """Cosine similarity of embeddings `(queries, embed_dim)` and `(items, embed_dim)`: `(queries, items)`."""
        return functional.normalize(queries, dim=-1) @ functional.normalize(gallery, dim=-1).T


class MetaTransformerForRegression(MetaTransformerForTask):
    """One or several numbers for samples of any modality; see `heads/regression.py`."""

    head_name = "regression"


class MetaTransformerForSegmentation(MetaTransformerForTask):
    """A class for each pixel of a picture; see `heads/segmentation.py`."""

    head_name = "segmentation"


class MetaTransformerForTokenClassification(MetaTransformerForTask):
    """A class for each node, point, id or step of a sample; see `heads/token_classification.py`."""

    head_name = "token_classification"
