"""Inertial sensors as people log them to values at one rate, in one unit: arrays, dicts of sensors, tables, CSV files.

Leaves: `imu_values` `(batch, steps, channels)`, three axes for each sensor, at the processor's rate, in standard
deviations from the mean, padded with zeros; and `imu_mask` `(batch, steps)`, true in the recording itself, if the
recordings differ in length.

On the way every channel is in SI units (m/s^2, rad/s; µT for magnetometers).
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, pi
from numbers import Real
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from .base import ModalityProcessor, errors_at, pad_to_longest
from .imu_windows import ImuWindows, Stream
from .signals import ChannelStatistics, as_columns, check_statistics, is_table, samples_of, to_floats

__all__ = ["ImuProcessor"]

# By kind of sensor: its units in the model's unit, which is the first; and a usual deviation in that unit.
_UNITS = {
    "accelerometer": {"m/s^2": 1.0, "g": 9.80665, "mg": 9.80665e-3},
    "gyroscope": {"rad/s": 1.0, "deg/s": pi / 180},
    "magnetometer": {"uT": 1.0, "µT": 1.0, "T": 1e6, "G": 100.0},
}
_USUAL = {"accelerometer": 9.80665, "gyroscope": 1.0, "magnetometer": 50.0}
_AXES = ("x", "y", "z")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class ImuProcessor(ModalityProcessor):
    """Read, convert units, resample, normalise, pad; and cut long recordings into windows.

    Args:
        sensors: What is recorded, in the order of the channels, three for each. A name is or ends in `accelerometer`,
            `gyroscope` or `magnetometer`, such as `wrist_gyroscope`.
        sampling_rate: Rate in Hz to which recordings are resampled.
        units: By sensor, the unit in which it comes: `m/s^2` (default), `g` or `mg`; `rad/s` (default) or `deg/s`; `uT`
            (default), `T` or `G`.
        columns: Columns of tables, one for each channel; by default `<sensor>_x`, `<sensor>_y`, `<sensor>_z`.
        time_column: Column of tables that holds the time; by default an index of dates, if there is one.
        time_unit: Unit of all times that are numbers: `s`, `ms`, `us` or `ns`.
        max_gap: Seconds without a sample that are filled by interpolation; a longer gap is an error.
        means: Mean of each channel, in the units of the module's description, set by `fit`; by default 0.
        stds: Standard deviation of each channel, as `means`; by default 9.8 m/s^2, 1 rad/s and 50 µT.
    """

    dummy_call_kwargs: ClassVar[dict[str, Any]] = {"imu_sampling_rate": 50}

    sensors: list[str]
    sampling_rate: float
    units: dict[str, str]
    columns: list[str]
    time_column: str | None
    time_unit: str
    max_gap: float
    means: list[float]
    stds: list[float]

    def __init__(
        self,
        *,
        sensors: Sequence[str] = ("accelerometer", "gyroscope"),
        sampling_rate: float = 50,
        units: Mapping[str, str] | None = None,
        columns: Sequence[str] | None = None,
        time_column: str | None = None,
        time_unit: str = "s",
        max_gap: float = 1.0,
        means: Sequence[float] | None = None,
        stds: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(sensors, str) or not sensors or len(set(sensors)) < len(sensors):
            raise ValueError(f"sensors must be a list of different names, got {sensors!r}.")
        for sensor in sensors:
            _kind(sensor)
        for name, value in (("sampling_rate", sampling_rate), ("max_gap", max_gap)):
            if not _is_positive(value):
                raise ValueError(f"{name} must be a positive number, got {value!r}.")
        if time_unit not in _SECONDS:
            raise ValueError(f"time_unit must be one of {list(_SECONDS)}, got {time_unit!r}.")
        if columns is None:
            columns = [f"{sensor}_{axis}" for sensor in sensors for axis in _AXES]
        if isinstance(columns, str) or len(columns) != 3 * len(sensors) or len(set(columns)) < len(columns):
            raise ValueError(f"columns must name {3 * len(sensors)} columns, three for each sensor, got {columns!r}.")
        if means is None and stds is None:
            means = [0.0] * len(columns)
            stds = [_USUAL[_kind(sensor)] for sensor in sensors for _ in _AXES]
        super().__init__(
            sensors=list(sensors),
            sampling_rate=sampling_rate,
            units=dict(_checked_units(units or {}, sensors)),
            columns=list(columns),
            time_column=time_column,
            time_unit=time_unit,
            max_gap=float(max_gap),
            **check_statistics(means, stds, len(columns)),
            **kwargs,
        )

    @property
    def num_channels(self) -> int:
        """Three for each sensor."""
        return 3 * len(self.sensors)

    def tokenizer_config(self) -> dict[str, Any]:
        return {"num_channels": self.num_channels}

    @classmethod
    def for_tokenizer(cls, options: dict[str, Any]) -> "ImuProcessor":
        """A processor for as many sensors as the tokenizer has channels for; which they are it cannot know."""
        count = options.get("num_channels", 6) // 3
        return cls(sensors=[*_UNITS, *(f"sensor{i}_accelerometer" for i in range(3, count))][:count])

    def __call__(
        self, samples: Any, *, imu_sampling_rate: float | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Process one recording or a list of recordings, of any lengths.

        Args:
            samples: Each an array, tensor or list of rows `(steps, channels)`; a dict of sensors, `{"accelerometer":
                (steps, 3), ...}`; a dict `{"values": (steps, channels)}`; a table with the `columns`; or the path of a
                CSV file with such a table. Dicts may hold `sampling_rate`, or `timestamps` of the steps, and `units`
                for this sample. A sensor that is sampled by its own clock is a dict itself, `{"values": (steps, 3),
                "timestamps": ...}`. An array of three dimensions is a batch.
            imu_sampling_rate: Rate in Hz of samples that have no clock of their own.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `imu_values`, and `imu_mask` if the recordings differ in number of steps.

        Raises:
            ValueError: No recording, an empty one, a sensor or column that is absent, NaN or infinity, another number
                of channels, no clock or two, timestamps that fall, a gap, a rate that cannot be meant, another unit.
            TypeError: A sample or values of another type.
        """
        recordings = [self._normalise(values) for values in self._recordings(samples, imu_sampling_rate)]
        values, mask = pad_to_longest(recordings)
        data = {"imu_values": values.numpy()}
        if mask is not None:
            data["imu_mask"] = mask.numpy()
        return BatchFeature(data, tensor_type=return_tensors)

    def fit(self, samples: Any, *, imu_sampling_rate: float | None = None) -> "ImuProcessor":
        """Set `means` and `stds` to those of the channels of `samples`, resampled and in SI units.

        Args:
            samples: As of `__call__`; an iterator is consumed recording by recording.
            imu_sampling_rate: As of `__call__`.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`.
            TypeError: As `__call__`.
        """
        statistics = ChannelStatistics()
        for values in self._recordings(samples, imu_sampling_rate):
            statistics.update(values)
        self.means, self.stds = statistics.result()
        return self

    def windows(
        self, recording: Any, *, length_seconds: float, overlap: float = 0.0, imu_sampling_rate: float | None = None
    ) -> ImuWindows:
        """Cut a long recording into windows, each of which this processor takes as a sample.

        The recording is resampled once; the windows are views of that, made when they are asked for. What is left at
        the end and fills no window is dropped.

        Args:
            recording: One sample as of `__call__`.
            length_seconds: Length of a window, rounded to whole steps of the processor's rate.
            overlap: Share of a window that the next one repeats, at least 0 and below 1.
            imu_sampling_rate: As of `__call__`.

        Returns:
            A sequence of samples, with their start times and a way to label them.

        Raises:
            ValueError: As `__call__`, or a recording shorter than one window, or a length or overlap of no sense.
            TypeError: As `__call__`.
        """
        with errors_at("imu"):
            values, times = self._read(recording, imu_sampling_rate)
            return ImuWindows(values, times, self.sampling_rate, _model_units(self.sensors), length_seconds, overlap)

    def _recordings(self, samples: Any, rate: float | None) -> Iterable[np.ndarray]:
        """Recordings `(steps, channels)` at this processor's rate and in SI units, one after the other."""
        for index, sample in enumerate(samples_of(samples, "imu", rows=2)):
            with errors_at(f"imu[{index}]"):
                yield self._read(sample, rate)[0]

    def _normalise(self, values: np.ndarray) -> Tensor:
        values = (values - np.array(self.means)) / np.array(self.stds)
        if not (np.abs(values) <= np.finfo(np.float32).max).all():  # so that NaN, of overflow in the filter, is one too
            raise ValueError(f"imu: the largest value, {np.abs(values).max():g}, is too large for float32; scale it.")
        return torch.from_numpy(values.astype(np.float32))

    def _read(self, sample: Any, rate: float | None) -> tuple[np.ndarray, np.ndarray]:
        """One recording, and the times in seconds after its start at which the rows of its first sensor were taken."""
        streams, units = self._streams(sample, rate)
        if any(len(stream.values) == 0 for stream in streams):
            raise ValueError("the recording is empty; leave it out.")
        start, end = max(stream.times[0] for stream in streams), min(stream.times[-1] for stream in streams)
        if end < start:
            raise ValueError(f"the sensors' clocks do not overlap: one starts at {start} s, another ends at {end} s.")
        parts = [stream.resampled(self.sampling_rate, start, end, self.max_gap) for stream in streams]
        steps = min(len(part) for part in parts)
        values = np.concatenate([part[:steps] for part in parts], axis=1)
        factors = [_UNITS[_kind(sensor)][units[sensor]] for sensor in self.sensors for _ in _AXES]
        return values * np.array(factors), streams[0].row_times - start

    def _streams(self, sample: Any, rate: float | None) -> tuple[list[Stream], dict[str, str]]:
        """What of a sample was sampled by one clock each, in the order of the channels, and the unit of each sensor."""
        units = _model_units(self.sensors) | self.units
        if not isinstance(sample, Mapping) or "values" not in sample:
            if isinstance(sample, Mapping) and any(sensor in sample for sensor in self.sensors):
                return self._sensors(sample, rate, units)
            if isinstance(sample, str | PathLike | Mapping) or is_table(sample):
                values, times = self._from_table(sample)
                return [self._stream(values, self.num_channels, times, None, rate)], units
            if not isinstance(sample, np.ndarray | Tensor | Sequence) or isinstance(sample, bytes):
                raise TypeError(
                    "a recording must be an array, a dict of sensors or with 'values', a table, or the path of a CSV "
                    f"file, got {type(sample).__name__}."
                )
            return [self._stream(sample, self.num_channels, None, None, rate)], units
        _no_more(sample, {"values", "timestamps", "sampling_rate", "units"})
        units |= _checked_units(sample.get("units") or {}, self.sensors)
        clock = (sample.get("timestamps"), sample.get("sampling_rate"))
        return [self._stream(sample["values"], self.num_channels, *clock, rate)], units

    def _sensors(
        self, sample: Mapping[str, Any], rate: float | None, units: dict[str, str]
    ) -> tuple[list[Stream], dict[str, str]]:
        if absent := [sensor for sensor in self.sensors if sample.get(sensor) is None]:
            raise ValueError(
                f"there is no {absent} in the sample, only {sorted(sample)}. Give all sensors, or make a processor and "
                "a tokenizer for those that every sample has."
            )
        _no_more(sample, {*self.sensors, "timestamps", "sampling_rate", "units"})
        units |= _checked_units(sample.get("units") or {}, self.sensors)
        streams = []
        for sensor in self.sensors:
            own, clock = sample[sensor], (sample.get("timestamps"), sample.get("sampling_rate"))
            with errors_at(sensor):
                if isinstance(own, Mapping):
                    _no_more(own, {"values", "timestamps", "sampling_rate"})
                    clock = (own.get("timestamps", clock[0]), own.get("sampling_rate", clock[1]))
                    own = own.get("values")
                streams.append(self._stream(own, 3, *clock, rate))
        clocks = {stream.regular for stream in streams}
        if len(clocks) > 1:
            raise ValueError("some sensors have timestamps and others only a rate; give timestamps to all of them.")
        spans = [stream.span for stream in streams]
        if clocks == {True} and max(spans) - min(spans) > 1.001 / min(stream.rate or 1 for stream in streams):
            raise ValueError(
                f"the sensors last {[round(span, 3) for span in spans]} seconds, so that their steps do "
                "not belong together; cut them to the same length, or give timestamps."
            )
        return streams, units

    def _from_table(self, sample: Any) -> tuple[np.ndarray, Any]:
        columns, times = as_columns(sample)
        if self.time_column is not None and (self.time_column in columns or times is None):
            if self.time_column not in columns:
                raise ValueError(f"there is no time_column {self.time_column!r} among the columns {list(columns)}.")
            times = columns[self.time_column]
        if absent := [name for name in self.columns if name not in columns]:
            raise ValueError(f"there is no column {absent}, only {list(columns)}; see the setting 'columns'.")
        values = []
        for name in self.columns:
            with errors_at(f"column {name!r}"):
                values.append(to_floats(columns[name]))
        if len({each.shape for each in values}) > 1 or values[0].ndim != 1:
            raise ValueError(f"the columns {self.columns} must have the same length and one value for each step.")
        return np.stack(values, axis=1), times

    def _stream(self, values: Any, channels: int, times: Any, own_rate: Any, rate: Any) -> Stream:
        """Values `(steps, channels)` with their clock: times, or a rate of their own, or the one of the call."""
        array = to_floats(values)
        if array.ndim != 2 or array.shape[1] != channels:
            hint = "transpose it" if array.ndim == 2 and array.shape[0] == channels else f"see {self.sensors}"
            raise ValueError(f"values must have shape (steps, {channels}), got {array.shape}; {hint}.")
        if np.isnan(array).any():
            step = int(np.argwhere(np.isnan(array))[0, 0])
            raise ValueError(
                f"there is NaN in step {step}; drop such steps and give timestamps, so that they are interpolated."
            )
        if times is not None:
            if own_rate is not None:
                raise ValueError("give timestamps or a sampling_rate, not both.")
            return Stream.at_times(array, times, _SECONDS[self.time_unit])
        if own_rate is not None and rate is not None and own_rate != rate:
            raise ValueError(f"the recording has {own_rate} Hz, but imu_sampling_rate={rate} was passed; leave it out.")
        rate = rate if own_rate is None else own_rate
        if rate is None:
            raise ValueError(
                "the recording does not tell its sampling rate; pass imu_sampling_rate=<Hz>, or give it in a dict with "
                "'sampling_rate' or 'timestamps'."
            )
        if not _is_positive(rate) or not 1e-3 <= rate <= 1e6:
            raise ValueError(f"the sampling rate must be a number of Hz between 0.001 and a million, got {rate!r}.")
        return Stream.at_rate(array, float(rate))

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        lengths = random.integers(30, 61, size=batch_size)
        return [
            random.normal(self.means, self.stds, size=(length, self.num_channels)).astype(np.float32)
            for length in lengths
        ]


def _kind(sensor: Any) -> str:
    """The kind of a sensor by its name."""
    kind = str(sensor).rpartition("_")[2]
    if kind not in _UNITS:
        raise ValueError(f"a sensor's name must be or end in one of {list(_UNITS)}, got {sensor!r}.")
    return kind


def _model_units(sensors: Sequence[str]) -> dict[str, str]:
    return {sensor: next(iter(_UNITS[_kind(sensor)])) for sensor in sensors}


def _checked_units(units: Mapping[str, str], sensors: Sequence[str]) -> Mapping[str, str]:
    if not isinstance(units, Mapping):
        raise TypeError(f"units must be a dict from sensor to unit, got {units!r}.")
    for sensor, unit in units.items():
        if sensor not in sensors or unit not in list(_UNITS[_kind(sensor)]):  # a list, as it may have no hash
            known = {each: list(_UNITS[_kind(each)]) for each in sensors}
            raise ValueError(f"units must be of {known}, got {unit!r} for {sensor!r}.")
    return units


def _no_more(sample: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(map(str, sample)) - known):
        raise ValueError(f"a dict with 'values' or sensors may hold {sorted(known)}, but no {unknown}.")


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value) and value > 0
