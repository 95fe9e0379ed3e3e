"""Hyperspectral cubes from files and arrays, without reading more of a file than is asked for.

Leaves: a `Cube`, values `(height, width, bands)` as they are stored, with what the file says about them. `.npy` and
ENVI files are memory-mapped; MATLAB and TIFF files are read whole.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from .arrays import to_array

__all__ = ["Cube", "as_cube", "check_data_format", "check_wavelengths", "numbers_of", "read_cube", "spectra_of"]

DataFormat = Literal["channels_first", "channels_last"]

# Nanometres of one unit, by the names in use in ENVI headers; wavenumbers are 1/cm.
_NANOMETRES = {
    **dict.fromkeys(("nanometers", "nanometer", "nm"), 1.0),
    **dict.fromkeys(("micrometers", "micrometer", "microns", "micron", "um", "µm"), 1e3),
    **dict.fromkeys(("millimeters", "mm"), 1e6),
    **dict.fromkeys(("angstroms", "angstrom"), 0.1),
}
_SHORTEST, _LONGEST = 100.0, 1e6  # nm, from ultraviolet to the far infrared
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113  # tags of a GeoTIFF


@dataclass(frozen=True)
class Cube:
    """A hyperspectral image.

    Attributes:
        values: `(height, width, bands)` as stored, perhaps memory-mapped; see `decode`.
        wavelengths: Centre of each band in nm; `None` where unknown.
        scale: What stored values are divided by, ENVI's reflectance scale factor; one number, or `(bands,)`.
        offset: What is added then; as `scale`.
        no_data: The stored value that stands for no measurement.
        bad_bands: Numbers of the bands that the file's header marks as bad, from 0. They are not left out by
            themselves: pass them to the processor's `bad_bands`.
    """

    values: np.ndarray
    wavelengths: list[float] | None = None
    scale: float | np.ndarray = 1.0
    offset: float | np.ndarray = 0.0
    no_data: float | None = None
    bad_bands: list[int] = field(default_factory=list)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """Stored values `(..., bands)` to measured ones, with NaN for no data; the same array if they are equal."""
        if np.all(self.scale == 1) and not np.any(self.offset) and self.no_data is None:
            return values
        decoded = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64) / self.scale + self.offset
        if self.no_data is not None:
            decoded[values == self.no_data] = np.nan
        return decoded


def as_cube(sample: Any, *, variable: str | None = None, input_data_format: DataFormat | None = None) -> Cube:
    """One sample of any kind to a cube.

    Args:
        sample: A `Cube`, a path, an image of the package `spectral`, a dict with `array` or `path` and perhaps
            `wavelengths` and `variable`, or an array, tensor or list: `(bands,)` a single spectrum, three dimensions a
            cube.
        variable: See `read_cube`.
        input_data_format: Order of the dimensions of arrays: `"channels_last"` `(height, width, bands)`, the default,
            or `"channels_first"` `(bands, height, width)`. The order of files is known.

    Raises:
        ValueError: An empty array or one of other dimensions, an unreadable file, impossible wavelengths.
        TypeError: A sample of another type, or values that are no real numbers.
    """
    if isinstance(sample, Cube):
        return sample
    if isinstance(sample, str | PathLike):
        return read_cube(sample, variable)
    if hasattr(sample, "open_memmap"):  # an image of the package spectral, without importing it to ask
        return _from_spectral(sample)
    if isinstance(sample, Mapping):
        if unknown := sorted(map(str, set(sample) - {"array", "path", "wavelengths", "variable"})):
            raise ValueError(f"a dict may hold 'array' or 'path', 'wavelengths' and 'variable', but not {unknown}.")
        source = sample.get("array") if sample.get("array") is not None else sample.get("path")
        if source is None:
            raise ValueError(f"a dict must hold 'array' or 'path', got the keys {sorted(map(str, sample))}.")
        cube = as_cube(source, variable=sample.get("variable", variable), input_data_format=input_data_format)
        given = sample.get("wavelengths")
        own = cube.wavelengths if given is None else check_wavelengths(given, cube.values.shape[2])
        return replace(cube, wavelengths=own)
    values = numbers_of(sample)
    if values.ndim == 1:
        values = values[None, None]
    elif values.ndim != 3:
        raise ValueError(
            f"a sample must have shape (bands,) or (height, width, bands), got {values.shape}; give several samples as "
            "a list, or as one array of 2 dimensions (spectra, bands) or 4 (samples, height, width, bands)."
        )
    elif check_data_format(input_data_format) == "channels_first":
        values = np.moveaxis(values, 0, -1)
    return Cube(values)


def check_data_format(data_format: Any) -> DataFormat:
    """The order of the dimensions of arrays, by default `"channels_last"`."""
    if data_format not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', got {data_format!r}.")
    return data_format or "channels_last"


def numbers_of(sample: Any) -> np.ndarray:
    """An array, tensor or list of numbers as a numpy array, if it holds real numbers and at least one."""
    if not isinstance(sample, np.ndarray | Tensor | list | tuple):
        raise TypeError(
            "a hyperspectral sample must be a path, a numpy or torch array, a list of numbers, a dict with 'array' or "
            f"'path', or an image of the package spectral, got {type(sample).__name__}."
        )
    array = to_array(sample)
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise TypeError(f"values must be integers or floats, got {array.dtype}; convert them.")
    if array.size == 0:
        raise ValueError(f"the array is empty, shape {array.shape}; leave it out.")
    return array


def spectra_of(table: Any) -> tuple[np.ndarray, list[float] | None]:
    """Spectra in the rows of a pandas table, or one like it.

    Returns:
        `(samples, bands)`, and the wavelengths by which the columns are named; `None` if they are counted from 0.

    Raises:
        ValueError: Columns of other names, or no row.
        TypeError: Columns that do not hold numbers.
    """
    names = [str(name) for name in table.columns]
    if names == [str(band) for band in range(len(names))]:
        return numbers_of(table.to_numpy()), None
    try:
        wavelengths = [float(name) for name in names]
    except ValueError as error:
        raise ValueError(
            f"a table must hold spectra alone, its columns named by their wavelengths in nm: {error}."
        ) from error
    return numbers_of(table.to_numpy()), check_wavelengths(wavelengths, len(names))


def check_wavelengths(wavelengths: Any, bands: int) -> list[float]:
    """Wavelengths in nm, one for each band.

    Raises:
        ValueError: No numbers, another number of them than bands, or values that cannot be nanometres.
    """
    try:
        values = np.asarray(wavelengths, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"wavelengths must be a list of numbers, in nm, got {wavelengths!r}.") from None
    if values.shape != (bands,):
        raise ValueError(f"wavelengths must be {bands} numbers, one for each band, got shape {values.shape}.")
    if not ((values >= _SHORTEST) & (values <= _LONGEST)).all():
        wrong = next(value for value in values if not _SHORTEST <= value <= _LONGEST)
        raise ValueError(
            f"wavelengths must be nanometres, from {_SHORTEST:g} to {_LONGEST:g}, got {wrong:g}; multiply micrometres "
            "by 1000."
        )
    return values.tolist()


def read_cube(path: str | PathLike, variable: str | None = None) -> Cube:
    """Open a file.

    Args:
        path: `.mat` (MATLAB 5 with scipy, 7.3 with h5py), `.npy`, an ENVI header `.hdr` or the data file beside it
            (with the package spectral), or a TIFF (with rasterio or tifffile).
        variable: Which variable of a MATLAB file; by default the only one of three dimensions.

    Raises:
        ValueError: No such file, or one that cannot be read as a cube.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}.")
    suffix = path.suffix.lower()
    headers = [each for each in (path.with_suffix(".hdr"), Path(f"{path}.hdr")) if each.is_file()]
    try:
        if suffix == ".mat":
            cube = Cube(_read_mat(path, variable))
        elif suffix == ".npy":
            cube = Cube(np.load(path, mmap_mode="r", allow_pickle=False))
        elif suffix in (".tif", ".tiff"):
            cube = _read_tiff(path)
        elif suffix == ".hdr" or headers:
            envi = _optional("spectral.io.envi", 'pip install "meta_transformer[hyperspectral]"')
            files = (path, None) if suffix == ".hdr" else (headers[0], path)
            cube = _from_spectral(envi.open(*(str(file) if file else None for file in files)))
        else:
            raise ValueError("the type must be .mat, .npy, .tif or an ENVI file with its header .hdr.")
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # each library has errors of its own for broken files
        raise ValueError(f"cannot read {str(path)!r} as a cube: {error}") from error
    if cube.values.ndim != 3:
        raise ValueError(f"{str(path)!r} holds an array of shape {cube.values.shape}, not (height, width, bands).")
    numbers_of(cube.values)
    return cube


def _read_mat(path: Path, variable: str | None) -> np.ndarray:
    """One variable of a MATLAB file, `(height, width, bands)`."""
    io = _optional("scipy.io", 'pip install "meta_transformer[hyperspectral]"')
    try:
        shapes = {name: shape for name, shape, _ in io.whosmat(path)}
    except NotImplementedError:  # how scipy says that this is version 7.3
        h5py = _optional("h5py", "pip install h5py")
        with h5py.File(path, "r") as file:
            sets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            name = _choose(variable, {name: item.shape[::-1] for name, item in sets.items()})
            return np.ascontiguousarray(sets[name][()].T)  # MATLAB stores the last dimension first
    name = _choose(variable, shapes)
    return np.ascontiguousarray(io.loadmat(path, variable_names=[name])[name])


def _choose(variable: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    cubes = [name for name, shape in shapes.items() if len(shape) == 3]
    if variable is None and len(cubes) == 1:
        return cubes[0]
    if variable not in shapes:
        wanted = f"no variable {variable!r}" if variable is not None else f"{len(cubes)} variables of 3 dimensions"
        raise ValueError(f"it holds {wanted}; choose with variable=<name> among {shapes}.")
    return variable


def _read_tiff(path: Path) -> Cube:
    """With rasterio, or else with tifffile."""
    try:
        rasterio = import_module("rasterio")
    except (ImportError, OSError):  # OSError: its libraries are missing
        tifffile = _optional("tifffile", "pip install rasterio, or pip install tifffile")
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            values, axes = series.asarray(), series.axes
            tags: dict[int, Any] = {tag.code: tag.value for tag in file.pages[0].tags}
        if values.ndim != 3 or not {"Y", "X"} <= set(axes):
            raise ValueError(f"it holds an array of shape {values.shape} with axes {axes!r}.") from None
        if any(f'role="{role}"' in str(tags.get(_GDAL_METADATA)) for role in ("scale", "offset")):
            raise ValueError("its values have a scale or an offset; to read them, pip install rasterio.") from None
        bands = next(axis for axis, name in enumerate(axes) if name not in "YX")
        no_data = tags.get(_GDAL_NODATA)
        return Cube(np.moveaxis(values, bands, -1), no_data=None if no_data is None else float(no_data.strip("\0 ")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without geographic coordinates rasterio warns
        with rasterio.open(path) as file:
            scale, offset = 1 / np.asarray(file.scales), np.asarray(file.offsets)
            return Cube(np.moveaxis(file.read(), 0, -1), scale=scale, offset=offset, no_data=file.nodata)


def _from_spectral(image: Any) -> Cube:
    """An image of the package spectral, memory-mapped, with the wavelengths of its header in nm."""
    values = image.open_memmap(interleave="bip", writable=False)
    header = getattr(image, "metadata", {})
    ignored = header.get("data ignore value")
    good = header.get("bbl") or []
    return Cube(
        values,
        _header_wavelengths(image.bands.centers, image.bands.band_unit, values.shape[2]),
        scale=float(getattr(image, "scale_factor", 1.0) or 1.0),
        no_data=None if ignored is None else float(ignored),
        bad_bands=[band for band, flag in enumerate(good) if int(float(flag)) == 0],
    )


def _header_wavelengths(centers: Sequence[float] | None, unit: str | None, bands: int) -> list[float] | None:
    """Centres of bands in nm; `None` where the header has none, or in a unit that is no length."""
    if not centers:
        return None
    values, unit = np.asarray(centers, np.float64), (unit or "").strip().lower()
    if unit == "wavenumber":
        return check_wavelengths(1e7 / values, bands)
    if unit in ("", "unknown"):  # nanometres and micrometres cannot be mistaken for each other
        return check_wavelengths(values * (1e3 if values.max() < _SHORTEST else 1.0), bands)
    if unit not in _NANOMETRES:
        return None
    return check_wavelengths(values * _NANOMETRES[unit], bands)


def _optional(module: str, command: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: installed, but its libraries are missing
        raise ImportError(f"Reading this file needs {module.partition('.')[0]}: {command}") from error
