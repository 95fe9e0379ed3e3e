"""Tables to tensors: numbers are standardised, categories numbered, missing cells marked; `fit` learns how from data.

Leaves: `numerical_features` `(batch, numerical columns)` in standard deviations from the mean, 0 where missing;
`numerical_mask` of the same shape, true where a number was observed; `categorical_ids` `(batch, categorical columns)`,
0 for a category that `fit` did not see, 1 where missing, known categories from 2. A table without columns of a kind
gives no tensors of that kind.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import BatchFeature

from ..extras import needs
from .base import ModalityProcessor
from .readers.arrays import to_array

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["TabularProcessor"]

UNSEEN, MISSING, FIRST_KNOWN = 0, 1, 2

# What `fit` learns; a processor has all of it or nothing.
_LEARNED = ("numerical_columns", "categorical_columns", "means", "stds", "bin_edges", "categories")


class TabularProcessor(ModalityProcessor):
    """Standardise numbers, number categories, mark what is missing. Call `fit` on training data first.

    Args:
        numerical_columns: Learned: names of the columns of numbers, in the order of the tensors.
        categorical_columns: Learned: names of the columns of categories, in the order of the tensors.
        excluded_columns: Learned: columns that are dropped without complaint, such as the label.
        means: Learned: mean of each numerical column, in the column's own unit.
        stds: Learned: standard deviation (of the population) of each numerical column; 1 where it is constant.
        bin_edges: Learned: for each numerical column, rising quantiles in standard deviations from the mean, for
            piecewise-linear embeddings (Gorishniy et al. 2022, section 3.2.1).
        categories: Learned: the known categories of each categorical column, sorted; the first has id 2.
        num_bins: Most bins that `fit` makes for a numerical column. Equal quantiles are merged.
        missing_values: Cells that count as missing besides None, NaN, NaT and `pandas.NA`.
        ignore_extra_columns: Whether columns that `fit` did not see are dropped rather than refused.
    """

    num_bins: int
    missing_values: list[Any] | tuple[Any, ...]
    ignore_extra_columns: bool

    def __init__(
        self,
        *,
        numerical_columns: list[str] | None = None,
        categorical_columns: list[str] | None = None,
        excluded_columns: list[str] | None = None,
        means: list[float] | None = None,
        stds: list[float] | None = None,
        bin_edges: list[list[float]] | None = None,
        categories: list[list[Any]] | None = None,
        num_bins: int = 48,
        missing_values: list[Any] | tuple[Any, ...] = ("", "?"),
        ignore_extra_columns: bool = False,
        **kwargs: Any,
    ) -> None:
        learned = (numerical_columns, categorical_columns, means, stds, bin_edges, categories)
        absent = [name for name, value in zip(_LEARNED, learned, strict=True) if value is None]
        if 0 < len(absent) < len(_LEARNED):
            raise ValueError(
                f"{absent} are missing beside the other settings that fit learns. Give none and call fit, which takes "
                "numerical_columns and categorical_columns too."
            )
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
        if not isinstance(missing_values, list | tuple):
            raise TypeError(f"missing_values must be a list of cells such as ['?'], got {missing_values!r}.")
        super().__init__(
            **dict(zip(_LEARNED, learned, strict=True)),
            excluded_columns=list(excluded_columns or []),
            num_bins=num_bins,
            missing_values=list(missing_values),
            ignore_extra_columns=ignore_extra_columns,
            **kwargs,
        )

    def fit(
        self,
        samples: Any,
        *,
        numerical_columns: Iterable[str] = (),
        categorical_columns: Iterable[str] = (),
        exclude_columns: Iterable[str] = (),
    ) -> "TabularProcessor":
        """Learn columns, statistics, bins and categories from training data; what was learned before is forgotten.

        Columns of a numeric type are numerical. Text, booleans and pandas' categories are categorical, and so are
        numbers written as text.

        Args:
            samples: A table as of `__call__`.
            numerical_columns: Columns to take as numbers whatever their type, such as numbers written as text.
            categorical_columns: Columns to take as categories whatever their type, such as codes.
            exclude_columns: Columns to leave out, such as the label. `__call__` drops them too.

        Returns:
            This processor.

        Raises:
            ValueError: An empty table, a column named here that it lacks or that is named twice, a column without any
                observed cell, infinity, or text in a column of numbers.
            TypeError: Columns of dates, or cells that are neither text nor number nor boolean.
        """
        table = _to_table(samples)
        chosen = dict.fromkeys(_names(numerical_columns), "numerical")
        for kind, names in (("categorical", _names(categorical_columns)), ("excluded", _names(exclude_columns))):
            if twice := [name for name in names if name in chosen]:
                raise ValueError(f"Columns {twice} are named as {chosen[twice[0]]} and as {kind}; name them once.")
            chosen.update(dict.fromkeys(names, kind))
        if unknown := [name for name in chosen if name not in table.columns]:
            raise ValueError(f"fit names columns {unknown}, but the table has {list(table.columns)}.")
        columns = {name: self._observed(table[name]) for name in table.columns if chosen.get(name) != "excluded"}
        if not columns:
            raise ValueError("All columns are excluded; leave at least one to learn from.")
        if empty := [name for name, column in columns.items() if column.isna().all()]:
            raise ValueError(f"Columns {empty} have no observed cell to learn from; add them to exclude_columns.")
        for name in columns.keys() - chosen.keys():
            chosen[name] = _kind(columns[name].infer_objects())

        numerical = [name for name in columns if chosen[name] == "numerical"]
        categorical = [name for name in columns if chosen[name] == "categorical"]
        statistics = [_statistics(_numbers(columns[name]), name, self.num_bins) for name in numerical]
        self.categories = [_categories(columns[name]) for name in categorical]
        self.means, self.stds = [mean for mean, _, _ in statistics], [std for _, std, _ in statistics]
        self.bin_edges = [edges for _, _, edges in statistics]
        self.numerical_columns, self.categorical_columns = numerical, categorical
        self.excluded_columns = [name for name, kind in chosen.items() if kind == "excluded"]
        return self

    def __call__(self, samples: Any, *, return_tensors: str | None = "pt") -> BatchFeature:
        """Process one row or a table.

        Args:
            samples: A DataFrame, a dict of columns such as a slice of a `datasets` data set, or anything with
                `to_pandas`; a list of rows, each a dict or a Series; or one such row. Order of columns is free.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `numerical_features` and `numerical_mask`, if there are numerical columns; `categorical_ids`, if there are
            categorical ones. See the module's description.

        Raises:
            ValueError: No row, a missing or extra column, text or infinity in a column of numbers, numbers in a column
                of text, or a processor that has not been fitted.
            TypeError: A table of another type, or cells that are neither text nor number nor boolean.
        """
        self._require_fit()
        table = _to_table(samples)
        self._check_columns(table)
        data: dict[str, np.ndarray] = {}
        if self.numerical_columns:
            numbers = np.stack([_numbers(self._observed(table[name])) for name in self.numerical_columns], axis=1)
            data["numerical_features"], data["numerical_mask"] = self._standardise(numbers)
        if self.categorical_columns:
            known = zip(self.categorical_columns, self.categories, strict=True)
            ids = [_ids(self._observed(table[name]), categories) for name, categories in known]
            data["categorical_ids"] = np.stack(ids, axis=1)
        return BatchFeature(data, tensor_type=return_tensors)

    def tokenizer_config(self) -> dict[str, Any]:
        """The columns, numbers of categories and bins of the tokenizer that takes this processor's tensors."""
        self._require_fit()
        return {
            "numerical_columns": list(self.numerical_columns),
            "categorical_columns": list(self.categorical_columns),
            "cardinalities": [FIRST_KNOWN + len(known) for known in self.categories],
            "bin_edges": [list(edges) for edges in self.bin_edges],
        }

    @classmethod
    def for_tokenizer(cls, options: dict[str, Any]) -> "TabularProcessor":
        return cls()  # statistics and categories are no options of the tokenizer: they have to be fitted again

    def dummy_samples(self, batch_size: int, seed: int = 0) -> "DataFrame":
        random = np.random.default_rng(seed)
        if self.numerical_columns is not None:
            numbers = zip(self.numerical_columns, self.means, self.stds, strict=True)
            known = zip(self.categorical_columns, self.categories, strict=True)
            columns = {name: random.normal(mean, std, batch_size) for name, mean, std in numbers}
            columns |= {name: [each[i] for i in random.integers(0, len(each), batch_size)] for name, each in known}
            return _pandas().DataFrame(columns)
        columns = {
            "height": random.normal(170, 10, batch_size).astype(object),
            "income": random.lognormal(10, 1, batch_size).astype(object),
            "city": random.choice(["Aarhus", "Bergen", "Cork"], batch_size).astype(object),
            "member": random.choice([True, False], batch_size).astype(object),
        }
        for index, cells in enumerate(columns.values()):
            cells[index + 1 :: 4] = None  # never in the first row, so that there is something to learn from
        return _pandas().DataFrame(columns).infer_objects()

    def _require_fit(self) -> None:
        if self.numerical_columns is None:
            raise ValueError("This TabularProcessor knows no columns yet; call fit(table) or load a fitted one.")

    def _check_columns(self, table: "DataFrame") -> None:
        """Refuse tables with other columns than those of `fit`."""
        known = self.numerical_columns + self.categorical_columns
        if missing := [name for name in known if name not in table.columns]:
            raise ValueError(f"The table lacks columns {missing} that fit saw; add them, filled with None if unknown.")
        extra = [name for name in table.columns if name not in known and name not in self.excluded_columns]
        if extra and not self.ignore_extra_columns:
            raise ValueError(
                f"The table has columns {extra} that fit did not see; drop them, name them in fit(exclude_columns=...) "
                "or make the processor with ignore_extra_columns=True."
            )

    def _observed(self, column: "Series") -> "Series":
        """The column with all kinds of missing cells as pandas' own."""
        return column.mask(column.isin(self.missing_values))

    def _standardise(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and mask from numbers `(rows, columns)`, NaN where missing."""
        mask = ~np.isnan(numbers)
        with np.errstate(over="ignore"):
            features = ((numbers - np.array(self.means)) / np.array(self.stds)).astype(np.float32)
        if (wrong := mask & ~np.isfinite(features)).any():
            row, column = np.argwhere(wrong)[0]
            raise _infinite(self.numerical_columns[column], row, numbers[row, column])
        return np.where(mask, features, np.float32(0)), mask


def _pandas() -> ModuleType:
    with needs("pandas for tables", "tabular"):
        import pandas
    return pandas


def _names(columns: Iterable[str]) -> list[str]:
    return [str(name) for name in ([columns] if isinstance(columns, str) else columns)]


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def _plain(value: Any) -> Any:
    """Tensors and masks, which pandas does not know, as numpy arrays or Python numbers."""
    value = to_array(value) if isinstance(value, Tensor | np.ma.MaskedArray) else value
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _to_table(samples: Any) -> "DataFrame":
    """A frame with rows counted from 0 and columns named by text, from all that users have."""
    pandas = _pandas()
    samples = samples.to_pandas() if hasattr(samples, "to_pandas") else samples
    if isinstance(samples, pandas.Series):
        samples = dict(samples)
    if isinstance(samples, Mapping):
        samples = _from_mapping({name: _plain(value) for name, value in samples.items()})
    elif isinstance(samples, list | tuple):
        samples = _from_rows(samples)
    elif not isinstance(samples, pandas.DataFrame):
        raise TypeError(
            "A table must be a DataFrame, a dict of columns, a list of rows as dicts, or one row, got "
            f"{type(samples).__name__}; pandas.DataFrame(array, columns=names) makes one of an array."
        )
    if not len(samples) or not len(samples.columns):
        raise ValueError(f"The table is empty, of shape {samples.shape}; give at least one row and one column.")
    table = samples.set_axis([str(name) for name in samples.columns], axis=1).reset_index(drop=True)
    if twice := sorted(set(table.columns[table.columns.duplicated()])):
        raise ValueError(f"Columns {twice} occur twice; rename one of each.")
    return table


def _from_mapping(samples: dict[Any, Any]) -> "DataFrame":
    """A frame from one dict: of columns if its values are sequences, else of the cells of one row."""
    columns = {name: _is_column(value) for name, value in samples.items()}
    if len(set(columns.values())) > 1:
        cells = [name for name, is_column in columns.items() if not is_column]
        raise ValueError(f"A dict must hold columns or the cells of one row, but of all only {cells} are cells.")
    if not any(columns.values()):
        return _from_rows([samples])
    lengths = {name: len(value) for name, value in samples.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All columns must have the same number of rows, got {lengths}.")
    return _pandas().DataFrame({name: list(value) for name, value in samples.items()})


def _from_rows(samples: Any) -> "DataFrame":
    """A frame from a list of rows, which must all have the same columns."""
    rows = []
    for index, row in enumerate(samples):
        if not isinstance(row, Mapping | _pandas().Series):
            raise TypeError(f"Row {index} must be a dict from column to cell or a Series, got {type(row).__name__}.")
        rows.append({name: _plain(value) for name, value in dict(row).items()})
        if differing := sorted(map(str, rows[0].keys() ^ rows[-1].keys())):
            raise ValueError(f"Rows 0 and {index} differ in columns {differing}; write None into missing cells.")
    return _pandas().DataFrame(rows)


def _kind(column: "Series") -> str:
    types = _pandas().api.types
    _refuse_dates(column)
    return "numerical" if types.is_numeric_dtype(column) and not types.is_bool_dtype(column) else "categorical"


def _refuse_dates(column: "Series") -> None:
    if column.dtype.kind in "mMc":
        raise TypeError(
            f"Column {column.name!r} is of type {column.dtype}; turn it into numbers first, such as days since a date."
        )


def _numbers(column: "Series") -> np.ndarray:
    """The cells as float64, NaN where missing."""
    _refuse_dates(column)
    numbers = _pandas().to_numeric(column.astype(object), errors="coerce")
    if (text := numbers.isna() & column.notna()).any():
        row = int(np.flatnonzero(text)[0])
        raise ValueError(
            f"Column {column.name!r} holds numbers, but row {row} has {column[row]!r}; correct it, add it to "
            "missing_values, or fit with the column in categorical_columns."
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _infinite(name: str, row: int, value: float) -> ValueError:
    return ValueError(f"Column {name!r} has {value} in row {row}, infinite or too large; correct it or write None.")


def _statistics(numbers: np.ndarray, name: str, num_bins: int) -> tuple[float, float, list[float]]:
    """Mean, standard deviation and bin edges of one column."""
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise _infinite(name, row, numbers[row])
    numbers = numbers[~np.isnan(numbers)]
    # Not std > 0: rounding of the mean leaves a little deviation in a constant column.
    constant = numbers.min() == numbers.max()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = numbers.mean(), 1.0 if constant else numbers.std()
    if not np.isfinite([mean, std]).all():
        raise ValueError(f"Column {name!r} has values too large for float64 statistics; scale it, or write None.")
    edges = np.quantile((numbers - mean) / std, np.linspace(0, 1, num_bins + 1))
    edges = np.array([-0.5, 0.5]) if constant else np.unique(edges.astype(np.float32))
    return float(mean), float(std), edges.tolist()


def _family(category: Any) -> str:
    return "text" if isinstance(category, str) else "numbers"


def _factorize(column: "Series") -> tuple[np.ndarray, list[Any]]:
    """Distinct cells, and for each row which of them it holds, -1 where missing."""
    try:
        codes, cells = _pandas().factorize(column)
    except TypeError as error:  # lists and other things that have no hash
        raise TypeError(f"Column {column.name!r} has cells that are no categories: {error}.") from error
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    if wrong := [cell for cell in cells if not isinstance(cell, str | bool | int | float)]:
        raise TypeError(
            f"Categories must be text, numbers or booleans, but column {column.name!r} has {wrong[0]!r} of type "
            f"{type(wrong[0]).__name__}; convert it with astype(str)."
        )
    return codes, cells


def _categories(column: "Series") -> list[Any]:
    return sorted(_factorize(column)[1], key=lambda category: (_family(category), category))


def _ids(column: "Series", known: list[Any]) -> np.ndarray:
    """Ids of the cells, given the known categories."""
    codes, cells = _factorize(column)
    ids = {category: FIRST_KNOWN + index for index, category in enumerate(known)}
    families = {_family(category) for category in known}
    if wrong := [cell for cell in cells if cell not in ids and _family(cell) not in families]:
        # A file read with other types than the training data would otherwise be one column of unseen categories.
        raise ValueError(
            f"Column {column.name!r} was fitted on {' and '.join(families)}, got {wrong[0]!r} of type "
            f"{type(wrong[0]).__name__}; read it with the type of the training data."
        )
    lookup = np.array([*(ids.get(cell, UNSEEN) for cell in cells), MISSING], dtype=np.int64)
    return lookup[codes]  # the last entry for code -1
