"""Batches of samples some of which cannot be read, and what a model makes of them."""

from collections.abc import Iterator
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from ..processing import MetaTransformerProcessor
from ..training import DataCollatorForMetaTransformer
from .console import progress

__all__ = ["check_rows", "device_of", "evaluate_rows", "read_batches", "to_device"]

_ERRORS = (ValueError, TypeError, OSError)  # of a sample that cannot be read
_SHOWN = 10


def read_batches(rows: Any, collator: Any, size: int) -> Iterator[tuple[list[int], Any, list[tuple[int, str]]]]:
    """Batches in the order of the rows.

    Args:
        rows: With a length, by number, as of `Rows`.
        collator: From a list of rows to a batch.
        size: Most rows of a batch.

    Yields:
        The numbers of the rows that the batch holds; the batch, `None` if none could be read; and the others with why.
    """
    for start in range(0, len(rows), size):
        numbers, errors, samples = [], [], []
        for number in range(start, min(start + size, len(rows))):
            try:
                samples.append(rows[number])
                numbers.append(number)
            except _ERRORS as error:
                errors.append((number, str(error)))
        try:
            yield numbers, collator(samples) if samples else None, errors
            continue
        except _ERRORS as error:
            whole = error
        good = []
        for number, sample in zip(numbers, samples, strict=True):
            try:
                collator([sample])
                good.append((number, sample))
            except _ERRORS as error:
                errors.append((number, str(error)))
        if len(good) == len(samples):
            raise whole  # each can be read, but not together
        yield [number for number, _ in good], collator([each for _, each in good]) if good else None, sorted(errors)


class _Checked:
    """A collator that stops at what cannot be read, and names it."""

    def __init__(self, rows: Any, collator: Any, size: int, bar: Progress | None, title: str) -> None:
        self.rows, self.collator, self.size, self.bar = rows, collator, size, bar
        self.task = bar.add_task(title, total=len(rows)) if bar else None

    def __iter__(self) -> Iterator[tuple[list[int], Any]]:
        for numbers, batch, errors in read_batches(self.rows, self.collator, self.size):
            refuse([f"{self.rows.name(number)}: {error}" for number, error in errors])
            yield numbers, batch
            if self.bar is not None and self.task is not None:
                self.bar.advance(self.task, len(numbers))


def refuse(problems: list[str]) -> None:
    """Raise `ValueError` with what could not be read, if there is anything."""
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError("cannot be read, mend or remove:\n" + "\n".join(problems[:_SHOWN]) + more)


def check_rows(splits: dict[str, Any], processor: MetaTransformerProcessor, call: dict[str, Any]) -> None:
    """Read every sample once, before hours of training meet the one that cannot be read.

    Raises:
        ValueError: Some cannot be read; the first ten are named.
    """
    collator, problems = DataCollatorForMetaTransformer(processor, call, collate_labels=list), []
    with progress() as bar:
        for name, rows in splits.items():
            task = bar.add_task(f"Reading {name}", total=len(rows))
            for numbers, _, errors in read_batches(rows, collator, 16):
                problems += [f"{rows.name(number)}: {error}" for number, error in errors]
                bar.advance(task, len(numbers) + len(errors))
    if problems and len(problems) == sum(map(len, splits.values())):
        modality = next(iter(processor.processors))
        raise ValueError(f"no sample can be read as {modality}; is --modality right? {problems[0]}")
    refuse(problems)


@torch.no_grad()
def evaluate_rows(model: Any, collator: Any, rows: Any, size: int, picture: Any, title: str) -> dict[str, float]:
    """The loss and the task's usual metrics.

    Args:
        model: Of a task; it is left in evaluation mode.
        collator: Of the model.
        rows: With labels.
        size: Samples of a batch.
        picture: Its `add(numbers, output, labels)` takes each batch in; see `pictures.py`.
        title: Of the progress.

    Returns:
        Metrics by name, the loss first.

    Raises:
        ValueError: A sample cannot be read; it is named.
    """
    from transformers import EvalPrediction

    model.eval()
    metrics, total, seen, found = model.metrics(), 0.0, 0, {}
    ignored = model.config.keys_to_ignore_at_inference
    with progress() as bar:
        for numbers, batch in _Checked(rows, collator, size, bar, title):
            output = model(**to_device(batch, device_of(model)))
            seen += len(numbers)
            total += output["loss"].item() * len(numbers)
            values = tuple(output[name] for name in output if name != "loss" and name not in ignored)
            prediction = EvalPrediction(values[0] if len(values) == 1 else values, batch["labels"])
            found = metrics(prediction, compute_result=seen == len(rows))
            picture.add(numbers, output, batch["labels"])
    return {"loss": total / seen, **found}


def device_of(model: Any) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of a batch on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
