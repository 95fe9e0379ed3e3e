"""Point cloud processor: against numpy, on real scans of objects."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.point_cloud import PointCloudProcessor
from tests.support.clouds import COLORS, NORMALS, POINTS, features, points, raw, scans, tensor
from tests.support.fuzz import finite_or_refused


def test_clouds_of_equal_size_have_no_mask_and_no_features() -> None:
    assert list(raw()([POINTS, POINTS])) == ["point_coordinates"]


def test_unit_sphere_puts_the_mean_at_0_and_the_farthest_point_at_1(tmp_path: Path) -> None:
    for path in scans(tmp_path):
        cloud = PointCloudProcessor()(path)["point_coordinates"][0]
        original = np.loadtxt(path)
        centred = original - original.mean(axis=0)
        assert_close(cloud, tensor(centred / np.linalg.norm(centred, axis=1).max()))
        assert cloud.norm(dim=1).max().item() == pytest.approx(1)


def test_center_keeps_the_unit_and_scale_multiplies() -> None:
    cloud = PointCloudProcessor(normalization="center", scale=0.1)(POINTS + 7)["point_coordinates"][0]
    assert_close(cloud, tensor(0.1 * (POINTS - POINTS.mean(axis=0))))
    assert_close(points(POINTS, scale=2.0), tensor(2 * POINTS))


@pytest.mark.parametrize("normalization", ["unit_sphere", "center", None])
def test_a_single_point_and_equal_points_stay_finite(normalization: str | None) -> None:
    processor = PointCloudProcessor(normalization=normalization)
    for cloud in (np.ones((1, 3)), np.ones((7, 3)), np.full((2, 3), 1e-320)):
        assert processor(cloud)["point_coordinates"].isfinite().all()


@pytest.mark.parametrize("sampling", ["random", "farthest"])
def test_large_clouds_are_reduced_to_points_of_their_own(sampling: str) -> None:
    processor = raw(max_points=20, sampling=sampling)
    batch = processor([POINTS, POINTS[:10]])
    chosen = {tuple(row) for row in batch["point_coordinates"][0].tolist()}
    assert len(chosen) == 20
    assert chosen <= {tuple(row) for row in tensor(POINTS).tolist()}
    assert batch["point_mask"].sum(dim=1).tolist() == [20, 10]
    assert torch.equal(processor([POINTS[:10], POINTS])["point_coordinates"][1], batch["point_coordinates"][0])


def test_features_stay_with_their_points_when_some_are_drawn() -> None:
    array = np.concatenate([POINTS, POINTS], axis=1)
    batch = raw(max_points=20, num_features=3)(array)
    assert torch.equal(batch["point_features"], batch["point_coordinates"])


def test_a_seed_in_the_call_draws_other_points_and_the_setting_the_same() -> None:
    processor = raw(max_points=20)
    first, again, other = (processor(POINTS, seed=seed)["point_coordinates"] for seed in (None, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_farthest_points_cover_better_than_random_ones() -> None:
    def gap(sampling: str) -> float:
        return torch.cdist(tensor(POINTS), points(POINTS, max_points=12, sampling=sampling)).amin(dim=1).max().item()

    assert gap("farthest") < gap("random")


def test_fit_gives_features_of_mean_0_and_standard_deviation_1() -> None:
    clouds = [np.concatenate([POINTS[:size], 1e4 + NORMALS[:size] * [1, 9, 0]], axis=1) for size in (20, 50)]
    processor = raw(num_features=3).fit(iter(clouds))
    values = np.concatenate(clouds)[:, 3:]
    np.testing.assert_allclose(processor.feature_mean, values.mean(axis=0))
    np.testing.assert_allclose(processor.feature_std, [*values.std(axis=0)[:2], 1.0])
    batch = processor(clouds)
    fitted = batch["point_features"][batch["point_mask"]]
    assert_close(fitted.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(fitted.std(dim=0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)
    assert_close(processor.fit(clouds)(clouds)["point_features"], batch["point_features"])


def test_fit_does_not_depend_on_the_fit_before_and_a_failing_one_changes_nothing() -> None:
    first, other = (np.concatenate([POINTS, values], axis=1) for values in (NORMALS, 5 + 3 * NORMALS))
    processor = raw(num_features=3).fit(first)
    before = processor.to_dict()
    with pytest.raises(ValueError, match=r"point_cloud\[1\]: the features .* NaN"):
        processor.fit([other, np.concatenate([POINTS, HOLES], axis=1)])
    assert processor.to_dict() == before
    assert processor.fit(other).to_dict() == raw(num_features=3).fit(other).to_dict()


def test_seconds_of_a_gps_clock_vary() -> None:
    times = 2.9e8 + np.linspace(-30, 30, 50)
    sample = {"points": POINTS, "gps_time": times}
    processor = raw(feature_names=["gps_time"]).fit(sample)
    assert processor.feature_std == pytest.approx([times.std()], rel=1e-6)
    assert_close(processor(sample)["point_features"][0, :, 0], tensor((times - times.mean()) / times.std()))


@pytest.mark.parametrize("value", [0.1, 2.9e8 + 1 / 3, -1e15])
def test_a_feature_that_never_changes_is_0(value: float) -> None:
    sample = {"points": POINTS, "gps_time": np.full(50, value)}
    processor = raw(feature_names=["gps_time"]).fit([sample, sample, sample])
    assert processor.feature_std == [1.0]
    assert processor(sample)["point_features"].abs().max() < 1


def test_settings_survive_json(tmp_path: Path) -> None:
    array = np.concatenate([POINTS, NORMALS], axis=1)
    processor = PointCloudProcessor(feature_names=["normals"], normalization="center", max_points=30, seed=5)
    processor.fit(array)
    MetaTransformerProcessor(point_cloud=processor).save_pretrained(tmp_path)
    restored = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert restored.point_cloud.to_dict() == processor.to_dict()
    for name, value in processor(array).items():
        assert torch.equal(restored(point_cloud=array)[name], value)


def test_the_tokenizer_gets_the_number_of_features() -> None:
    assert PointCloudProcessor(feature_names=["colors", "intensity"]).tokenizer_config() == {"num_features": 4}
    assert PointCloudProcessor.for_tokenizer({"num_features": 2, "num_groups": 9}).num_features == 2


def test_numpy_arrays_are_returned_on_request() -> None:
    arrays_, tensors = (raw()([POINTS, POINTS[:9]], return_tensors=kind) for kind in ("np", "pt"))
    for name, value in tensors.items():
        assert isinstance(arrays_[name], np.ndarray)
        assert np.array_equal(arrays_[name], value.numpy())


HOLES = np.where(np.arange(150).reshape(50, 3) == 7, np.nan, POINTS)
BAD_SAMPLES = {
    "no point": (POINTS[:0], ValueError, "a point or more"),
    "two columns": (POINTS[:, :2], ValueError, r"3 \+ features.*\(50, 2\)"),
    "one point alone": (POINTS[0], ValueError, "several clouds as a list"),
    "more columns": (np.ones((5, 6)), ValueError, "3 features .*num_features is 0.*Set num_features=3"),
    "nan": (HOLES, ValueError, "NaN, infinity"),
    "masked": (np.ma.masked_greater(POINTS, 1), ValueError, "NaN, infinity"),
    "list of masked": (list(np.ma.masked_greater(POINTS, 1)), ValueError, "NaN, infinity"),
    "infinity": (np.full((5, 3), np.inf), ValueError, "NaN, infinity"),
    "beyond float32": (np.full((5, 3), 1e300), ValueError, "beyond 1e15"),
    "ragged lists": ([[0.0, 1, 2], [3.0, 4]], ValueError, "table of equal rows"),
    "words": ([["a", "b", "c"]], TypeError, "real numbers"),
    "complex": (POINTS.astype(complex), TypeError, "complex128"),
    "missing file": ("no/such/scan.ply", ValueError, "no file 'no/such/scan.ply'"),
    "file of another kind": (Path(__file__), ValueError, r"'.py' is none of the known kinds"),
    "bytes of another kind": (b"\0" * 100, ValueError, "cannot read 100 bytes"),
    "broken ply": (b"ply\nformat nothing\n", ValueError, "as a .ply file"),
    "empty text": (b"# nothing\n", ValueError, "holds no point"),
    "dict without coordinates": ({"colors": COLORS}, ValueError, r"under one of .*got \['colors'\]"),
    "dict with two": ({"points": POINTS, "xyz": POINTS}, ValueError, "under one of"),
    "number as path": ({"path": 5}, ValueError, r"bytes or a path, got \{'path': 5\}"),
    "text as bytes": ({"bytes": "ply", "path": "a.ply"}, ValueError, "bytes or a path"),
    "empty dict": ({"bytes": None, "path": None}, ValueError, "bytes or a path"),
    "other number of colours": ({"points": POINTS, "colors": COLORS[:9]}, ValueError, "each of the 50 points"),
    "columns of different length": ({"x": [1], "y": [1, 2], "z": [1]}, ValueError, "different lengths"),
    "flat mesh": (trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False), ValueError, "mesh_points=None"),
    "none": (None, TypeError, "got NoneType"),
    "number": (3, TypeError, "got int"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_with_its_index_and_the_remedy(case: str) -> None:
    sample, error, message = BAD_SAMPLES[case]
    with pytest.raises(error, match=rf"(?s)point_cloud\[1\]: .*{message}"):
        raw()([POINTS, sample])


def test_a_channel_that_is_not_there_is_named_with_those_that_are() -> None:
    sample = {"points": POINTS, "normals": NORMALS}
    with pytest.raises(ValueError, match=r"no channel \['colors'\], only \['normals'\]"):
        features(sample, feature_names=["colors"])
    with pytest.raises(ValueError, match="num_features is 4"):
        features(sample, num_features=4)


def test_a_feature_that_is_no_number_is_refused() -> None:
    masked = {"points": POINTS, "colors": np.ma.masked_less(COLORS, 9)}
    with pytest.raises(ValueError, match="features.*NaN"):
        features(masked, feature_names=["colors"])
    with pytest.raises(ValueError, match="features.*NaN"):
        features(np.concatenate([POINTS, HOLES], axis=1), num_features=3)


def test_an_empty_list_and_what_is_no_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="point_cloud is an empty list"):
        raw()([])
    with pytest.raises(TypeError, match="got int"):
        raw()(3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_features": -1},
        {"num_features": 1.5},
        {"normalization": "sphere"},
        {"scale": 0},
        {"scale": float("nan")},
        {"max_points": 0},
        {"mesh_points": True},
        {"sampling": "grid"},
        {"seed": -1},
        {"feature_mean": [1.0]},
        {"feature_std": [0.0], "feature_mean": [0.0], "num_features": 1},
    ],
)
def test_settings_that_make_no_cloud_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        PointCloudProcessor(**options)


def test_names_must_be_a_list_of_strings() -> None:
    with pytest.raises(TypeError, match="list of names"):
        PointCloudProcessor(feature_names="colors")


def test_dummy_samples_are_ragged_and_repeatable() -> None:
    first, again = (PointCloudProcessor(num_features=2).dummy_samples(4, seed=3) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({len(cloud) for cloud in first}) > 1
    assert all(cloud.shape[1] == 5 for cloud in first)


NUMBERS = st.floats(width=64) | st.integers(-5, 5) | st.none() | st.text(max_size=3)
ARRAYS = arrays.arrays(
    st.sampled_from([np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_, np.complex64, "U2", object]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
)
CLOUDS = st.one_of(
    ARRAYS,
    arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(-1e16, 1e16)),
    st.lists(st.lists(NUMBERS, max_size=4), max_size=4),
    st.dictionaries(st.sampled_from(["points", "xyz", "x", "y", "z", "colors", "features", "bytes", "path"]), ARRAYS),
    st.binary(max_size=40),
    st.sampled_from(
        [b"ply\n", b"OFF\n1 1 0\n", b"LASF", b"\x93NUMPY", b"PK\3\4", "", "nothing.ply", None, 3, object()]
    ),
)


@settings(max_examples=40, deadline=None)
@given(
    samples=CLOUDS | st.lists(CLOUDS, max_size=3),
    normalization=st.sampled_from(["unit_sphere", "center", None]),
    num_features=st.sampled_from([0, 0, 1, 3]),
    max_points=st.sampled_from([None, 1, 4]),
)
def test_any_input_gives_finite_tensors_or_a_sentence(
    samples: object, normalization: str | None, num_features: int, max_points: int | None
) -> None:
    options = {"normalization": normalization, "num_features": num_features, "max_points": max_points}
    finite_or_refused(lambda: PointCloudProcessor(**options, sampling="farthest").fit(samples)(samples))


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    """Points with two features, with the largest and smallest numbers among others."""
    dtype = draw(st.sampled_from(["f4", "f8"]))
    numbers = st.sampled_from([0.0, 4e14, -4e14, 1e-45]) | st.floats(-1e3, 1e3, width=32)
    return draw(arrays.arrays(dtype, (draw(st.integers(1, 6)), 5), elements=numbers, fill=st.nothing()))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(clouds(), min_size=1, max_size=2),
    wrong=st.sampled_from([None, None, np.nan, np.inf, 1e16]),
    column=st.integers(0, 4),
    normalization=st.sampled_from(["unit_sphere", "center", None]),
    max_points=st.sampled_from([None, 1, 4]),
)
def test_clouds_are_taken_unless_a_number_is_not_finite_or_too_large(
    samples: list[np.ndarray], wrong: float | None, column: int, normalization: str | None, max_points: int | None
) -> None:
    if wrong is not None:
        samples[-1][-1, column] = wrong
    options = {"normalization": normalization, "num_features": 2, "max_points": max_points, "sampling": "farthest"}
    taken = finite_or_refused(lambda: PointCloudProcessor(**options).fit(samples)(samples))
    if wrong is not None or max_points is None:
        assert taken == (wrong is None)  # of few points kept, others may lie too many deviations away
