"""Several data sets, each of a task of its own, as one: rows for a multi-task model, and batches of one task each.

{task: data set} -> TaskMixture -> TemperatureBatchSampler -> collator -> MetaTransformerForMultiTask
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Sampler, Subset

__all__ = ["TaskMixture", "TemperatureBatchSampler"]

_LABEL_NAMES = ("labels", "label", "label_ids")


class TaskMixture(Dataset):
    """Data sets of several tasks, end to end.

    Args:
        datasets: By task, what gives a row by its number and has a length: a list, a `torch.utils.data.Dataset`, a
            `datasets.Dataset`. A row is a raw sample by modality with its label under `labels`, `label` or `label_ids`.
        model: That is to be trained, so that tasks it does not have are noticed here.

    Attributes:
        ranges: By task, the numbers of its rows here.

    Raises:
        TypeError: A data set without rows by number or without a length, or a model of one task.
        ValueError: No data set, an empty one, or a task that the model does not have.
    """

    def __init__(self, datasets: Mapping[str, Any], model: nn.Module | None = None) -> None:
        if not datasets:
            raise ValueError("datasets must hold a data set for at least one task, got none.")
        self.datasets, self.ranges, start = dict(datasets), {}, 0
        for task, dataset in self.datasets.items():
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise TypeError(
                    f"the data set of task {task!r} must give rows by number and have a length, got "
                    f"{type(dataset).__name__}; make a list of what comes as a stream."
                )
            if not len(dataset):
                raise ValueError(f"the data set of task {task!r} is empty; leave the task out.")
            self.ranges[task] = range(start, start + len(dataset))
            start += len(dataset)
        self._starts = [numbers.start for numbers in self.ranges.values()]
        if model is not None:
            self.check(model)

    def check(self, model: nn.Module) -> None:
        """Refuse tasks that a model does not have."""
        known = list(tasks_of(model))
        if unknown := [task for task in self.datasets if task not in known]:
            raise ValueError(f"the mixture has tasks {unknown}, which the model has not; it has {known}.")

    def __len__(self) -> int:
        return sum(map(len, self.ranges.values()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row with its label under `labels`, as `{task: label}`."""
        index = range(len(self))[index]  # which knows negative numbers and refuses those out of range
        task = list(self.ranges)[bisect_right(self._starts, index) - 1]
        row = dict(self.datasets[task][index - self.ranges[task].start])
        name = next((name for name in _LABEL_NAMES if name in row), None)
        if name is None:
            raise ValueError(f"a row of task {task!r} has the keys {sorted(row)}, but no label under 'labels'.")
        label = row.pop(name)
        return {**row, "labels": {task: label}}

    def part(self, task: str) -> Subset:
        """The rows of one task."""
        return Subset(self, self.ranges[task])


def tasks_of(model: nn.Module) -> dict[str, Any]:
    """Configurations of a model's tasks by name."""
    config: Any = getattr(getattr(model, "head", None), "config", None)
    if not hasattr(config, "tasks"):
        raise TypeError(f"model must have several tasks, as MetaTransformerForMultiTask, got {type(model).__name__}.")
    return config.tasks


class TemperatureBatchSampler(Sampler[list[int]]):
    """Batches of one task each, the task drawn by temperature-scaled mixing.

    Task `t` of `n_t` samples is drawn with a probability proportional to `min(n_t, size_limit) ** (1 / temperature)`
    (Raffel et al. 2020, section 3.5.2; Arivazhagan et al. 2019, section 4.2). Temperature 1 keeps the proportions of
    the sizes, infinity makes all tasks equally likely. Rates are those of batches, whatever their sizes.

    Within a task samples come without replacement; when all have come, in a new order. That goes on from epoch to epoch
    and follows from `seed` and the epoch alone.

    Args:
        mixture: What to draw from.
        batch_size: Of all tasks, or by task.
        temperature: See above; `float("inf")` is allowed.
        size_limit: Above which the size of a task counts no further: the limit `K` of Raffel et al. It limits how
            often the task comes, not which of its samples do.
        num_batches: Of an epoch; by default as many as hold, on average, as many samples as the mixture has.
        drop_last: Leave out the batch at the end of a task's order if it is short.
        seed: Of all choices.

    Attributes:
        rates: Probability of each task.

    Raises:
        ValueError: Numbers out of range, or batch sizes of other tasks than the mixture's.
    """

    def __init__(
        self,
        mixture: TaskMixture,
        batch_size: int | Mapping[str, int],
        *,
        temperature: float = 1.0,
        size_limit: int | None = None,
        num_batches: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        sizes = {task: len(numbers) for task, numbers in mixture.ranges.items()}
        self.batch_sizes = dict(batch_size) if isinstance(batch_size, Mapping) else dict.fromkeys(sizes, batch_size)
        if self.batch_sizes.keys() != sizes.keys():
            raise ValueError(f"batch_size must name the tasks {list(sizes)}, got {list(self.batch_sizes)}.")
        for name, value in (("batch_size", min(self.batch_sizes.values())), ("size_limit", size_limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not temperature > 0:
            raise ValueError(
                f"temperature must be above 0, got {temperature}; 1 keeps proportions, more evens them out."
            )
        if seed < 0 or (num_batches is not None and num_batches < 1):
            raise ValueError(f"seed must be at least 0 and num_batches at least 1, got {seed} and {num_batches}.")
        if drop_last and (short := [task for task in sizes if sizes[task] < self.batch_sizes[task]]):
            raise ValueError(f"drop_last leaves nothing of tasks {short}, which are smaller than one batch.")
        self.mixture, self.drop_last, self.seed, self.epoch = mixture, drop_last, seed, 0
        limited = np.array([min(size, size_limit or size) for size in sizes.values()], np.float64)
        scaled = (limited / limited.max()) ** (1 / temperature)
        self.rates: dict[str, float] = dict(zip(sizes, (scaled / scaled.sum()).tolist(), strict=True))
        self._lengths: dict[str, int] = {}  # batches of one pass over a task
        samples = 0.0  # of a batch, on average
        for task, rate in self.rates.items():
            batches = self._batches(task, turn=0)
            self._lengths[task] = len(batches)
            samples += rate * sum(map(len, batches)) / len(batches)
        self.num_batches = num_batches or max(1, round(len(mixture) / samples))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Numbers of the mixture's rows."""
        random = np.random.default_rng(self.seed)
        given = np.zeros(len(self.rates), np.int64)  # batches of each task in earlier epochs
        for _ in range(self.epoch):
            given += np.bincount(self._draw(random), minlength=len(given))
        streams = [self._stream(task, int(count)) for task, count in zip(self.rates, given, strict=True)]
        for number in self._draw(random).tolist():
            yield next(streams[number])

    def _stream(self, task: str, start: int) -> Iterator[list[int]]:
        """Batches of a task without end, from the `start`-th on."""
        turn, place = divmod(start, self._lengths[task])
        while True:
            yield from self._batches(task, turn)[place:]
            turn, place = turn + 1, 0

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        """Numbers of the tasks of an epoch's batches."""
        return random.choice(len(self.rates), size=self.num_batches, p=list(self.rates.values()))

    def _batches(self, task: str, turn: int) -> Sequence[list[int]]:
        """All batches of a task in the order of its `turn`-th time."""
        seeds = (self.seed, list(self.mixture.ranges).index(task), turn)
        order = np.random.default_rng(seeds).permutation(self.mixture.ranges[task]).tolist()
        size = self.batch_sizes[task]
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return batches[:-1] if self.drop_last and len(batches[-1]) < size else batches
