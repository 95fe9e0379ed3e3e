"""Files of cubes: against scipy, spectral, h5py, rasterio and tifffile."""

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from spectral.io import envi

from meta_transformer.processors.hyperspectral import HyperspectralProcessor
from meta_transformer.processors.readers.cubes import read_cube
from tests.support.cubes import NM, matlab_scene, scene


def save_envi(path: Path, cube: np.ndarray, interleave: str = "bil", **header: Any) -> Path:
    envi.save_image(str(path), cube, interleave=interleave, metadata=header, force=True)
    return path


def save_geotiff(
    rasterio: Any, path: Path, cube: np.ndarray, scales: Any = None, offsets: Any = None, **profile: Any
) -> Path:
    height, width, bands = cube.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no coordinates
        with rasterio.open(path, "w", "GTiff", width, height, bands, dtype=cube.dtype, **profile) as file:
            file.write(cube.transpose(2, 0, 1))
            if scales is not None:
                file.scales, file.offsets = scales, offsets
    return path


def values(processor: HyperspectralProcessor, samples: Any, **options: Any) -> np.ndarray:
    return processor(samples, return_tensors="np", **options)["hyperspectral_values"]


def plain(**options: Any) -> HyperspectralProcessor:
    return HyperspectralProcessor(normalization="none", **options)


def test_matlab_files_are_read_by_name_or_as_the_only_cube(tmp_path: Path) -> None:
    matlab = matlab_scene(tmp_path)
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
    import h5py

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
    import tifffile

    cube = scene()
    stored = cube if planar == "contig" else cube.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planar, photometric="minisblack")
    if library == "tifffile":
        absent(monkeypatch, "rasterio")
    np.testing.assert_array_equal(read_cube(tmp_path / "a.tif").values, cube)


@pytest.mark.parametrize("library", ["rasterio", "tifffile"])
def test_no_data_of_a_geotiff_is_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    import rasterio

    cube = scene()
    cube[3, 4, 5] = 9999
    save_geotiff(rasterio, tmp_path / "a.tif", cube, nodata=9999)
    if library == "tifffile":
        absent(monkeypatch, "rasterio")
    with pytest.raises(ValueError, match=r"1 of 24 bands .* no data: \[5\].*row 3, column 4"):
        plain()(tmp_path / "a.tif")


def test_scales_and_offsets_of_a_geotiff_are_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio

    cube, scales, offsets = scene(), np.linspace(1e-4, 1e-3, 24), np.linspace(-1, 1, 24)
    path = save_geotiff(rasterio, tmp_path / "a.tif", cube, scales, offsets)
    expected = (cube * scales + offsets).transpose(2, 0, 1)
    np.testing.assert_allclose(values(plain(), path)[0], expected, rtol=1e-5, atol=1e-6)
    absent(monkeypatch, "rasterio")
    with pytest.raises(ValueError, match="pip install rasterio"):
        read_cube(path)


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
