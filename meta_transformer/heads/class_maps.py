"""Class maps as people have them to labels: PIL, numpy, torch; masks; maps of different size.

Arrives: one map `(height, width)` for each sample. Leaves: `(batch, height, width)` class numbers, -100 where a pixel
does not count, because it is ignored or padded. This one value is what `Trainer` leaves out when it counts labels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .base import IGNORED

__all__ = ["as_class_map", "checked_classes", "collate_class_maps", "resize_class_map"]


def as_class_map(value: Any) -> Tensor:
    """One map as a tensor `(height, width)`, its values as they are.

    Args:
        value: PIL image, such as a mask of one bit or a palette; numpy array, torch tensor or lists.

    Raises:
        ValueError: Not two dimensions, as a picture in colours has.
    """
    # Copied: an array of PIL cannot be written to, of which torch warns. numpy's wide unsigned types are not torch's.
    array = value if isinstance(value, Tensor) else np.array(value)
    if not isinstance(array, Tensor):
        array = torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)
    if array.dim() != 2:
        raise ValueError(
            f"a class map must have shape (height, width), got {tuple(array.shape)}; turn colours into class numbers, "
            "and keep one channel."
        )
    return array


def checked_classes(maps: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """Class numbers as integers, with -100 where `ignore_index` stands.

    Args:
        maps: Numbers of any type and shape; booleans are classes 0 and 1.
        num_labels: How many classes there are.
        ignore_index: What stands where a pixel does not count, beside -100.

    Raises:
        ValueError: A number that is no integer, or no class.
    """
    whole = maps.long()
    classes = whole.masked_fill(whole == ignore_index, IGNORED)
    if torch.compiler.is_compiling():
        return classes  # values are unknown while a graph is traced
    wrong = (classes != IGNORED) & ((classes < 0) | (classes >= num_labels))
    if maps.is_floating_point():
        wrong |= maps != whole  # NaN too
    if wrong.any():
        raise ValueError(
            f"labels must be class numbers of 0..{num_labels - 1}, or {ignore_index} where a pixel does not count, got "
            f"{maps[wrong][0].item()}. Set id2label to all classes, renumber the map, or set ignore_index."
        )
    return classes


def collate_class_maps(maps: list[Any], *, num_labels: int, ignore_index: int) -> Tensor:
    """The labels of a batch, padded at the bottom and on the right as pictures are.

    Args:
        maps: As of `as_class_map`, of any sizes.
        num_labels: As of `checked_classes`.
        ignore_index: Likewise.

    Returns:
        `(batch, height, width)` integers, -100 where a pixel is padded or ignored.
    """
    tensors = [checked_classes(as_class_map(each), num_labels, ignore_index) for each in maps]
    height, width = (max(each.shape[axis] for each in tensors) for axis in (0, 1))
    return torch.stack(
        [functional.pad(each, (0, width - each.shape[1], 0, height - each.shape[0]), value=IGNORED) for each in tensors]
    )


def resize_class_map(value: Any, size: tuple[int, int]) -> Tensor:
    """A map at the size to which a processor has brought its picture, by the nearest pixel.

    Args:
        value: As of `as_class_map`.
        size: Height and width, such as `processor(image=image)["pixel_values"].shape[-2:]`.

    Returns:
        `(height, width)`, of the type that came.
    """
    classes = as_class_map(value)
    rows, columns = (
        ((torch.arange(new, device=classes.device) + 0.5) * old / new).long()
        for new, old in zip(size, classes.shape, strict=True)
    )
    return classes[rows[:, None], columns]
