"""Semantic segmentation: a class for each pixel of a picture.

Arrives: encoded tokens of a picture, with an `ImageLayout`. Leaves: logits `(batch, classes, height, width)` at the
size of the input, and the mean loss over the pixels that count.

Two decoders: progressive upsampling (SETR-PUP, Zheng et al. 2021, section 3.3) of what leaves the trunk, and the sum of
a feature pyramid over several layers (Semantic FPN, Kirillov et al. 2019, section 3). Different from both: norms of
single positions instead of BatchNorm and GroupNorm, so that no pixel depends on padding or on another picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..sequence import ImageLayout, Layout, Segment, TokenSequence
from .base import IGNORED, HeadConfig, TaskHead, count_labels
from .class_maps import checked_classes, collate_class_maps
from .class_weights import check_class_count, check_class_weights, weights_like
from .feature_pyramid import FeatureMap, FeaturePyramid, MapBlock, token_map
from .metrics import TaskMetrics, torchmetrics

__all__ = ["SegmentationHead", "SegmentationHeadConfig", "SegmentationOutput"]

_LEAST_CHANNELS = 16  # of the finest map


@strict
@dataclass(kw_only=True)
class SegmentationHeadConfig(HeadConfig):
    """Options of the segmentation head. The classes, background included, stand in the model's `id2label`.

    Attributes:
        decoder: `"progressive"`, the grid of patches doubled step by step, or `"pyramid"`, several layers of the trunk
            at several sizes.
        channels: Of the decoder's maps; the progressive one halves them each time it doubles the map.
        doublings: How often the finest map doubles the grid of patches. From there logits are resized to pixels: 2
            makes logits for every 4 pixels of a patch of 16, 4 for each pixel.
        pyramid_layers: Layers of the pyramid, see `FeaturePyramid`.
        ignore_index: What stands in a class map where a pixel does not count, beside -100.
        dice_weight: Weight of the Dice loss, which is added to the cross-entropy.
        class_weights: How much a pixel of each class counts in the cross-entropy, see `class_weights.py`.
        detail_channels: Of the detail stream, convolutions over the pixels themselves that sharpen the finest map where
            patches are too coarse; 0 for none.
        pixel_channels: Channels of the pictures, for the detail stream.
    """

    decoder: Literal["progressive", "pyramid"] = "progressive"
    channels: int = 128
    doublings: int = 2
    pyramid_layers: list[int] | None = None
    ignore_index: int = 255
    dice_weight: float | int = 0.0
    class_weights: list[float | int] | None = None
    detail_channels: int = 0
    pixel_channels: int = 3

    def validate_decoder(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}.")
        if self.detail_channels < 0 or self.pixel_channels < 1:
            raise ValueError(
                f"detail_channels must be at least 0 and pixel_channels at least 1, got {self.detail_channels} and "
                f"{self.pixel_channels}."
            )
        if self.doublings < 0:
            raise ValueError(f"doublings must be at least 0, got {self.doublings}.")
        if not 0 <= self.dice_weight < float("inf"):
            raise ValueError(f"dice_weight must be at least 0 and finite, got {self.dice_weight}.")
        check_class_weights(self.class_weights)
        if self.pyramid_layers == []:
            raise ValueError("pyramid_layers is empty; name at least one layer, or None.")
        if self.decoder == "pyramid" and self.layers != "last":
            raise ValueError(f"layers must be 'last' with decoder 'pyramid', got {self.layers!r}; set pyramid_layers.")
        if self.decoder == "progressive" and self.pyramid_layers is not None:
            raise ValueError("pyramid_layers is for decoder 'pyramid'; set layers with decoder 'progressive'.")


@dataclass
class SegmentationOutput(ModelOutput):
    """Output of the segmentation head.

    Attributes:
        loss: Over the pixels that count.
        logits: `(batch, classes, height, width)`, in float32, at the size of the padded input.
        sizes: `(batch, 2)`, height and width of each picture; `None` when all fill the batch.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sizes: Tensor | None = None


class ProgressiveDecoder(nn.Module):
    """Convolutions on the grid of patches, then on the grid doubled again and again, with half the channels each time.

    Args:
        config: The head's.
        model_config: The model's.
    """

    def __init__(self, config: SegmentationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__()
        eps, channels = model_config.layer_norm_eps, config.channels
        self.norm = nn.LayerNorm(model_config.hidden_size, eps=eps)
        self.projection = nn.Linear(model_config.hidden_size, channels)
        blocks = [MapBlock(channels, channels, "keep", eps)]
        for _ in range(config.doublings):
            half = min(channels, max(_LEAST_CHANNELS, channels // 2))
            blocks += [MapBlock(channels, half, "double", eps), MapBlock(half, half, "keep", eps)]
            channels = half
        self.blocks, self.channels = nn.Sequential(*blocks), channels

    def forward(self, sequence: TokenSequence, segment: Segment) -> FeatureMap:
        """From tokens to the finest map."""
        tokens = self.projection(self.norm(sequence.embeddings))
        return self.blocks(token_map(tokens, sequence, segment))


class PyramidDecoder(nn.Module):
    """The levels of a feature pyramid, resized to the finest, summed and convolved; arguments as of the other."""

    def __init__(self, config: SegmentationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.pyramid = FeaturePyramid(config.pyramid_layers, config.channels, config.doublings, model_config)
        self.block = MapBlock(config.channels, config.channels, "keep", model_config.layer_norm_eps)

    def forward(self, sequence: TokenSequence, segment: Segment) -> FeatureMap:
        """From the hidden states to the finest map."""
        finest, *others = self.pyramid(sequence, segment)
        total, (rows, columns) = finest.features, finest.size
        for level, coarse in enumerate(others, start=1):
            # Rows were rounded up when a map was halved, so it may reach beyond the finest one.
            size = (coarse.size[0] * 2**level, coarse.size[1] * 2**level)
            total = total + coarse.resized(size)[:, :, :rows, :columns]
        return self.block(finest.replace(total))


class DetailStream(nn.Module):
    """Convolutions over the pixels, joined with a decoder's map (as the detail capture of ViTMatte, Yao et al. 2024).

    Args:
        config: The head's.
        channels: Of the decoder's map.
        eps: Of the norms.
    """

    def __init__(self, config: SegmentationHeadConfig, channels: int, eps: float) -> None:
        super().__init__()
        own, self.pixel_channels = config.detail_channels, config.pixel_channels
        self.stem = nn.Sequential(MapBlock(config.pixel_channels, own, "keep", eps), MapBlock(own, own, "keep", eps))
        self.context = nn.Conv2d(channels, own, 1)
        self.block = MapBlock(2 * own, own, "keep", eps)

    def forward(self, features: FeatureMap, layout: ImageLayout) -> FeatureMap:
        """From a decoder's map to one of every pixel."""
        pixels, mask = layout.pixels, None
        if pixels is None or pixels.shape[1] != self.pixel_channels:
            raise ValueError(
                f"the head's pixel_channels is {self.pixel_channels}, but the pictures have "
                f"{'none that are known' if pixels is None else pixels.shape[1]}; set it to their number."
            )
        if layout.sizes is not None:
            mask = inside(layout.sizes, layout.size)
        fine = self.stem(FeatureMap(pixels.to(features.features.dtype), mask))
        context = features.replace(self.context(features.features)).resized(whole_size(layout))
        context = context[:, :, : layout.size[0], : layout.size[1]]
        return self.block(fine.replace(torch.cat([fine.features, context], dim=1)))


def inside(sizes: Tensor, size: Sequence[int]) -> Tensor:
    """Where the pictures of a batch are: `(batch, height, width)` of sizes `(batch, 2)` and the batch's own."""
    rows, columns = (torch.arange(length, device=sizes.device) for length in size)
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]


def whole_size(layout: ImageLayout) -> tuple[int, int]:
    """Height and width of the patches together, which may reach beyond the picture."""
    return layout.shape[-2] * layout.stride[-2], layout.shape[-1] * layout.stride[-1]


class SegmentationHead(TaskHead):
    """A decoder, and a linear layer for each position of its finest map."""

    config_class: ClassVar[type[HeadConfig]] = SegmentationHeadConfig

    layouts: ClassVar[tuple[type[Layout], ...]] = (ImageLayout,)

    config: SegmentationHeadConfig

    def __init__(self, config: SegmentationHeadConfig, model_config: PreTrainedConfig) -> None:
        super().__init__(config, model_config)
        self.num_labels = count_labels(model_config)
        check_class_count(config.class_weights, self.num_labels)
        if self.num_labels < 2:
            raise ValueError(f"id2label must name 2 classes or more, the background among them, got {self.num_labels}.")
        if 0 <= config.ignore_index < self.num_labels:
            raise ValueError(
                f"ignore_index is {config.ignore_index}, the number of one of {self.num_labels} classes; set it to "
                "another number, such as -100, and renumber maps in which a class does not count."
            )
        decoder = ProgressiveDecoder if config.decoder == "progressive" else PyramidDecoder
        self.decoder = decoder(config, model_config)
        self.details = None
        if config.detail_channels:
            self.details = DetailStream(config, self.decoder.channels, model_config.layer_norm_eps)
        self.classifier = nn.Conv2d(config.detail_channels or self.decoder.channels, self.num_labels, 1)

    @property
    def reads_hidden_states(self) -> bool:
        return self.layer_mixture is not None or self.config.decoder == "pyramid"

    def forward(
        self,
        sequence: TokenSequence,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> SegmentationOutput:
        """Segment.

        Args:
            sequence: Encoded tokens, one segment of them with an `ImageLayout`.
            labels: `(batch, height, width)` class numbers, `ignore_index` or -100 where a pixel does not count.
            num_items_in_batch: See `TaskHead.forward`.
            inputs: None.

        Returns:
            `loss`, `logits` and `sizes`.

        Raises:
            ValueError: Labels of another size, no class numbers, or with pixels that count where there is no picture.
        """
        segment = self.segment_of(sequence)
        layout: Any = segment.layout
        features = self.decoder(sequence, segment)
        if self.details is not None:
            features = self.details(features, layout)
        logits = features.replace(self.classifier(features.features).float())
        size = layout.size if self.details is not None else whole_size(layout)
        resized = logits.resized(size)[:, :, : layout.size[0], : layout.size[1]]
        loss = None
        if labels is not None:
            loss = self.loss(resized, self._checked(labels, resized, layout.sizes), num_items_in_batch)
        return SegmentationOutput(loss=loss, logits=resized, sizes=layout.sizes)

    def loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean cross-entropy over the pixels that count, plus the weighted Dice loss; 0 where none counts.

        The Dice loss is that of each picture, a mean over pictures weighted by how many pixels of them count: so both
        are sums over pixels, and gradients of accumulated batches equal those of the big one.

        Args:
            logits: `(batch, classes, height, width)`.
            labels: `(batch, height, width)` class numbers, -100 where a pixel does not count.
            num_items_in_batch: See `TaskHead.forward`.
        """
        counted = labels != IGNORED
        weights = weights_like(logits, self.config.class_weights)
        total = functional.cross_entropy(logits, labels, weights, ignore_index=IGNORED, reduction="sum")
        if self.config.dice_weight:
            total = total + self.config.dice_weight * (dice_losses(logits, labels) * counted.sum(dim=(1, 2))).sum()
        return total / (counted.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch)

    def _checked(self, labels: Tensor, logits: Tensor, sizes: Tensor | None) -> Tensor:
        """Labels as class numbers, -100 where a pixel does not count."""
        expected = (logits.shape[0], *logits.shape[2:])
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"labels must have shape {expected}, one map for each picture in the size that the processor gave it, "
                f"got {tuple(labels.shape)}; bring maps to that size with heads.class_maps.resize_class_map."
            )
        labels = checked_classes(labels, self.num_labels, self.config.ignore_index)
        if sizes is None or torch.compiler.is_compiling():
            return labels
        beyond = ((labels != IGNORED) & ~inside(sizes, expected[1:])).flatten(1).any(dim=1)
        if beyond.any():
            sample = int(beyond.nonzero()[0])
            raise ValueError(
                f"labels of sample {sample} reach beyond its picture of {sizes[sample].tolist()} pixels; bring its map "
                "to that size with heads.class_maps.resize_class_map."
            )
        return labels

    def label_collator(self) -> Callable[[list[Any]], Any]:
        return partial(collate_class_maps, num_labels=self.num_labels, ignore_index=self.config.ignore_index)

    def metrics(self) -> TaskMetrics:
        """Mean IoU and Dice over the classes that occur, and the share of right pixels, over all pixels that count.

        With `batch_eval_metrics=True` pictures may be of any sizes; without, `Trainer` keeps all logits, and those of
        different batches must be of one size.
        """
        classification: Any = torchmetrics("classification")

        class MeanIoU(classification.MulticlassJaccardIndex):
            def compute(self) -> Tensor:
                return super().compute().nan_to_num()  # where no pixel counts

        options = {"num_classes": self.num_labels, "ignore_index": IGNORED}
        metrics = {
            "mean_iou": MeanIoU(average="macro", **options),
            "dice": classification.MulticlassF1Score(average="macro", **options),
            "pixel_accuracy": classification.MulticlassAccuracy(average="micro", **options),
        }
        return TaskMetrics(metrics, self._read)

    def _read(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        classes = checked_classes(labels, self.num_labels, self.config.ignore_index)
        return logits.argmax(dim=1).flatten(), classes.flatten()

    def post_process(
        self,
        output: ModelOutput,
        *,
        target_sizes: list[tuple[int, int]] | Tensor | None = None,
        probabilities: bool = False,
    ) -> list[Any]:
        """Class maps.

        Args:
            output: Of the model.
            target_sizes: Height and width for each sample, such as those before the processor resized it; by default
                those of the input, without padding.
            probabilities: Whether to give probabilities as well.

        Returns:
            For each sample an integer array `(height, width)`, or `{"classes": that, "probabilities": array
            (classes, height, width)}`.

        Raises:
            ValueError: Another number of target sizes than of samples.
        """
        logits = output["logits"].detach().float()
        own = [logits.shape[2:]] * len(logits) if output.get("sizes") is None else output["sizes"].tolist()
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise ValueError(f"target_sizes must be {len(logits)}, one for each sample, got {len(target_sizes)}.")
        results = []
        for index, (height, width) in enumerate(own):
            each = logits[index : index + 1, :, :height, :width]
            if target_sizes is not None:
                size = tuple(int(side) for side in target_sizes[index])
                each = functional.interpolate(each, size, mode="bilinear", align_corners=False)
            classes = each[0].argmax(dim=0).cpu().numpy().astype(np.int64)
            shares = each[0].softmax(dim=0).cpu().numpy() if probabilities else None
            results.append(classes if shares is None else {"classes": classes, "probabilities": shares})
        return results

    def dummy_labels(self, sequence: TokenSequence) -> list[Any]:
        layout: Any = self.segment_of(sequence).layout
        count = len(sequence.embeddings)
        return list((torch.arange(count) % self.num_labels)[:, None, None].expand(count, *layout.size))


def dice_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of each picture, the mean over classes.

    V-Net (Milletari et al. 2016, section 3), with sums instead of sums of squares, and one pixel added above and below,
    as in DETR and Mask2Former, so that a class that is absent, and not predicted, has no loss.

    Args:
        logits: `(batch, classes, height, width)`.
        labels: `(batch, height, width)` class numbers, -100 where a pixel does not count.

    Returns:
        `(batch,)`.
    """
    counted = (labels != IGNORED)[:, None]
    shares = logits.softmax(dim=1) * counted
    truth = torch.zeros_like(shares).scatter_(1, labels.clamp(min=0)[:, None], 1.0) * counted
    common = (shares * truth).sum(dim=(2, 3))
    size = (shares + truth).sum(dim=(2, 3))
    return (1 - (2 * common + 1) / (size + 1)).mean(dim=1)
