"""One frozen transformer learns three tasks from three kinds of data: images, a table, sound.

    python examples/01_frozen_transfer.py                                # a tiny trunk of random weights, no download
    python examples/01_frozen_transfer.py --encoder timm/vit_tiny_patch16_224.augreg_in21k

For each task a tokenizer in front of the trunk and a head behind it are trained, nothing else. The three checkpoints
are saved, loaded again in a fresh process, and must predict the same. Prints a table, and writes it with a plot and the
checkpoints under `outputs/01_frozen_transfer`.

`--encoder` takes whatever `from_pretrained` takes: a hub name or a folder of timm, transformers or OpenCLIP weights, a
Meta-Transformer `.pth`, or a checkpoint of this package.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import Trainer, TrainingArguments, logging, set_seed

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.training import DataCollatorForMetaTransformer

console = Console()


@dataclass
class Task:
    """Raw samples of one modality with labels, split, and how long to train on them."""

    name: str
    modality: str
    train: tuple[list, list[int]]
    test: tuple[list, list[int]]
    classes: list[str]
    epochs: int
    learning_rate: float
    features: tuple[np.ndarray, np.ndarray]  # what the scikit-learn baseline sees of train and test
    tokenizer: dict[str, Any]
    call: dict[str, Any]
    settings: dict[str, Any]


# 1. Three data sets, as their owners have them: arrays, a data frame, WAV files
def handwritten_digits() -> Task:
    data = load_digits()
    split = train_test_split(data.images / 16, data.target, test_size=0.25, random_state=0, stratify=data.target)
    train, test, train_labels, test_labels = split
    return Task(
        "written digits",
        "image",
        (list(train), train_labels.tolist()),
        (list(test), test_labels.tolist()),
        [str(digit) for digit in range(10)],
        epochs=12,
        learning_rate=8e-3,
        features=(train.reshape(len(train), -1), test.reshape(len(test), -1)),
        tokenizer={"patch_size": 2, "image_size": 8},  # 8 x 8 pixels: 16 tokens
        call={},
        settings={"num_channels": 1},
    )


def breast_cancer_table() -> Task:
    data = load_breast_cancer(as_frame=True)
    split = train_test_split(data.data, data.target, test_size=0.25, random_state=0, stratify=data.target)
    train, test, train_labels, test_labels = split
    return Task(
        "breast cancer",
        "tabular",
        (train.to_dict("records"), train_labels.tolist()),
        (test.to_dict("records"), test_labels.tolist()),
        data.target_names.tolist(),
        epochs=5,
        learning_rate=2e-3,
        features=(train.to_numpy(), test.to_numpy()),
        tokenizer={},
        call={},
        settings={},
    )


def spoken_digits() -> Task:
    clips, rate, source = _recordings() or _tones()
    parts = {split: [(wave, label) for wave, label, part in clips if part == split] for split in ("train", "test")}
    train, test = (([wave for wave, _ in part], [label for _, label in part]) for part in parts.values())
    settings = {"num_mel_bins": 64}
    summary = MetaTransformerProcessor(audio=True).audio

    def statistics(waves: list[np.ndarray]) -> np.ndarray:
        """Mean and deviation over time of each mel bin, what a person would give a linear model."""
        frames = [summary([wave], sampling_rate=rate)["input_features"][0].numpy() for wave in waves]
        return np.stack([np.concatenate([each.mean(axis=0), each.std(axis=0)]) for each in frames])

    return Task(
        source,
        "audio",
        train,
        test,
        [str(digit) for digit in range(10)],
        epochs=12,
        learning_rate=4e-3,
        features=(statistics(train[0]), statistics(test[0])),
        tokenizer={"patch_size": [64, 8], "stride": [64, 4]},  # all frequencies of 80 ms, a token every 40 ms
        call={"sampling_rate": rate},
        settings=settings,
    )


def _recordings() -> tuple[list, int, str] | None:
    """The Free Spoken Digit Dataset, if the data folder is there."""
    folder = Path(os.environ.get("META_TRANSFORMER_DATA") or "no-data", "audio", "fsdd_small")
    if not folder.is_dir():
        return None
    import soundfile

    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    clips = [
        (soundfile.read(folder / row["path"], dtype="float32")[0], int(row["label"]), row["split"]) for row in rows
    ]
    return clips, soundfile.info(folder / rows[0]["path"]).samplerate, "spoken digits"


def _tones() -> tuple[list, int, str]:
    """Stand-in for recordings: each class a chord of its own, at random pitch, length and loudness, in noise."""
    random, rate, clips = np.random.default_rng(0), 8000, []
    for index in range(1000):
        label = index % 10
        time_axis = np.arange(int(rate * random.uniform(0.2, 0.6))) / rate
        pitch = random.uniform(200, 260)
        wave = sum(np.sin(2 * np.pi * pitch * ratio * time_axis) for ratio in (1, 1.2 + 0.1 * label, 3 + 0.3 * label))
        wave = random.uniform(0.05, 0.3) * wave + random.normal(0, 0.05, time_axis.shape)
        clips.append((wave.astype(np.float32), label, "test" if index >= 750 else "train"))
    return clips, rate, "generated tones"


TASKS = {"digits": handwritten_digits, "table": breast_cancer_table, "speech": spoken_digits}


# 2. One trunk for all three
def trunk_folder(encoder: str | None, output: Path) -> str:
    """The weights that all tasks load: those asked for, or random ones, saved once."""
    if encoder is not None:
        return encoder
    # Wider than the usual 0.02: blocks that are never trained should mix tokens, not pass them through unchanged.
    config = MetaTransformerConfig.tiny(modalities={"image": {"num_channels": 1, "patch_size": 2, "image_size": 8}})
    config.initializer_range = 0.1
    MetaTransformerModel(config).save_pretrained(output / "trunk")
    return str(output / "trunk")


# 3. Train a tokenizer and a head per task
def train(task: Task, trunk: str, folder: Path) -> dict[str, Any]:
    """Train, evaluate, save; return the row of the table."""
    processor_class = MetaTransformerProcessor(**{task.modality: True}).processors[task.modality].__class__
    processor = processor_class(**task.settings)
    processor.fit(_raw(task.train[0], task.modality), **task.call)
    options = {**processor.tokenizer_config(), **task.tokenizer}
    processor = MetaTransformerProcessor(**{task.modality: processor})
    model = MetaTransformerForClassification.from_pretrained(
        trunk,
        modalities={task.modality: options},
        id2label=dict(enumerate(task.classes)),
        heads={"classification": {"pooling": "mean"}},
    )
    before, start = model.encoder_fingerprint(), time.perf_counter()
    trainer = Trainer(
        model,
        TrainingArguments(
            folder / "trainer",
            num_train_epochs=task.epochs,
            per_device_train_batch_size=64,
            learning_rate=task.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.01,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            remove_unused_columns=False,
            logging_steps=5,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=_dataset(task.train, task.modality),
        data_collator=DataCollatorForMetaTransformer(processor, task.call),
    )
    trainer.train()
    seconds = time.perf_counter() - start
    predictions = predict(model.eval(), processor, task)
    accuracy = accuracy_score(task.test[1], predictions)
    if model.encoder_fingerprint() != before:
        raise RuntimeError("The frozen trunk has changed during training.")
    model.save_pretrained(folder, processor=processor, metrics={"accuracy": accuracy})
    summary = model.parameter_summary()
    majority, linear = _baselines(task)
    return {
        "task": task.name,
        "modality": task.modality,
        "accuracy": accuracy,
        "scikit-learn": linear,
        "majority": majority,
        "trainable": summary.trainable,
        "frozen": summary.frozen,
        "seconds": seconds,
        "fingerprint": before,
        "predictions": predictions,
        "loss": [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log],
    }


def _raw(samples: list, modality: str) -> Any:
    """Samples in the form that `fit` takes: a table is fitted as a whole."""
    if modality == "tabular":
        import pandas as pd

        return pd.DataFrame(samples)
    return samples


def _dataset(part: tuple[list, list[int]], modality: str) -> Dataset:
    rows = [{modality: sample, "labels": label, "length": len(sample)} for sample, label in zip(*part, strict=True)]
    return Dataset.from_list(rows).with_format("numpy")


def _baselines(task: Task) -> tuple[float, float]:
    """Test accuracy of the most frequent class, and of logistic regression on the raw features."""
    (train, test), (train_labels, test_labels) = task.features, (task.train[1], task.test[1])
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, train_labels)
    majority = DummyClassifier().fit(train, train_labels)
    return majority.score(test, test_labels), linear.score(test, test_labels)


# 4. Load in a fresh process and predict
def predict(model: MetaTransformerForClassification, processor: MetaTransformerProcessor, task: Task) -> list[int]:
    """The predicted class of each test sample."""
    predictions: list[int] = []
    for start in range(0, len(task.test[0]), 64):
        batch = processor(**{task.modality: task.test[0][start : start + 64]}, **task.call).to(model.device)
        with torch.no_grad():
            predictions += model(**batch).logits.argmax(-1).tolist()
    return predictions


def predict_in_fresh_process(name: str, folder: Path) -> list[int]:
    """The same from the saved checkpoint, by this script run anew with `--predict`."""
    command = [sys.executable, __file__, "--predict", name, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# 5. Report
def report(rows: list[dict[str, Any]], output: Path) -> None:
    table = Table(title="One frozen trunk, three tasks: accuracy and parameters", box=SIMPLE, padding=0)
    for column in ("task", "trunk", "sklearn", "majority", "trained", "frozen", "sec", "reload"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for row in rows:
        scores = [f"{row[key]:.3f}" for key in ("accuracy", "scikit-learn", "majority")]
        counts = [f"{row[key]:,}" for key in ("trainable", "frozen")]
        table.add_row(row["task"], *scores, *counts, f"{row['seconds']:.0f}", row["reloaded"])
    console.print(table)
    (output / "results.json").write_text(json.dumps(rows, indent=1))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (bars, curves) = pyplot.subplots(1, 2, figsize=(11, 4))
    places = np.arange(len(rows))
    for offset, key, label in (
        (-0.27, "majority", "majority"),
        (0, "scikit-learn", "logistic regression"),
        (0.27, "accuracy", "frozen trunk"),
    ):
        drawn = bars.bar(places + offset, [row[key] for row in rows], width=0.25, label=label)
        bars.bar_label(drawn, fmt="%.2f", fontsize=8)
    bars.set_xticks(places, [row["task"] for row in rows], fontsize=8)
    bars.set(ylim=(0, 1.2), ylabel="test accuracy")
    bars.legend(ncols=3, fontsize=8, loc="upper center")
    for row in rows:
        curves.plot(*zip(*row["loss"], strict=True), label=row["task"])
    curves.set(xlabel="step", ylabel="training loss", yscale="log")
    curves.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output / "results.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="pretrained weights; without, a tiny trunk of random weights")
    parser.add_argument("--output", type=Path, default=Path("outputs/01_frozen_transfer"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--epochs", type=int, help="instead of each task's own number")
    parser.add_argument("--predict", nargs=2, metavar=("TASK", "FOLDER"), help="only load a checkpoint and predict")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.predict:
        name, folder = arguments.predict
        model = MetaTransformerForClassification.from_pretrained(folder)
        print(json.dumps(predict(model, MetaTransformerProcessor.from_pretrained(folder), TASKS[name]())))
        return
    set_seed(0)
    trunk = trunk_folder(arguments.encoder, arguments.output)
    hint = "random weights; --encoder takes pretrained ones" if arguments.encoder is None else "pretrained"
    console.print(f"Trunk: {trunk} ({hint})")
    rows = []
    for name in arguments.tasks:
        task = TASKS[name]()
        task.epochs = arguments.epochs or task.epochs
        console.print(
            f"\n[bold]{task.name}[/bold] ({task.modality}): {len(task.train[0])} to train, {len(task.test[0])} to test"
        )
        folder = arguments.output / name
        row = train(task, trunk, folder)
        same = predict_in_fresh_process(name, folder) == row["predictions"]
        rows.append({**row, "reloaded": "same" if same else "DIFFERS"})
    report(rows, arguments.output)
    fingerprints = {row["fingerprint"][:16] for row in rows}
    console.print(f"Trunk after all tasks: {', '.join(fingerprints)}, unchanged. Written: {arguments.output}")
    if not all(row["reloaded"] == "same" for row in rows):
        sys.exit("A reloaded checkpoint predicts otherwise than the trained model.")


if __name__ == "__main__":
    main()
