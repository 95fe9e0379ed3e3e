"""Sampling and grouping: against loops in numpy, scipy's k-d tree, and one cloud at a time."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn
from torch.testing import assert_close

from meta_transformer import geometry
from meta_transformer.geometry import farthest_point_sampling, gather_points, knn_groups


def clouds(*sizes: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, generator=generator) for size in sizes]


def padded(parts: list[Tensor], value: float = 0.0) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([len(part) for part in parts])
    points = nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)
    return points, torch.arange(points.shape[1]) < sizes[:, None]


def naive_sampling(points: np.ndarray, count: int, start: int) -> list[int]:
    """By the definition, from all distances to all chosen points."""
    chosen = [start]
    while len(chosen) < count:
        distances = ((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1)
        chosen.append(int(distances.argmax()))
    return chosen


def grid(side: int) -> Tensor:
    """Points of a cubic lattice, where many distances are equal."""
    axis = torch.arange(side, dtype=torch.float32)
    return torch.cartesian_prod(axis, axis, axis)


def test_sampling_equals_the_definition() -> None:
    points = torch.stack(clouds(200, 200, 200))
    start = torch.tensor([0, 17, 199])
    chosen = farthest_point_sampling(points, 60, start=start)
    for row, cloud, first in zip(chosen, points, start, strict=True):
        assert row.tolist() == naive_sampling(cloud.double().numpy(), 60, int(first))


def test_sampling_starts_far_from_the_middle_of_the_bounding_box() -> None:
    (cloud,) = clouds(100)
    middle = (cloud.amin(dim=0) + cloud.amax(dim=0)) / 2
    assert farthest_point_sampling(cloud[None], 1).item() == (cloud - middle).norm(dim=1).argmax().item()


@pytest.mark.parametrize("padding", [0.0, 1e30, float("nan"), float("inf"), -float("inf")])
def test_a_cloud_is_sampled_the_same_alone_and_padded_with_anything(padding: float) -> None:
    parts = [*clouds(1, 7, 64, 129), grid(4)]
    points, mask = padded(parts, padding)
    chosen = farthest_point_sampling(points, 32, mask)
    for row, part in zip(chosen, parts, strict=True):
        assert torch.equal(row, farthest_point_sampling(part[None], 32)[0])
        assert (row < len(part)).all()


def test_a_shorter_sample_is_the_beginning_of_a_longer_one() -> None:
    points = torch.stack([*clouds(64, 64), grid(4)])
    assert torch.equal(farthest_point_sampling(points, 40)[:, :9], farthest_point_sampling(points, 9))


def test_the_order_of_points_does_not_matter() -> None:
    (cloud,) = clouds(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    chosen, shuffled = (farthest_point_sampling(each[None], 20)[0] for each in (cloud, cloud[order]))
    assert torch.equal(order[shuffled], chosen)


def test_all_points_are_chosen_before_any_is_chosen_twice() -> None:
    (cloud,) = clouds(10)
    chosen = farthest_point_sampling(cloud[None], 25)[0]
    assert sorted(chosen[:10].tolist()) == list(range(10))
    assert len(chosen) == 25


def test_one_point_and_equal_points_are_sampled() -> None:
    assert farthest_point_sampling(torch.ones(1, 1, 3), 3).tolist() == [[0, 0, 0]]
    assert farthest_point_sampling(torch.ones(1, 5, 3), 3).tolist() == [[0, 0, 0]]


def test_a_mask_may_have_holes() -> None:
    (cloud,) = clouds(50)
    mask = torch.rand(50, generator=torch.Generator().manual_seed(2)) < 0.5
    real = mask.nonzero()[:, 0]
    chosen = farthest_point_sampling(cloud[None], 12, mask[None])[0]
    assert torch.equal(chosen, real[farthest_point_sampling(cloud[real][None], 12)[0]])
    groups = knn_groups(cloud[None], cloud[None], 5, mask[None])
    assert torch.equal(groups, real[knn_groups(cloud[None], cloud[real][None], 5)])


def test_a_random_start_is_drawn_from_the_real_points() -> None:
    torch.manual_seed(0)
    points, mask = padded(clouds(3, 200), 9.0)
    draws = {tuple(farthest_point_sampling(points, 1, mask, "random")[:, 0].tolist()) for _ in range(30)}
    assert {first for first, _ in draws} == {0, 1, 2}
    assert len(draws) > 20


def test_a_cloud_without_a_point_gives_index_0() -> None:
    points, mask = torch.full((2, 5, 3), torch.nan), torch.zeros(2, 5, dtype=torch.bool)
    assert farthest_point_sampling(points, 3, mask).eq(0).all()
    assert knn_groups(torch.zeros(2, 3, 3), points, 4, mask).lt(5).all()


@pytest.mark.parametrize("shift", [0.0, 1000.0, 500_000.0])
@pytest.mark.parametrize("size", [1, 5, 100, 3000])
def test_neighbours_equal_those_of_a_k_d_tree_however_far_from_the_origin(size: int, shift: float) -> None:
    (cloud,) = clouds(size)
    cloud = cloud + shift
    centres = cloud[:: max(1, size // 50)]
    groups = knn_groups(centres[None], cloud[None], 16)[0]
    exact = cloud.double().numpy()
    distances, _ = cKDTree(exact).query(centres.double().numpy(), k=min(16, size))
    found = np.linalg.norm(exact[groups.numpy()] - centres.double().numpy()[:, None], axis=2)
    np.testing.assert_allclose(found, distances.reshape(found.shape), rtol=1e-6)
    assert all(len(set(group.tolist())) == min(16, size) for group in groups)


def test_the_bits_of_close_points_count_far_from_the_origin() -> None:
    """With the expansion of the square all of these would be at distance 0, or less."""
    line = torch.zeros(64, 3)
    line[:, 0] = 4096 + torch.arange(64) / 1024
    groups = knn_groups(line[None, 20:21], line[None], 3)[0, 0]
    assert groups.tolist() == [20, 19, 21]


def test_of_equally_near_points_the_lower_index_comes_first() -> None:
    lattice = grid(5)
    groups = knn_groups(lattice[None], lattice[None], 12)[0]
    squares = (lattice[:, None] - lattice).square().sum(dim=2)
    assert torch.equal(groups, squares.sort(dim=1, stable=True).indices[:, :12])


def test_what_runs_on_accelerators_finds_the_same_as_what_runs_on_the_cpu() -> None:
    points, mask = padded([*clouds(1, 7, 129), grid(4)], 0.0)
    start = torch.tensor([0, 6, 100, 3])
    sampled = geometry._farthest_points_in_torch(points, mask, start, 40)
    assert torch.equal(sampled, geometry._farthest_points(points, mask, start, 40))
    groups = geometry._nearest_points_in_torch(points[:, :50], points, mask, 16)
    assert torch.equal(groups, geometry._nearest_points(points[:, :50].contiguous(), points, mask, 16))


@pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf")])
def test_a_cloud_has_the_same_neighbours_alone_and_padded_with_anything(padding: float) -> None:
    parts = [*clouds(1, 3, 200), grid(4)]
    points, mask = padded(parts, padding)
    groups = knn_groups(points[:, :8], points, 16, mask)
    for row, part in zip(groups, parts, strict=True):
        alone = knn_groups(part[None, :8], part[None], 16)[0]
        row = row[: len(alone)]
        assert torch.equal(row[:, : alone.shape[1]], alone)
        assert (row[:, alone.shape[1] :] == row[:, :1]).all()  # the nearest point fills up the group


def test_many_pairs_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    points, mask = padded(clouds(90, 70))
    whole = knn_groups(points, points, 7, mask)
    monkeypatch.setattr("meta_transformer.geometry._PAIRS_AT_ONCE_ON_CPU", 500)
    assert torch.equal(knn_groups(points, points, 7, mask), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_searched_as_float32(dtype: torch.dtype) -> None:
    points = torch.stack(clouds(100)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, groups = farthest_point_sampling(points, 20), knn_groups(points, points, 5)
    assert torch.equal(chosen, farthest_point_sampling(points.float(), 20))
    assert torch.equal(groups, knn_groups(points.float(), points.float(), 5))


def test_gathering_equals_indexing_and_passes_gradients() -> None:
    values = torch.randn(2, 9, 4, requires_grad=True)
    indices = torch.randint(9, (2, 5, 3))
    gathered = gather_points(values, indices)
    assert_close(gathered, torch.stack([each[index] for each, index in zip(values, indices, strict=True)]))
    gathered.sum().backward()
    assert values.grad[0].sum(dim=1).tolist() == (4 * indices[0].flatten().bincount(minlength=9)).tolist()


def test_the_operators_keep_their_contract_with_torch() -> None:
    points, mask = padded(clouds(20, 30))
    operators = torch.ops.meta_transformer
    start = torch.zeros(2, dtype=torch.int64)
    torch.library.opcheck(operators.farthest_points.default, (points, mask, start, 4))
    torch.library.opcheck(operators.nearest_points.default, (points[:, :6], points, mask, 5))
