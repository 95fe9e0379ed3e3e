"""Five tasks of five modalities, learned at once on one trunk, beside the same tasks learned one by one.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/05_joint_training.py
    python examples/05_joint_training.py --train-trunk 1 --output outputs/joint_trunk

Which digit is said, how a person moves, who speaks a vowel, how good a wine is, how well a molecule dissolves: 216 to
4,239 samples each. A batch is of one task, drawn by temperature-scaled mixing: by the square root of the sizes, of
which 1,000 samples count at most. Each task alone takes as many steps as it has, on average, in the joint run. The
trunk, 192 wide and 4 deep with random weights unless `--encoder` names others, is frozen; `--train-trunk 1` trains it
too, one for all tasks in the joint run. The best epoch is chosen on the validation splits, in the joint run by the sum
of the losses. The test splits are measured once.

Prints the metric of each task, learned separately and jointly, and how many parameters that took. Writes the table, the
joint model, and `losses.png` (validation losses) to `--output`. What is finished is kept there: a run that was stopped
goes on where it was, unless its settings are others now; `--fresh` starts anew.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recipes import audio, imu, time_series
from recipes.base import Recipe, last_whole_checkpoint, write_json
from task_runs import arguments, console, print_table
from transformers import TrainingArguments, set_seed

from meta_transformer import MetaTransformerForMultiTask, MetaTransformerProcessor
from meta_transformer.processors.base import ModalityProcessor
from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.processors.tabular import TabularProcessor
from meta_transformer.training import (
    DataCollatorForMetaTransformer,
    MixtureTrainer,
    TaskMixture,
    TemperatureBatchSampler,
)

MIXING = {"temperature": 2, "size_limit": 1000}
BATCH = 32
LEARNING_RATE = {0: 3e-3, 1: 1e-3}  # with the trunk frozen, and trained


# 1. Tasks
@dataclass
class Task:
    """One task: its data, what reads them, and its head.

    Attributes:
        modality: What a sample is.
        rows: Of each split, as the collator takes them.
        processor: Fitted.
        head: Of `TaskConfig`.
        metric: What is reported.
        card: The baseline of the set's CARD, on the test split.
        tokenizer: Options beside the processor's.
        call: Arguments of the processor's call.
    """

    modality: str
    rows: dict[str, list[dict]]
    processor: ModalityProcessor
    head: dict[str, Any]
    metric: str
    card: float
    tokenizer: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


def classification(recipe: Recipe, metric: str = "accuracy") -> Task:
    """That of a recipe of `03_twelve_modalities.py`, without its augmentation."""
    splits = {"train": recipe.train, "val": recipe.validation, "test": recipe.test}
    rows = {
        name: [{recipe.modality: x, "labels": y} for x, y in zip(split.samples, split.labels, strict=True)]
        for name, split in splits.items()
    }
    options = {**recipe.head, "label_smoothing": recipe.label_smoothing}
    head = {"head": "classification", "num_labels": recipe.num_labels, "options": options}
    return Task(
        recipe.modality, rows, recipe.processor, head, metric, recipe.card[1], recipe.tokenizer, dict(recipe.call)
    )


def regression(modality: str, table: pd.DataFrame, samples: list, target: str, **options: Any) -> Task:
    """Of a table with the columns `split` and `target`, a row a sample."""
    rows = {
        name: [{modality: samples[place], "labels": float(y)} for place, y in part[target].items()]
        for name, part in table.groupby("split")
    }
    known = np.array([row["labels"] for row in rows["train"]])
    scale = {"target_mean": [known.mean()], "target_std": [known.std()]}
    head = {"head": "regression", "options": {**scale, "loss": "huber", "pooling": "mean", "dropout": 0.1}}
    return Task(modality, rows, head=head, metric="rmse", **options)


def read(data: Path) -> dict[str, Task]:
    wines = pd.read_csv(data / "tabular/wine_quality/wine_quality.csv")
    cells = wines.drop(columns=["quality", "split"])
    molecules = pd.read_csv(data / "molecules/esol/esol.csv")
    return {
        "digit": classification(audio.recipe(data)),
        "motion": classification(imu.recipe(data), "f1"),
        "speaker": classification(time_series.recipe(data)),
        "quality": regression(
            "tabular",
            wines,
            cells.to_dict("records"),
            "quality",
            processor=TabularProcessor().fit(cells[wines["split"] == "train"]),
            tokenizer={"numerical_embedding": "piecewise_linear"},
            card=0.711,
        ),
        "solubility": regression(
            "graph",
            molecules,
            molecules["smiles"].tolist(),
            "logS",
            processor=GraphProcessor.for_molecules(identifiers="none"),
            tokenizer={"edge_tokens": False, "max_degree": 5},
            card=0.700,
        ),
    }


# 2. Training
def mixture(tasks: dict[str, Task], split: str) -> TaskMixture:
    return TaskMixture({name: task.rows[split] for name, task in tasks.items()})


def steps(tasks: dict[str, Task]) -> dict[str, int]:
    """Of each task in an epoch of the joint run, on average."""
    sampler = TemperatureBatchSampler(mixture(tasks, "train"), BATCH, **MIXING)
    return {name: round(rate * len(sampler)) for name, rate in sampler.rates.items()}


def train(
    tasks: dict[str, Task], trunk: str, folder: Path, *, batches: int, epochs: int, train_trunk: int
) -> dict[str, Any]:
    """Train on one or more tasks.

    Args:
        tasks: By name.
        trunk: Name or folder of the trunk's weights.
        folder: Where model and checkpoints go. What is finished there is read, what was stopped goes on.
        batches: Of an epoch.
        epochs: How many.
        train_trunk: Whether the trunk trains as well.

    Returns:
        `trained` parameters, and the metrics on `validation`, on `test`, and after each epoch, `history`.
    """
    done = folder / "training.json"
    if done.exists():
        return json.loads(done.read_text())
    set_seed(0)
    processor = MetaTransformerProcessor(**{task.modality: task.processor for task in tasks.values()})
    configs = processor.tokenizer_configs()
    for task in tasks.values():
        configs[task.modality] |= task.tokenizer
    heads = {name: {**task.head, "modalities": [task.modality]} for name, task in tasks.items()}
    model = MetaTransformerForMultiTask.from_pretrained(
        trunk, modalities=configs, heads={"multi_task": {"tasks": heads}}, ignore_mismatched_sizes=True
    )
    if train_trunk:
        model.unfreeze_encoder()
    fingerprint = model.encoder_fingerprint()
    parts = {split: mixture(tasks, split) for split in ("train", "val", "test")}
    call = {name: value for task in tasks.values() for name, value in task.call.items()}
    trainer = MixtureTrainer(
        model,
        TrainingArguments(
            str(folder / "trainer"),
            num_train_epochs=epochs,
            per_device_eval_batch_size=128,
            learning_rate=LEARNING_RATE[train_trunk],
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            report_to=[],
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["val"],
        data_collator=DataCollatorForMetaTransformer.for_model(model, processor, **call),
        compute_metrics=model.metrics(),
        batch_sampler=TemperatureBatchSampler(parts["train"], BATCH, num_batches=batches, **MIXING),
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder / "trainer"))
    if not train_trunk and model.encoder_fingerprint() != fingerprint:
        raise RuntimeError("The frozen trunk has changed during training.")
    row = {
        "trained": model.parameter_summary().trainable,
        "history": [log for log in trainer.state.log_history if "eval_loss" in log],
        "validation": trainer.evaluate(metric_key_prefix="val"),
        "test": trainer.predict(parts["test"]).metrics,
    }
    model.save_pretrained(folder, processor=processor)
    write_json(done, row)
    shutil.rmtree(folder / "trainer")
    return row


# 3. Report
def draw(tasks: dict[str, Task], runs: dict[str, dict[str, dict]], file: Path) -> None:
    """The validation loss of each task by epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4 * len(tasks), 3.5), layout="constrained")
    for axis, name in zip(axes, tasks, strict=True):
        for way, run in runs.items():
            history = run[name]["history"]
            axis.plot([log["epoch"] for log in history], [log[f"eval_{name}_loss"] for log in history], label=way)
        axis.set(title=name, xlabel="epoch")
    axes[0].set_ylabel("validation loss")
    axes[0].legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=6, train_trunk=0)
    tasks = read(options.data)
    counts = steps(tasks)
    console.print(
        ", ".join(f"{name}: {len(task.rows['train'])} samples, {counts[name]} steps" for name, task in tasks.items())
        + " in an epoch"
    )
    settings = {"epochs": options.epochs, "train_trunk": options.train_trunk}
    alone = {}
    for name, task in tasks.items():
        console.print(f"Learning {name} ...")
        alone[name] = train({name: task}, options.trunk, options.output / name, batches=counts[name], **settings)
    console.print("Learning all at once ...")
    joint = train(tasks, options.trunk, options.output / "joint", batches=sum(counts.values()), **settings)
    runs = {"separately": alone, "jointly": dict.fromkeys(tasks, joint)}
    table = pd.DataFrame(
        {
            f"{name}, {task.metric}": {
                "set's card": task.card,
                **{way: run[name]["test"][f"test_{name}_{task.metric}"] for way, run in runs.items()},
            }
            for name, task in tasks.items()
        }
    ).T
    print_table("Test splits", table, options.output / "scores.csv")
    for way, rows in (("separately", list(alone.values())), ("jointly", [joint])):
        trained = sum(row["trained"] for row in rows)
        console.print(f"{way}: models: {len(rows)}, trained parameters: {trained:,}")
    draw(tasks, runs, options.output / "losses.png")
    console.print(f"Written: scores.csv and losses.png in {options.output}")


if __name__ == "__main__":
    main()
