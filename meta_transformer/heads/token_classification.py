"""Classification of what tokens were made of: nodes, points of a cloud, ids of a text, steps of a recording.

Arrives: encoded tokens `(batch, tokens, hidden)` of one modality whose layout says where they come from. Leaves: logits
`(batch, origins, num_labels)` and the mean loss over all labels that are known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils import ModelOutput

from ..sequence import GraphLayout, Layout, TokenSequence
from .base import IGNORED, HeadConfig, TaskHead, count_labels
from .class_weights import check_class_count, check_class_weights, weights_like
from .metrics import TaskMetrics, torchmetrics
from .origins import READERS, OriginReader

__all__ = ["PADDED", "TokenClassificationHead", "TokenClassificationHeadConfig", "pad_labels"]

#: Logits of padding. `Trainer` fills up with the same what it joins from batches of different length.
PADDED = -100.0


def pad_labels(labels: list[Any]) -> Tensor:
    """One tensor `(batch, longest)` from the labels of each sample, -100 behind the shorter ones.

    Raises:
        ValueError: Labels of a sample that are neither numbers in a row nor one number.
    """
    rows = [torch.atleast_1d(torch.as_tensor(label)) for label in labels]
    for index, row in enumerate(rows):
        if row.dim() != 1:
            raise ValueError(f"labels of sample {index} must be numbers in a row, got shape {tuple(row.shape)}.")
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)


@strict
@dataclass(kw_only=True)
class TokenClassificationHeadConfig(HeadConfig):
    """Options of the token classification head; the classes stand in the model's configuration (`id2label`).

    Attributes:
        dropout: Dropout in front of the linear layer.
        label_smoothing: Share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
        class_weights: How much a label of each class counts, see `class_weights.py`.
        seed_only: Of graphs that were sampled around a node, whether that node alone is classified.
    """

    dropout: float | int = 0.0
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None
    seed_only: bool = False

    def validate_shares(self) -> None:
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        check_class_weights(self.class_weights)


class TokenClassificationHead(TaskHead):
    """From tokens to their origins, normalise, one linear layer; see `heads/origins.py` for the first of these."""

    config_class: ClassVar[type[HeadConfig]] = TokenClassificationHeadConfig
    layouts: ClassVar[tuple[type[Layout], ...]] = tuple(READERS)

    config: TokenClassificationHeadConfig

    def __init__(self, config: TokenClassificationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.num_labels = count_labels(model_config)
        self.id2label: dict[Any, str] = {**(model_config.id2label or {})}
        check_class_count(config.class_weights, self.num_labels)
        hidden, eps = model_config.hidden_size, model_config.layer_norm_eps
        widths = [tokenizer.skip_widths(hidden) for tokenizer in model_config.modalities.values()]
        self.origins = OriginReader(next(filter(None, widths), []), hidden, eps)
        self.layernorm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(hidden, self.num_labels)

    def forward(
        self,
        sequence: TokenSequence,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> TokenClassifierOutput:
        """Classify every origin.

        Args:
            sequence: Encoded tokens.
            labels: `(batch, up to origins)` class indices, -100 where unknown and behind the end of a sample; with
                `seed_only`, `(batch,)` or `(batch, 1)`.
            num_items_in_batch: See `TaskHead.forward`.
            inputs: None.

        Returns:
            `loss`, and `logits` of shape `(batch, origins, num_labels)`, -100 where padded.

        Raises:
            ValueError: Labels of another shape, out of range, or more or fewer than the origins of a sample; or
                `seed_only` of samples that have no seed.
        """
        features, mask = self._read(sequence)
        logits = self.classifier(self.dropout(self.layernorm(features))).masked_fill(~mask[:, :, None], PADDED)
        loss = None
        if labels is not None:
            loss = self.loss(logits, self._fitted(labels, mask), num_items_in_batch)
        return TokenClassifierOutput(loss=loss, logits=logits)

    def _read(self, sequence: TokenSequence) -> tuple[Tensor, Tensor]:
        """Features `(batch, origins, hidden)` and mask `(batch, origins)` of what is to be classified."""
        segment = self.segment_of(sequence)
        features, mask = self.origins(sequence, segment)
        if not self.config.seed_only:
            return features, mask
        if not isinstance(segment.layout, GraphLayout) or segment.layout.seed is None:
            raise ValueError(
                f"seed_only needs graphs with a marked node, got {segment.modality!r} without; draw samples by "
                "GraphProcessor(seed_nodes=True).neighbourhoods, or set seed_only=False."
            )
        seed = segment.layout.seed.long()[:, None]
        return features.gather(1, seed[:, :, None].expand(-1, -1, features.shape[2])), mask.gather(1, seed)

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross-entropy over known labels, in fp32, from `(batch, origins, num_labels)` and `(batch, origins)`."""
        logits = logits.float().flatten(0, 1)
        total = functional.cross_entropy(
            logits,
            labels.flatten().long(),
            weight=weights_like(logits, self.config.class_weights),
            ignore_index=IGNORED,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )
        count = (labels != IGNORED).sum().clamp(min=1)
        return total / (count if num_items_in_batch is None else num_items_in_batch)

    def _fitted(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Labels checked, and cut or filled up to the shape of `mask`."""
        if labels.dim() == 1 and mask.shape[1] == 1:
            labels = labels[:, None]
        if labels.dim() != 2 or len(labels) != len(mask):
            raise ValueError(
                f"labels must have shape {tuple(mask.shape)}, one for each origin, got {tuple(labels.shape)}."
            )
        if not torch.compiler.is_compiling():  # values are unknown while a graph is traced
            self._check(labels, mask)
        labels = functional.pad(labels, (0, mask.shape[1] - labels.shape[1]), value=IGNORED)
        return labels.masked_fill(~mask, IGNORED)

    def _check(self, labels: Tensor, mask: Tensor) -> None:
        known = labels != IGNORED
        wrong = known & ((labels < 0) | (labels >= self.num_labels) | (labels != labels.round()))
        if wrong.any():
            raise ValueError(
                f"labels must lie in 0..{self.num_labels - 1}, or be {IGNORED} where unknown, got "
                f"{labels[wrong][0].item()}. Set id2label to all classes, or num_labels."
            )
        last, own = _length(known), _length(mask)
        for index in ((last > own) | (own > labels.shape[1])).nonzero()[:1, 0].tolist():
            count = max(int(last[index]), labels.shape[1] if own[index] > labels.shape[1] else 0)
            raise ValueError(
                f"labels of sample {index} are {count}, but it has {own[index].item()} origins (nodes, points, ids or "
                f"steps, as the processor makes them); give one for each, {IGNORED} where it is unknown."
            )

    def label_collator(self) -> Callable[[list[Any]], Any]:
        return pad_labels

    def metrics(self) -> TaskMetrics:
        """Accuracy and macro-averaged F1 over all known labels."""
        classification: Any = torchmetrics("classification")
        options = {"num_classes": self.num_labels, "ignore_index": IGNORED}
        metrics = {
            "accuracy": classification.MulticlassAccuracy(average="micro", **options),
            "f1": classification.MulticlassF1Score(average="macro", **options),
        }
        return TaskMetrics(metrics, self._read_predictions)

    @staticmethod
    def _read_predictions(predictions: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = predictions[0] if isinstance(predictions, tuple | list) else predictions
        labels = labels.reshape(len(logits), -1)
        both = min(labels.shape[1], logits.shape[1])  # what one of them lacks is padding in the other
        return logits[:, :both].flatten(0, 1), labels[:, :both].flatten().long()

    def post_process(self, output: ModelOutput, **options: Any) -> list[list[str]]:
        """The name of the likeliest class of each origin.

        Returns:
            For each sample as many names as it has origins: nodes, points, ids or steps, in their order.
        """
        logits = output["logits"].detach()
        real = (logits != PADDED).any(dim=2)
        return [
            [self.id2label[each] for each in row[keep].tolist()]
            for row, keep in zip(logits.argmax(dim=2), real, strict=True)
        ]

    @torch.no_grad()
    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        _, mask = self._read(sequence)
        later = torch.arange(mask.shape[1], device=mask.device) > 3
        return list(torch.where(mask, later.long().clamp(max=self.num_labels - 1), IGNORED))


def _length(marked: Tensor) -> Tensor:
    """For each row of `(batch, places)` booleans, the number of places up to the last true one, `(batch,)`."""
    return (marked * torch.arange(1, marked.shape[1] + 1, device=marked.device)).amax(dim=1)
