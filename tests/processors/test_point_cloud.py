"""Point cloud processor: against plyfile, trimesh, laspy, pandas and numpy, on real scans of objects."""

import io
import os
import sys
from pathlib import Path

import laspy
import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from plyfile import PlyData, PlyElement
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.point_cloud import PointCloudProcessor
from tests.support.fuzz import finite_or_refused

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(50, 3))
COLORS = RANDOM.integers(0, 256, size=(50, 3)).astype(np.uint8)
NORMALS = RANDOM.normal(size=(50, 3))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Text files of objects in metres and of different size: real scans, or boxes where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return sorted((Path(data) / "point_cloud/dales_objects/clouds").glob("*/*[05].xyz"))[::20]
    folder = tmp_path_factory.mktemp("scans")
    for index in range(4):
        np.savetxt(folder / f"{index}.xyz", RANDOM.uniform(0, 5, size=(150 + 50 * index, 3)), fmt="%.2f")
    return sorted(folder.glob("*.xyz"))


def raw(**options: object) -> PointCloudProcessor:
    """A processor that leaves coordinates as they are."""
    return PointCloudProcessor(normalization=None, **options)


def points(sample: object, **options: object) -> torch.Tensor:
    return raw(**options)(sample)["point_coordinates"][0]


def features(sample: object, **options: object) -> torch.Tensor:
    return raw(**options)(sample)["point_features"][0]


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def save_ply(path: Path, text: bool = False) -> Path:
    columns = {**dict(zip("xyz", POINTS.T, strict=True)), **dict(zip(("nx", "ny", "nz"), NORMALS.T, strict=True))}
    columns |= dict(zip(("red", "green", "blue"), COLORS.T, strict=True))
    kinds = [(name, "u1" if values.dtype == np.uint8 else "f4") for name, values in columns.items()]
    table = np.empty(50, dtype=kinds)
    for name, values in columns.items():
        table[name] = values
    PlyData([PlyElement.describe(table, "vertex")], text=text).write(path)
    return path


def save_las(path: Path) -> Path:
    las = laspy.create(point_format=2, file_version="1.2")
    las.header.scales = [0.001] * 3
    las.header.offsets = [500_000, 5_000_000, 0]
    las.x, las.y, las.z = POINTS.T + np.array([[500_000], [5_000_000], [0]])
    las.intensity = np.arange(50, dtype=np.uint16) * 1000
    las.red, las.green, las.blue = COLORS.T.astype(np.uint16) * 257
    las.write(path)
    return path


def test_text_files_are_read_and_padded_with_a_mask(scans: list[Path]) -> None:
    batch = raw()(scans)
    assert batch["point_coordinates"].dtype == torch.float32
    assert batch["point_mask"].dtype == torch.bool
    for row, mask, path in zip(batch["point_coordinates"], batch["point_mask"], scans, strict=True):
        expected = tensor(pd.read_csv(path, sep=" ", header=None).to_numpy())
        assert torch.equal(row[mask], expected)
        assert mask[: len(expected)].all() and not mask[len(expected) :].any()
        assert row[len(expected) :].eq(0).all()


def test_clouds_of_equal_size_have_no_mask_and_no_features() -> None:
    assert list(raw()([POINTS, POINTS])) == ["point_coordinates"]


def test_arrays_tensors_and_lists_are_the_same_cloud() -> None:
    expected = tensor(POINTS)
    for sample in (POINTS, torch.from_numpy(POINTS), POINTS.tolist(), list(POINTS), list(torch.from_numpy(POINTS))):
        assert_close(points(sample), expected)
        assert_close(points([sample]), expected)
    assert_close(points(torch.from_numpy(POINTS).bfloat16()), tensor(POINTS).bfloat16().float())
    assert raw()(np.stack([POINTS, POINTS, POINTS]))["point_coordinates"].shape == (3, 50, 3)


@pytest.mark.parametrize("name", ["points", "xyz", "coordinates", "coords", "pos", "positions", "vertices"])
def test_a_dict_holds_coordinates_under_any_usual_name(name: str) -> None:
    assert torch.equal(points({name: POINTS, "label": 3, "file": "a.ply"}), tensor(POINTS))


def test_tables_dicts_and_structured_arrays_hold_columns() -> None:
    table = pd.DataFrame({**dict(zip("XYZ", POINTS.T, strict=True)), "intensity": np.arange(50.0)})
    expected = torch.arange(50.0)[:, None]
    for sample in (
        table,
        table.to_dict("list"),
        table.to_records(index=False),
        {"points": POINTS, **table[["intensity"]]},
    ):
        assert torch.equal(points(sample), tensor(POINTS))
        assert torch.equal(features(sample, num_features=1), expected)
        assert torch.equal(features([sample, sample], feature_names=["intensity"]), expected)


def test_columns_behind_the_coordinates_are_features() -> None:
    array = np.concatenate([POINTS, NORMALS], axis=1)
    expected = tensor(NORMALS)
    names = ["nx", "ny", "nz"]
    for sample in (array, torch.from_numpy(array), {"points": array}, {"points": POINTS, "features": NORMALS}):
        assert torch.equal(points(sample, num_features=3), tensor(POINTS))
        assert torch.equal(features(sample, num_features=3), expected)
        assert torch.equal(features(sample, feature_names=names), expected)


def test_named_channels_are_taken_in_the_order_of_the_names() -> None:
    sample = {"points": POINTS, "normals": NORMALS, "rgb": COLORS, "intensity": POINTS[:, 0], "curvature": POINTS[:, 1]}
    chosen = features(sample, feature_names=["curvature", "colors", "intensity"])
    expected = np.concatenate([POINTS[:, 1:2], COLORS / 255, POINTS[:, :1]], axis=1)
    assert_close(chosen, tensor(expected))
    assert features(sample, num_features=7).shape == (50, 7)
    assert "point_features" not in raw()(sample)


@pytest.mark.parametrize("text", [False, True])
def test_ply_files_are_read_with_normals_and_colours(tmp_path: Path, text: bool) -> None:
    path = save_ply(tmp_path / "scan.ply", text)
    for sample in (path, str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}):
        assert_close(points(sample), tensor(POINTS))
        assert_close(features(sample, feature_names=["colors"]), tensor(COLORS / 255))
        assert_close(features(sample, feature_names=["normals", "colors"])[:, :3], tensor(NORMALS))


def test_las_files_keep_millimetres_of_a_national_grid(tmp_path: Path) -> None:
    path = save_las(tmp_path / "scan.las")
    centred = PointCloudProcessor(normalization="center", feature_names=["intensity", "colors"])(path)
    assert_close(centred["point_coordinates"][0], tensor(POINTS - POINTS.mean(axis=0)), atol=1e-3, rtol=0)
    expected = np.concatenate([np.arange(50)[:, None] * 1000 / 65535, COLORS / 255], axis=1)
    assert_close(centred["point_features"][0], tensor(expected))


def test_a_compressed_las_file_without_its_decoder_says_what_to_install(tmp_path: Path) -> None:
    if laspy.LazBackend.detect_available():
        pytest.skip("a decoder is installed")
    contents = bytearray(save_las(tmp_path / "scan.las").read_bytes())
    contents[104] |= 0x80  # the header's point format, with LASzip's bit
    (tmp_path / "scan.laz").write_bytes(contents)
    with pytest.raises(ImportError, match=r"pip install \"laspy\[lazrs\]\""):
        raw()(tmp_path / "scan.laz")


@pytest.mark.parametrize("kind", ["off", "obj", "stl"])
def test_meshes_are_sampled_on_their_surface_with_normals(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"box.{kind}"
    trimesh.creation.box((1.0, 2.0, 4.0)).export(path)
    batch = raw(mesh_points=4000, feature_names=["normals"])(path)
    sampled, normals = batch["point_coordinates"][0].double(), batch["point_features"][0]
    half = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert ((sampled.abs() - half).abs().amin(dim=1) < 1e-6).all()
    on_face = (sampled - half * normals).abs() * normals.abs()
    assert on_face.max() < 1e-6
    shares = normals.abs().mean(dim=0)  # faces of 8, 4 and 2 square units
    assert_close(shares, torch.tensor([8.0, 4.0, 2.0]) / 14, atol=0.03, rtol=0)
    assert torch.equal(raw(mesh_points=4000)(path)["point_coordinates"][0].double(), sampled)


def test_a_mesh_may_give_its_vertices_instead(tmp_path: Path) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=1)
    assert_close(points(mesh, mesh_points=None), tensor(mesh.vertices))
    assert_close(points(trimesh.PointCloud(POINTS)), tensor(POINTS))
    assert points([mesh, mesh]).shape == (1024, 3)


def test_an_off_file_whose_first_line_also_holds_the_counts_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("OFF3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")  # as some of ModelNet40 are
    assert_close(points(tmp_path / "a.off", mesh_points=None), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]))


def test_numpy_files_and_other_text_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    np.savez(tmp_path / "one.npz", POINTS)
    np.savez(tmp_path / "named.npz", points=POINTS, colors=COLORS)
    np.savetxt(tmp_path / "commas.txt", POINTS, delimiter=",")
    np.savetxt(tmp_path / "comment.csv", POINTS, delimiter=";", header="x y z")
    for path in sorted(tmp_path.iterdir()):
        assert_close(points(path), tensor(POINTS))
        assert_close(points(path.read_bytes()), tensor(POINTS))
    assert_close(features(tmp_path / "named.npz", num_features=3), tensor(COLORS / 255))


def test_columns_of_a_datasets_data_set_are_taken() -> None:
    from datasets import Array2D, Dataset, Features

    columns = Features({"cloud": Array2D((None, 3), "float32")})
    clouds = [POINTS[:20].astype("f4"), POINTS.astype("f4")]
    dataset = Dataset.from_dict({"cloud": clouds}, features=columns)
    expected = raw()(clouds)
    for samples in (dataset["cloud"], dataset[:]["cloud"], dataset.with_format("numpy")["cloud"]):
        for name, value in raw()(samples).items():
            assert torch.equal(value, expected[name])


def test_unit_sphere_puts_the_mean_at_0_and_the_farthest_point_at_1(scans: list[Path]) -> None:
    for path in scans:
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
    "infinity": (np.full((5, 3), np.inf), ValueError, "NaN, infinity"),
    "beyond float32": (np.full((5, 3), 1e300), ValueError, "beyond 1e15"),
    "ragged lists": ([[0.0, 1, 2], [3.0, 4]], ValueError, "differ in length"),
    "words": ([["a", "b", "c"]], TypeError, "real numbers"),
    "complex": (POINTS.astype(complex), TypeError, "complex128"),
    "missing file": ("no/such/scan.ply", ValueError, "no file 'no/such/scan.ply'"),
    "file of another kind": (Path(__file__), ValueError, r"'.py' is none of the known kinds"),
    "bytes of another kind": (b"\0" * 100, ValueError, "cannot read 100 bytes"),
    "broken ply": (b"ply\nformat nothing\n", ValueError, "as a .ply file"),
    "empty text": (b"# nothing\n", ValueError, "holds no point"),
    "dict without coordinates": ({"colors": COLORS}, ValueError, r"under one of .*got \['colors'\]"),
    "dict with two": ({"points": POINTS, "xyz": POINTS}, ValueError, "under one of"),
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


@pytest.mark.parametrize(("package", "kind"), [("plyfile", "ply"), ("laspy", "las"), ("trimesh", "off")])
def test_a_missing_package_is_named_with_its_extra(
    package: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"a.{kind}").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[point_cloud\]"'):
        raw()(tmp_path / f"a.{kind}")


def test_no_array_of_objects_is_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([object()]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        raw()(file.getvalue())


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
