"""From samples to the splits of a task: numbers for labels, and what is learned from, chosen on and reported."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .sources import SPLITS, Collection, Rows, read_collection, read_table, split_word

__all__ = ["SeriesWindows", "Source", "read_series", "read_source"]

_SHARE = 0.15  # of the samples, for validation and for test each


@dataclass
class Source:
    """Splits of rows for one task.

    Attributes:
        splits: `"train"`, `"validation"` and, unless the data lacks it, `"test"`.
        classes: Names of the classes in the order of their numbers, of classification.
        targets: What regression predicts, or the channels of a forecast, by name.
        drawn: Whether the splits were drawn here.
    """

    splits: dict[str, Any]
    classes: list[str] | None = None
    targets: list[str] | None = None
    drawn: bool = False

    @property
    def id2label(self) -> dict[int, str] | None:
        """For the model's configuration."""
        return dict(enumerate(self.classes)) if self.classes else None


def read_source(
    data: str | PathLike,
    modality: str,
    *,
    task: str = "classification",
    label: str | None = None,
    column: str | None = None,
    classes: list[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    look_back: int = 96,
    horizon: int = 24,
    held_out: bool = False,
) -> Source:
    """Read what there is to learn, without reading any sample.

    Where the data names no splits, they are drawn: 15 % for validation and 15 % for test, of each class; of a series,
    its end. Where it names no validation, that is drawn from what is learned from.

    Args:
        data: As of `read_collection`.
        modality: What the samples are.
        task: `"classification"`, `"regression"` or `"forecasting"`.
        label: As of `read_collection`.
        column: As of `read_collection`; of forecasting, the column of time.
        classes: Of a model that is there; by default those found, by number or by name.
        seed: Of all that is drawn.
        limit: Most samples of a split, drawn at random.
        look_back: Steps that a forecast is made from.
        horizon: Steps to forecast.
        held_out: Whether nothing is learned from the data: no split is drawn then, and all of it is `"test"` unless it
            names splits.

    Returns:
        The splits.

    Raises:
        ValueError: As of `read_collection`; fewer than two classes, a class that the model does not know, labels that
            are no numbers, too few samples.
    """
    if task == "forecasting":
        found = _series(Path(data), column, look_back, horizon, held_out)
    else:
        collection = read_collection(data, modality, label=label, column=column)
        labels, names = _numbers(collection, task, classes)
        rows = Rows(modality, collection, labels)
        targets = label.split(",") if label and task == "regression" else None
        strata = labels if task == "classification" else np.zeros(len(rows), np.int64)
        found = Source({}, names, targets, drawn=collection.splits is None and not held_out)
        parts = _split(collection.splits, strata, seed, held_out)
        found.splits = {name: rows.select(own) for name, own in parts.items()}
    if limit:
        random = np.random.default_rng(seed)
        for name, part in found.splits.items():
            found.splits[name] = part.select(np.sort(random.permutation(len(part))[:limit]))
    if (
        not held_out
        and task == "classification"
        and classes is None
        and len(np.unique(found.splits["train"].labels)) < 2
    ):
        raise ValueError(f"{data}: what is learned from has one class only, {found.classes}; two are needed.")
    return found


def _numbers(collection: Collection, task: str, classes: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
    """Labels as numbers, and the names of classes."""
    raw = collection.labels or []
    if task != "classification":
        try:
            return np.asarray(raw, np.float32), None
        except (TypeError, ValueError) as error:
            raise ValueError(f"labels of {task} must be numbers ({error}); is this a classification?") from error
    words = [_word(each) for each in raw]
    if classes is None:
        classes = collection.classes or sorted(set(words), key=_order)
        if len(classes) < 2:
            raise ValueError(f"there is one class only, {classes}; two are needed to tell apart.")
    places = {name: number for number, name in enumerate(classes)}
    for place, word in enumerate(words):
        if word not in places:
            raise ValueError(f"{collection.names[place]}: the model has no class {word!r}, it has {classes}.")
    return np.array([places[word] for word in words], np.int64), classes


def _word(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _order(word: str) -> tuple[bool, int, str]:
    """Whole numbers by their value, in front of words."""
    number = word.lstrip("-").isdigit()
    return not number, int(word) if number else 0, word


def _split(given: list[str] | None, strata: np.ndarray, seed: int, held_out: bool) -> dict[str, np.ndarray]:
    """Numbers of samples by split."""
    if held_out:
        words = np.array(given or ["test"] * len(strata))
        return {name: np.flatnonzero(words == name) for name in SPLITS if (words == name).any()}
    random = np.random.default_rng(seed)
    parts = {"train": np.arange(len(strata))}
    if given is not None:
        words = np.array(given)
        parts = {name: np.flatnonzero(words == name) for name in SPLITS if (words == name).any()}
        if "train" not in parts:
            raise ValueError(f"no sample is in the split 'train', only in {list(parts)}.")
    for name in ("test", "validation") if given is None else ("validation",):
        if name not in parts:
            parts["train"], parts[name] = _draw(parts["train"], strata, random)
    return {name: parts[name] for name in SPLITS if name in parts}


def _draw(numbers: np.ndarray, strata: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What stays, and what is taken away: the same share of each class, at least one where there are three."""
    stay, taken = [], []
    for stratum in np.unique(strata[numbers]):
        own = random.permutation(numbers[strata[numbers] == stratum])
        count = max(round(_SHARE * len(own)), 1) if len(own) > 2 else 0
        taken.append(own[:count])
        stay.append(own[count:])
    if not sum(map(len, taken)):
        raise ValueError(f"{len(numbers)} samples are too few to draw a split from: three of a class are needed.")
    return np.sort(np.concatenate(stay)), np.sort(np.concatenate(taken))


class SeriesWindows(Dataset):
    """Windows of one long series: what is looked back on, and as labels what follows.

    Args:
        values: `(steps, channels)`.
        numbers: Where the windows begin.
        look_back: Steps of a sample.
        horizon: Steps of its label.
        place: What the series is called.

    Attributes:
        scale: From a label `(horizon, channels)` to what the model learns, `TimeSeriesProcessor.standardize`.
    """

    def __init__(self, values: np.ndarray, numbers: Any, look_back: int, horizon: int, place: str) -> None:
        self.modality, self.values, self.numbers = "time_series", values, np.asarray(numbers, np.int64)
        self.look_back, self.horizon, self.place = look_back, horizon, place
        self.scale: Any = lambda values: values

    def __getitem__(self, index: int) -> dict[str, Any]:
        now = int(self.numbers[index]) + self.look_back
        future = self.values[now : now + self.horizon]
        return {"time_series": self.values[now - self.look_back : now], "labels": self.scale(future)}

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return f"steps from {int(self.numbers[index]) + 1} of {self.place}"

    def select(self, numbers: Any) -> "SeriesWindows":
        return SeriesWindows(self.values, self.numbers[numbers], self.look_back, self.horizon, self.place)


def read_series(path: Path, time_column: str | None = None) -> tuple[Any, list[str] | None]:
    """A table of one long series.

    Args:
        path: Of the table.
        time_column: Dates, by which the rows are sorted already; by default the first column without numbers.

    Returns:
        A frame of channels, indexed by time where there is one; and the split of each row, if there is such a column.

    Raises:
        ValueError: No such column, one that is no number, or no channel.
    """
    tables = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if len(tables) != 1:
        raise ValueError(f"{path} holds {len(tables)} tables; name the one of the series.")
    frame = read_table(tables[0], "time_series")
    splits = [split_word(each, str(path)) for each in frame.pop("split")] if "split" in frame.columns else None
    words = [name for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    time = time_column or (words[0] if words else None)
    if time is not None and time not in frame.columns:
        raise ValueError(f"{path} has no column {time!r}; it has {list(frame.columns)}. Name the column of time.")
    if wrong := [name for name in words if name != time]:
        raise ValueError(f"{path}: the columns {wrong} are no numbers; a series has a column of time and channels.")
    frame = frame if time is None else frame.set_index(time)
    if not len(frame.columns):
        raise ValueError(f"{path} has no column of numbers to forecast.")
    return frame, splits


def _series(path: Path, time_column: str | None, look_back: int, horizon: int, held_out: bool) -> Source:
    frame, given = read_series(path, time_column)
    values, splits = frame.to_numpy(np.float64), np.array(given)
    starts = np.arange(len(values) - look_back - horizon + 1)
    if given is None:
        borders = np.array([1 - 2 * _SHARE, 1 - _SHARE]) * len(values)
        splits = np.array(list(SPLITS))[np.digitize(np.arange(len(values)), borders.round())]
        splits = np.full(len(values), "test") if held_out else splits
    parts: dict[str, Any] = {}
    known = np.isfinite(values).all(axis=1)
    seen = np.append(0, np.isfinite(values).any(axis=1).cumsum())
    observed = seen[starts + look_back] > seen[starts]
    for name in SPLITS:  # windows of which all that is to be forecast lies in the split, and is known
        own = np.append(0, ((splits == name) & known).cumsum())
        now = starts + look_back
        fits = (own[now + horizon] - own[now] == horizon) & observed
        if fits.any():
            parts[name] = SeriesWindows(values, starts[fits], look_back, horizon, str(path))
    needed = set() if held_out and parts else {"test"} if held_out else {"train", "validation"}
    if absent := needed - set(parts):
        raise ValueError(
            f"{path} has {len(values)} steps: no window of {look_back} and {horizon} for {sorted(absent)}; give more "
            "steps, or a shorter look-back or horizon."
        )
    return Source(parts, targets=[str(each) for each in frame.columns], drawn=given is None and not held_out)
