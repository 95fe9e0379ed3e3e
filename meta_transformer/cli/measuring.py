"""The work of `evaluate`."""

from pathlib import Path
from typing import Any

from ..training import DataCollatorForMetaTransformer
from ..training.splits import read_source
from .batches import evaluate_rows
from .building import METRICS
from .console import pairs, say
from .models import load_task, only_modality
from .pictures import picture_for
from .runs import digest, report, write_json

__all__ = ["evaluate_model"]


def evaluate_model(
    name: str,
    data: str,
    split: str,
    output: Path | None,
    *,
    label: str | None,
    column: str | None,
    batch_size: int,
    encoder: str | None,
) -> None:
    """Print the metrics of a split, and write them with a picture.

    Args:
        name: Of the model.
        data: As of `read_source`. That of training has the splits of training; of other data without splits all counts.
        split: One of them.
        output: A folder; by default one in that of the model, or here, of the split's name, or of other data's.
        label: Column, by default that of training.
        column: Likewise.
        batch_size: Samples of a batch.
        encoder: Trunk of a task pack.

    Raises:
        ValueError: There is no such split, the model solves a task that is not measured here, or the data of training
            has changed, so that splits drawn anew would be others.
    """
    model, processor, run = load_task(name, encoder)
    task = model.head_name
    if task not in METRICS:
        raise ValueError(f"evaluate measures {list(METRICS)}; for {task} see docs/tasks.")
    classes = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    known = "data" in run and Path(run["data"]).resolve() == Path(data).resolve()
    options: dict[str, Any] = {
        "task": task,
        "label": label or run.get("label"),
        "column": column or run.get("column"),
        "classes": classes if task == "classification" else None,
        "seed": run.get("seed", 0),
        "look_back": run.get("look_back", 96),
        "horizon": getattr(model.head.config, "horizon", 24),
        "held_out": not known,
    }
    modality = only_modality(processor, run.get("modality"))
    source = read_source(data, modality, **options)
    if source.drawn and digest(read_source(data, modality, **options, limit=run.get("limit"))) != run["digest"]:
        raise ValueError(
            f"{data} has changed since the model was trained on it: splits drawn anew would hold samples that it has "
            "learned from. Evaluate on a folder or table of samples that were kept apart."
        )
    if split not in source.splits:
        raise ValueError(f"{data} has no split {split!r}, it has {list(source.splits)}.")
    rows = source.splits[split]
    if task == "forecasting":
        series: Any = processor.time_series
        rows.scale = lambda values: series.standardize(values).numpy()
    if source.drawn:
        say(f"The data names no splits: they are drawn as in training, from seed {run.get('seed', 0)}.")
    collator = DataCollatorForMetaTransformer.for_model(model, processor, **pairs(run.get("call", []), "--call"))
    picture = picture_for(task, model, rows, processor)
    metrics = evaluate_rows(model, collator, rows, batch_size, picture, f"Evaluating {split}")
    results = {"model": name, "data": data, "split": split, "samples": len(rows), "metrics": metrics}
    results["baseline"] = picture.baseline()
    folder = output or (Path(name) if Path(name).is_dir() else Path(".")) / (split if known else Path(data).stem)
    write_json(folder / "results.json", results)
    picture.save(folder)
    report(results)
    say(f"Written to {folder}: results.json, {picture.name}")
