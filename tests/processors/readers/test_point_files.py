"""Forms and files of point clouds: against plyfile, trimesh, laspy, pandas and numpy, on real scans of objects."""

import io
import sys
from pathlib import Path

import laspy
import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from plyfile import PlyData, PlyElement
from torch.testing import assert_close

from meta_transformer.processors.point_cloud import PointCloudProcessor
from tests.support.clouds import COLORS, NORMALS, POINTS, features, points, raw, scans, tensor


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


def test_text_files_are_read_and_padded_with_a_mask(tmp_path: Path) -> None:
    paths = scans(tmp_path)
    batch = raw()(paths)
    assert batch["point_coordinates"].dtype == torch.float32
    assert batch["point_mask"].dtype == torch.bool
    for row, mask, path in zip(batch["point_coordinates"], batch["point_mask"], paths, strict=True):
        expected = tensor(pd.read_csv(path, sep=" ", header=None).to_numpy())
        assert torch.equal(row[mask], expected)
        assert mask[: len(expected)].all() and not mask[len(expected) :].any()
        assert row[len(expected) :].eq(0).all()


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


def test_a_compressed_las_file_without_its_decoder_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(laspy.LazBackend, "detect_available", classmethod(lambda cls: ()))
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


@pytest.mark.parametrize(
    "header", ["x,y,z,intensity", '"X", "Y", "Z", "intensity"', "# made by hand\n\nx;y;z;intensity # no unit"]
)
def test_a_header_names_the_columns_of_text(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    np.savetxt(path, np.c_[POINTS, np.arange(50)], delimiter=",", header=header, comments="")
    for sample in (path, path.read_bytes()):
        assert_close(points(sample), tensor(POINTS))
        assert_close(features(sample, feature_names=["intensity"]), torch.arange(50.0)[:, None])


def test_a_header_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x y z\n1 2 3 4\n")
    with pytest.raises(ValueError, match=r"header \['x', 'y', 'z'\] must name each of the 4 columns"):
        raw()(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("x y z\n")
    with pytest.raises(ValueError, match="holds no point"):
        raw()(tmp_path / "b.txt")


def test_the_number_of_points_before_those_of_leica_is_left_out(tmp_path: Path) -> None:
    rows = "\n".join(" ".join(map(str, row)) for row in np.c_[POINTS, np.arange(50)].tolist())
    (tmp_path / "a.pts").write_text(f"50\n{rows}\n")
    assert_close(points(tmp_path / "a.pts", num_features=1), tensor(POINTS))
    assert_close(features(tmp_path / "a.pts", num_features=1), torch.arange(50.0)[:, None])


def forms_of_colours() -> dict[str, object]:
    columns = dict(zip("xyz", POINTS.T, strict=True))
    return {
        "array": {"points": POINTS, "colors": COLORS},
        "16 bits": {"points": POINTS, "colors": COLORS.astype(np.uint16) * 257},
        "tensor": {"points": POINTS, "colors": torch.from_numpy(COLORS)},
        "list": {"points": POINTS, "colors": COLORS.tolist()},
        "table": pd.DataFrame({**columns, **dict(zip(("red", "green", "blue"), COLORS.astype(int).T, strict=True))}),
        "floats": {"points": POINTS, "colors": COLORS / 255},
        "without names": np.concatenate([COLORS, COLORS], axis=1),
        "16 bits without names": np.concatenate([COLORS, COLORS.astype(np.uint16) * 257], axis=1),
        "features": {"points": POINTS, "features": COLORS},
    }


@pytest.mark.parametrize("form", forms_of_colours())
def test_colours_are_from_0_to_1_whatever_holds_them(form: str) -> None:
    assert_close(features(forms_of_colours()[form], feature_names=["colors"]), tensor(COLORS / 255))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.float16])
def test_other_channels_are_taken_as_they_are(dtype: type) -> None:
    angles = np.arange(50).astype(dtype)
    sample = {"points": POINTS, "angle": angles}
    assert torch.equal(features(sample, feature_names=["angle"]), torch.arange(50.0)[:, None])
    unnamed = np.column_stack([np.arange(150).reshape(50, 3) % 100, angles]).astype(dtype)
    assert torch.equal(features(unnamed, num_features=1), torch.arange(50.0)[:, None])


def test_colours_of_an_unknown_range_are_refused_if_they_are_asked_for() -> None:
    sample = {"points": POINTS, "colors": COLORS.astype(int) * 257}
    assert_close(points(sample), tensor(POINTS))
    with pytest.raises(ValueError, match="colors must be whole numbers from 0 to 255.*as uint16"):
        features(sample, feature_names=["colors"])


def test_columns_of_a_datasets_data_set_are_taken() -> None:
    from datasets import Array2D, Dataset, Features

    columns = Features({"cloud": Array2D((None, 3), "float32")})
    clouds = [POINTS[:20].astype("f4"), POINTS.astype("f4")]
    dataset = Dataset.from_dict({"cloud": clouds}, features=columns)
    expected = raw()(clouds)
    for samples in (dataset["cloud"], dataset[:]["cloud"], dataset.with_format("numpy")["cloud"]):
        for name, value in raw()(samples).items():
            assert torch.equal(value, expected[name])


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
