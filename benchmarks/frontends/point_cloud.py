"""Farthest point sampling and grouping of points beside the PyTorch code of PointNet++ that most projects copy."""

import torch
from torch import Tensor

from meta_transformer.geometry import farthest_point_sampling, knn_groups

from .bars import Bar, in_turns

NEIGHBOURS = 32


def measure(repeats: int) -> list[Bar]:
    """Equal results are asserted, then both take turns."""
    generator = torch.Generator().manual_seed(0)
    bars = []
    for clouds, size, count in ((8, 1024, 512), (4, 8192, 512)):
        points = torch.rand(clouds, size, 3, generator=generator)
        start = torch.zeros(clouds, dtype=torch.int64)
        shape = f"{clouds} x {size} -> {count}"

        def sample(points: Tensor = points, count: int = count, start: Tensor = start) -> Tensor:
            return farthest_point_sampling(points, count, start=start)

        def sample_published(points: Tensor = points, count: int = count, start: Tensor = start) -> Tensor:
            return published_sampling(points, count, start)

        chosen = sample()
        if not torch.equal(chosen, sample_published()):
            raise AssertionError(f"Sampling {shape} gives other points than the published code.")
        bars.append(Bar(f"sampling {shape}", "PointNet++ loop", *in_turns(repeats, sample, sample_published), 4.0))

        centres = points.gather(1, chosen[:, :, None].expand(-1, -1, 3))

        def group(centres: Tensor = centres, points: Tensor = points) -> Tensor:
            return knn_groups(centres, points, NEIGHBOURS)

        def group_published(centres: Tensor = centres, points: Tensor = points) -> Tensor:
            return published_grouping(centres, points, NEIGHBOURS)

        compare_groups(group(), group_published(), centres, points)
        times = in_turns(repeats, group, group_published)
        bars.append(Bar(f"{NEIGHBOURS} neighbours {shape}", "distance matrix, sorted", *times, 5.0))
    return bars


def published_sampling(points: Tensor, count: int, start: Tensor) -> Tensor:
    """The batched loop with the coordinates of a point side by side and the distances updated through a mask."""
    batch, size, _ = points.shape
    chosen = torch.zeros(batch, count, dtype=torch.int64)
    distance = torch.full((batch, size), 1e10)
    rows, last = torch.arange(batch), start
    for step in range(count):
        chosen[:, step] = last
        centre = points[rows, last].view(batch, 1, 3)
        to_centre = ((points - centre) ** 2).sum(-1)
        nearer = to_centre < distance
        distance[nearer] = to_centre[nearer]
        last = distance.max(-1)[1]
    return chosen


def published_grouping(centres: Tensor, points: Tensor, size: int) -> Tensor:
    """All squared distances by the expansion of the square, sorted whole, the first of each row."""
    distance = -2 * centres @ points.transpose(1, 2)
    distance += (centres**2).sum(-1)[:, :, None]
    distance += (points**2).sum(-1)[:, None]
    return distance.sort(dim=-1)[1][:, :, :size]


def compare_groups(ours: Tensor, peer: Tensor, centres: Tensor, points: Tensor) -> None:
    """The same sets, but where the border between inside and outside is finer than the peer's rounding.

    Raises:
        AssertionError: They differ elsewhere, or there are many such borders, so that little was compared.
    """
    squares = torch.cdist(centres.double(), points.double()).square()
    borders = squares.topk(NEIGHBOURS + 1, dim=2, largest=False).values
    clear = borders[:, :, -1] - borders[:, :, -2] > 1e-6
    same = (ours.sort(dim=2)[0] == peer.sort(dim=2)[0]).all(dim=2)
    if not same[clear].all() or clear.float().mean() < 0.99:
        raise AssertionError("Grouping gives other neighbours than the published code.")
