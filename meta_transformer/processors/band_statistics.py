"""Statistics of the bands of hyperspectral sensors, each known by the wavelengths or the number of its bands.

A sensor is a dict of JSON types: `wavelengths`, a list in nm or `None`, and `center` and `scale`, what is subtracted
from each band and what it is divided by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .readers.cubes import check_wavelengths

__all__ = ["Moments", "check_sensor", "describe_sensor", "find_sensors", "is_same_sensor"]

_SAME = 0.01  # nm between wavelengths of one sensor, as rounding to single precision leaves it
_CHUNK = 1 << 14  # spectra whose statistics are computed at once in double precision


def is_same_sensor(wavelengths: Sequence[float] | None, others: Sequence[float] | None) -> bool:
    """Whether two lists of wavelengths are equal but for rounding."""
    if wavelengths is None or others is None:
        return wavelengths is others
    return len(wavelengths) == len(others) and bool(np.allclose(wavelengths, others, rtol=0, atol=_SAME))


@dataclass
class Moments:
    """Count, mean, sum of squared deviations, lowest and highest value of each band; all but the count `(bands,)`."""

    wavelengths: list[float] | None
    count: int
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def empty(cls, bands: int, wavelengths: list[float] | None) -> "Moments":
        """Those of no spectrum."""
        return cls(wavelengths, 0, *(np.full(bands, value) for value in (0.0, 0.0, np.inf, -np.inf)))

    def add(self, spectra: np.ndarray) -> None:
        """Add `(spectra, bands)`, part by part in double precision (Chan, Golub and LeVeque 1979)."""
        for start in range(0, len(spectra), _CHUNK):
            part = spectra[start : start + _CHUNK].astype(np.float64)
            count, mean = self.count + len(part), part.mean(axis=0)
            difference = mean - self.mean
            self.squares += ((part - mean) ** 2).sum(axis=0) + difference**2 * (self.count * len(part) / count)
            self.mean += difference * (len(part) / count)
            self.low = np.minimum(self.low, part.min(axis=0))
            self.high = np.maximum(self.high, part.max(axis=0))
            self.count = count

    def constant(self) -> np.ndarray:
        """Numbers of the bands that have one value everywhere."""
        return np.flatnonzero(self.low == self.high)

    def sensor(self, kind: str) -> dict[str, Any]:
        """The sensor, with mean and deviation to `"standardize"`, lowest value and range for `"minmax"`, else 0, 1."""
        center, scale = np.zeros_like(self.mean), np.ones_like(self.mean)
        if kind == "standardize":
            center, scale = self.mean, np.sqrt(self.squares / self.count)
        elif kind == "minmax":
            center, scale = self.low, self.high - self.low
        if not (np.isfinite(center).all() and np.isfinite(scale).all()):
            raise ValueError("values are too large for statistics in double precision; scale them.")
        return {"wavelengths": self.wavelengths, "center": center.tolist(), "scale": scale.tolist()}


def find_sensors(sensors: list[dict[str, Any]], bands: int, wavelengths: list[float] | None) -> list[dict[str, Any]]:
    """Those that samples may come from.

    Args:
        sensors: What `fit` has learned.
        bands: How many the samples have.
        wavelengths: Of the samples, in nm; `None` where unknown.

    Returns:
        The sensor of the same wavelengths. Failing that, those with as many bands, if they or the samples have no
        wavelengths. Failing that, if there is one sensor alone and its range covers the samples', that one interpolated
        linearly at their wavelengths, which takes for granted that both measure the same quantity.
    """
    matching = [each for each in sensors if len(each["center"]) == bands]
    if wavelengths is None:
        return [each for each in matching if each["wavelengths"] is None] or matching
    if exact := [each for each in matching if is_same_sensor(each["wavelengths"], wavelengths)]:
        return exact
    if unknown := [each for each in matching if each["wavelengths"] is None]:
        return unknown
    if len(sensors) != 1 or sensors[0]["wavelengths"] is None:
        return []
    return _interpolate(sensors[0], wavelengths)


def _interpolate(sensor: dict[str, Any], wavelengths: list[float]) -> list[dict[str, Any]]:
    """The sensor at other wavelengths, if they lie in its range, or not further out than its bands from each other."""
    order = np.argsort(sensor["wavelengths"])
    known, wanted = np.asarray(sensor["wavelengths"])[order], np.asarray(wavelengths)
    margin = np.median(np.diff(known)) if len(known) > 1 else 0.0
    if wanted.min() < known[0] - margin or wanted.max() > known[-1] + margin:
        return []
    values = {name: np.interp(wanted, known, np.asarray(sensor[name])[order]) for name in ("center", "scale")}
    return [{"wavelengths": wavelengths, **values}]


def describe_sensor(bands: int, wavelengths: list[float] | None) -> str:
    """Such as `"200 bands of 400 to 2500 nm"`."""
    place = "without wavelengths" if wavelengths is None else f"of {min(wavelengths):g} to {max(wavelengths):g} nm"
    return f"{bands} bands {place}"


def check_sensor(sensor: Any) -> dict[str, Any]:
    """A sensor as plain JSON types.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(sensor, Mapping) or set(sensor) != {"wavelengths", "center", "scale"}:
        raise ValueError(
            f"sensors must hold dicts of 'wavelengths', 'center' and 'scale', as fit makes, got {sensor!r}."
        )
    center, scale = (np.asarray(sensor[name], np.float64) for name in ("center", "scale"))
    if center.ndim != 1 or center.shape != scale.shape or not np.isfinite(center).all() or not (scale > 0).all():
        raise ValueError(f"center and scale of a sensor must be lists of one length, scale positive, got {sensor!r}.")
    nm = sensor["wavelengths"]
    checked = None if nm is None else check_wavelengths(nm, len(center))
    return {"wavelengths": checked, "center": center.tolist(), "scale": scale.tolist()}
