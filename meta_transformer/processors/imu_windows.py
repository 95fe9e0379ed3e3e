"""Recordings in time: sampled values with their clock, resampling, and windows with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, isfinite
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from ..extras import needs
from .readers.arrays import to_array
from .signals import import_pandas, to_floats

__all__ = ["ImuWindows", "Stream"]

# A recording whose rate is less or more than this times the model's has its times in another unit than it says.
_LEAST_RATE, _MOST_RATE = 1 / 20, 1000


@dataclass(frozen=True)
class Stream:
    """What one clock sampled.

    Attributes:
        values: `(steps, channels)`, float64.
        times: `(steps,)`, in seconds, rising.
        row_times: `(rows,)`, the same before what was sampled at equal times was averaged.
        rate: Steps in a second, the mean rate if they are not evenly spaced; `None` for a single time stamp.
        regular: Whether the steps are known to be evenly spaced.
    """

    values: np.ndarray
    times: np.ndarray
    row_times: np.ndarray
    rate: float | None
    regular: bool

    @classmethod
    def at_rate(cls, values: np.ndarray, rate: float) -> "Stream":
        """Values at `rate` Hz, from second 0."""
        times = np.arange(len(values)) / rate
        return cls(values, times, times, rate, True)

    @classmethod
    def at_times(cls, values: np.ndarray, times: Any, seconds: float) -> "Stream":
        """Values at `times`, dates or numbers of which 1 is `seconds`; those of the same time are averaged.

        Raises:
            ValueError: Another number of times than of values, one that is missing, or times that fall.
        """
        times = _to_seconds(times, seconds)
        if times.shape != (len(values),):
            raise ValueError(f"there are {times.size} timestamps for {len(values)} steps; give one for each.")
        if np.isnan(times).any():
            raise ValueError("timestamps must not be missing; drop those steps.")
        if (falls := np.flatnonzero(np.diff(times) < 0)).size:
            raise ValueError(f"timestamps must not fall, but that of step {falls[0] + 1} does; sort them.")
        row_times = times
        if len(times) > 1 and (np.diff(times) == 0).any():
            times, index, count = np.unique(times, return_inverse=True, return_counts=True)
            summed = np.zeros((len(times), values.shape[1]))
            np.add.at(summed, index, values)
            values = summed / count[:, None]
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
        return cls(values, times, row_times, rate, False)

    @property
    def span(self) -> float:
        """Seconds that the steps fill, each its period."""
        return len(self.values) / self.rate if self.rate else 0.0

    def resampled(self, rate: float, start: float, end: float, max_gap: float) -> np.ndarray:
        """Values at `rate` Hz, `(steps, channels)`, from `start` to `end` in seconds.

        Evenly spaced values by a low-pass filter; others by linear interpolation at a multiple of `rate`, and
        from there by that filter.

        Raises:
            ValueError: A gap of more than `max_gap` seconds between `start` and `end`, or a rate that cannot be meant.
        """
        if self.rate is None:
            return self.values
        if not rate * _LEAST_RATE <= self.rate <= rate * _MOST_RATE:
            raise ValueError(
                f"the recording has {self.rate:g} steps in a second, and {rate:g} are wanted; check sampling_rate, or "
                "the time_unit of the timestamps."
            )
        if self.regular:
            return _polyphase(self.values, Fraction(rate / self.rate).limit_denominator(1000))
        gaps = np.diff(self.times) * (self.times[1:] > start) * (self.times[:-1] < end)
        if gaps.max() > max_gap:
            raise ValueError(
                f"there is a gap of {gaps.max():g} s after {self.times[gaps.argmax()] - self.times[0]:g} s, more than "
                f"max_gap={max_gap:g}; split the recording there."
            )
        # Above the recording's own rate, so that the filter sees all of it; that may be off by a rounding error.
        multiple = max(1, ceil(self.rate / rate - 1e-3))
        # A step may be missed by a rounding error: the last one counts if it is reached to a thousandth of a period.
        grid = start + np.arange(floor((end - start) * rate * multiple + 1e-3) + 1) / (rate * multiple)
        values = np.stack([np.interp(grid, self.times, channel) for channel in self.values.T], axis=1)
        return _polyphase(values, Fraction(1, multiple))


def _to_seconds(times: Any, seconds: float) -> np.ndarray:
    """Times of any kind as float64 seconds: numbers of which 1 is `seconds`, or dates, since 1970."""
    if isinstance(times, Tensor | np.ma.MaskedArray):
        times = to_array(times)
    kind = (times if hasattr(times, "dtype") else np.asarray(times)).dtype.kind
    if kind in "buif" or (kind == "O" and all(cell is None or isinstance(cell, Real) for cell in times)):
        return to_floats(times) * seconds
    pandas = import_pandas()
    if kind == "m":
        return np.asarray(pandas.to_timedelta(times) / pandas.Timedelta(seconds=1), np.float64)
    try:
        dates = pandas.DatetimeIndex(pandas.to_datetime(times, format="ISO8601", utc=True))
    except (ValueError, TypeError) as error:
        raise ValueError(f"timestamps must be numbers or dates such as 2024-01-31 13:00:00.25 ({error}).") from error
    return np.asarray((dates - pandas.Timestamp(0, tz="UTC")) / pandas.Timedelta(seconds=1), np.float64)


def _polyphase(values: np.ndarray, ratio: Fraction) -> np.ndarray:
    """`ceil(steps * ratio)` values by a low-pass filter of scipy's, the first at the time of the first.

    The mean is set aside, so that an offset such as gravity passes untouched, and both ends are continued by their last
    value; zeros there would pull them half-way to the mean.
    """
    if ratio == 1:
        return values
    with needs("scipy to resample", "imu"):
        from scipy.signal import resample_poly
    mean = values.mean(axis=0)
    return resample_poly(values - mean, ratio.numerator, ratio.denominator, axis=0, padtype="edge") + mean


class ImuWindows(Sequence[dict[str, Any]]):
    """Windows of one recording, each a sample of the processor that cut them.

    Args:
        values: `(steps, channels)` of the recording.
        row_times: `(rows,)`, seconds after the first step at which the rows of the raw recording were taken.
        rate: Rate of `values` in Hz.
        units: Unit of each sensor.
        length_seconds: Length of a window.
        overlap: Share of a window that the next one repeats.

    Attributes:
        starts: `(windows,)`, start of each window in seconds after the first step.
        length: Steps of a window.
    """

    def __init__(
        self,
        values: np.ndarray,
        row_times: np.ndarray,
        rate: float,
        units: dict[str, str],
        length_seconds: float,
        overlap: float,
    ) -> None:
        if not isfinite(length_seconds) or round(length_seconds * rate) < 1:
            raise ValueError(f"length_seconds must be at least one step, {1 / rate:g} s, got {length_seconds}.")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, a share of the window, got {overlap}.")
        self.length = round(length_seconds * rate)
        if len(values) < self.length:
            raise ValueError(
                f"the recording lasts {len(values) / rate:g} s, less than a window of {length_seconds:g} s; use "
                "shorter windows, or give it to the processor as it is."
            )
        step = max(1, round(self.length * (1 - overlap)))
        self._first = np.arange(0, len(values) - self.length + 1, step)
        self._values, self._row_times, self._rate, self._units = values, row_times, rate, units
        self.starts = self._first / rate

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        first = self._first[index]
        values = self._values[first : first + self.length]
        return {"values": values, "sampling_rate": self._rate, "units": self._units}

    def majority(self, labels: Any) -> tuple[np.ndarray, np.ndarray]:
        """The most frequent label of each window.

        Args:
            labels: `(rows,)`, numbers or strings, one for each row of the raw recording, or of its first sensor.

        Returns:
            `(windows,)` labels, the first in sorting order of equally frequent ones, and `(windows,)` shares in 0..1 of
            the rows of the window that have it. A window that no row falls into takes the row after it.

        Raises:
            ValueError: Another number of labels than rows.
        """
        labels = np.asarray(labels)
        if labels.shape != self._row_times.shape:
            raise ValueError(f"labels must have shape {self._row_times.shape}, one for each row, got {labels.shape}.")
        classes, numbers = np.unique(labels, return_inverse=True)
        # Of all rows before each: differences of it count the labels of any window.
        counts = np.zeros((len(labels) + 1, len(classes)), np.int64)
        np.cumsum(numbers[:, None] == np.arange(len(classes)), axis=0, out=counts[1:])
        # A millionth of a second for the rounding of times.
        first = np.searchsorted(self._row_times, self.starts - 1e-6).clip(max=len(labels) - 1)
        last = np.searchsorted(self._row_times, self.starts + self.length / self._rate - 1e-6)
        votes = counts[np.maximum(last, first + 1)] - counts[first]
        return classes[votes.argmax(axis=1)], votes.max(axis=1) / votes.sum(axis=1)
