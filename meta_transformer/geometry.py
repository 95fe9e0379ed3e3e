"""Sampling and grouping of padded batches of points, without weights.

Everything here gives the same for a cloud alone and in a batch, to the last bit: only elementwise arithmetic, minima
and maxima touch the coordinates, and ties go to the point that comes first. Distances are differences of coordinates in
float32; the expansion `a² + b² - 2ab`, which loses the small distances of points that lie far from the origin, is not
used. The two searches are operators of their own, `torch.ops.meta_transformer.*`, so that `torch.compile` and
`torch.export` see one node each, not a loop unrolled. On the CPU they run in numpy: they are many small operations, and
torch's threads would wait for each other longer than each of them takes.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["farthest_point_sampling", "gather_points", "knn_groups"]

_PAIRS_AT_ONCE = 1 << 23  # distances in work at a time
_PAIRS_AT_ONCE_ON_CPU = 1 << 17  # 1 MiB of keys: they stay in the cache
_INDEX_BITS = 32
_INFINITY = 0x7F800000  # its bits as a float32


def farthest_point_sampling(
    points: Tensor, count: int, mask: Tensor | None = None, start: Tensor | Literal["random"] | None = None
) -> Tensor:
    """Choose points that cover a cloud: each next one is the farthest from all that are chosen (Eldar et al. 1997).

    The first `n` of the chosen points are what would be chosen for a count of `n`.

    Args:
        points: `(batch, points, 3)`, any floating type; padding may hold anything.
        count: How many to choose. A cloud of fewer different points gets some of them more than once.
        mask: `(batch, points)` boolean, true for real points, of which only these are chosen; `None` when all are.
        start: The first points, `(batch,)` indices; `"random"` for any of the real ones; `None` for the points farthest
            from the middles of their clouds' bounding boxes, which depend neither on the order of points nor on
            rounding.

    Returns:
        Indices `(batch, count)`. Those of a cloud without a real point are 0.
    """
    points, mask = _clean(points, mask)
    if isinstance(start, Tensor):
        first = start.long()
    elif start == "random":
        first = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1).argmax(dim=1)
    else:
        real = mask[:, :, None]
        low = points.masked_fill(~real, torch.inf).amin(dim=1)
        high = points.masked_fill(~real, -torch.inf).amax(dim=1)
        x, y, z = (points - ((low + high) / 2)[:, None]).square().unbind(2)
        first = (x + y + z).masked_fill(~mask, -1).argmax(dim=1)
    return _farthest_points(points, mask, first, count)


def knn_groups(centres: Tensor, points: Tensor, group_size: int, mask: Tensor | None = None) -> Tensor:
    """Find the points nearest to each centre, in memory that grows with their number alone.

    Args:
        centres: `(batch, centres, 3)`, any floating type.
        points: `(batch, points, 3)`; padding may hold anything.
        group_size: Points of a group.
        mask: `(batch, points)` boolean, true for real points; `None` when all are.

    Returns:
        Indices `(batch, centres, min(group_size, points))`, the nearest first, of equally near ones that with the lower
        index. Where a cloud has fewer real points than a group, its nearest point is repeated.
    """
    points, mask = _clean(points, mask)
    return _nearest_points(centres.detach().float(), points, mask, min(group_size, points.shape[1]))


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """Pick `values` `(batch, points, channels)` at `indices` `(batch, ...)`: `(batch, ..., channels)`."""
    flat = indices.flatten(1)[:, :, None].expand(-1, -1, values.shape[2])
    return values.gather(1, flat).unflatten(1, indices.shape[1:])


def _clean(points: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Coordinates in float32 with zeros for padding, outside of automatic differentiation, and a mask."""
    points = points.detach().float()
    if mask is None:
        return points, torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    mask = mask.bool()
    return points.masked_fill(~mask[:, :, None], 0), mask


def _farthest_points_in_torch(points: Tensor, mask: Tensor, start: Tensor, count: int) -> Tensor:
    """The loop of `farthest_point_sampling`, one step for all clouds at once, in buffers that are used again."""
    axes = points.permute(2, 0, 1).contiguous()  # (3, batch, points): each operation runs along memory
    nearest = torch.full_like(axes[0], torch.inf).masked_fill_(~mask, -1)  # to any chosen point, squared
    squares = torch.empty_like(axes)
    distance, second, third = squares
    chosen = start.new_empty(points.shape[0], count)
    last = start[:, None]
    for step in range(count):
        chosen[:, step : step + 1] = last
        torch.sub(axes, axes.gather(2, last.expand(3, -1, -1)), out=squares)
        torch.mul(squares, squares, out=squares)
        distance.add_(second).add_(third)
        torch.minimum(nearest, distance, out=nearest)
        last = nearest.argmax(dim=1, keepdim=True)
    return chosen


_farthest_points = torch.library.custom_op(
    "meta_transformer::farthest_points", _farthest_points_in_torch, mutates_args=()
)


@_farthest_points.register_kernel("cpu")
def _(points: Tensor, mask: Tensor, start: Tensor, count: int) -> Tensor:
    axes = points.permute(2, 0, 1).contiguous().numpy()
    nearest = np.where(mask.numpy(), np.float32(np.inf), np.float32(-1))
    squares = np.empty_like(axes)
    distance, second, third = squares
    chosen = np.empty((len(points), count), np.int64)
    clouds, last = np.arange(len(points)), start.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(count):
            chosen[:, step] = last
            np.subtract(axes, axes[:, clouds, last, None], out=squares)
            np.square(squares, out=squares)
            np.add(distance, second, out=distance)
            np.add(distance, third, out=distance)
            np.minimum(nearest, distance, out=nearest)
            last = nearest.argmax(axis=1)
    return torch.from_numpy(chosen)


@_farthest_points.register_fake
def _(points: Tensor, mask: Tensor, start: Tensor, count: int) -> Tensor:
    return start.new_empty(points.shape[0], count)


def _nearest_points_in_torch(centres: Tensor, points: Tensor, mask: Tensor, count: int) -> Tensor:
    """The search of `knn_groups`, for as many centres at a time as give `_PAIRS_AT_ONCE` distances."""
    found = torch.empty(*centres.shape[:2], count, dtype=torch.int64, device=points.device)
    axes = points.masked_fill(~mask[:, :, None], torch.inf).permute(2, 0, 1).contiguous()
    rows = min(centres.shape[1], max(1, _PAIRS_AT_ONCE // max(1, mask.numel())))
    # The bits of floats that are not negative have the order of the floats. With the index below them no two keys are
    # equal, so that which of two equally near points is taken does not depend on how `topk` goes about it.
    keys = torch.arange(points.shape[1], device=points.device).repeat(points.shape[0], rows, 1)
    for part, result in zip(centres.split(rows, dim=1), found.split(rows, dim=1), strict=True):
        own = keys[:, : part.shape[1]]
        first, second, third = (torch.sub(part[:, :, None, axis], axes[axis, :, None]).square_() for axis in range(3))
        torch.add(first.add_(second), third, out=own.view(torch.float32)[..., 1::2])  # the upper halves
        nearest = own.topk(count, dim=2, largest=False).values
        group = nearest.bitwise_and(2**_INDEX_BITS - 1)
        result.copy_(torch.where(nearest < _INFINITY << _INDEX_BITS, group, group[:, :, :1]))
    return found


_nearest_points = torch.library.custom_op("meta_transformer::nearest_points", _nearest_points_in_torch, mutates_args=())


@_nearest_points.register_kernel("cpu")
def _(centres: Tensor, points: Tensor, mask: Tensor, count: int) -> Tensor:
    found = np.empty((*centres.shape[:2], count), np.int64)
    axes = points.masked_fill(~mask[:, :, None], torch.inf).permute(0, 2, 1).contiguous().numpy()
    size = points.shape[1]
    rows = min(centres.shape[1], max(1, _PAIRS_AT_ONCE_ON_CPU // max(1, size)))
    keys = np.tile(np.arange(size, dtype=np.int64), (rows, 1))
    squares = np.empty((3, rows, size), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for cloud, own, result in zip(axes, centres.numpy(), found, strict=True):
            for begin in range(0, len(own), rows):
                part = own[begin : begin + rows].T[:, :, None]
                first, second, third = work = squares[:, : part.shape[1]]
                np.square(np.subtract(part, cloud[:, None], out=work), out=work)
                own_keys = keys[: part.shape[1]]
                np.add(np.add(first, second, out=first), third, out=own_keys.view(np.float32)[:, 1::2])
                nearest = np.partition(own_keys, count - 1, axis=1)[:, :count]
                nearest.sort(axis=1)
                group = nearest & (2**_INDEX_BITS - 1)
                result[begin : begin + rows] = np.where(nearest < _INFINITY << _INDEX_BITS, group, group[:, :1])
    return torch.from_numpy(found)


@_nearest_points.register_fake
def _(centres: Tensor, points: Tensor, mask: Tensor, count: int) -> Tensor:
    return torch.empty(*centres.shape[:2], count, dtype=torch.int64, device=points.device)
