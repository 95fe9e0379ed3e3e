"""Boxes as people have them to labels: COCO's annotations, or corners and class numbers; any number.

Arrives: the boxes of one picture. Leaves: `(batch, boxes, 5)` in float32: class number, left, top, right and bottom in
pixels, and -100 where a picture has fewer boxes than another. `Trainer` counts what is not -100, `NUMBERS` for a box.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .base import IGNORED

__all__ = ["NUMBERS", "as_boxes", "check_inside", "checked_boxes", "collate_boxes"]

NUMBERS = 5  # of a box: its class and its four sides

_ROUNDING = 0.01  # pixels by which a box may reach beyond its picture


def as_boxes(label: Any) -> Tensor:
    """The boxes of one picture.

    Args:
        label: A list of COCO's annotations, `{"bbox": [left, top, width, height], "category_id": number}` and whatever
            else they hold, or `{"annotations": that list}`; `{"boxes": (boxes, 4), "class_labels": (boxes,)}` with
            left, top, right and bottom; or a tensor `(boxes, 5)` as it leaves. All in pixels. Crowds (`iscrowd`) are
            left out, as in DETR.

    Returns:
        `(boxes, 5)`, class number, left, top, right, bottom.

    Raises:
        ValueError: Another form, or not four numbers and one class for each box.
    """
    if isinstance(label, Tensor):
        boxes = label.float()
    elif isinstance(label, Mapping) and {"boxes", "class_labels"} <= label.keys():
        corners = torch.as_tensor(label["boxes"], dtype=torch.float32)
        classes = torch.as_tensor(label["class_labels"], dtype=torch.float32)
        corners = corners.reshape(0, 4) if not corners.numel() else corners
        if corners.dim() != 2 or corners.shape[1] != 4 or tuple(classes.shape) != (len(corners),):
            raise ValueError(
                f"boxes must have shape (boxes, 4) and class_labels (boxes,), got {tuple(corners.shape)} and "
                f"{tuple(classes.shape)}."
            )
        boxes = torch.cat([classes[:, None], corners], dim=1)
    else:
        annotations = label.get("annotations") if isinstance(label, Mapping) else label
        if not isinstance(annotations, list | tuple):
            raise ValueError(
                "boxes must be a list of COCO's annotations, {'boxes', 'class_labels'} or a tensor (boxes, 5), got "
                f"{str(label)[:80]}."
            )
        boxes = torch.tensor([_row(each) for each in annotations if not _is_crowd(each)], dtype=torch.float32)
        boxes = boxes.reshape(-1, NUMBERS)
    if boxes.dim() != 2 or boxes.shape[1] != NUMBERS:
        raise ValueError(f"boxes must have shape (boxes, 5), the class number first, got {tuple(boxes.shape)}.")
    return boxes


def _is_crowd(annotation: Any) -> bool:
    return isinstance(annotation, Mapping) and bool(annotation.get("iscrowd"))


def _row(annotation: Any) -> list[float]:
    if not isinstance(annotation, Mapping) or not {"bbox", "category_id"} <= annotation.keys():
        raise ValueError(f"an annotation needs 'bbox' and 'category_id', got {str(annotation)[:80]}.")
    if len(annotation["bbox"]) != 4:
        raise ValueError(f"bbox must be [left, top, width, height], got {annotation['bbox']}.")
    left, top, width, height = map(float, annotation["bbox"])
    return [float(annotation["category_id"]), left, top, left + width, top + height]


def checked_boxes(boxes: Tensor, num_labels: int) -> Tensor:
    """The same boxes.

    Args:
        boxes: `(..., 5)`; rows of -100 do not count.
        num_labels: How many classes there are.

    Raises:
        ValueError: NaN or infinite numbers, a number that is no class, or a box without inside.
    """
    if torch.compiler.is_compiling():
        return boxes  # values are unknown while a graph is traced
    rows = boxes[(boxes != IGNORED).any(dim=-1)]
    classes, corners = rows[:, 0], rows[:, 1:]
    _refuse(rows, ~rows.isfinite().all(dim=1), "must be finite numbers")
    no_class = (classes != classes.round()) | (classes < 0) | (classes >= num_labels)
    _refuse(
        rows,
        no_class,
        f"must be of classes 0..{num_labels - 1}; set id2label to all classes, and renumber categories that start at 1 "
        "or have gaps, as COCO's",
    )
    empty = (corners[:, 2:] <= corners[:, :2]).any(dim=1)
    _refuse(
        rows,
        empty,
        "must have left < right and top < bottom; leave out empty boxes, and give bbox as [left, top, width, height], "
        "boxes as [left, top, right, bottom]",
    )
    return boxes


def check_inside(boxes: Tensor, sizes: Tensor) -> None:
    """Refuse boxes that reach beyond their picture.

    Args:
        boxes: `(batch, boxes, 5)`.
        sizes: `(batch, 2)`, height and width of each picture in the pixels of the boxes.

    Raises:
        ValueError: One does.
    """
    if torch.compiler.is_compiling():
        return
    counted = boxes[..., 0] != IGNORED
    limits = sizes.flip(1)[:, None] + _ROUNDING
    beyond = counted & ((boxes[..., 1:3] < -_ROUNDING) | (boxes[..., 3:] > limits)).any(dim=2)
    if beyond.any():
        sample, box = beyond.nonzero()[0].tolist()
        raise ValueError(
            f"labels of sample {sample} hold the box {boxes[sample, box, 1:].tolist()}, outside its picture of "
            f"{sizes[sample].tolist()} pixels (height, width). Clip it; where the processor resizes, give each sample "
            "'original_sizes', height and width of the picture that the boxes were drawn on."
        )


def _refuse(rows: Tensor, wrong: Tensor, message: str) -> None:
    if wrong.any():
        number, *sides = rows[wrong][0].tolist()
        raise ValueError(f"boxes {message}; got class {number:g} and left, top, right, bottom {sides}.")


def collate_boxes(labels: list[Any], *, num_labels: int) -> Tensor:
    """The labels of a batch.

    Args:
        labels: As of `as_boxes`, one for each picture.
        num_labels: As of `checked_boxes`.

    Returns:
        `(batch, boxes, 5)`, -100 behind the boxes of each picture; one row of it where no picture has a box.
    """
    rows = [checked_boxes(as_boxes(each), num_labels) for each in labels]
    most = max(1, *(len(each) for each in rows))
    return torch.stack([functional.pad(each, (0, 0, 0, most - len(each)), value=IGNORED) for each in rows])
