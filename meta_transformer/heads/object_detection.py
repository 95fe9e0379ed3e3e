"""Object detection: boxes and their classes in a picture.

Arrives: encoded tokens of a picture, with an `ImageLayout`. Leaves: a score of each class and a box for many places of
the picture, or for each of some learned tokens; boxes in pixels of the raw picture; and the loss, a mean over boxes.

The two decoders, their sources and losses are in `box_decoders.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import ImageLayout, Layout, TokenSequence
from .base import IGNORED, HeadConfig, TaskHead, count_labels
from .box_decoders import DenseBoxes, SetBoxes, ops
from .box_metrics import BoxMetrics
from .boxes import NUMBERS, check_inside, checked_boxes, collate_boxes
from .metrics import TaskMetrics

__all__ = ["ObjectDetectionHead", "ObjectDetectionHeadConfig", "ObjectDetectionOutput"]

_LEAST_SCORE = 0.01  # that metrics look at
_MOST_BOXES = 100  # of a picture, as COCO's metrics have it


@strict
@dataclass(kw_only=True)
class ObjectDetectionHeadConfig(HeadConfig):
    """Options of the object detection head. The classes stand in the model's `id2label`, without a background.

    Attributes:
        decoder: `"dense"`, a score and a box in each cell of one fine map, which learns from few pictures; or `"set"`,
            learned tokens that pass through the trunk and become one box or none each.
        channels: Of the dense decoder's maps.
        doublings: How often its map doubles the grid of patches: 2 makes cells of 4 pixels from patches of 16.
        pyramid_layers: Layers of the trunk that it reads, see `FeaturePyramid`.
        num_blocks: 3x3 convolutions behind the pyramid.
        num_detection_tokens: Learned tokens of the set decoder, more than any picture has boxes.
    """

    decoder: Literal["dense", "set"] = "dense"
    channels: int = 128
    doublings: int = 2
    pyramid_layers: list[int] | None = None
    num_blocks: int = 2
    num_detection_tokens: int = 100

    def validate_decoder(self) -> None:
        for name, least in (("channels", 1), ("doublings", 0), ("num_blocks", 0), ("num_detection_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.pyramid_layers == []:
            raise ValueError("pyramid_layers is empty; name at least one layer, or None.")
        if self.decoder == "dense" and self.layers != "last":
            raise ValueError(f"layers must be 'last' with decoder 'dense', got {self.layers!r}; set pyramid_layers.")
        if self.decoder == "set" and self.pyramid_layers is not None:
            raise ValueError("pyramid_layers is for decoder 'dense'; set layers with decoder 'set'.")


@dataclass
class ObjectDetectionOutput(ModelOutput):
    """Output of the object detection head, in float32.

    Attributes:
        loss: The mean over boxes.
        logits: Of each class, `(batch, classes, rows, columns)` from the dense decoder, -100 where there is no picture,
            or `(batch, tokens, classes)`; their sigmoid is the score.
        boxes: `(batch, 4, rows, columns)` or `(batch, tokens, 4)`: left, top, right and bottom in pixels of the raw
            picture, inside it.
        sizes: `(batch, 2)`, its height and width.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    boxes: Tensor | None = None
    sizes: Tensor | None = None


class ObjectDetectionHead(TaskHead):
    """One of two decoders, and what both share: pixels of the raw picture, the checks and the metrics."""

    config_class: ClassVar[type[HeadConfig]] = ObjectDetectionHeadConfig

    layouts: ClassVar[tuple[type[Layout], ...]] = (ImageLayout,)

    model_input_names = ("original_sizes",)

    config: ObjectDetectionHeadConfig

    def __init__(self, config: ObjectDetectionHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.id2label: dict[Any, str] = {**(model_config.id2label or {})}
        self.num_labels = count_labels(model_config)
        if self.num_labels < 1:
            raise ValueError("id2label must name 1 class or more, got none.")
        decoder = DenseBoxes if config.decoder == "dense" else SetBoxes
        self.decoder = decoder(config, model_config, self.num_labels)

    @property
    def reads_hidden_states(self) -> bool:
        return self.layer_mixture is not None or self.config.decoder == "dense"

    def parts(self, sequence: TokenSequence) -> dict[str, TokenSequence]:
        parts = super().parts(sequence)
        if isinstance(self.decoder, DenseBoxes):
            return parts
        return {name: self.decoder.extend(part, self.segment_of(part)) for name, part in parts.items()}

    def forward(
        self,
        sequence: TokenSequence,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        original_sizes: Tensor | None = None,
        **inputs: Tensor,
    ) -> ObjectDetectionOutput:
        """Detect.

        Args:
            sequence: Encoded tokens, one segment of them with an `ImageLayout`.
            labels: `(batch, boxes, 5)` as of `boxes.collate_boxes`: class number, left, top, right and bottom in pixels
                of the raw picture; rows of -100 where a picture has fewer boxes.
            num_items_in_batch: Numbers in the labels of the whole batch that are not -100; see `TaskHead.forward`.
            original_sizes: `(batch, 2)`, height and width of the raw pictures, where the processor has resized them.
            inputs: None.

        Returns:
            See `ObjectDetectionOutput`.

        Raises:
            ValueError: Labels of another shape or not finite, no classes, boxes without inside or outside the picture;
                sizes of another shape, or not positive.
        """
        segment = self.segment_of(sequence)
        layout: Any = segment.layout
        count, like = len(sequence.embeddings), sequence.embeddings.float()
        if layout.sizes is None:  # not by `new_tensor`, which would make constants of an exported graph's sizes
            sizes = torch.stack([like.new_full((count,), side) for side in layout.size], dim=1)
        else:
            sizes = layout.sizes.to(like)
        raw = sizes if original_sizes is None else self._checked_sizes(original_sizes, count).to(sizes)
        logits, boxes = self.decoder(sequence, segment, sizes)
        # From pixels of the input to those of the raw picture, and how far it goes, as boxes lie: sides in axis 1 or 2.
        scale, limits = ((each.flip(1).repeat(1, 2)[:, None]) for each in (raw / sizes, raw))
        if boxes.dim() == 4:
            shown = (boxes * scale.view(-1, 4, 1, 1)).clamp(min=0).minimum(limits.view(-1, 4, 1, 1))
        else:
            shown = (boxes * scale).clamp(min=0).minimum(limits)
        loss = None
        if labels is not None:
            labels = self._checked(labels, count).to(boxes)
            check_inside(labels, raw)
            real = labels[..., :1] != IGNORED
            own = torch.cat([labels[..., :1], (labels[..., 1:] / scale).where(real, IGNORED)], dim=2)
            total = self.decoder.loss(logits, boxes, own, segment, sizes)
            numbers = NUMBERS * real.sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / (torch.as_tensor(numbers, device=total.device) / NUMBERS).clamp(min=1)
        return ObjectDetectionOutput(loss=loss, logits=logits, boxes=shown, sizes=raw)

    def _checked(self, labels: Tensor, count: int) -> Tensor:
        if labels.dim() != 3 or len(labels) != count or labels.shape[2] != NUMBERS:
            raise ValueError(
                f"labels must have shape ({count}, boxes, 5), got {tuple(labels.shape)}; make them of annotations with "
                "DataCollatorForMetaTransformer.for_model or heads.boxes.collate_boxes."
            )
        return checked_boxes(labels, self.num_labels)

    @staticmethod
    def _checked_sizes(sizes: Tensor, count: int) -> Tensor:
        if tuple(sizes.shape) != (count, 2):
            raise ValueError(
                f"original_sizes must have shape ({count}, 2), height and width of each, got {tuple(sizes.shape)}."
            )
        if not torch.compiler.is_compiling() and not (sizes > 0).all():
            raise ValueError(f"original_sizes must be positive, got {sizes[(sizes <= 0).any(dim=1)][0].tolist()}.")
        return sizes

    def label_collator(self) -> Callable[[list[Any]], Any]:
        return partial(collate_boxes, num_labels=self.num_labels)

    def metrics(self) -> TaskMetrics:
        """COCO's mean average precision: `map` (IoU 0.50 to 0.95), `map_50` and `map_75`, from pycocotools.

        With `batch_eval_metrics=True` no predictions are kept, and pictures of different batches may differ in size.
        """
        return TaskMetrics(BoxMetrics(), self._read)

    def _read(self, predictions: Any, labels: Tensor) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        logits, boxes = predictions
        truth = [each[each[:, 0] != IGNORED].float() for each in labels]
        found = [self._select(*each, threshold=_LEAST_SCORE) for each in zip(logits, boxes, strict=True)]
        return found, [{"boxes": each[:, 1:], "labels": each[:, 0].long()} for each in truth]

    def _select(
        self, logits: Tensor, boxes: Tensor, *, threshold: float, nms_threshold: float = 0.6, top_k: int = _MOST_BOXES
    ) -> dict[str, Tensor]:
        """What one picture shows, the surest first: `scores`, `labels` as numbers, `boxes`."""
        dense = logits.dim() == 3
        if dense:
            logits, boxes = logits.flatten(1).T, boxes.flatten(1).T
        scores = logits.float().sigmoid().flatten()
        order = scores.argsort(descending=True, stable=True)[: 10 * top_k]
        order = order[scores[order] > threshold]
        places, classes = order // logits.shape[1], order % logits.shape[1]
        scores, boxes = scores[order], boxes[places].float()
        kept = slice(top_k)
        if dense:
            kept = ops().batched_nms(boxes, scores, classes, nms_threshold)[:top_k]
        return {"scores": scores[kept], "labels": classes[kept], "boxes": boxes[kept]}

    def post_process(
        self,
        output: ModelOutput,
        *,
        threshold: float = 0.3,
        nms_threshold: float = 0.6,
        top_k: int = _MOST_BOXES,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Boxes by name.

        Args:
            output: Of the model.
            threshold: Lowest score that is shown.
            nms_threshold: Of two boxes of one class whose IoU is higher, the dense decoder shows the surer one.
            top_k: How many boxes of a picture at most.
            target_sizes: Height and width for each sample, such as those before the processor resized it, if the model
                did not get them as `original_sizes`.

        Returns:
            For each sample `{"scores": (boxes,), "labels": [names], "boxes": (boxes, 4)}`, the surest first; boxes are
            left, top, right and bottom in pixels.

        Raises:
            ValueError: Another number of target sizes than of samples.
        """
        logits, boxes, sizes = (output[name].detach().float().cpu() for name in ("logits", "boxes", "sizes"))
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes must be {len(logits)}, one for each sample, got {len(target_sizes)}.")
        results = []
        for index in range(len(logits)):
            options = {"threshold": threshold, "nms_threshold": nms_threshold, "top_k": top_k}
            found: dict[str, Any] = self._select(logits[index], boxes[index], **options)
            if target_sizes is not None:
                scale = torch.tensor([float(side) for side in target_sizes[index]]) / sizes[index]
                found["boxes"] = found["boxes"] * scale.flip(0).repeat(2)
            found["labels"] = [self.id2label[int(number)] for number in found["labels"]]
            results.append(found)
        return results

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        layout: Any = self.segment_of(sequence).layout
        count = len(sequence.embeddings)
        sizes = [layout.size] * count if layout.sizes is None else layout.sizes.tolist()
        return [
            {"boxes": [[width / 4, height / 4, width, height]], "class_labels": [index % self.num_labels]}
            for index, (height, width) in enumerate(sizes)
        ]
