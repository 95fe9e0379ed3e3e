"""Time series as people have them to values, masks and calendar features: frames, series, arrays, lists, CSV files.

Leaves: `past_values` `(batch, steps, channels)`, 0 where nothing was observed; `past_observed_mask` of the same shape,
true where a value was observed, if something is missing or padded; `past_mask` `(batch, steps)`, true for the steps of
the series itself, if they differ in length; and `past_time_features` `(batch, steps, features)` on request. The names
are those of transformers' time series models, which do not tell what is missing from what is padding; `past_mask` does.

Calendar features lie in -0.5..0.5 as in Informer (Zhou et al. 2021, appendix B) and GluonTS.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from .base import ModalityProcessor, errors_at, pad_to_longest
from .readers.arrays import to_array
from .signals import ChannelStatistics, as_columns, check_statistics, import_pandas, is_table, samples_of, to_floats

if TYPE_CHECKING:
    from pandas import DatetimeIndex, Index

__all__ = ["TimeSeriesProcessor"]

# From dates to numbers in -0.5..0.5; the scales are GluonTS's.
_CALENDAR: dict[str, Callable[[Any], Any]] = {
    "second_of_minute": lambda dates: dates.second / 59 - 0.5,
    "minute_of_hour": lambda dates: dates.minute / 59 - 0.5,
    "hour_of_day": lambda dates: dates.hour / 23 - 0.5,
    "day_of_week": lambda dates: dates.day_of_week / 6 - 0.5,
    "day_of_month": lambda dates: (dates.day - 1) / 30 - 0.5,
    "day_of_year": lambda dates: (dates.day_of_year - 1) / 365 - 0.5,
    "week_of_year": lambda dates: (dates.isocalendar().week.to_numpy(np.float64) - 1) / 52 - 0.5,
    "month_of_year": lambda dates: (dates.month - 1) / 11 - 0.5,
}


class _Series(NamedTuple):
    """One sample: `values` `(steps, channels)` with NaN for what is missing, the channels' names and dates if known."""

    values: np.ndarray
    names: list[str] | None = None
    times: Any = None


class TimeSeriesProcessor(ModalityProcessor):
    """Read series, mark what is missing, standardise by what `fit` learned, make calendar features, pad.

    Args:
        num_channels: Channels that every series must have; `None` takes any number. `fit` sets it.
        channels: Names of the columns that are taken from tables, in the order of the channels; by default all columns
            in their own order. `fit` sets it if it learns from tables.
        time_column: Column of tables that holds the time; it is no channel. By default an index of dates.
        time_features: Calendar features in the order of the tensor, of `second_of_minute`, `minute_of_hour`,
            `hour_of_day`, `day_of_week`, `day_of_month`, `day_of_year`, `week_of_year`, `month_of_year`. With one or
            more, every series needs dates.
        means: Mean of each channel in its own unit, set by `fit`; by default values stay as they are.
        stds: Standard deviation of each channel, as `means`; 1 for one that is constant.
    """

    num_channels: int | None
    channels: list[str] | None
    time_column: str | None
    time_features: list[str]
    means: list[float] | None
    stds: list[float] | None

    def __init__(
        self,
        *,
        num_channels: int | None = None,
        channels: Sequence[str] | None = None,
        time_column: str | None = None,
        time_features: Sequence[str] = (),
        means: Sequence[float] | None = None,
        stds: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(time_features, str) or (unknown := [each for each in time_features if each not in _CALENDAR]):
            wrong = time_features if isinstance(time_features, str) else unknown
            raise ValueError(f"time_features must be a list of {list(_CALENDAR)}, got {wrong!r}.")
        if channels is not None:
            if isinstance(channels, str) or len(set(channels)) < len(channels) or not channels:
                raise ValueError(f"channels must be a list of different names, got {channels!r}.")
            if num_channels not in (None, len(channels)):
                raise ValueError(f"num_channels is {num_channels}, but channels names {len(channels)}.")
            num_channels = len(channels)
        statistics = check_statistics(means, stds, num_channels)
        if num_channels is None and means is not None:
            num_channels = len(means)
        if num_channels is not None and (not isinstance(num_channels, Integral) or num_channels < 1):
            raise ValueError(f"num_channels must be a positive integer or None, got {num_channels!r}.")
        super().__init__(
            num_channels=num_channels,
            channels=None if channels is None else list(channels),
            time_column=time_column,
            time_features=list(time_features),
            **statistics,
            **kwargs,
        )
        self._chosen = (self.num_channels, self.channels)  # not learned, so that `fit` keeps to them

    def tokenizer_config(self) -> dict[str, Any]:
        return {"num_channels": self.num_channels, "num_time_features": len(self.time_features)}

    def __call__(self, samples: Any, *, horizon: int | None = None, return_tensors: str | None = "pt") -> BatchFeature:
        """Process one series or a list of series, of any lengths.

        Args:
            samples: Each a frame, one column a channel; a Series; an array or tensor `(steps,)` or `(steps, channels)`,
                or the same as lists; a dict `{"values": ..., "timestamps": ...}`, or of columns; or the path of a CSV
                file. An array of three dimensions is a batch. `None`, NaN and what numpy or pandas mask is missing.
            horizon: Steps that follow each series, for which to make `future_time_features`
                `(batch, horizon, features)` too; their dates go on as those of the series do.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            The tensors of the module's description. A series with fewer channels than another, which only a processor
            with `num_channels=None` takes, gets further channels in which nothing is observed.

        Raises:
            ValueError: No series, an empty one, one without any observed value, infinity, another number of channels
                than `num_channels`, a column of `channels` that is not there, columns in another order than in a table
                before, dates that are absent though needed, do not rise, or are text that is not ISO 8601; a `horizon`
                below 1, without `time_features`, or after dates that are not evenly spaced.
            TypeError: Values or dates of another type.
        """
        if horizon is not None and (horizon < 1 or not self.time_features):
            raise ValueError(
                f"horizon must be at least 1, and needs time_features, got {horizon} and {self.time_features}."
            )
        series, calendar, future, places = [], [], [], {}
        for index, sample in enumerate(samples_of(samples, "time_series", rows=1)):
            with errors_at(f"time_series[{index}]"):
                read = self._read(sample)
                for place, name in enumerate(read.names or ()):
                    if places.setdefault(name, place) != place:
                        raise ValueError(
                            f"column {name!r} is channel {place} here, but channel {places[name]} of a table before; "
                            "name the order in the setting channels, or call fit."
                        )
                series.append(self.standardize(read.values))
                calendar.append(self._calendar(read.times, len(read.values)))
                if horizon is not None:
                    future.append(self._calendar(_following(read.times, horizon), horizon))
        widest = max(values.shape[1] for values in series)
        series = [torch.nn.functional.pad(each, (0, widest - each.shape[1]), value=torch.nan) for each in series]
        padded, mask = pad_to_longest(series, value=torch.nan)
        observed = ~padded.isnan()
        data = {"past_values": padded.masked_fill(~observed, 0).numpy()}
        if not observed.all():
            data["past_observed_mask"] = observed.numpy()
        if mask is not None:
            data["past_mask"] = mask.numpy()
        if self.time_features:
            data["past_time_features"] = pad_to_longest(calendar)[0].numpy()
        if future:
            data["future_time_features"] = torch.stack(future).numpy()
        return BatchFeature(data, tensor_type=return_tensors)

    def fit(self, samples: Any) -> "TimeSeriesProcessor":
        """Learn the channels and, over all observed values, the mean and standard deviation of each.

        What was learned before is forgotten; `num_channels` and `channels` that the processor was made with hold.

        Args:
            samples: As of `__call__`; an iterator is consumed series by series.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`; series that differ in number or names of channels; a channel without any
                observed value.
            TypeError: As `__call__`.
        """
        statistics, first, reader = ChannelStatistics(), None, copy(self)
        reader.num_channels, reader.channels = self._chosen
        for index, sample in enumerate(samples_of(samples, "time_series", rows=1)):
            with errors_at(f"time_series[{index}]"):
                read = reader._read(sample)
                first = first or read
                if read.values.shape[1] != first.values.shape[1] or read.names != first.names:
                    raise ValueError(
                        f"it has {read.values.shape[1]} channels {read.names or ''}, but time_series[0] has "
                        f"{first.values.shape[1]} {first.names or ''}. Give series with the same channels, or do not "
                        "fit: a new processor takes any number, and the tokenizer normalises each series by itself."
                    )
                statistics.update(read.values)
        means, stds = statistics.result()
        self.means, self.stds, self.num_channels = means, stds, len(means)
        self.channels = (first.names if first else None) or reader.channels
        return self

    def _read(self, sample: Any) -> _Series:
        """A sample of any kind, checked."""
        values, names, times = self._decode(sample)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(
                f"a series must have shape (steps,) or (steps, channels) and one step or more, got {values.shape}; "
                "give several series as a list."
            )
        if self.num_channels not in (None, values.shape[1]):
            raise ValueError(
                f"the series has {values.shape[1]} channels, but this processor is set to {self.num_channels}. The "
                "shape must be (steps, channels); a new processor takes any number."
            )
        if np.isnan(values).all():
            raise ValueError("the series has no observed value; leave it out.")
        return _Series(values, names, times)

    def _decode(self, sample: Any) -> _Series:
        """Values as they are in the sample, with names and times if it carries them."""
        if isinstance(sample, Mapping) and "values" in sample:
            if unknown := sorted(set(map(str, sample)) - {"values", "timestamps"}):
                raise ValueError(f"a dict with 'values' may hold 'timestamps' beside them, but no {unknown}.")
            inner = self._decode(sample["values"])
            times = sample.get("timestamps")
            return inner if times is None else inner._replace(times=_in_order(times, len(inner.values)))
        if isinstance(sample, str | PathLike | Mapping) or is_table(sample):
            return self._from_table(sample)
        if hasattr(sample, "iloc"):  # a pandas Series, the index of which may hold dates
            _, index = as_columns(sample.to_frame("values"))
            return _Series(to_floats(sample), None, None if index is None else _in_order(index, len(sample)))
        if isinstance(sample, np.ndarray | Tensor | Sequence) and not isinstance(sample, bytes):
            return _Series(to_floats(sample))
        raise TypeError(
            "a series must be a pandas frame or Series, an array, a tensor, a list of numbers, a dict with 'values' or "
            f"of columns, or the path of a CSV file, got {type(sample).__name__}."
        )

    def _from_table(self, sample: Any) -> _Series:
        columns, times = as_columns(sample)
        if self.time_column is not None and (self.time_column in columns or times is None):
            if self.time_column not in columns:
                raise ValueError(f"there is no time_column {self.time_column!r} among the columns {list(columns)}.")
            times = columns.pop(self.time_column)
        names = list(columns) if self.channels is None else self.channels
        if absent := [name for name in names if name not in columns]:
            raise ValueError(f"there is no column {absent}, only {list(columns)}; see the setting 'channels'.")
        values = []
        for name in names:
            with errors_at(f"column {name!r}"):
                values.append(to_floats(columns[name]))
        lengths = {name: each.shape for name, each in zip(names, values, strict=True)}
        if not names or len(set(lengths.values())) > 1 or values[0].ndim != 1:
            raise ValueError(f"a table needs one column or more, all of the same length, got {lengths}.")
        return _Series(np.stack(values, axis=1), names, None if times is None else _in_order(times, len(values[0])))

    def standardize(self, values: Any) -> Tensor:
        """Values as they stand in `past_values`: what `fit` learned is taken away, if anything. Labels need it too.

        Args:
            values: `(steps, channels)`, NaN where missing.

        Raises:
            ValueError: Values too large for float32.
        """
        values = np.asarray(values, np.float64)  # before float32, which would lose a small change of a large number
        if self.means is not None:
            values = (values - np.array(self.means)) / np.array(self.stds)
        if (np.abs(values) > np.finfo(np.float32).max).any():
            raise ValueError(f"the largest value, {np.nanmax(np.abs(values)):g}, is too large for float32; scale it.")
        return torch.from_numpy(values.astype(np.float32))

    def restore(self, values: Any) -> np.ndarray:
        """Undo `standardize`, of forecasts `(..., channels)`, in float64."""
        values = np.asarray(values, np.float64)
        return values if self.means is None else values * np.array(self.stds) + np.array(self.means)

    def _calendar(self, times: Any, steps: int) -> Tensor:
        """Calendar features `(steps, features)`."""
        if not self.time_features:
            return torch.zeros(steps, 0)
        if times is None:
            raise ValueError(
                f"time_features {self.time_features} need dates; give a frame with an index of dates or a time_column, "
                "or {'values': ..., 'timestamps': ...}."
            )
        dates = _dates(times)
        features = [np.asarray(_CALENDAR[name](dates), np.float32) for name in self.time_features]
        return torch.from_numpy(np.stack(features, axis=1))

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[Any]:
        random = np.random.default_rng(seed)
        channels, samples = self.num_channels or 3, []
        for steps in random.integers(20, 41, size=batch_size):
            walk = random.normal(size=(steps, channels)).cumsum(axis=0) + random.normal(0, 5, size=channels)
            walk[random.integers(1, steps, size=2), random.integers(0, channels, size=2)] = np.nan
            walk = walk.astype(np.float32)
            start = np.datetime64("2024-01-01T00") + int(random.integers(0, 8760))
            hours = start + np.arange(steps)
            samples.append({"values": walk, "timestamps": hours} if self.time_features else walk)
        return samples


def _in_order(times: Any, steps: int) -> "Index":
    """Times as pandas has them, text as dates, after a check that there is one for each step and that they rise."""
    pandas = import_pandas()
    times = to_array(times) if isinstance(times, Tensor) else times
    if not hasattr(times, "__len__") or isinstance(times, str | bytes | Mapping) or np.ndim(times) != 1:
        raise TypeError(f"timestamps must be a list of dates, one for each step, got {type(times).__name__}.")
    if len(times) != steps:
        raise ValueError(f"there are {len(times)} timestamps for {steps} steps; give one for each.")
    index = pandas.Index(times)
    if index.isna().any():
        raise ValueError("timestamps must not be missing; drop those steps.")
    order = index
    if index.dtype.kind == "O" and not isinstance(index, pandas.PeriodIndex):
        index, order = _from_text(index)
    if not (order.is_monotonic_increasing and order.is_unique):
        raise ValueError("timestamps must rise from step to step, each only once; sort the steps and drop repetitions.")
    return index


def _from_text(index: "Index") -> tuple["DatetimeIndex", "DatetimeIndex"]:
    """The dates that text tells, by the local clock, which an offset may change, and by that of UTC."""
    pandas = import_pandas()
    try:
        order = pandas.DatetimeIndex(pandas.to_datetime(index, format="ISO8601", utc=True))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"timestamps as text must be dates such as 2024-01-31 13:00, got {index[0]!r} ({error}); convert others "
            "with pandas.to_datetime first."
        ) from error
    return pandas.DatetimeIndex([pandas.Timestamp(each).replace(tzinfo=None) for each in index]), order


def _following(index: Any, horizon: int) -> "Index":
    """The next times after those of a series, as evenly spaced as they are."""
    pandas = import_pandas()
    if isinstance(index, pandas.PeriodIndex):
        return pandas.period_range(index[-1] + 1, periods=horizon, freq=index.freq)
    dates = _dates(index)
    spacing = dates[1] - dates[0] if len(dates) == 2 else pandas.DatetimeIndex(dates, freq="infer").freq
    if spacing is None:
        raise ValueError(
            "the dates are not evenly spaced, so that those of the future are not known; resample first, which leaves "
            "NaN where nothing was observed."
        )
    return pandas.date_range(dates[-1], periods=horizon + 1, freq=spacing)[1:]


def _dates(index: "Index") -> "DatetimeIndex":
    """Dates, of periods their starts; numbers are none, because their unit and start are unknown."""
    pandas = import_pandas()
    if isinstance(index, pandas.PeriodIndex):
        return index.to_timestamp()
    if not isinstance(index, pandas.DatetimeIndex):
        raise TypeError(f"timestamps must be dates, got {index.dtype}; use pandas.to_datetime(..., unit=) first.")
    return index
