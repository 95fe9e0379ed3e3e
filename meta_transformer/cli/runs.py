"""One training run: from a source to a folder with the model, its results and a picture, in steps that resume."""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import set_seed

from ..checkpoints.model_card import is_hub_name
from ..registry import MODALITIES
from ..training import DataCollatorForMetaTransformer, last_checkpoint, resume
from ..training.splits import Source, read_source
from .batches import check_rows, evaluate_rows
from .building import METRICS, SIZES, TrainSettings, make_model, make_processor, make_trainer
from .console import pairs, print_rows, say
from .defaults import defaults_for
from .pictures import picture_for

__all__ = [
    "RESULTS_FILE",
    "RUN_FILE",
    "digest",
    "make_folder",
    "parameter_rows",
    "quiet",
    "report",
    "run_training",
    "write_json",
]

RUN_FILE, RESULTS_FILE = "run.json", "results.json"


def quiet() -> None:
    """Keep transformers from talking between our lines."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def run_training(settings: TrainSettings) -> int:
    """Train, or go on with it, or say that it is done.

    Returns:
        The exit status: 0 when the run is finished, 130 when Ctrl-C stopped it.

    Raises:
        ValueError: The data cannot be used, or the folder holds a run of other settings.
    """
    quiet()
    _check(settings)
    folder = settings.output
    if settings.fresh and (folder / RUN_FILE).exists():
        _forget(folder)
    if (folder / RESULTS_FILE).exists():
        _compare(settings, folder, None)
        say(f"This run is finished, see {folder}. --fresh starts over.")
        report(json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8")))
        return 0
    source = read_source(
        settings.data,
        settings.modality,
        task=settings.task,
        label=settings.label,
        column=settings.column,
        seed=settings.seed,
        limit=settings.limit,
        look_back=settings.look_back,
        horizon=settings.horizon,
    )
    _compare(settings, folder, digest(source))
    return _train(settings, source)


def _check(settings: TrainSettings) -> None:
    if settings.modality not in MODALITIES:
        raise ValueError(f"--modality must be one of {MODALITIES.names()}, got {settings.modality!r}.")
    if settings.task not in METRICS:
        raise ValueError(f"--task must be one of {list(METRICS)}, got {settings.task!r}.")
    if settings.task == "forecasting" and settings.modality != "time_series":
        raise ValueError(f"--task forecasting is for --modality time_series, got {settings.modality!r}.")
    if settings.size not in SIZES:
        raise ValueError(f"--size must be one of {list(SIZES)}, got {settings.size!r}.")
    if settings.class_weights not in (None, "balanced"):
        raise ValueError(f"--class-weights must be 'balanced', got {settings.class_weights!r}.")
    if settings.class_weights and settings.task != "classification":
        raise ValueError(f"--class-weights is for classification, got --task {settings.task}; leave it out.")


def _forget(folder: Path) -> None:
    """Results first: without them nothing takes what is left for a finished run."""
    for name in (RESULTS_FILE, RUN_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "trainer", ignore_errors=True)


def digest(source: Source) -> str:
    """A hash of which samples there are in which split, and how they are called."""
    found = hashlib.sha256(json.dumps([source.classes, source.targets]).encode())
    for name, rows in source.splits.items():
        found.update(f"{name} {len(rows)}".encode())
        for index in range(len(rows)):
            found.update(rows.name(index).encode())
        found.update(np.asarray(getattr(rows, "labels", rows.numbers)).tobytes())
    return found.hexdigest()


def _compare(settings: TrainSettings, folder: Path, samples: str | None) -> None:
    """Write what the run is, or refuse to go on with another one."""
    path = folder / RUN_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    begun = (folder / RESULTS_FILE).exists() or any((folder / "trainer").glob("checkpoint-*"))
    if known is None or not begun:  # one that was refused before it learned anything is no run
        write_json(path, {**settings.identity(), "digest": samples})
        return
    now = {**settings.identity(), "digest": samples or known["digest"]}
    other = {name: known.get(name) for name in now if known.get(name) != now[name]}
    if other:
        told = ", ".join("other samples" if name == "digest" else f"{name} {value!r}" for name, value in other.items())
        raise ValueError(f"{folder} holds a run with {told}. Give it another --output, or start it over with --fresh.")


def _train(settings: TrainSettings, source: Source) -> int:
    folder, start = settings.output, time.perf_counter()
    drawn = "drawn here" if source.drawn else "as the data says"
    say(", ".join(f"{len(rows):,} {name}" for name, rows in source.splits.items()) + f" ({drawn})")
    set_seed(settings.seed)
    defaults = defaults_for(settings.modality, settings.task, source, settings.look_back, settings.horizon)
    processor, call = make_processor(settings, source, defaults), pairs(settings.call, "--call")
    checkpoint = last_checkpoint(folder / "trainer")
    if settings.check and checkpoint is None:
        check_rows(source.splits, processor, call)
    model = make_model(settings, source, processor, defaults)
    collator = DataCollatorForMetaTransformer.for_model(model, processor, **call)
    trainer, stop = make_trainer(settings, model, collator, source, defaults)
    if checkpoint:
        say(f"Going on from {checkpoint}")
    print_rows("", ("part", "trained", "frozen"), parameter_rows(model))
    fingerprint = model.encoder_fingerprint()
    resume(trainer, checkpoint)
    if stop.asked and trainer.state.global_step < trainer.state.max_steps:
        say(f"Stopped and saved at step {trainer.state.global_step:,} of {trainer.state.max_steps:,}.")
        say(f"The same command goes on: meta-transformer {' '.join(sys.argv[1:])}")
        return 130
    if settings.freeze == "all" and model.encoder_fingerprint() != fingerprint:
        raise RuntimeError("The frozen trunk has changed during training.")
    reported = "test" if "test" in source.splits else "validation"
    rows = source.splits[reported]
    picture = picture_for(settings.task, model, rows, processor)
    metrics = evaluate_rows(model, collator, rows, trainer.args.eval_batch_size, picture, "Evaluating")
    results = {
        "split": reported,
        "samples": len(rows),
        "metrics": metrics,
        "baseline": picture.baseline(),
        "best_validation": METRICS[settings.task][1] * (trainer.state.best_metric or 0.0),
        "steps": trainer.state.global_step,
        "trained_parameters": model.parameter_summary().trainable,
        "encoder_fingerprint": model.encoder_fingerprint(),
        "datasets": [settings.data] if is_hub_name(settings.data) else [],
        "seconds": time.perf_counter() - start,
    }
    metrics = {name: round(each, 4) for name, each in metrics.items()}
    model.save_pretrained(folder, processor=processor, metrics=metrics, datasets=results["datasets"])
    picture.save(folder)
    write_json(folder / RESULTS_FILE, results)  # last: it says that all is there
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    report(results)
    say(f"Written to {folder}: the model with its processor and card, {RESULTS_FILE}, {picture.name}")
    return 0


def parameter_rows(model: Any) -> list[tuple[str, str, str]]:
    """Of a table: parts, and how many of their parameters train and are frozen."""
    summary = model.parameter_summary()
    rows = [(group.name, f"{group.trainable:,}", f"{group.frozen:,}") for group in summary]
    return [*rows, ("total", f"{summary.trainable:,}", f"{summary.frozen:,}")]


def report(results: dict[str, Any]) -> None:
    """A table of metrics, of which split they are, and what to compare them with."""
    rows = [*results["metrics"].items(), *results.get("baseline", {}).items()]
    print_rows(f"{results['split']}, {results['samples']:,} samples", ("metric", "value"), rows)


def make_folder(folder: Path) -> None:
    """Make the folder of an output, if it is not there.

    Raises:
        ValueError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}); choose another --output.") from error


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(unfinished, path)
