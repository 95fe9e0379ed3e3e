"""What the processors of sampled signals share: reading arrays and tables, telling samples apart, statistics."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from os import PathLike, fspath
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from ..extras import needs
from .base import several
from .readers.arrays import to_array

__all__ = [
    "ChannelStatistics",
    "as_columns",
    "check_statistics",
    "import_pandas",
    "is_table",
    "samples_of",
    "to_floats",
]

_NESTED = (list, tuple, np.ndarray, Tensor, Mapping)


def import_pandas() -> ModuleType:
    """Pandas, or an error that names the extra which brings it."""
    with needs("pandas for tables and dates", "time_series"):
        import pandas
    return pandas


def is_table(sample: Any) -> bool:
    """Whether `sample` is a pandas frame, or something else that becomes one by `to_pandas`, as Polars' and Arrow's."""
    pandas = sys.modules.get("pandas")
    return (pandas is not None and isinstance(sample, pandas.DataFrame)) or hasattr(sample, "to_pandas")


def samples_of(samples: Any, modality: str, rows: int) -> Iterator[Any]:
    """The samples of one call, be it one sample, a batch in one array, a sequence or an iterator.

    Args:
        samples: As of the processor's call.
        modality: Its word, for errors.
        rows: How many levels of lists one sample has: 1 for a list of numbers, 2 for a list of rows.

    Raises:
        ValueError: No sample.
        TypeError: Neither a sample nor several.
    """
    array = isinstance(samples, np.ndarray | Tensor) and samples.dtype != object
    if array and samples.ndim == 3:
        samples = list(samples)
    elif array or isinstance(samples, str | PathLike | Mapping) or is_table(samples) or _is_one_column(samples):
        yield samples
        return
    elif isinstance(samples, bytes):
        raise TypeError(f"{modality} must not be bytes; give a path, an array or a table.")
    first, rest = several(samples, modality)
    yield from [list(rest)] if _levels(first) == rows - 1 else rest


def _is_one_column(samples: Any) -> bool:
    """Whether this is a pandas Series of numbers, which is one sample, and not one of samples."""
    return hasattr(samples, "iloc") and not any(isinstance(cell, _NESTED) for cell in samples.iloc[:1])


def _is_missing(cell: Any) -> bool:
    pandas = sys.modules.get("pandas")  # there is none of its cells before it is imported
    return cell is None or (pandas is not None and (cell is pandas.NA or cell is pandas.NaT))


def _levels(value: Any) -> int:
    """Levels of lists around the first number of `value`, at most 3; -1 if it is no list of numbers at all."""
    levels = 0
    while isinstance(value, list | tuple) and len(value) and levels < 3:
        value, levels = value[0], levels + 1
    if isinstance(value, np.ndarray | Tensor) and levels:  # an array in a list is a sample, not a row
        return -1
    return levels if isinstance(value, Real) or _is_missing(value) else -1


def to_floats(values: Any) -> np.ndarray:
    """Numbers of any kind as float64, NaN where one is missing: `None`, NaN, pandas' NA or NaT, or masked in numpy.

    Args:
        values: Array, tensor, column of a table, or nested list.

    Raises:
        ValueError: Lists of different length, or infinity.
        TypeError: Something else than real numbers.
    """
    if isinstance(values, Tensor | np.ma.MaskedArray):
        values = to_array(values)
    elif hasattr(values, "isna"):
        values = _column(values)
    try:
        array = to_array(values)
    except ValueError as error:
        raise ValueError(f"the lists differ in length, so that they make no array ({error}).") from error
    if array.dtype == object:
        array = np.array([_number(cell) for cell in array.ravel()], np.float64).reshape(array.shape)
    if array.dtype.kind not in "buif":
        raise TypeError(f"values must be real numbers, got the type {array.dtype}; convert them first.")
    array = array.astype(np.float64)
    if (infinite := np.isinf(array)).any():
        place = np.argwhere(infinite)[0].tolist()
        raise ValueError(f"there is infinity at {place}; correct it, or write NaN where a value is missing.")
    return array


def _column(column: Any) -> np.ndarray:
    """A column of a table as numbers, or as objects with `None` for what is missing."""
    if column.dtype.kind in "mMc":
        raise TypeError(f"column {column.name!r} has the type {column.dtype}; turn it into real numbers first.")
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "buif":
        return column.to_numpy()
    cells = column.to_numpy(dtype=object, copy=True)
    cells[column.isna().to_numpy()] = None
    return cells


def _number(cell: Any) -> float:
    if _is_missing(cell):
        return float("nan")
    if isinstance(cell, Real):
        try:
            return float(cell)
        except OverflowError:
            raise ValueError(f"the number {str(cell)[:20]}... is too large.") from None
    if isinstance(cell, list | tuple | np.ndarray):
        raise ValueError("the lists differ in length, so that they make no array.")
    raise TypeError(f"values must be real numbers, got {cell!r} of type {type(cell).__name__}.")


def as_columns(sample: Any) -> tuple[dict[str, Any], Any]:
    """The columns of a table by name, and its index if that holds dates, else `None`.

    Args:
        sample: A frame, something with `to_pandas`, a mapping from names to columns, or the path of a CSV file.

    Raises:
        ValueError: Two columns of one name, or an unreadable file.
    """
    if isinstance(sample, str | PathLike):
        sample = import_pandas().read_csv(fspath(sample))
    pandas = sys.modules.get("pandas")
    if is_table(sample) and not (pandas and isinstance(sample, pandas.DataFrame)):
        sample = sample.to_pandas()
    if isinstance(sample, Mapping):
        return {str(name): column for name, column in sample.items()}, None
    names = [str(name) for name in sample.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the table has several columns named {twice}; rename them.")
    index = sample.index
    if not isinstance(index, import_pandas().DatetimeIndex | import_pandas().PeriodIndex):
        index = None
    return {name: sample.iloc[:, place] for place, name in enumerate(names)}, index


class ChannelStatistics:
    """Mean and standard deviation of each channel over recordings that are seen one by one, missing values left out.

    In float64 and by the pairwise update of Chan, Golub and LeVeque (1983), which is exact enough for channels whose
    mean is large against their deviation.
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = np.zeros(0)

    def update(self, values: np.ndarray) -> None:
        """Take `values` `(steps, channels)` into account, NaN where one is missing."""
        observed = ~np.isnan(values)
        count = observed.sum(axis=0)
        mean = np.where(observed, values, 0).sum(axis=0) / np.maximum(count, 1)
        squares = np.where(observed, values - mean, 0)
        squares = (squares**2).sum(axis=0)
        if not self.count.size:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        step, share = mean - self.mean, count / np.maximum(total, 1)
        self.squares = self.squares + squares + step**2 * self.count * share
        self.mean, self.count = self.mean + step * share, total

    def result(self) -> tuple[list[float], list[float]]:
        """Means and standard deviations of the population; 1 for a channel that is constant.

        Raises:
            ValueError: A channel without an observed value, or values too large for statistics.
        """
        if not self.count.all():
            raise ValueError(
                f"Channels {np.flatnonzero(self.count == 0).tolist()} have no observed value; leave them out."
            )
        std = np.sqrt(self.squares / self.count)
        if not np.isfinite(std).all():
            raise ValueError("The values are too large for float64 statistics; scale them first.")
        # Not std > 0: rounding of the mean leaves a little deviation in a constant channel.
        std = np.where(std > 1e-12 * np.abs(self.mean), std, 1.0)
        return self.mean.tolist(), std.tolist()


def check_statistics(means: Any, stds: Any, channels: int | None) -> dict[str, list[float] | None]:
    """The settings `means` and `stds`, both or neither, one finite number for each channel."""
    if means is None and stds is None:
        return {"means": None, "stds": None}
    if means is None or stds is None or len(means) != len(stds) or channels not in (None, len(means)):
        raise ValueError(
            f"means and stds must be given together, one number for each of {channels or 'the'} channels, got "
            f"{means} and {stds}."
        )
    numbers: Iterable[Any] = [*means, *stds]
    if not np.isfinite(np.array(list(numbers), np.float64)).all() or min(stds) <= 0:
        raise ValueError(f"means and stds must be finite and stds positive, got {means} and {stds}.")
    return {"means": [float(mean) for mean in means], "stds": [float(std) for std in stds]}
