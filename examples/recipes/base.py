"""What a recipe is, and the training that all recipes share."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.processors.base import ModalityProcessor
from meta_transformer.training import DataCollatorForMetaTransformer
from meta_transformer.training import last_checkpoint as last_whole_checkpoint

# Labels `(samples,)` and probabilities `(samples, classes)` to the metric of a recipe, more is better.
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass
class Split:
    """Raw samples, each as the processor takes it, with the number of its class."""

    samples: list[Any]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.labels):
            raise ValueError(f"{len(self.samples)} samples, but {len(self.labels)} labels.")


def splits_of(table: pd.DataFrame, column: str, classes: list[Any]) -> dict[str, Split]:
    """The splits of a set's table.

    Args:
        table: A row a sample, with the columns `label` and `split`.
        column: Where the samples are.
        classes: The labels, in the order of their numbers.
    """
    return {
        name: Split(part[column].tolist(), [classes.index(label) for label in part["label"]])
        for name, part in table.groupby("split")
    }


@dataclass
class Recipe:
    """A task of one modality: data, preparation, training, metric and what to compare with.

    Attributes:
        modality: Its word.
        dataset: Folder of the set under the data folder, such as `"xray/pneumoniamnist"`.
        train: What is learned from.
        validation: What the best epoch is chosen on.
        test: What is reported, once.
        processor: Fitted on `train` alone.
        metric: Name of the metric, as in the table.
        score: The metric.
        card: The baseline that the set's card reports: what it is, and its value.
        baseline: Measures that baseline in the same run, on `test`; `None` where it takes minutes.
        classes: Names of the classes; by default their numbers.
        tokenizer: Options of the tokenizer beside `processor.tokenizer_config()`.
        head: Options of the classification head.
        call: Arguments of the processor's call.
        epochs: Passes over `train`.
        learning_rate: Highest one, of a cosine schedule with warm-up.
        batch_size: Samples of a step.
        weight_decay: Of AdamW.
        label_smoothing: Of the loss.
        augment: Changes a batch of tensors in training, with torch's global random state.
        note: What a reader of the score has to know.
        prepare: Fills parts of the fresh model from elsewhere, such as a table of word embeddings.
    """

    modality: str
    dataset: str
    train: Split
    validation: Split
    test: Split
    processor: ModalityProcessor
    metric: str
    score: Score
    card: tuple[str, float]
    baseline: Callable[[], float] | None = None
    classes: list[str] | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=lambda: {"pooling": "mean"})
    call: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    learning_rate: float = 2e-3
    batch_size: int = 64
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    augment: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    prepare: Callable[[MetaTransformerForClassification], None] | None = None
    note: str = ""

    @property
    def num_labels(self) -> int:
        return len(self.classes) if self.classes else max(self.train.labels) + 1

    def majority(self) -> float:
        """The metric on `test` of always predicting the frequencies of the classes in `train`."""
        frequencies = np.bincount(self.train.labels, minlength=self.num_labels) / len(self.train.labels)
        labels = np.array(self.test.labels)
        return self.score(labels, np.tile(frequencies, (len(labels), 1)))


class _Samples(Dataset):
    """Rows as the collator takes them."""

    def __init__(self, modality: str, split: Split) -> None:
        self.modality, self.split = modality, split

    def __len__(self) -> int:
        return len(self.split.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.modality: self.split.samples[index], "labels": self.split.labels[index]}


class _RecipeTrainer(Trainer):
    """Trainer that augments its training batches, and no others."""

    augment: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        if self.augment:  # draws on the CPU; the step itself moves its inputs to the model's device
            inputs = self.augment({name: value.cpu() for name, value in inputs.items()})
        return super().training_step(model, inputs, *args, **kwargs)


def nano_trunk(folder: Path) -> str:
    """A small frozen trunk, the same for all recipes: 192 wide, 4 deep, random weights, made once.

    Its weights are wider than the usual 0.02: blocks that are never trained should mix tokens, not pass them through.
    """
    if not (folder / "config.json").exists():
        set_seed(0)
        config = MetaTransformerConfig.tiny(num_hidden_layers=4, initializer_range=0.1)
        MetaTransformerModel(config).save_pretrained(folder)
    return str(folder)


def train(recipe: Recipe, trunk: str, folder: Path, *, test: bool = True, epochs: int | None = None) -> dict[str, Any]:
    """Train tokenizer and head on the frozen trunk; a run that was stopped goes on from its last epoch.

    Args:
        recipe: What to train.
        trunk: Folder or name of the trunk's weights.
        folder: Where checkpoints and the model go.
        test: Whether to measure on the test split, which is done once, after all choices are made.
        epochs: Instead of the recipe's.

    Returns:
        The row of the table.
    """
    set_seed(0)
    processor = MetaTransformerProcessor(**{recipe.modality: recipe.processor})
    options = {**recipe.processor.tokenizer_config(), **recipe.tokenizer}
    classes = recipe.classes or [str(number) for number in range(recipe.num_labels)]
    model = MetaTransformerForClassification.from_pretrained(
        trunk,
        modalities={recipe.modality: options},
        heads={"classification": recipe.head},
        id2label=dict(enumerate(classes)),
        ignore_mismatched_sizes=True,  # the nano trunk comes with a tokenizer for images of another size
    )
    if recipe.prepare:
        recipe.prepare(model)
    fingerprint, start = model.encoder_fingerprint(), time.perf_counter()
    trainer = _RecipeTrainer(
        model,
        TrainingArguments(
            folder / "trainer",
            num_train_epochs=epochs or recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=2 * recipe.batch_size,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=recipe.weight_decay,
            label_smoothing_factor=recipe.label_smoothing,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="choice",
            logging_strategy="epoch",
            report_to=[],
        ),
        train_dataset=_Samples(recipe.modality, recipe.train),
        eval_dataset=_Samples(recipe.modality, recipe.validation),
        data_collator=DataCollatorForMetaTransformer(processor, recipe.call),
        compute_metrics=lambda prediction: _scores(recipe, prediction),
    )
    trainer.augment = recipe.augment
    checkpoint = last_whole_checkpoint(folder / "trainer")
    trainer.train(resume_from_checkpoint=checkpoint)
    row = {
        "modality": recipe.modality,
        "dataset": recipe.dataset,
        "metric": recipe.metric,
        "validation": trainer.evaluate()["eval_score"],
        "card": recipe.card,
        "trainable": model.parameter_summary().trainable,
        "seconds": time.perf_counter() - start,
        "resumed": checkpoint is not None,
        "note": recipe.note,
    }
    if model.encoder_fingerprint() != fingerprint:
        raise RuntimeError("The frozen trunk has changed during training.")
    if test:
        predicted = trainer.predict(_Samples(recipe.modality, recipe.test))
        row |= {"test": predicted.metrics["test_score"], "majority": recipe.majority()}
        row["baseline"] = recipe.baseline() if recipe.baseline else None
        model.save_pretrained(folder, processor=processor, metrics={recipe.metric: row["test"]})
        row["predictions"] = predict(recipe, model.eval(), processor)
    return row


@torch.no_grad()
def predict(
    recipe: Recipe, model: MetaTransformerForClassification, processor: MetaTransformerProcessor, count: int = 32
) -> list[int]:
    """The predicted classes of the first test samples."""
    batch = processor(**{recipe.modality: recipe.test.samples[:count]}, **recipe.call).to(model.device)
    return model(**batch).logits.argmax(dim=-1).tolist()


def _scores(recipe: Recipe, prediction: EvalPrediction) -> dict[str, float]:
    """The metric, and the same with ties broken by log loss.

    On few validation samples many epochs have the same score, and `Trainer` would keep the first, least trained one.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels, probabilities = np.asarray(prediction.label_ids), softmax(np.asarray(logits, np.float64), axis=1)
    score = recipe.score(labels, probabilities)
    log_loss = -np.log(probabilities[np.arange(len(labels)), labels].clip(1e-9)).mean()
    return {"score": score, "choice": score - 1e-6 * float(log_loss)}


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=1))
    os.replace(unfinished, path)
