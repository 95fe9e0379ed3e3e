"""A head alone, which learns from features that were computed before."""

from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..modeling import MetaTransformerForTask
from .features import restore

__all__ = ["HeadModel"]


class HeadModel(nn.Module):
    """The head of a model, for `Trainer` or a loop over batches of `CachedFeatures`.

    The head is the model's own, not a copy: what it learns, the whole model has learned.

    Args:
        model: Whose head is trained.
    """

    def __init__(self, model: MetaTransformerForTask) -> None:
        super().__init__()
        self.config = model.config
        self.head = model.head

    def forward(
        self,
        *,
        features: dict[str, dict[str, Any]],
        labels: Any = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> ModelOutput:
        """Predict, and compute the loss where there are labels.

        Args:
            features: Of `CachedFeatures.collate`.
            labels: As of the model.
            num_items_in_batch: As of the model.
            inputs: What the head takes beside tokens.

        Returns:
            The head's output.
        """
        dtype = next(self.head.parameters()).dtype
        parts = {}
        for name, part in features.items():
            layers = restore({**part, "tokens": part["tokens"].to(dtype)}, self.config)
            parts[name] = self.head.mix_layers(layers)
        sequence = parts[""] if self.head.joins_modalities else parts
        return self.head(sequence, labels, num_items_in_batch, **inputs)
