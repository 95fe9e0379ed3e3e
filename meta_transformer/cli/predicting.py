"""The work of `predict`: records of what a model says about files, rows of a table, or text as such."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..extras import needs
from ..training import DataCollatorForMetaTransformer
from ..training.sources import Collection, Rows, files_below, is_table, read_collection, read_file
from ..training.splits import read_series
from .batches import device_of, read_batches, to_device
from .console import pairs, print_rows, progress, say
from .models import load_task, only_modality
from .runs import make_folder

__all__ = ["PROBABILITY", "predict_files", "records_of", "rows_of"]

PROBABILITY = "probability of "  # in front of the name of a class, a column
_SHOWN = 20
_ENDINGS = (".csv", ".jsonl", ".parquet")
# Modalities of which a table may be one sample.
_SERIES = ("time_series", "imu")


def predict_files(
    name: str,
    files: list[str],
    output: Path | None,
    *,
    column: str | None,
    batch_size: int,
    encoder: str | None,
    look_back: int | None,
    call: list[str],
) -> int:
    """Predict, print a few of the predictions, and write all of them.

    Args:
        name: Of the model.
        files: As of `rows_of`.
        output: A file; `None` prints alone.
        column: Column of the samples in a table; of a series, that of time.
        batch_size: Samples of a batch.
        encoder: Trunk of a task pack.
        look_back: Steps that a forecast is made from, by default those of training.
        call: Arguments of the processor's call, `name=value`.

    Returns:
        The exit status: 1 if some of the samples could not be read.

    Raises:
        ValueError: An output of another ending, or nothing to predict.
    """
    if output is not None and output.suffix.lower() not in _ENDINGS:
        raise ValueError(f"--output must end in one of {list(_ENDINGS)}, got {output}.")
    if output is not None:
        make_folder(output.parent)
    model, processor, run = load_task(name, encoder)
    modality = only_modality(processor, run.get("modality"))
    if model.head_name == "forecasting":
        rows = _last_steps(files, look_back or run.get("look_back", 96), column or run.get("column"))
    else:
        rows = rows_of(files, modality, column or run.get("column"), run.get("label"))
    options = pairs([*run.get("call", []), *call], "--call")
    collator = DataCollatorForMetaTransformer(processor, options)
    records: list[dict[str, Any]] = []
    problems: list[str] = []
    with progress() as bar:
        task = bar.add_task("Predicting", total=len(rows))
        for numbers, batch, errors in read_batches(rows, collator, batch_size):
            problems += [f"{rows.name(number)}: {error}" for number, error in errors]
            if batch is not None:
                for number, found in zip(numbers, _predict(model, batch), strict=True):
                    records += records_of(rows.name(number), found, processor)
            bar.advance(task, len(numbers) + len(errors))
    _show(records, model.head_name)
    if output is not None:
        _write(output, records)
        say(f"Written: {len(records):,} rows to {output}")
    for problem in problems:
        say(f"Not predicted: {problem}")
    if problems:
        say(f"{len(problems)} of {len(rows)} could not be read.")
    return 1 if problems else 0


def rows_of(files: list[str], modality: str, column: str | None = None, label: str | None = None) -> Rows:
    """Samples without labels.

    Args:
        files: One folder, table, or data set; or files; or, of text and graphs, samples as such.
        modality: What they are.
        column: Column of the samples in a table.
        label: Column that is not a feature.
    """
    path, several = Path(files[0]), len(files) > 1
    if not several and path.is_dir() and not (path / "dataset_info.json").exists():
        found = list(files_below(path, ordered=True))
        tables = [each for each in found if is_table(each)]
        if len(tables) != 1 or modality in _SERIES:
            if not found:
                raise ValueError(f"{path} holds no files.")
            return Rows(modality, Collection(found, found, read=lambda file: read_file(modality, file)))
    single_sample = path.is_file() and (not is_table(path) or modality in _SERIES)
    if path.suffix and path.parent.is_dir() and not path.exists() and modality not in ("text", "graph"):
        raise ValueError(f"there is no file {path}.")
    literal = modality in ("text", "graph") and not path.exists()
    if several or single_sample or literal:
        return Rows(modality, Collection(files, files, read=lambda file: _read(modality, file)))
    return Rows(modality, read_collection(path, modality, label=label, column=column, labelled=False))


def _read(modality: str, sample: str) -> Any:
    """A file; text and SMILES as they were typed, if there is no such file."""
    if modality in ("text", "graph") and not Path(sample).is_file():
        return sample
    if not Path(sample).is_file():
        raise ValueError("there is no such file.")
    return read_file(modality, sample)


def _last_steps(files: list[str], look_back: int, time_column: str | None) -> Rows:
    """The end of each series, as values `(look_back, channels)`."""
    values = []
    for file in files:
        series = read_series(Path(file), time_column)[0].to_numpy(np.float64)
        if len(series) < look_back:
            raise ValueError(f"{file} has {len(series)} steps; the model looks back on {look_back}.")
        values.append(series[-look_back:])
    return Rows("time_series", Collection(values, files))


@torch.no_grad()
def _predict(model: Any, batch: dict[str, Any]) -> list[Any]:
    return model.post_process(model(**to_device(batch, device_of(model))))


def records_of(name: str, found: Any, processor: Any) -> Iterator[dict[str, Any]]:
    """Flat records of one sample: one, or one for each step of a forecast."""
    if isinstance(found, dict) and "forecast" in found:
        series = processor.time_series
        values = series.restore(found["forecast"])
        channels = series.channels or [f"channel_{number}" for number in range(values.shape[1])]
        for step, row in enumerate(values.tolist(), start=1):
            yield {"path": name, "step": step, **dict(zip(channels, row, strict=True))}
    elif isinstance(found, dict):
        yield {"path": name, **found}
    elif found and isinstance(found[0], dict) and "score" in found[0]:
        best = {"prediction": found[0]["label"], "probability": found[0]["score"]}
        scores = {f"{PROBABILITY}{each['label']}": each["score"] for each in found}
        yield {"path": name, **best, **dict(sorted(scores.items()))}
    else:
        raise ValueError("predict knows classes, numbers and forecasts; for other tasks use model.post_process.")


def _show(records: list[dict[str, Any]], task: str) -> None:
    if not records:
        return
    columns = list(records[0])[: 3 if task == "classification" else 8]
    shown = [[record[name] for name in columns] for record in records[:_SHOWN]]
    more = f", the first {_SHOWN} of {len(records):,}" if len(records) > _SHOWN else ""
    print_rows(f"Predictions{more}", columns, shown)


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    if path.suffix.lower() == ".jsonl":
        unfinished.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        with needs("pandas and pyarrow to write tables", "cli"):
            import pandas
        table = pandas.DataFrame(records)
        table.to_csv(unfinished, index=False) if path.suffix.lower() == ".csv" else table.to_parquet(unfinished)
    os.replace(unfinished, path)
