"""Hyperspectral cubes, patches and spectra to tensors: files or arrays, of any size and number of bands.

Leaves: `hyperspectral_values` `(batch, bands, height, width)`, normalised, padded with zeros to the largest sample of
the batch; `hyperspectral_mask` of the same shape, true in the samples, if they differ in size; and, for a tokenizer
that places bands by wavelength, `wavelengths` `(batch, bands)` in nm, padded with zeros.

Statistics are kept for each sensor, that is for each list of wavelengths (or number of bands) that `fit` has seen, so
that sensors with other bands and other units do not mix.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal

import numpy as np
from torch import Tensor
from transformers import BatchFeature

from .band_statistics import Moments, check_sensor, describe_sensor, find_sensors, is_same_sensor
from .base import ModalityProcessor, errors_at, several
from .readers.cubes import Cube, DataFormat, as_cube, check_data_format, check_wavelengths, numbers_of, spectra_of

__all__ = ["HyperspectralProcessor"]

_NORMALIZATIONS = ("standardize", "minmax", "sample", "none")


@dataclass
class _Stack:
    """Samples of one shape and one sensor: values `(samples, height, width, bands)`, checked to be finite."""

    values: np.ndarray
    wavelengths: list[float] | None


class HyperspectralProcessor(ModalityProcessor):
    """Read, leave bad bands out, normalise band by band, pad.

    Args:
        normalization: `"standardize"` to mean 0 and standard deviation 1 of each band, or `"minmax"` to 0..1, both
            learned by `fit` (values outside the range of the training samples then lie outside 0..1); `"sample"` to
            mean 0 and standard deviation 1 over all values of each sample, for sensors that `fit` cannot see; or
            `"none"`.
        spectral_positions: `"wavelength"` if the tokenizer is to place bands by their wavelengths, which all samples
            then need, `"index"` if by their number. `None`: the first if all samples of `fit` have wavelengths.
        bad_bands: Numbers of bands that are left out of every sample, from 0, such as those that water vapour absorbs.
        no_data: A value that stands for no measurement, beside NaN. Samples that hold it are refused.
        sensors: Learned: for each sensor a dict of `wavelengths` (or `None`), `center` and `scale`, lists of one
            number for each band that is not bad.
    """

    normalization: str
    spectral_positions: str | None
    bad_bands: list[int]
    no_data: float | None
    sensors: list[dict[str, Any]] | None

    def __init__(
        self,
        *,
        normalization: Literal["standardize", "minmax", "sample", "none"] = "standardize",
        spectral_positions: Literal["wavelength", "index"] | None = None,
        bad_bands: list[int] | None = None,
        no_data: float | None = None,
        sensors: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if normalization not in _NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {_NORMALIZATIONS}, got {normalization!r}.")
        if spectral_positions not in (None, "wavelength", "index"):
            raise ValueError(f"spectral_positions must be 'wavelength', 'index' or None, got {spectral_positions!r}.")
        bad_bands = list(() if bad_bands is None else bad_bands)
        if any(not isinstance(band, Integral) or band < 0 for band in bad_bands):
            raise ValueError(f"bad_bands must be numbers of bands, from 0, got {bad_bands}.")
        if no_data is not None and not (isinstance(no_data, Real) and isfinite(no_data)):
            raise ValueError(f"no_data must be a finite number or None, got {no_data!r}; NaN is never data.")
        super().__init__(
            normalization=normalization,
            spectral_positions=spectral_positions,
            bad_bands=sorted({int(band) for band in bad_bands}),
            no_data=None if no_data is None else float(no_data),
            sensors=None if sensors is None else [check_sensor(sensor) for sensor in sensors],
            **kwargs,
        )

    def tokenizer_config(self) -> dict[str, Any]:
        return {"spectral_positions": self._positions() or "index"}

    def __call__(
        self,
        samples: Any,
        *,
        wavelengths: Sequence[float] | None = None,
        input_data_format: DataFormat | None = None,
        variable: str | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Process one sample or a list of samples, of any sizes.

        Args:
            samples: Each a path of a MATLAB, `.npy`, ENVI or TIFF file, an image of the package spectral, a dict
                `{"array" or "path", "wavelengths", "variable"}`, or a numpy or torch array or list of numbers:
                `(bands,)` a spectrum, `(height, width, bands)` a patch or cube. One array of 2 dimensions holds
                spectra `(samples, bands)`, one of 4 patches `(samples, height, width, bands)`. Or one pandas table, a
                spectrum in each row, the columns named by their wavelengths or counted from 0.
            wavelengths: Centres of the bands in nm, for samples that do not carry their own.
            input_data_format: `"channels_first"` if arrays are `(bands, height, width)`.
            variable: Which variable of MATLAB files; by default the only one of three dimensions.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `hyperspectral_values`, `hyperspectral_mask` if the samples differ in size, and `wavelengths` unless
            `spectral_positions` is `"index"`.

        Raises:
            ValueError: No sample, an unreadable or empty one, NaN, infinity or no data in a band, a band that does not
                exist, wavelengths that are missing or impossible, a sensor that `fit` has not seen, or no `fit`.
            TypeError: A sample of another type.
        """
        arrays, places = [], []
        for index, stack in enumerate(self._stacks(samples, wavelengths, input_data_format, variable)):
            with errors_at(f"hyperspectral[{index}]"):
                values, own = self._normalize(stack)
            arrays.append(np.moveaxis(values, -1, 1))
            places += [own] * len(values)
        data = _pad(arrays)
        with_wavelengths = sum(own is not None for own in places)
        if 0 < with_wavelengths < len(places):
            raise ValueError(
                f"{with_wavelengths} of {len(places)} samples have wavelengths; give all of them theirs, or set "
                "spectral_positions='index'."
            )
        if with_wavelengths:
            data["wavelengths"] = np.zeros(data["hyperspectral_values"].shape[:2], np.float32)
            for row, own in zip(data["wavelengths"], places, strict=True):
                row[: len(own)] = own
        return BatchFeature(data, tensor_type=return_tensors)

    def fit(
        self,
        samples: Any,
        *,
        wavelengths: Sequence[float] | None = None,
        input_data_format: DataFormat | None = None,
        variable: str | None = None,
    ) -> "HyperspectralProcessor":
        """Learn the statistics of each sensor's bands, and whether samples have wavelengths.

        Args:
            samples: As of `__call__`; pass training pixels alone, such as `cube[rows, columns]`. An iterator is
                consumed sample by sample.
            wavelengths: As of `__call__`.
            input_data_format: As of `__call__`.
            variable: As of `__call__`.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`, or a band that has the same value everywhere.
            TypeError: As `__call__`.
        """
        found: list[Moments] = []
        for stack in self._stacks(samples, wavelengths, input_data_format, variable):
            bands = stack.values.shape[-1]
            same = (e for e in found if len(e.mean) == bands and is_same_sensor(e.wavelengths, stack.wavelengths))
            own = next(same, None)
            if own is None:
                own = Moments.empty(bands, stack.wavelengths)
                found.append(own)
            with np.errstate(over="ignore", invalid="ignore"):  # refused below
                own.add(stack.values.reshape(-1, bands))
        missing = sum(each.wavelengths is None for each in found)
        if self.spectral_positions == "wavelength" and missing:
            raise ValueError("Some samples have no wavelengths; pass wavelengths=, or set spectral_positions='index'.")
        if self.spectral_positions is None and 0 < missing < len(found):
            raise ValueError(
                "Some samples have wavelengths and others have not; give all of them theirs, or set "
                "spectral_positions='index'."
            )
        self.sensors = [self._statistics(each) for each in found]
        return self

    def _positions(self) -> str | None:
        """The setting, or what follows from the sensors of `fit`; `None` before it."""
        if self.spectral_positions is not None or self.sensors is None:
            return self.spectral_positions
        return "index" if any(sensor["wavelengths"] is None for sensor in self.sensors) else "wavelength"

    def _statistics(self, moments: Moments) -> dict[str, Any]:
        """What `sensors` holds of one sensor."""
        sensor = moments.sensor(self.normalization)
        # Too small a range for the square of a deviation counts as none.
        constant = np.union1d(moments.constant(), np.flatnonzero(np.asarray(sensor["scale"]) <= 0))
        if len(constant) and self.normalization in ("standardize", "minmax"):
            raise ValueError(
                f"Bands {self._original(constant)} have the same value in all samples, as broken ones do; name them in "
                "bad_bands, or fit on more pixels."
            )
        return sensor

    def _original(self, bands: np.ndarray) -> list[int]:
        """Numbers of bands as they were before the bad ones were left out, the first ten."""
        count = len(self.bad_bands) + int(bands.max()) + 1
        kept = np.setdiff1d(np.arange(count), self.bad_bands)
        return kept[bands[:10]].tolist()

    def _stacks(
        self, samples: Any, wavelengths: Sequence[float] | None, data_format: DataFormat | None, variable: str | None
    ) -> Iterator[_Stack]:
        """The samples, checked, without bad bands; an array of many samples at once."""
        check_data_format(data_format)
        table = hasattr(samples, "columns") and hasattr(samples, "to_numpy")
        array = isinstance(samples, np.ndarray | Tensor) and samples.dtype != object
        if table or (array and samples.ndim in (2, 4)):
            with errors_at("hyperspectral"):
                values, own = spectra_of(samples) if table else (numbers_of(samples), None)
                if values.ndim == 2:
                    values = values[:, None, None]
                elif data_format == "channels_first":
                    values = np.moveaxis(values, 1, -1)
                stack = self._checked(values, Cube(values[0], own), wavelengths)
            yield stack
            return
        for index, sample in enumerate(_one_by_one(samples)):
            with errors_at(f"hyperspectral[{index}]"):
                cube = as_cube(sample, variable=variable, input_data_format=data_format)
                stack = self._checked(cube.decode(cube.values)[None], cube, wavelengths)
            yield stack

    def _checked(self, values: np.ndarray, cube: Cube, wavelengths: Sequence[float] | None) -> _Stack:
        """Leave bad bands out, and refuse bands that hold what is no measurement."""
        bands = values.shape[-1]
        own = cube.wavelengths
        if own is None and wavelengths is not None:
            own = check_wavelengths(wavelengths, bands)
        if self.bad_bands:
            if self.bad_bands[-1] >= bands:
                raise ValueError(f"bad_bands names band {self.bad_bands[-1]}, but there are {bands}, from 0.")
            kept = np.setdiff1d(np.arange(bands), self.bad_bands)
            if not len(kept):
                raise ValueError(f"bad_bands names all {bands} bands; leave at least one.")
            values, own = values[..., kept], None if own is None else [own[band] for band in kept]
        valid = np.isfinite(values)
        if self.no_data is not None:
            valid &= values != self.no_data
        if not valid.all():
            wrong = np.flatnonzero(~valid.all(axis=(0, 1, 2)))
            sample, row, column = np.argwhere(~valid.all(axis=-1))[0].tolist()
            raise ValueError(
                f"{len(wrong)} of {bands} bands hold NaN, infinity or no data: {self._original(wrong)}, first in the "
                f"pixel at row {row}, column {column}{f' of sample {sample}' if len(values) > 1 else ''}. Name broken "
                "bands in bad_bands; fill or leave out broken pixels."
            )
        return _Stack(values, own)

    def _normalize(self, stack: _Stack) -> tuple[np.ndarray, list[float] | None]:
        """Normalised values in float32, and the wavelengths that go with them to the tokenizer."""
        values = stack.values.astype(np.float32 if stack.values.dtype.itemsize <= 2 else np.float64)
        if stack.values.dtype == np.float32:
            values = stack.values
        sensor = self._sensor(stack)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # refused below
            if self.normalization == "sample":
                doubles = values.astype(np.float64)
                center = doubles.mean(axis=(1, 2, 3), keepdims=True)
                scale = doubles.std(axis=(1, 2, 3), keepdims=True)
                values = (doubles - center) / np.where(scale > 1e-12 * np.abs(center), scale, 1)
            elif self.normalization != "none":
                center, scale = (np.asarray(sensor[name], values.dtype) for name in ("center", "scale"))
                values = (values - center) / scale
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("normalised values are too large for single precision; scale the samples or fit on them.")
        if self._positions() == "index":
            return values, None
        own = sensor.get("wavelengths") if stack.wavelengths is None else stack.wavelengths
        if own is None and self._positions() == "wavelength":
            raise ValueError(
                "wavelengths are missing, and the tokenizer places bands by them; pass wavelengths=<nm of each band>."
            )
        return values, own

    def _sensor(self, stack: _Stack) -> dict[str, Any]:
        """The statistics for samples, and the wavelengths of those that have none; nothing if none are needed."""
        needed, bands = self.normalization in ("standardize", "minmax"), stack.values.shape[-1]
        if self.sensors is None and needed:
            raise ValueError(f"normalization {self.normalization!r} needs statistics; call fit with training samples.")
        found = find_sensors(self.sensors or [], bands, stack.wavelengths)
        if len(found) == 1:
            return found[0]
        if not needed:
            return {}
        known = ", ".join(describe_sensor(len(each["center"]), each["wavelengths"]) for each in self.sensors or [])
        raise ValueError(
            f"{describe_sensor(bands, stack.wavelengths)} fit {len(found)} of the sensors that fit has seen ({known}). "
            "Fit on samples of this sensor too, give wavelengths, or use normalization='sample'."
        )

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[dict[str, Any]]:
        random = np.random.default_rng(seed)
        sensors = self.sensors or [
            {"wavelengths": np.linspace(400, high, bands).tolist(), "center": [500.0] * bands, "scale": [80.0] * bands}
            for high, bands in ((1000, 9), (2500, 6))
        ]
        samples = []
        for index in range(batch_size):
            sensor, size = sensors[index % len(sensors)], random.integers(2, 6, size=2)
            good = len(sensor["center"])
            bands = max(good + len(self.bad_bands), *(band + 2 for band in self.bad_bands), 0)
            kept = np.setdiff1d(np.arange(bands), self.bad_bands)
            if len(kept) != good:  # not fitted: any number of bands will do
                kept = np.linspace(0, bands - 1, good)
            everywhere = {
                name: np.interp(np.arange(bands), kept, values) for name, values in sensor.items() if values is not None
            }
            noise = random.normal(size=(*size, bands))
            sample = {"array": (everywhere["center"] + everywhere["scale"] * noise).astype(np.float32)}
            if "wavelengths" in everywhere:
                sample["wavelengths"] = everywhere["wavelengths"].tolist()
            samples.append(sample)
        return samples


def _one_by_one(samples: Any) -> Iterator[Any]:
    """The samples, be it one, a sequence or an iterator."""
    array = isinstance(samples, np.ndarray | Tensor) and samples.dtype != object
    if array or isinstance(samples, str | bytes | PathLike | Mapping | Cube) or hasattr(samples, "open_memmap"):
        yield samples
        return
    first, cubes = several(samples, "hyperspectral")
    yield from [list(cubes)] if isinstance(first, Real) else cubes


def _pad(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Stacks `(samples, bands, height, width)` as one batch, with a mask if they differ in size."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) == 1:
        return {"hyperspectral_values": np.ascontiguousarray(np.concatenate(arrays))}
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    values = np.zeros((sum(map(len, arrays)), *shape), np.float32)
    mask = np.zeros(values.shape, bool)
    start = 0
    for array in arrays:
        place = (slice(start, start + len(array)), *map(slice, array.shape[1:]))
        values[place], mask[place] = array, True
        start += len(array)
    return {"hyperspectral_values": values, "hyperspectral_mask": mask}
