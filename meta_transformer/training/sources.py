"""Data as people have it, to splits of rows for the collator: folders, lists of files, tables, sets of `datasets`.

Arrives: a path or a name. Leaves: a `Source`, by split the rows `{modality: raw sample, "labels": label}`; a file is
opened when its row is asked for, so that a source costs as much as its list of names.

- `<class>/<file>`, or `<split>/<class>/<file>`; deeper folders belong to the class above them.
- A CSV or Parquet file with the columns `path` (relative to the table), `label` and, if need be, `split`; or the folder
  with such a `labels.csv`.
- A table whose rows are the samples: columns of features, of text, of molecules; or one long series to forecast.
- The name of a set of `datasets`, or a folder that `save_to_disk` wrote.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, scandir
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..extras import needs

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "SPLITS",
    "Collection",
    "Rows",
    "files_below",
    "is_table",
    "read_collection",
    "read_file",
    "read_table",
    "split_word",
]

# Words for a split; the first of each is ours.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_TABLES = (".csv", ".tsv", ".parquet")
_LABELS = ("label", "labels", "target", "class", "y")
_PATHS = ("path", "file_name", "file")
# Columns of a table that hold samples, by modality, beside one that bears the modality's word.
_COLUMNS = {"text": ("sentence", "document"), "graph": ("smiles", "molecule"), "image": ("img",)}
# What Windows leaves in folders of pictures, beside what begins with a dot.
_HIDDEN = ("thumbs.db", "desktop.ini")
# Modalities whose samples are whole rows of a table.
_WHOLE_ROWS = ("tabular", "hyperspectral")


@dataclass
class Collection:
    """Samples that are not read yet, with what is known of each.

    Attributes:
        values: Paths, or samples.
        names: What a person calls each sample: its path, or its row in a table.
        labels: As they stand there; `None` without labels.
        splits: The split of each; `None` if they have to be drawn.
        classes: Names of the classes in the order of their numbers, where the data says it.
        read: From a value to a raw sample.
    """

    values: Sequence[Any]
    names: Sequence[str]
    labels: list[Any] | None = None
    splits: list[str] | None = None
    classes: list[str] | None = None
    read: Callable[[Any], Any] = lambda value: value


class Rows(Dataset):
    """Rows as the collator takes them; all of a collection, or those of some numbers.

    Args:
        modality: The key of the raw sample.
        collection: Where they come from.
        labels: Numbers, `(samples,)` or `(samples, targets)`; `None` without labels.
        numbers: Which of the samples; by default all.
    """

    def __init__(
        self, modality: str, collection: Collection, labels: np.ndarray | None = None, numbers: Any = None
    ) -> None:
        self.modality, self.collection, self._labels = modality, collection, labels
        self.numbers = np.arange(len(collection.values)) if numbers is None else np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(self.numbers[index])
        row = {self.modality: self.collection.read(self.collection.values[number])}
        return row if self._labels is None else {**row, "labels": self._labels[number].tolist()}

    @property
    def labels(self) -> np.ndarray | None:
        """Of these rows, without reading any."""
        return None if self._labels is None else self._labels[self.numbers]

    def name(self, index: int) -> str:
        """What a person calls a row."""
        return self.collection.names[int(self.numbers[index])]

    def select(self, numbers: Any) -> "Rows":
        """The rows of these places."""
        return Rows(self.modality, self.collection, self._labels, self.numbers[numbers])


def read_collection(
    data: str | PathLike, modality: str, *, label: str | None = None, column: str | None = None, labelled: bool = True
) -> Collection:
    """The samples of a folder, a table or a data set.

    Args:
        data: See the module's description.
        modality: What the samples are.
        label: Column of the label; several names with commas for several numbers. By default one of the usual names.
        column: Column of the samples; by default one named as the modality, or as is usual.
        labelled: Whether labels are needed. If not, a folder may hold files without folders by class.

    Returns:
        The samples, none of them read.

    Raises:
        ValueError: There is nothing at `data`, or no sample; a column is not there, a file is missing, a split unknown.
    """
    path = Path(data)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file() or not path.exists():
        return _from_datasets(str(data), modality, label, column, labelled)
    if path.is_file():
        if not is_table(path):
            raise ValueError(f"{path} is a file, but no table ({', '.join(_TABLES)}); give its folder.")
        return _from_table(path, modality, label, column, labelled)
    tables = sorted(each for each in path.iterdir() if is_table(each) and _visible(each.name))
    known = [each for each in tables if each.name == "labels.csv"] or tables
    if len(known) == 1 and (labelled or known[0].name == "labels.csv"):
        return _from_table(known[0], modality, label, column, labelled)
    return _from_folder(path, modality, labelled)


def is_table(path: str | PathLike) -> bool:
    """Whether a path is that of a table, by its ending."""
    return Path(path).suffix.lower() in _TABLES


def files_below(folder: str | PathLike, *, ordered: bool = False) -> Iterator[str]:
    """Paths of all files in a folder and its subfolders, hidden ones left out.

    Args:
        folder: Where to look.
        ordered: Whether by name, which takes a list of each folder's entries in memory.
    """
    with scandir(folder) as entries:
        visible: Any = (entry for entry in entries if _visible(entry.name))
        for entry in sorted(visible, key=lambda entry: entry.name) if ordered else visible:
            if entry.is_dir():
                yield from files_below(entry.path, ordered=ordered)
            else:
                yield entry.path


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _HIDDEN


def read_file(modality: str, path: str) -> Any:
    """One file as the modality's processor takes it: its path; text, and SMILES, by their content."""
    if modality in ("text", "graph"):
        text = Path(path).read_text(encoding="utf-8")
        return text.strip() if modality == "graph" else text
    if modality == "tabular":
        raise ValueError(f"{path}: samples of a table are its rows; give the table.")
    return path


def read_table(path: Path, modality: str) -> "DataFrame":
    """A CSV, TSV or Parquet file. Gaps are missing numbers in tables of numbers, and text elsewhere."""
    with needs("pandas and pyarrow to read tables", "cli"):
        import pandas
    try:
        if path.suffix.lower() == ".parquet":
            return pandas.read_parquet(path)
        numbers = modality in (*_WHOLE_ROWS, "time_series", "imu")
        gaps: dict[str, Any] = {"na_values": ["?"]} if numbers else {"keep_default_na": False}
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pandas.read_csv(path, sep=separator, skipinitialspace=True, **gaps)
    except (OSError, ValueError) as error:  # pandas' and Arrow's own errors are ValueErrors
        raise ValueError(f"cannot read {path} as a table: {error}") from error


def split_word(value: Any, place: str) -> str:
    """Our word for a split.

    Raises:
        ValueError: None of the known ones.
    """
    for word, names in SPLITS.items():
        if str(value).strip().lower() in names:
            return word
    known = [name for names in SPLITS.values() for name in names]
    raise ValueError(f"{place}: unknown split {value!r}; use one of {known}.")


def _from_folder(folder: Path, modality: str, labelled: bool) -> Collection:
    tops = sorted(each for each in folder.iterdir() if each.is_dir() and _visible(each.name))
    known = {name for names in SPLITS.values() for name in names}
    by_split = bool(tops) and all(top.name.lower() in known for top in tops)
    parts: list[Any] = [(split_word(top.name, str(top)), top) for top in tops] if by_split else [(None, folder)]
    values: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    if not labelled:
        values = list(files_below(folder, ordered=True))
    for split, part in parts if labelled else ():
        for group in sorted(each for each in part.iterdir() if each.is_dir() and _visible(each.name)):
            found = list(files_below(group, ordered=True))
            values += found
            labels += [group.name] * len(found)
            splits += [split] * len(found)
    if not values:
        raise ValueError(
            f"{folder} holds no samples: give <class>/<file>, <split>/<class>/<file>, or a CSV with the columns path, "
            "label and split."
            if labelled
            else f"{folder} holds no files."
        )
    return Collection(
        values,
        values,
        labels if labelled else None,
        splits if by_split and labelled else None,
        read=lambda path: read_file(modality, path),
    )


def _from_table(path: Path, modality: str, label: str | None, column: str | None, labelled: bool) -> Collection:
    frame = read_table(path, modality)
    if frame.empty:
        raise ValueError(f"{path} has no rows.")
    target = _label_columns(frame, label, str(path), labelled)
    splits = None
    if "split" in frame.columns:
        splits = [split_word(value, f"row {row} of {path}") for row, value in enumerate(frame["split"], start=1)]
    labels = _labels(frame, target, str(path)) if labelled else None
    names = [f"row {row} of {path}" for row in range(1, len(frame) + 1)]
    found = Collection([], names, labels, splits)
    own = frame.drop(columns=[each for each in ("split", *target) if each in frame.columns])
    paths = column or next((each for each in _PATHS if each in own.columns), None)
    if modality in _WHOLE_ROWS and column is None:
        found.values = own.to_dict("records")
        found.read = _spectrum if modality == "hyperspectral" else found.read
    elif modality not in ("text", "graph") or paths in _PATHS:
        if paths not in own.columns:
            raise ValueError(f"{path} has no column {paths or 'path'!r}; it has {list(frame.columns)}. Name it.")
        found.values = [str(path.parent / each) for each in own[paths]]
        found.names = found.values
        for row, each in enumerate(found.values, start=1):
            if not Path(each).is_file():
                raise ValueError(f"row {row} of {path}: there is no file {each}.")
        found.read = lambda file: read_file(modality, file)
    else:
        found.values = own[_sample_column(list(own.columns), modality, column, str(path))].tolist()
    return found


def _spectrum(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table of spectra; names of columns that are numbers from 100 on are wavelengths in nm."""
    values = np.array(list(row.values()), np.float64)
    try:
        waves = [float(name) for name in row]
    except ValueError:
        waves = [0.0]
    return {"array": values, "wavelengths": waves} if min(waves) >= 100 else {"array": values}


def _from_datasets(name: str, modality: str, label: str | None, column: str | None, labelled: bool) -> Collection:
    with needs("datasets to read data sets", "cli"):
        import datasets
    saved = Path(name).exists()
    try:
        loaded: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # of many types, by what is missing
        raise ValueError(
            f"{name} is no folder, no table, and no data set that datasets can load ({type(error).__name__}: {error})."
        ) from error
    splits = None
    if isinstance(loaded, dict):
        splits = [split_word(split, name) for split, part in loaded.items() for _ in range(len(part))]
        loaded = datasets.concatenate_datasets(list(loaded.values()))
    for each, feature in loaded.features.items():  # read as bytes: decoding them needs further libraries
        if isinstance(feature, datasets.Audio | datasets.Video):
            loaded = loaded.cast_column(each, type(feature)(decode=False))
    target = _label_columns(loaded.select(range(min(1, len(loaded)))).to_pandas(), label, name, labelled)
    feature = loaded.features.get(target[0]) if target else None
    classes = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    labels = None
    if labelled:
        labels = _labels(loaded.select_columns(target).to_pandas(), target, name)
        labels = [classes[int(each)] for each in labels] if classes else labels
    own = loaded.remove_columns([each for each in ("split", *target) if each in loaded.column_names])
    if modality not in _WHOLE_ROWS:
        column = _sample_column(own.column_names, modality, column, name)
        own = own.select_columns([column])
    read: Callable[[Any], Any] = (lambda row: row[column]) if column else (lambda row: row)
    names = [f"row {row} of {name}" for row in range(1, len(own) + 1)]
    return Collection(own, names, labels, splits, classes, read)


def _label_columns(frame: "DataFrame", label: str | None, place: str, labelled: bool) -> list[str]:
    columns = [str(each) for each in frame.columns]
    if label is None:
        found = [each for each in _LABELS if each in columns][:1]
    else:
        found = [each.strip() for each in label.split(",")]
    absent = [each for each in found if each not in columns]
    if labelled and (absent or not found):
        raise ValueError(
            f"{place} has no column {(absent or ['label'])[0]!r}; it has {columns}. Give label=, or --label."
        )
    return [each for each in found if each in columns]


def _labels(frame: "DataFrame", columns: list[str], place: str) -> list[Any]:
    own = frame[columns]
    gaps = (own.isna() | (own == "")).any(axis=1).to_numpy()
    if gaps.any():
        raise ValueError(f"row {int(gaps.argmax()) + 1} of {place} has no {' or no '.join(columns)}; leave it out.")
    return own[columns[0]].tolist() if len(columns) == 1 else own.to_numpy().tolist()


def _sample_column(columns: list[str], modality: str, column: str | None, place: str) -> str:
    candidates = [column] if column else [modality, *_COLUMNS.get(modality, ())]
    found = [each for each in candidates if each in columns] or (columns if not column and len(columns) == 1 else [])
    if not found:
        raise ValueError(f"{place} has no column {candidates[0]!r}; it has {columns}. Name the column of the samples.")
    return found[0]
