"""The hyperspectral processor and its files: against scikit-learn, scipy, spectral, h5py and numpy, on real scenes."""

import importlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from spectral.io import envi

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.hyperspectral import HyperspectralProcessor
from meta_transformer.processors.readers.cubes import read_cube
from tests.support.fuzz import finite_or_refused

NM = np.linspace(400, 2500, 24).tolist()


def scene(height: int = 12, width: int = 10, bands: int = 24, seed: int = 0) -> np.ndarray:
    """Counts of a sensor: smooth spectra, brighter and darker from pixel to pixel."""
    random = np.random.default_rng(seed)
    shape = 800 + 500 * np.sin(np.linspace(0, 6, bands)) + random.normal(0, 30, (height, width, bands))
    return (shape * random.uniform(0.5, 1.5, (height, width, 1))).astype(np.uint16)


@pytest.fixture(scope="module")
def matlab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MATLAB 5 file with a cube `data` and a map `map`: San Diego airport, or made up where there is no data."""
    if folder := os.environ.get("META_TRANSFORMER_DATA"):
        return Path(folder) / "hyperspectral/anomaly_scenes/sandiego_plane.mat"
    path = tmp_path_factory.mktemp("cubes") / "scene.mat"
    scipy.io.savemat(path, {"data": scene(), "map": np.zeros((12, 10), np.uint8)})
    return path


def save_envi(path: Path, cube: np.ndarray, interleave: str = "bil", **header: Any) -> Path:
    envi.save_image(str(path), cube, interleave=interleave, metadata=header, force=True)
    return path


def values(processor: HyperspectralProcessor, samples: Any, **options: Any) -> np.ndarray:
    return processor(samples, return_tensors="np", **options)["hyperspectral_values"]


def plain(**options: Any) -> HyperspectralProcessor:
    return HyperspectralProcessor(normalization="none", **options)


@pytest.mark.parametrize(("kind", "scaler"), [("standardize", StandardScaler), ("minmax", MinMaxScaler)])
def test_bands_are_scaled_as_scikit_learn_does(matlab: Path, kind: str, scaler: type) -> None:
    cube = scipy.io.loadmat(matlab)["data"]
    train, test = cube[:6], cube[6:]
    processor = HyperspectralProcessor(normalization=kind).fit(train)
    expected = scaler().fit(train.reshape(-1, cube.shape[2])).transform(test.reshape(-1, cube.shape[2]))
    found = values(processor, test)
    assert found.shape == (1, cube.shape[2], *test.shape[:2])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0].reshape(cube.shape[2], -1).T, expected, rtol=1e-4, atol=1e-4)


def test_statistics_do_not_depend_on_how_samples_are_cut() -> None:
    cube = scene(200, 100)  # more spectra than are taken at once
    whole = HyperspectralProcessor().fit(cube)
    for samples in (cube.reshape(-1, 24), [cube[:50], cube[50:]], iter(cube.reshape(100, 20, 10, 24))):
        other = HyperspectralProcessor().fit(samples)
        for name in ("center", "scale"):
            np.testing.assert_allclose(other.sensors[0][name], whole.sensors[0][name], rtol=1e-9)
    np.testing.assert_allclose(whole.sensors[0]["scale"], cube.reshape(-1, 24).std(axis=0), rtol=1e-9)


def test_each_sample_can_be_normalised_by_itself() -> None:
    cubes = [scene(3, 4), scene(5, 2, bands=7)]
    batch = HyperspectralProcessor(normalization="sample")(cubes)
    for index, cube in enumerate(cubes):
        expected = ((cube - cube.mean()) / cube.std()).transpose(2, 0, 1)
        found = batch["hyperspectral_values"][index][batch["hyperspectral_mask"][index]]
        np.testing.assert_allclose(found.view(expected.shape), expected, atol=1e-4)


def test_matlab_files_are_read_by_name_or_as_the_only_cube(matlab: Path, tmp_path: Path) -> None:
    expected = scipy.io.loadmat(matlab)["data"]
    for cube in (read_cube(matlab), read_cube(str(matlab), "data")):
        np.testing.assert_array_equal(cube.values, expected)
    with pytest.raises(ValueError, match="no variable 'cube'.*'data'"):
        read_cube(matlab, "cube")
    with pytest.raises(ValueError, match="not \\(height, width, bands\\)"):
        read_cube(matlab, "map")
    path = tmp_path / "two.mat"
    scipy.io.savemat(path, {"a": scene(), "b": scene(seed=1)})
    with pytest.raises(ValueError, match="2 variables of 3 dimensions"):
        read_cube(path)
    np.testing.assert_array_equal(values(plain(), path, variable="b"), values(plain(), scene(seed=1)))


def test_matlab_7_3_files_are_read_in_their_order(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    cube, path = scene(5, 4, 6), tmp_path / "v73.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["data"] = cube.T  # as MATLAB writes it
        file["map"] = np.zeros((4, 5))
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    np.testing.assert_array_equal(read_cube(path).values, cube)


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_envi_files_are_memory_mapped_with_their_wavelengths(tmp_path: Path, interleave: str) -> None:
    cube = scene()
    header = save_envi(tmp_path / "a.hdr", cube, interleave, wavelength=NM, **{"wavelength units": "Nanometers"})
    for path in (header, tmp_path / "a.img"):
        found = read_cube(path)
        np.testing.assert_array_equal(found.values, cube)
        assert isinstance(found.values, np.memmap)
        assert found.wavelengths == pytest.approx(NM)
    np.testing.assert_array_equal(values(plain(), envi.open(str(header))), values(plain(), cube))


@pytest.mark.parametrize(
    ("unit", "factor"), [("Micrometers", 1e-3), ("um", 1e-3), ("Unknown", 1e-3), ("Unknown", 1), ("Angstroms", 10)]
)
def test_wavelengths_of_headers_become_nanometres(tmp_path: Path, unit: str, factor: float) -> None:
    nm = [value * factor for value in NM]
    path = save_envi(tmp_path / "a.hdr", scene(), wavelength=nm, **{"wavelength units": unit})
    assert read_cube(path).wavelengths == pytest.approx(NM)


def test_wavenumbers_become_nanometres_and_indices_nothing(tmp_path: Path) -> None:
    path = save_envi(
        tmp_path / "a.hdr", scene(), wavelength=[1e7 / nm for nm in NM], **{"wavelength units": "Wavenumber"}
    )
    assert read_cube(path).wavelengths == pytest.approx(NM)
    path = save_envi(tmp_path / "b.hdr", scene(), wavelength=list(range(24)), **{"wavelength units": "Index"})
    assert read_cube(path).wavelengths is None


def test_scale_no_data_and_bad_bands_of_a_header_count(tmp_path: Path) -> None:
    cube = scene()
    cube[3, 4, 5] = 9999
    header = {"reflectance scale factor": 100, "data ignore value": 9999, "bbl": [0] + [1] * 22 + [0]}
    found = read_cube(save_envi(tmp_path / "a.hdr", cube, **header))
    assert found.bad_bands == [0, 23]
    with pytest.raises(ValueError, match=r"1 of 24 bands .* no data: \[5\].*row 3, column 4"):
        plain()(found)
    good = values(plain(bad_bands=[*found.bad_bands, 5]), found)
    kept = np.setdiff1d(np.arange(24), [0, 5, 23])
    np.testing.assert_allclose(good[0], cube[..., kept].transpose(2, 0, 1) / 100, rtol=1e-6)


def test_npy_files_are_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scene())
    assert isinstance(read_cube(tmp_path / "a.npy").values, np.memmap)
    np.testing.assert_array_equal(values(plain(), tmp_path / "a.npy"), values(plain(), scene()))


@pytest.mark.parametrize("library", ["rasterio", "tifffile"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiffs_are_read_by_either_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, planar: str
) -> None:
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip(library)
    cube = scene()
    stored = cube if planar == "contig" else cube.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planar, photometric="minisblack")
    if library == "tifffile":
        absent(monkeypatch, "rasterio")
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").values, cube)


def absent(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make modules fail at import."""
    original = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] in modules:
            raise ImportError(name)
        return original(name, package)

    monkeypatch.setattr("meta_transformer.processors.readers.cubes.import_module", refuse)


@pytest.mark.parametrize(("suffix", "module"), [(".mat", "scipy"), (".hdr", "spectral"), (".tif", "tifffile")])
def test_what_a_missing_library_needs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, module: str
) -> None:
    absent(monkeypatch, module, "rasterio")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"ENVI")
    with pytest.raises(ImportError, match=f"needs {module}: pip install"):
        read_cube(path)


@pytest.mark.parametrize("name", ["a.mat", "a.npy", "a.tif", "a.hdr", "a.jpg"])
def test_broken_and_unknown_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind" * 20)
    with pytest.raises(ValueError, match=rf"hyperspectral\[0\].*{name}"):
        plain()(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        plain()(str(tmp_path / "absent.mat"))


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        plain()(tmp_path / "a.npy")


def test_arrays_tensors_lists_and_orders_of_dimensions_are_the_same() -> None:
    cube = scene(3, 4)
    expected = values(plain(), cube)
    forms = [torch.from_numpy(cube.astype("i4")), cube.tolist(), cube.astype(">f8"), {"array": cube}]
    for sample in forms:
        np.testing.assert_array_equal(values(plain(), [sample]), expected)
    first = np.moveaxis(cube, -1, 0)
    np.testing.assert_array_equal(values(plain(), first, input_data_format="channels_first"), expected)
    batch = np.moveaxis(np.stack([cube, cube]), -1, 1)
    np.testing.assert_array_equal(values(plain(), batch, input_data_format="channels_first")[1:], expected)


def test_spectra_have_height_and_width_1() -> None:
    spectra = scene(3, 1)[:, 0]
    assert values(plain(), spectra[0]).shape == values(plain(), spectra[0].tolist()).shape == (1, 24, 1, 1)
    np.testing.assert_array_equal(values(plain(), list(spectra)), values(plain(), spectra))
    np.testing.assert_array_equal(values(plain(), spectra)[:, :, 0, 0], spectra)


def test_ragged_samples_are_padded_and_masked() -> None:
    cubes = [scene(3, 4, 6), scene(2, 5, 9), scene(1, 1, 2)]
    batch = plain()(cubes)
    assert batch["hyperspectral_values"].shape == batch["hyperspectral_mask"].shape == (3, 9, 3, 5)
    for index, cube in enumerate(cubes):
        row, mask = batch["hyperspectral_values"][index], batch["hyperspectral_mask"][index]
        height, width, bands = cube.shape
        np.testing.assert_array_equal(row[:bands, :height, :width], cube.transpose(2, 0, 1))
        assert mask[:bands, :height, :width].all()
        assert mask.sum() == cube.size
        assert not row[~mask].any()
    assert "hyperspectral_mask" not in plain()([cubes[0]])


def test_wavelengths_come_along_where_samples_have_them() -> None:
    samples = [{"array": scene(bands=9), "wavelengths": NM[:9]}, {"array": scene(bands=6), "wavelengths": NM[:6]}]
    processor = HyperspectralProcessor().fit(samples)
    assert processor.tokenizer_config() == {"spectral_positions": "wavelength"}
    found = processor(samples)["wavelengths"]
    torch.testing.assert_close(found[0], torch.tensor(NM[:9]))
    torch.testing.assert_close(found[1], torch.tensor([*NM[:6], 0, 0, 0]))
    # An array without is taken for the sensor of as many bands.
    torch.testing.assert_close(processor(scene(bands=6))["wavelengths"], torch.tensor([NM[:6]]))
    shared = processor(scene(bands=6), wavelengths=NM[:6])
    torch.testing.assert_close(shared["wavelengths"], torch.tensor([NM[:6]]))


def test_without_wavelengths_bands_are_placed_by_number() -> None:
    processor = HyperspectralProcessor().fit(scene())
    assert processor.tokenizer_config() == {"spectral_positions": "index"}
    assert set(processor(scene())) == {"hyperspectral_values"}
    forced = HyperspectralProcessor(spectral_positions="index").fit(scene(), wavelengths=NM)
    assert set(forced(scene(), wavelengths=NM)) == {"hyperspectral_values"}


def test_each_sensor_keeps_its_own_statistics() -> None:
    counts, reflectance = scene(), scene(bands=6) / 10_000
    samples = [{"array": counts, "wavelengths": NM}, {"array": reflectance, "wavelengths": NM[::4]}]
    processor = HyperspectralProcessor().fit(samples)
    for sample in samples:
        np.testing.assert_allclose(values(processor, sample).mean(axis=(0, 2, 3)), 0, atol=1e-4)
    with pytest.raises(ValueError, match="12 bands of 400 .* fit 0 of the sensors"):
        processor({"array": scene(bands=12), "wavelengths": NM[:12]})


def test_statistics_of_one_sensor_are_interpolated_for_another() -> None:
    cube = scene()
    processor = HyperspectralProcessor().fit(cube, wavelengths=NM)
    between = [(low + high) / 2 for low, high in pairwise(NM)]
    sensor = processor.sensors[0]
    spectrum = np.full(23, 700.0)
    expected = (spectrum - np.interp(between, NM, sensor["center"])) / np.interp(between, NM, sensor["scale"])
    found = values(processor, {"array": spectrum, "wavelengths": between})[0, :, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    part = values(processor, cube[..., ::-2], wavelengths=NM[::-2])  # some of the bands, backwards
    np.testing.assert_allclose(part, values(processor, cube)[:, ::-2], atol=1e-5)
    with pytest.raises(ValueError, match="fit 0 of the sensors"):
        processor({"array": spectrum[:3], "wavelengths": [9000.0, 10_000.0, 11_000.0]})


def test_bad_bands_are_left_out_everywhere() -> None:
    cube = scene().astype(np.float32)
    cube[..., 4], cube[2, 3, 7] = np.nan, np.inf
    processor = HyperspectralProcessor(bad_bands=[7, 4]).fit(cube, wavelengths=NM)
    assert processor(cube, wavelengths=NM)["hyperspectral_values"].shape == (1, 22, 12, 10)
    assert processor.sensors[0]["wavelengths"] == [nm for band, nm in enumerate(NM) if band not in (4, 7)]
    assert values(processor, processor.dummy_samples(3)[0]).shape[1] == 22
    with pytest.raises(ValueError, match=r"2 of 24 bands hold NaN, infinity or no data: \[4, 7\]"):
        HyperspectralProcessor().fit(cube)
    with pytest.raises(ValueError, match=r"1 of 24 bands .*: \[7\].*row 2, column 3"):
        HyperspectralProcessor(bad_bands=[4]).fit(cube)


def test_constant_bands_are_named_by_their_own_number() -> None:
    cube = scene()
    cube[..., [5, 8]] = 77
    with pytest.raises(ValueError, match=r"Bands \[5, 8\] have the same value"):
        HyperspectralProcessor(bad_bands=[0, 6]).fit(cube)
    with pytest.raises(ValueError, match="fit on more pixels"):
        HyperspectralProcessor().fit(cube[0, 0])


CUBE = scene(3, 3, 4)
BAD_CALLS = {
    "no fit": ({}, CUBE, {}, ValueError, "call fit"),
    "two dimensions in a list": ({"normalization": "none"}, [CUBE[0]], {}, ValueError, "shape \\(bands,\\)"),
    "five dimensions": ({"normalization": "none"}, CUBE[None, None], {}, ValueError, "shape \\(bands,\\)"),
    "empty": ({"normalization": "none"}, np.zeros((0, 3, 4)), {}, ValueError, "empty, shape"),
    "ragged": ({"normalization": "none"}, [[[1, 2], [3]]], {}, ValueError, "inhomogeneous"),
    "complex": ({"normalization": "none"}, CUBE * 1j, {}, TypeError, "complex128"),
    "truth": ({"normalization": "none"}, CUBE > 3, {}, TypeError, "bool"),
    "type": ({"normalization": "none"}, 3, {}, TypeError, "got int"),
    "huge": ({"normalization": "none"}, CUBE * 1e300, {}, ValueError, "too large"),
    "no data": ({"normalization": "none", "no_data": int(CUBE[1, 2, 3])}, CUBE, {}, ValueError, r"no data"),
    "bad band": ({"normalization": "none", "bad_bands": [4]}, CUBE, {}, ValueError, "band 4, but there are 4"),
    "all bad": ({"normalization": "none", "bad_bands": [0, 1, 2, 3]}, CUBE, {}, ValueError, "leave at least one"),
    "order": ({"normalization": "none"}, CUBE, {"input_data_format": "last"}, ValueError, "channels_first"),
    "micrometres": ({"normalization": "none"}, CUBE, {"wavelengths": [0.4, 1, 2, 3]}, ValueError, "by 1000"),
    "NaN as wavelength": ({"normalization": "none"}, CUBE, {"wavelengths": [400, np.nan, 2e3, 3e3]}, ValueError, "nan"),
    "too few wavelengths": ({"normalization": "none"}, CUBE, {"wavelengths": [500]}, ValueError, "4 numbers"),
    "words as wavelengths": ({"normalization": "none"}, CUBE, {"wavelengths": "red"}, ValueError, "in nm, got 'red'"),
    "no wavelengths": (
        {"normalization": "none", "spectral_positions": "wavelength"}, CUBE, {}, ValueError, "pass wavelengths="
    ),
    "some wavelengths": (
        {"normalization": "none"}, [CUBE, {"array": CUBE, "wavelengths": NM[:4]}], {}, ValueError, "1 of 2 samples"
    ),
    "keys": ({"normalization": "none"}, {"array": CUBE, "nm": 1}, {}, ValueError, "'nm'"),
    "no array": ({"normalization": "none"}, {"wavelengths": NM}, {}, ValueError, "must hold 'array' or 'path'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_samples_are_refused_with_a_sentence(name: str) -> None:
    options, samples, arguments, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        HyperspectralProcessor(**options)(samples, **arguments)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"normalization": "max"}, "'max'"),
        ({"spectral_positions": "nm"}, "'nm'"),
        ({"bad_bands": [-1]}, "from 0"),
        ({"bad_bands": [1.5]}, "from 0"),
        ({"no_data": float("nan")}, "finite"),
        ({"sensors": [{"center": [0.0]}]}, "as fit makes"),
        ({"sensors": [{"wavelengths": None, "center": [0.0], "scale": [0.0]}]}, "scale positive"),
    ],
)
def test_bad_settings_are_refused(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HyperspectralProcessor(**settings_)


def test_mixed_wavelengths_are_refused_in_fit() -> None:
    samples = [scene(bands=6), {"array": scene(bands=9), "wavelengths": NM[:9]}]
    with pytest.raises(ValueError, match="others have not"):
        HyperspectralProcessor().fit(samples)
    with pytest.raises(ValueError, match="pass wavelengths="):
        HyperspectralProcessor(spectral_positions="wavelength").fit(samples)
    assert len(HyperspectralProcessor(spectral_positions="index").fit(samples).sensors) == 2


def test_what_was_fitted_survives_json(tmp_path: Path) -> None:
    fitted = HyperspectralProcessor(bad_bands=[3], no_data=-1).fit(scene(), wavelengths=NM)
    MetaTransformerProcessor(hyperspectral=fitted).save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path).hyperspectral
    assert loaded.sensors == fitted.sensors
    np.testing.assert_array_equal(values(loaded, scene(seed=2)), values(fitted, scene(seed=2)))


SHAPES = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
DTYPES = st.sampled_from(["u1", "i2", ">u2", "u8", "f2", "f4", "f8", "c8", "?", "U1", "M8[s]"])
SAMPLES = st.one_of(
    DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, SHAPES)),
    arrays.arrays("f4", st.just((2, 2, 3)), elements=st.floats(-1e3, 1e3, width=32)),
    st.none(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
    st.dictionaries(st.sampled_from(["array", "path", "wavelengths"]), st.lists(st.floats(), max_size=3), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.one_of(SAMPLES, st.lists(SAMPLES, max_size=3)),
    normalization=st.sampled_from(["standardize", "minmax", "sample", "none"]),
    bad_bands=st.sampled_from([[], [0], [1, 5]]),
    wavelengths=st.sampled_from([None, [500.0, 600.0, 700.0], [0.5], "nm"]),
)
def test_any_input_gives_finite_values_or_a_sentence(samples, normalization, bad_bands, wavelengths) -> None:
    processor = HyperspectralProcessor(normalization=normalization, bad_bands=bad_bands, no_data=7)
    given_ = {"wavelengths": wavelengths}
    finite_or_refused(lambda: processor.fit(samples, **given_)(samples, **given_))
