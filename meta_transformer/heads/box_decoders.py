"""The two ways from tokens to boxes, each with its loss.

Dense, in the way of TTFNet (Liu et al. 2020, section 4), which is CenterNet (Zhou et al. 2019) for short training: on
one fine map, a score for each class that is highest at the centre of a box, and in each cell the distances to the four
sides. Set, in the way of YOLOS (Fang et al. 2021): learned tokens behind the picture's pass through the trunk, and each
becomes one box or none.

Both losses are sums over boxes and pictures, so that accumulated batches give the gradients of the big one. For the set
that is the loss of Deformable DETR (Zhu et al. 2021), whose focal term is divided by the number of boxes: the cross-
entropy of DETR and YOLOS is divided by a number that grows with the pictures as well.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from ..extras import needs
from ..sequence import Segment, TokenSequence
from .base import IGNORED
from .feature_pyramid import MapBlock
from .segmentation import PyramidDecoder

__all__ = ["DenseBoxes", "SetBoxes", "cell_size", "centre_focal_loss", "centre_targets", "ops"]

_NOTHING = -100.0  # logit where there is no picture
_RARE = 0.01  # share of the cells that are a centre, before anything is learned (Lin et al. 2017, section 3.3)
_CENTRE = 0.54  # of a box's sides, TTFNet's alpha
_USUAL_CELLS = 4.0  # from the centre to a side, before anything is learned
_MAX_LOG = 6.0
_GIOU_WEIGHT = 2.0  # that of the set decoder; TTFNet has 5
_SET_COSTS = {"class_cost": 1.0, "bbox_cost": 5.0, "giou_cost": 2.0}  # Deformable DETR's, as are its weights
_SET_WEIGHTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
_FOCAL_ALPHA = 0.25


def _make_rare(bias: Any) -> None:
    init.constant_(bias, -math.log(1 / _RARE - 1))


class RareClasses(nn.Conv2d):
    """A linear layer for each position, whose bias says that hardly any is of any class."""

    def init_parameters(self, std: float) -> None:
        _make_rare(self.bias)


class RareLabels(nn.Linear):
    """Likewise for each token."""

    def init_parameters(self, std: float) -> None:
        _make_rare(self.bias)


class DenseBoxes(nn.Module):
    """A score of each class and one box in each cell of the finest map of a feature pyramid.

    Args:
        config: The head's.
        model_config: The model's.
        num_labels: Classes.
    """

    def __init__(self, config: Any, model_config: PreTrainedConfig, num_labels: int) -> None:
        super().__init__()
        channels, eps = config.channels, model_config.layer_norm_eps
        self.maps = PyramidDecoder(config, model_config)
        self.blocks = nn.Sequential(*(MapBlock(channels, channels, "keep", eps) for _ in range(config.num_blocks)))
        self.classifier = RareClasses(channels, num_labels, 1)
        self.distances = nn.Conv2d(channels, 4, 1)

    def forward(self, sequence: TokenSequence, segment: Segment, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            sequence: Encoded tokens, with the hidden states of all layers.
            segment: The tokens of the picture.
            sizes: `(batch, 2)`, height and width of each picture.

        Returns:
            Logits `(batch, classes, rows, columns)`, -100 where there is no picture, and boxes
            `(batch, 4, rows, columns)`: left, top, right and bottom in pixels of the input.
        """
        features = self.blocks(self.maps(sequence, segment)).features
        steps = cell_size(segment.layout, features.shape[2:])
        rows, columns = (torch.arange(cells, device=sizes.device) for cells in features.shape[2:])
        inside = (rows * steps[0] < sizes[:, :1])[:, :, None] & (columns * steps[1] < sizes[:, 1:])[:, None]
        logits = self.classifier(features).float().masked_fill(~inside[:, None], _NOTHING)
        distances = _USUAL_CELLS * self.distances(features).float().clamp(max=_MAX_LOG).exp()
        y, x = (rows + 0.5)[:, None], columns + 0.5
        left, top, right, bottom = distances.unbind(dim=1)
        sides = [(x - left) * steps[1], (y - top) * steps[0], (x + right) * steps[1], (y + bottom) * steps[0]]
        return logits, torch.stack(sides, dim=1)

    def loss(self, logits: Tensor, boxes: Tensor, labels: Tensor, segment: Segment, sizes: Tensor) -> Tensor:
        """The sum of `centre_focal_loss`, and of twice the GIoU loss of each box, which is a mean over its centre.

        Args:
            logits: Of `forward`.
            boxes: Likewise.
            labels: `(batch, boxes, 5)`, class and sides in pixels of the input, -100 where there is no box.
            segment: As of `forward`.
            sizes: Likewise.
        """
        heat, weights, targets = centre_targets(labels, logits.shape[1:], cell_size(segment.layout, logits.shape[2:]))
        chosen = weights > 0
        found, truth = (each.movedim(1, -1)[chosen] for each in (boxes, targets))
        giou = ops().generalized_box_iou_loss(found, truth, reduction="none")
        return centre_focal_loss(logits, heat) + _GIOU_WEIGHT * (weights[chosen] * giou).sum()


def cell_size(layout: Any, size: Sequence[int]) -> tuple[float, float]:
    """Height and width in pixels of the cells of a map of this many rows and columns over a grid of patches."""
    rows, columns = (
        count * stride / cells for count, stride, cells in zip(layout.shape[-2:], layout.stride[-2:], size, strict=True)
    )
    return rows, columns


def centre_targets(labels: Tensor, shape: Sequence[int], steps: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """What the dense decoder learns: TTFNet, equations 2, 3 and 6.

    Around the middle of each box lies a Gaussian, cut off where the central 54 % of the sides end. Where several boxes
    meet, a cell's distances are those of the smallest.

    Args:
        labels: `(batch, boxes, 5)`, -100 where there is no box.
        shape: Classes, rows and columns.
        steps: Height and width of a cell.

    Returns:
        For each class the highest Gaussian, `(batch, classes, rows, columns)`, exactly 1 in the cell where the middle
        of a box lies; weights `(batch, rows, columns)` of the distances, which sum to 1 for each box that has any
        cell; and its box, `(batch, 4, rows, columns)`.
    """
    real = labels[..., 0] != IGNORED
    sides = labels[..., 1:].masked_fill(~real[..., None], 0)
    bells = []
    for axis, (cells, step) in enumerate(zip(shape[1:], steps, strict=True)):
        low, high = sides[..., 1 - axis], sides[..., 3 - axis]
        places = torch.arange(cells, device=labels.device)
        middle = ((low + high) / 2 / step).floor().clamp(max=cells - 1)[..., None]
        reach = _CENTRE * ((high - low) / 2 / step)[..., None].clamp(min=1e-3)  # three deviations
        away = places - middle
        bells.append(torch.exp(-4.5 * (away / reach) ** 2).masked_fill((away.abs() > reach) & (away != 0), 0))
    bell = (bells[0][..., :, None] * bells[1][..., None, :]).masked_fill(~real[..., None, None], 0)
    classes = labels[..., 0].clamp(min=0).long()[..., None].expand(-1, -1, bell[0, 0].numel())
    heat = bell.new_zeros(len(bell), shape[0], bell[0, 0].numel())
    heat = heat.scatter_reduce(1, classes, bell.flatten(2), "amax").unflatten(2, bell.shape[2:])
    area = (sides[..., 2] - sides[..., 0]) * (sides[..., 3] - sides[..., 1])
    owner = area[..., None, None].where(bell > 0, torch.inf).argmin(dim=1, keepdim=True)
    own = torch.zeros_like(bell).scatter(1, owner, bell.gather(1, owner))
    weights = (own / own.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)).sum(dim=1)
    cells = owner.flatten(1)[..., None].expand(-1, -1, 4)
    return heat, weights, sides.gather(1, cells).transpose(1, 2).unflatten(2, bell.shape[2:])


def centre_focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """The sum over cells and classes of the focal loss of CornerNet (Law and Deng 2018, equation 1).

    Cells of 1 are the centres; the nearer another cell is to one, the less it counts as none.
    """
    centre = heat == 1
    each = ops().sigmoid_focal_loss(logits, centre.to(logits), alpha=-1, gamma=2, reduction="none")
    return (each * (1 - heat).pow(4).where(~centre, 1)).sum()


class SetBoxes(nn.Module):
    """Learned tokens that pass through the trunk behind all others, and two networks that read them.

    Arguments as of `DenseBoxes`.
    """

    def __init__(self, config: Any, model_config: PreTrainedConfig, num_labels: int) -> None:
        super().__init__()
        width = model_config.hidden_size
        self.tokens = nn.Parameter(torch.zeros(1, config.num_detection_tokens, width))
        self.norm = nn.LayerNorm(width, eps=model_config.layer_norm_eps)
        self.classifier = nn.Sequential(*_layers(width), RareLabels(width, num_labels))
        self.regressor = nn.Sequential(*_layers(width), nn.Linear(width, 4))

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.tokens, std=std)

    def extend(self, sequence: TokenSequence, segment: Segment) -> TokenSequence:
        """The sequence with the detection tokens behind all others; they attend to what the picture attends to."""
        return sequence.append(self.tokens[0], segment.modality)

    def forward(self, sequence: TokenSequence, segment: Segment, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(batch, tokens, classes)` and boxes `(batch, tokens, 4)`; arguments as of `DenseBoxes.forward`."""
        tokens = self.norm(sequence.embeddings[:, -self.tokens.shape[1] :])
        centre, extent = self.regressor(tokens).float().sigmoid().chunk(2, dim=-1)
        corners = torch.cat([centre - extent / 2, centre + extent / 2], dim=-1)
        return self.classifier(tokens).float(), corners * _widths(sizes)

    def loss(self, logits: Tensor, boxes: Tensor, labels: Tensor, segment: Segment, sizes: Tensor) -> Tensor:
        """The loss of transformers' Deformable DETR, not yet divided by the number of boxes.

        Arguments as of `DenseBoxes.loss`.

        Raises:
            ValueError: More boxes in a picture than there are tokens.
        """
        with needs("scipy to match boxes", "image"):
            from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
        targets = []
        for sides, widths in zip(labels, _widths(sizes), strict=True):
            rows = sides[sides[:, 0] != IGNORED]
            targets.append({"class_labels": rows[:, 0].long(), "boxes": _centred(rows[:, 1:] / widths)})
        most = max(len(each["boxes"]) for each in targets)
        if most > logits.shape[1]:
            raise ValueError(
                f"A picture has {most} boxes, but the head has {logits.shape[1]} detection tokens; set "
                "num_detection_tokens to more than any picture has boxes."
            )
        outputs = {"logits": logits, "pred_boxes": _centred(boxes / _widths(sizes))}
        matcher = DeformableDetrHungarianMatcher(**_SET_COSTS)
        criterion = DeformableDetrImageLoss(matcher, logits.shape[2], _FOCAL_ALPHA, ["labels", "boxes"])
        indices = matcher(outputs, targets)
        parts = {}
        for name in criterion.losses:
            parts |= criterion.get_loss(name, outputs, targets, indices, num_boxes=1)
        return sum((_SET_WEIGHTS[name] * part for name, part in parts.items()), logits.new_zeros(()))


def _layers(width: int) -> list[nn.Module]:
    return [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]


def _widths(sizes: Tensor) -> Tensor:
    """What shares of a picture are multiplied by, `(batch, 1, 4)`."""
    return sizes.flip(1).repeat(1, 2)[:, None]


def _centred(corners: Tensor) -> Tensor:
    """Middle, width and height `(..., 4)` from left, top, right and bottom."""
    low, high = corners.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def ops() -> Any:
    """The operators on boxes of torchvision."""
    with needs("torchvision for boxes", "image"):
        import torchvision
    return torchvision.ops
