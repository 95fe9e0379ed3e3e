"""Classification of whole samples: one label each, or any number of labels each.

Arrives: encoded tokens `(batch, tokens, hidden)`. Leaves: logits `(batch, num_labels)` and the mean loss.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from ..sequence import TokenSequence
from .base import IGNORED, HeadConfig, TaskHead, count_labels
from .class_weights import check_class_count, check_class_weights, weights_like
from .late_fusion import make_pooling
from .metrics import TaskMetrics, torchmetrics
from .pooling import PoolingMode

__all__ = ["ClassificationHead", "ClassificationHeadConfig"]


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
        class_weights: How much a label of each class counts, see `class_weights.py`; in multi-label problems, how much
            a one of each class counts beside a zero.
    """

    pooling: PoolingMode = "cls"
    dropout: float | int = 0.0
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None

    def validate_shares(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        check_class_weights(self.class_weights)


class ClassificationHead(TaskHead):
    """Pool, normalise, one linear layer.

    The problem is single-label (softmax and cross-entropy) for integer labels `(batch,)`, multi-label (sigmoid and
    binary cross-entropy) for labels `(batch, num_labels)` of zeros and ones, unless `problem_type` says which.
    """

    config_class: ClassVar[type[HeadConfig]] = ClassificationHeadConfig
    pools: ClassVar[bool] = True

    config: ClassificationHeadConfig

    def __init__(self, config: ClassificationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.num_labels = count_labels(model_config)
        check_class_count(config.class_weights, self.num_labels)
        self.id2label: dict[Any, str] = {**(model_config.id2label or {})}
        self.problem_type = model_config.problem_type
        if self.problem_type == "regression":
            raise ValueError("problem_type is 'regression', which is not what a classification head solves.")
        self.pooling = make_pooling(config.pooling, model_config)
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
        logits, smoothing = logits.float(), self.config.label_smoothing
        weights = weights_like(logits, self.config.class_weights)
        if multi_label:
            targets = labels.float() * (1 - smoothing) + smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
            count = labels.numel()
        else:
            losses = functional.cross_entropy(
                logits,
                labels.long(),
                weight=weights,
                ignore_index=IGNORED,
                label_smoothing=smoothing,
                reduction="none",
            )
            count = (labels != IGNORED).sum().clamp(min=1)
        return losses.sum() / (count if num_items_in_batch is None else num_items_in_batch)

    def metrics(self) -> TaskMetrics:
        """Accuracy and macro-averaged F1, of labels or of the classes that are more likely than not."""
        classification: Any = torchmetrics("classification")
        if (self.problem_type or "").startswith("multi"):
            metrics = {
                "accuracy": classification.MultilabelExactMatch(self.num_labels),
                "f1": classification.MultilabelF1Score(self.num_labels),
            }
            return TaskMetrics(metrics, lambda logits, labels: (logits.sigmoid(), labels.long()))
        options = {"num_classes": self.num_labels, "ignore_index": IGNORED}
        metrics = {
            "accuracy": classification.MulticlassAccuracy(average="micro", **options),
            "f1": classification.MulticlassF1Score(average="macro", **options),
        }
        return TaskMetrics(metrics, self._read_single)

    @staticmethod
    def _read_single(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.dim() != 1:
            raise ValueError(
                f"metrics of single labels got labels of shape {tuple(labels.shape)}; set config.problem_type to "
                "'multi_label_classification' before the model is made."
            )
        return logits, labels.long()

    def post_process(self, output: ModelOutput, *, top_k: int | None = None) -> list[list[dict[str, Any]]]:
        """Names and probabilities of the classes.

        Args:
            output: Of the model.
            top_k: How many to keep; by default all.

        Returns:
            For each sample `{"label", "score"}` of the classes, the most likely first, as transformers' pipelines give
            them. Scores of multi-label problems do not sum to 1.
        """
        logits = output["logits"].detach().float()
        multi_label = (self.problem_type or "").startswith("multi")
        scores = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
        values, classes = scores.sort(dim=-1, descending=True, stable=True)
        return [
            [{"label": self.id2label[each], "score": score} for each, score in zip(*row, strict=True)][:top_k]
            for row in zip(classes.tolist(), values.tolist(), strict=True)
        ]

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

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        numbers = torch.arange(len(sequence.embeddings))
        if self.problem_type == "multi_label_classification":
            return list(((numbers[:, None] + torch.arange(self.num_labels)) % 2).float())
        return (numbers % self.num_labels).tolist()
