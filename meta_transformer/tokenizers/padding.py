"""Padded batches: every sample fills the first places of each axis, and a mask says how many."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["first_places", "read_mask"]


def read_mask(
    name: str, mask: Tensor | None, values: Tensor, axes: Sequence[int]
) -> tuple[Tensor | None, list[Tensor]]:
    """How much of a padded batch each sample fills.

    Args:
        name: The mask's, for errors.
        mask: `(batch, *axes)`, true or 1 in the first places of each axis; `None` when all samples fill the tensor.
        values: The tensor that the mask belongs to, `(batch, ...)`.
        axes: Of `values`, those of the mask behind the first.

    Returns:
        The mask as booleans, or `None`; and for each axis how many places a sample fills, `(batch,)`, or `(1,)` without
        a mask.

    Raises:
        ValueError: A mask of another shape, or padding in front of a sample or inside it.
    """
    sizes = tuple(values.shape[axis] for axis in axes)
    if mask is None:
        return None, [torch.full((1,), size, device=values.device) for size in sizes]
    if tuple(mask.shape) != (values.shape[0], *sizes):
        raise ValueError(
            f"{name} must have shape {(values.shape[0], *sizes)} to fit tensors of shape {tuple(values.shape)}, got "
            f"{tuple(mask.shape)}."
        )
    mask = mask.bool()
    counts = [mask[..., None].movedim(axis, 1).flatten(2).any(dim=2).sum(dim=1) for axis in range(1, mask.dim())]
    if not torch.compiler.is_compiling():  # values are unknown while a graph is traced
        wrong = (mask != first_places(counts, sizes)).flatten(1).any(dim=1)
        if wrong.any():
            raise ValueError(
                f"{name} has padding in front of sample {wrong.nonzero()[0].item()} or inside it; let each sample "
                "begin at the first place of every axis, and pad behind it (padding_side='right')."
            )
    return mask, counts


def first_places(counts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Masks of samples that fill the first `counts` `(batch,)` places of each axis, `(batch, *sizes)`."""
    inside = torch.ones((), dtype=torch.bool, device=counts[0].device)
    for axis, (own, size) in enumerate(zip(counts, sizes, strict=True)):
        real = torch.arange(size, device=own.device) < own[:, None]
        inside = inside & real.view(len(own), *[1] * axis, size, *[1] * (len(sizes) - axis - 1))
    return inside
