"""Node and edge tables of graphs: what a field holds is learned once, then every table is encoded the same way.

A table is an array `(rows, fields)` of `int64` (categories), `float64` (measurements) or `object` (columns of different
kinds, text included). A learned field is a dict, `{"values": [...]}` for a category with its known values, sorted, or
`{"mean": ..., "std": ...}` for a measurement.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .readers.arrays import to_array

__all__ = ["check_fields", "check_table", "encode", "learn_fields", "to_table"]

Field = dict[str, Any]


def to_table(values: Any, name: str, rows: int) -> np.ndarray:
    """Values as users have them as a table.

    Args:
        values: Array, tensor or nested list, `(rows,)` or `(rows, fields)`; `None` for no fields.
        name: What to call it in errors.
        rows: How many nodes or edges there are.

    Returns:
        `(rows, fields)`; booleans become the numbers 0 and 1.

    Raises:
        ValueError: Another shape, ragged lists, NaN or infinity.
        TypeError: Values that are neither numbers nor text.
    """
    if values is None:
        return np.zeros((rows, 0), np.int64)
    array = _to_array(values, name)
    if not array.size and array.ndim <= 2 and (rows == 0 or len(array) == rows):
        return np.zeros((rows, array.shape[1] if array.ndim == 2 else 0), np.int64)
    if array.ndim not in (1, 2) or len(array) != rows:
        raise ValueError(f"{name} must have shape ({rows}, fields), one row for each of them, got {array.shape}.")
    table = array[:, None] if array.ndim == 1 else array
    if table.dtype == object:
        columns = [_to_column(table[:, index], f"{name}[:, {index}]") for index in range(table.shape[1])]
        kinds = {column.dtype for column in columns}
        table = np.stack([column.astype(kinds.pop() if len(kinds) == 1 else object) for column in columns], axis=1)
    else:
        columns = [table]
    finite = [np.isfinite(column) if column.dtype == np.float64 else np.ones(column.shape, bool) for column in columns]
    if not all(each.all() for each in finite):
        row, column = np.argwhere(~np.column_stack(finite))[0]
        raise ValueError(f"{name}[{row}, {column}] is {table[row, column]}; replace NaN and infinity by numbers first.")
    return table


def _to_array(values: Any, name: str) -> np.ndarray:
    """An array of int64, float64 or object."""
    if isinstance(values, Tensor) and values.layout != torch.strided:
        values = values.to_dense()
    try:
        array = to_array(values)
    except ValueError as error:
        raise ValueError(f"{name} must be a table with as many values in every row: {error}.") from error
    if array.dtype.kind in "US" and not isinstance(values, np.ndarray):
        array = np.array(values, dtype=object)  # numpy would have turned numbers beside text into text
    if array.dtype.kind in "US":
        return array.astype(str).astype(object)
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}, beyond the range of int64; number the categories from 0.")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind in "bf":
        return array.astype(np.float64)
    if array.dtype.kind == "O":
        return array
    raise TypeError(f"{name} must hold integers, floats, booleans or text, got {array.dtype}.")


def _to_column(cells: np.ndarray, name: str) -> np.ndarray:
    """One column of Python objects as int64, float64 or text."""
    is_text = [isinstance(cell, str) for cell in cells]
    if all(is_text):
        return cells
    column = None if any(is_text) else np.asarray(list(cells))
    if column is None or column.ndim != 1 or column.dtype.kind not in "biuf":
        row = next((i for i, cell in enumerate(cells) if not isinstance(cell, str | int | float | np.number)), 0)
        raise TypeError(
            f"{name} must hold numbers or text, not both and nothing missing, but row {row} is {cells[row]!r} of type "
            f"{type(cells[row]).__name__}."
        )
    return _to_array(column, name)


def learn_fields(tables: Sequence[np.ndarray], name: str) -> list[Field]:
    """Learn what each field holds, over all rows of all tables.

    Integers and text are categories, and whatever has a fraction in any table is a measurement.

    Args:
        tables: Each `(rows, fields)`, as of `to_table`. Tables without rows tell nothing.
        name: What to call them in errors.

    Raises:
        ValueError: Tables of different width, a field that is text in one and a number in another, or numbers that are
            too large to have a standard deviation.
    """
    tables = [table for table in tables if len(table)]
    widths = {table.shape[1] for table in tables}
    if len(widths) > 1:
        raise ValueError(f"All graphs must have as many {name}, got {sorted(widths)} fields; fill in what some lack.")
    whole = np.concatenate(tables) if tables else np.zeros((0, 0))
    return [_learn(whole[:, index], f"{name}[:, {index}]") for index in range(whole.shape[1])]


def _learn(column: np.ndarray, name: str) -> Field:
    column = _to_column(column, name) if column.dtype == object else column
    if column.dtype != np.float64:
        return {"values": sorted(set(column.tolist()))}
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(column.mean()), float(column.std())
    if not np.isfinite([mean, std]).all():
        raise ValueError(f"{name} holds numbers too large for statistics, up to {np.abs(column).max():g}; rescale it.")
    # Not std > 0 alone: rounding of the mean leaves a little deviation in a constant column.
    return {"mean": mean, "std": std if std > 0 and column.min() < column.max() else 1.0}


def check_fields(fields: Any, name: str) -> None:
    """Refuse a setting that is no list of fields.

    Raises:
        ValueError: See the module's description for what it must be.
    """
    for index, field in enumerate(fields or []):
        keys = set(field) if isinstance(field, dict) else None
        if keys == {"values"}:
            good = bool(field["values"]) and len({type(value) for value in field["values"]}) == 1
            good = good and list(field["values"]) == sorted(set(field["values"]))
        else:
            good = keys == {"mean", "std"} and bool(np.isfinite([field["mean"], field["std"]]).all())
            good = good and field["std"] > 0
        if not good:
            raise ValueError(
                f"{name}[{index}] must be {{'values': [...]}} with integers or text, sorted and each once, or "
                f"{{'mean': ..., 'std': ...}} with a positive std, got {field!r}."
            )


def check_table(table: np.ndarray, fields: Sequence[Field], name: str) -> None:
    """Refuse a table that does not hold the fields that were learned.

    Raises:
        ValueError: Another number of fields, measurements where categories were learned, or text where numbers were.
    """
    if not len(table):
        return
    if table.shape[1] != len(fields):
        raise ValueError(
            f"{name} have {table.shape[1]} fields, but this processor was fitted on {len(fields)}; give the fields of "
            "the training graphs, or fit again."
        )
    uniform = None if table.dtype == object else table.dtype
    for index, field in enumerate(fields):
        column = table[:1, index] if uniform is not None else _to_column(table[:, index], f"{name}[:, {index}]")
        kind = "text" if column.dtype == object else "integers" if column.dtype == np.int64 else "floats"
        known = "floats"
        if "values" in field:
            known = "text" if isinstance(field["values"][0], str) else "integers"
        if kind != known and (kind, known) != ("integers", "floats"):
            raise ValueError(
                f"{name}[:, {index}] holds {kind}, but was fitted on {known}; give the type of the training graphs."
            )


def encode(table: np.ndarray, fields: Sequence[Field]) -> tuple[np.ndarray, np.ndarray]:
    """Encode a table that `check_table` has passed.

    Args:
        table: `(rows, fields)`.
        fields: As learned.

    Returns:
        Ids `(rows, categorical fields)` as int64, 0 for a value that was not learned, the learned ones from 1; and
        features `(rows, other fields)` as float32, in standard deviations from the mean.

    Raises:
        ValueError: A number too large for float32.
    """
    if not len(table):
        table = np.zeros((0, len(fields)))
    categorical = [index for index, field in enumerate(fields) if "values" in field]
    continuous = [index for index, field in enumerate(fields) if "values" not in field]
    ids = np.zeros((len(table), len(categorical)), np.int64)
    for column, index in enumerate(categorical):
        known = np.array(fields[index]["values"])
        cells = table[:, index].astype(known.dtype if known.dtype.kind != "U" else str)
        places = np.searchsorted(known, cells).clip(max=len(known) - 1)
        ids[:, column] = np.where(known[places] == cells, places + 1, 0)
    mean = np.array([fields[index]["mean"] for index in continuous])
    std = np.array([fields[index]["std"] for index in continuous])
    with np.errstate(over="ignore"):
        features = ((table[:, continuous].astype(np.float64) - mean) / std).astype(np.float32)
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise ValueError(f"The number {table[row, continuous[column]]} is too large for float32; rescale that field.")
    return ids, features
