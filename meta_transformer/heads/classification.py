"""Classification of whole samples: one label each, or any number of labels each.

Arrives: encoded tokens `(batch, tokens, hidden)`. Leaves: logits `(batch, num_labels)` and the mean loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from ..sequence import TokenSequence
from .base import HeadConfig, TaskHead, count_labels
from .pooling import Pooling, PoolingMode

__all__ = ["ClassificationHead", "ClassificationHeadConfig"]

IGNORED = -100  # single labels of this value do not count, as in torch and transformers


@strict
@dataclass(kw_only=True)
class ClassificationHeadConfig(HeadConfig):
    """Options of the classification head.

    The classes and the kind of problem stand in the model's configuration (`id2label`, `problem_type`), where
    transformers looks for them.

    Attributes:
        pooling: How the tokens of a sample become one vector.
        dropout: Dropout in front of the linear layer.
        label_smoothing: Share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
    """

    pooling: PoolingMode = "cls"
    dropout: float | int = 0.0
    label_smoothing: float | int = 0.0

    def validate_shares(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")


class ClassificationHead(TaskHead):
    """Pool, normalise, one linear layer.

    The problem is single-label (softmax and cross-entropy) for integer labels `(batch,)`, multi-label (sigmoid and
    binary cross-entropy) for labels `(batch, num_labels)` of zeros and ones, unless `problem_type` says which.
    """

    config_class: ClassVar[type[HeadConfig]] = ClassificationHeadConfig

    config: ClassificationHeadConfig

    def __init__(self, config: ClassificationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.num_labels = count_labels(model_config)
        self.problem_type = model_config.problem_type
        if self.problem_type == "regression":
            raise ValueError("problem_type is 'regression', which is not what a classification head solves.")
        self.pooling = Pooling(config.pooling, model_config.hidden_size, model_config.num_attention_heads)
        self.layernorm = nn.LayerNorm(model_config.hidden_size, eps=model_config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(model_config.hidden_size, self.num_labels)

    def forward(
        self, sequence: TokenSequence, labels: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
    ) -> SequenceClassifierOutput:
        """Classify.

        Args:
            sequence: Encoded tokens.
            labels: `(batch,)` class indices, -100 where unknown; or `(batch, num_labels)` zeros and ones.
            num_items_in_batch: See `TaskHead.forward`.

        Returns:
            `loss`, and `logits` of shape `(batch, num_labels)`.

        Raises:
            ValueError: Labels of another shape, out of range, or fewer than samples.
        """
        logits = self.classifier(self.dropout(self.layernorm(self.pooling(sequence))))
        loss = None if labels is None else self.loss(logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross-entropy, or binary cross-entropy over all classes, in fp32; arguments as of `forward`."""
        multi_label = labels.dim() == 2 if self.problem_type is None else self.problem_type.startswith("multi")
        self._check(logits, labels, multi_label)
        smoothing = self.config.label_smoothing
        if multi_label:
            targets = labels.float() * (1 - smoothing) + smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
            count = labels.numel()
        else:
            losses = functional.cross_entropy(
                logits.float(), labels.long(), ignore_index=IGNORED, label_smoothing=smoothing, reduction="none"
            )
            count = (labels != IGNORED).sum().clamp(min=1)
        return losses.sum() / (count if num_items_in_batch is None else num_items_in_batch)

    def _check(self, logits: Tensor, labels: Tensor, multi_label: bool) -> None:
        expected = tuple(logits.shape) if multi_label else (logits.shape[0],)
        if tuple(labels.shape) != expected:
            kind = "multi-label" if multi_label else "single-label"
            raise ValueError(f"labels of a {kind} problem must have shape {expected}, got {tuple(labels.shape)}.")
        if torch.compiler.is_compiling():
            return  # values are unknown while a graph is traced
        low, high = (0, 1) if multi_label else (0, self.num_labels - 1)
        wrong = (labels < low) | (labels > high) | labels.isnan()
        if not multi_label:
            wrong = (wrong | (labels != labels.round())) & (labels != IGNORED)
        if wrong.any():
            remedy = "Give zeros and ones." if multi_label else "Set id2label to all classes, or num_labels."
            raise ValueError(f"labels must lie in {low}..{high}, got {labels[wrong][0].item()}. {remedy}")

    @classmethod
    def dummy_labels(cls, batch_size: int, model_config: PreTrainedConfig) -> Tensor:
        if model_config.problem_type == "multi_label_classification":
            return (torch.arange(batch_size * count_labels(model_config)) % 2).view(batch_size, -1).float()
        return torch.arange(batch_size) % count_labels(model_config)
