"""What a training run is made of: processor, model and trainer, from what was asked for and from the samples."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from transformers import EarlyStoppingCallback, TrainingArguments

from .. import MetaTransformerConfig, MetaTransformerProcessor
from ..modeling import MetaTransformerForTask
from ..registry import MODALITIES
from ..training import balanced_class_weights
from ..training.splits import Source
from .batches import check_rows
from .console import pairs, say
from .defaults import Defaults
from .watching import CHOICE, StopOnInterrupt, TiesByLossTrainer, Watch

__all__ = [
    "METRICS",
    "SIZES",
    "TrainSettings",
    "label_options",
    "make_model",
    "make_processor",
    "make_trainer",
    "model_class_of",
    "with_trunk",
]

# By task, the metric that the best epoch is chosen by, and whether more of it is better.
METRICS = {"classification": ("accuracy", 1), "regression": ("rmse", -1), "forecasting": ("mse", -1)}
SIZES: dict[str, Any] = {  # a trunk that is never trained should mix tokens: its weights are wider than the usual 0.02
    "nano": (MetaTransformerConfig.tiny, {"num_hidden_layers": 4, "initializer_range": 0.1}),
    "tiny": (MetaTransformerConfig.tiny, {"initializer_range": 0.1}),
    "small": (MetaTransformerConfig.small, {"initializer_range": 0.07}),
    "base": (MetaTransformerConfig.base_patch16, {"initializer_range": 0.05}),
}


@dataclass
class TrainSettings:
    """What `train` was asked for; `None` where the defaults of the modality hold."""

    data: str
    modality: str
    output: Path
    task: str
    encoder: str | None
    size: str
    label: str | None
    column: str | None
    look_back: int
    horizon: int
    epochs: int | None
    lr: float | None
    batch_size: int | None
    freeze: str
    class_weights: str | None
    early_stopping: int | None
    bf16: bool
    seed: int
    limit: int | None
    processor: list[str]
    tokenizer: list[str]
    head: list[str]
    call: list[str]
    workers: int
    check: bool
    fresh: bool

    def identity(self) -> dict[str, Any]:
        """What makes a run another one."""
        known = asdict(self)
        for name in ("output", "fresh", "check", "workers"):
            known.pop(name)
        return known


def make_processor(settings: TrainSettings, source: Source, defaults: Defaults) -> MetaTransformerProcessor:
    """A processor for the samples, fitted on those that are learned from.

    Args:
        settings: What was asked for.
        source: The samples.
        defaults: Of the modality; without effect where the trunk brings a processor.

    Raises:
        ValueError: A sample cannot be read.
    """
    own = pairs(settings.processor, "--processor")
    rows, modality = source.splits["train"], settings.modality
    if settings.encoder:
        try:
            pretrained = MetaTransformerProcessor.from_pretrained(settings.encoder)
        except (ValueError, OSError):  # weights alone: the defaults do
            pretrained = None
        known = pretrained.processors if pretrained else {}
        if modality in known:
            defaults.tokenizer, defaults.fit = {}, False
            merged: Any = known[modality].from_dict({**known[modality].to_dict(), **own})
            return MetaTransformerProcessor(**{modality: merged})
        if "image" in known:  # whose patches other kinds of pictures inherit, unless convolutions come before them
            for name in ("patch_embedding", "stem_depth"):
                defaults.tokenizer.pop(name, None)
    processor: Any = MODALITIES[modality].processor_class(**{**defaults.processor, **own})
    if defaults.fit:
        samples: Any = (rows[index][modality] for index in range(len(rows)))
        if modality == "tabular":
            import pandas

            samples = pandas.DataFrame(list(samples))
        if settings.task == "forecasting":
            import pandas

            last = int(rows.numbers.max()) + rows.look_back + rows.horizon
            samples = pandas.DataFrame(rows.values[:last], columns=source.targets)
        try:
            processor.fit(samples, **pairs(settings.call, "--call"))
        except (ValueError, TypeError, OSError):
            call = pairs(settings.call, "--call")  # then by name, where a sample is to blame
            if settings.check and modality not in ("tabular", "time_series", "graph", "hyperspectral"):
                check_rows(source.splits, MetaTransformerProcessor(**{modality: processor}), call)
            raise
    for rows in source.splits.values():
        if settings.task == "forecasting":
            rows.scale = lambda values: processor.standardize(values).numpy()
    return MetaTransformerProcessor(**{modality: processor})


def make_model(settings: TrainSettings, source: Source, processor: MetaTransformerProcessor, defaults: Defaults) -> Any:
    """A model with a pretrained trunk or a random one, its tokenizer and head new.

    Args:
        settings: What was asked for.
        source: The samples, whose labels the head is made for.
        processor: The tokenizer is made for it.
        defaults: Of the modality.
    """
    own = label_options(settings.task, source, settings.class_weights == "balanced")
    options = {**processor.tokenizer_configs()[settings.modality], **defaults.tokenizer}
    config: dict[str, Any] = {
        "modalities": {settings.modality: {**options, **pairs(settings.tokenizer, "--tokenizer")}},
        "heads": {settings.task: {**defaults.head, **own, **pairs(settings.head, "--head")}},
        **({"id2label": source.id2label} if source.classes else {}),
    }
    return with_trunk(model_class_of(settings.task), config, settings.encoder, settings.size, settings.freeze)


def label_options(task: str, source: Source, balanced: bool) -> dict[str, Any]:
    """Options of the head that follow from the labels that are learned from.

    Args:
        task: The head's name.
        source: The samples.
        balanced: Whether rare classes count more.

    Raises:
        ValueError: Class weights for numbers.
    """
    if balanced and task != "classification":
        raise ValueError(f"class_weights are for classification, got the task {task}; leave them out.")
    labels: Any = getattr(source.splits["train"], "labels", None)
    if balanced:
        return {"class_weights": balanced_class_weights(labels.tolist(), len(source.classes or ()))}
    if task != "regression":
        return {}
    values = labels.reshape(len(labels), -1)
    spread = values.std(axis=0)
    return {
        "num_targets": values.shape[1],
        "target_names": source.targets,
        "target_mean": values.mean(axis=0).tolist(),
        "target_std": np.where(spread > 0, spread, 1).tolist(),
    }


def with_trunk(model_class: Any, config: dict[str, Any], encoder: str | None, size: str, freeze: str) -> Any:
    """A model behind pretrained weights or random ones; says which.

    Args:
        model_class: Of the task.
        config: Of tokenizers, head and labels.
        encoder: Name or folder of pretrained weights.
        size: Of random ones, in `SIZES`.
        freeze: What of the trunk stays.
    """
    if encoder:
        model = model_class.from_pretrained(encoder, ignore_mismatched_sizes=True, **config)
        say(f"Trunk: {encoder}")
    else:
        make, shape = SIZES[size]
        model = model_class(make(**shape, **config))
        say(f"Trunk: {size}, random weights, never trained; --encoder takes pretrained ones.")
    if freeze != "all":
        model.freeze_encoder(freeze)
    return model


def model_class_of(head: str) -> Any:
    """The model class of a task."""
    return next(each for each in MetaTransformerForTask.__subclasses__() if each.head_name == head)


def make_trainer(
    settings: TrainSettings, model: Any, collator: Any, source: Source, defaults: Defaults
) -> tuple[TiesByLossTrainer, StopOnInterrupt]:
    """A trainer that keeps the best epoch, and what says whether Ctrl-C stopped it.

    Args:
        settings: What was asked for.
        model: To train.
        collator: Of the model.
        source: What is learned from and chosen on.
        defaults: Of the modality.
    """
    metric, sign = METRICS[settings.task]
    batch = settings.batch_size or defaults.batch_size
    arguments = TrainingArguments(
        str(settings.output / "trainer"),
        num_train_epochs=settings.epochs or defaults.epochs,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=2 * batch,
        learning_rate=settings.lr or defaults.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=settings.bf16,
        seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        batch_eval_metrics=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=CHOICE,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        disable_tqdm=True,
        report_to=[],
    )
    stop = StopOnInterrupt()
    callbacks: list[Any] = [Watch(metric), stop]
    if settings.early_stopping:
        callbacks.append(EarlyStoppingCallback(settings.early_stopping))
    trainer = TiesByLossTrainer(
        model,
        arguments,
        train_dataset=source.splits["train"],
        eval_dataset=source.splits["validation"],
        data_collator=collator,
        compute_metrics=model.metrics(),
        callbacks=callbacks,
    )
    trainer.metric, trainer.sign = metric, sign
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, stop
