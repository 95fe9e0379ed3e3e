"""Two modalities of one sample on a frozen trunk: each alone, together in several ways, and with one missing at test.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/05_multimodal_fusion.py
    python examples/05_multimodal_fusion.py --task molecules --seeds 1

Tasks:

- `digits`: which digit a recording and a picture show, 600 pairs to learn from; in training, a recording is joined
  with any picture of its digit. Accuracy.
- `molecules`: the hydration free energy in kcal/mol of a molecule (FreeSolv, 417 to learn from), from its structure and
  its name in words. RMSE.

For each modality alone and each way of fusion, tokenizers and a head are trained for as many epochs; the trunk, 192
wide and 4 deep with random weights unless `--encoder` names others, stays as it is. Fused models are trained with
modality dropout: some samples lose one modality. The best epoch is chosen on the validation split, each sample with
both modalities and with each alone. The test split is then measured in the same three ways.

Prints means and deviations over seeds, and whether fusion beats the best single modality, and falls with a missing one
no lower than a model of the other alone less two points. Writes the table, models, and `fusion.png` to `--output`. What
is finished is kept there: a run that was stopped goes on where it was, unless its settings are others; `--fresh` starts
anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digit_pairs
import numpy as np
import pandas as pd
import torch
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset

from meta_transformer import (
    MetaTransformerForClassification,
    MetaTransformerForRegression,
    MetaTransformerForTask,
    MetaTransformerProcessor,
)
from meta_transformer.processors.graph import GraphProcessor

FUSIONS = ["early", "concat", "gated", "attention", "bottleneck"]
DROPOUT = 0.5  # of modalities, in training of fused models: three of four samples lose one


# 1. Tasks
@dataclass
class Task:
    """What to learn, of which modalities, and how well it was learned.

    Attributes:
        splits: Tables with a column for each modality, and `label`.
        processor: Of both modalities, fitted.
        model_class: That of the head.
        options: Of `train`.
        metric: From predictions and labels to a number.
        better: 1 if more is better, -1 if less is.
        augment: From a row and the table to the row as it is learned from.
        call: Arguments of the processor, each of one modality.
    """

    splits: dict[str, pd.DataFrame]
    processor: MetaTransformerProcessor
    model_class: type[MetaTransformerForTask]
    options: dict[str, Any]
    metric: Callable[[np.ndarray, np.ndarray], float]
    better: int
    augment: Callable[[dict[str, Any], pd.DataFrame], dict[str, Any]] = lambda row, table: row
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        return list(self.processor.processors)


def digits(data: Path) -> Task:
    splits = digit_pairs.read(data)

    def augment(row: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
        same = table.loc[table["label"] == row["label"], "image"]
        image = digit_pairs.shifted(same.iloc[int(torch.randint(len(same), ()))])
        return {**row, "image": image, "audio": digit_pairs.disturbed(row["audio"])}

    return Task(
        splits,
        digit_pairs.make_processor(splits["train"]),
        MetaTransformerForClassification,
        {
            "tokenizers": digit_pairs.TOKENIZERS,
            "head": {"pooling": "mean", "layers": "all"},
            "id2label": {digit: str(digit) for digit in range(10)},
            "metric_for_best_model": "accuracy",
            "per_device_train_batch_size": 20,
            "learning_rate": 5e-3,
        },
        lambda predictions, labels: float((predictions.argmax(axis=1) == labels).mean()),
        better=1,
        augment=augment,
        call={"audio_kwargs": {"sampling_rate": digit_pairs.RATE}},
    )


def molecules(data: Path) -> Task:
    table = pd.read_csv(data / "paired/molecule_names/pairs.csv")
    table = table.rename(columns={"smiles": "graph", "name": "text", "hydration_free_energy": "label"})
    splits = {split: part.reset_index(drop=True) for split, part in table.groupby("split")}
    processor = MetaTransformerProcessor(graph=GraphProcessor.for_molecules(), text=True)
    return Task(
        splits,
        processor,
        MetaTransformerForRegression,
        {
            "tokenizers": {"graph": {"edge_tokens": False, "max_degree": 5}},
            "head": {"target_names": ["energy"], "loss": "huber", "pooling": "mean", "dropout": 0.1},
            "prepare": lambda model: model.head.standardize(splits["train"]["label"].tolist()),
            "metric_for_best_model": "rmse",
            "greater_is_better": False,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-3,
        },
        lambda predictions, labels: float(np.sqrt(np.square(predictions[:, 0] - labels).mean())),
        better=-1,
    )


TASKS = {"digits": digits, "molecules": molecules}


# 2. Samples
class Samples(Dataset):
    """Rows as the collator takes them: all samples with the first choice of modalities, then with the next."""

    def __init__(self, task: Task, split: str, *choices: list[str]) -> None:
        self.table, self.choices = task.splits[split], choices
        self.change = task.augment if split == "train" else (lambda row, table: row)

    def __len__(self) -> int:
        return len(self.table) * len(self.choices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        choice, index = divmod(index, len(self.table))
        row = self.change(self.table.loc[index].to_dict(), self.table)
        return {**{modality: row[modality] for modality in self.choices[choice]}, "labels": row["label"]}


def ways(modalities: list[str]) -> list[list[str]]:
    """Which modalities a model is given: all, and each alone."""
    return [modalities] if len(modalities) == 1 else [modalities, *([each] for each in modalities)]


@torch.no_grad()
def measure(model: MetaTransformerForTask, task: Task, modalities: list[str], batch: int = 60) -> float:
    """The metric on the test split, of samples with these modalities."""
    samples = Samples(task, "test", modalities)
    rows = [samples[index] for index in range(len(samples))]
    labels = np.array([row.pop("labels") for row in rows])
    found = [
        model(**task.processor(rows[start : start + batch], **task.call)).logits.numpy()
        for start in range(0, len(rows), batch)
    ]
    return task.metric(np.concatenate(found), labels)


# 3. Train
def run(task: Task, options: Any, name: str, modalities: list[str], seed: int, **config: Any) -> list[dict[str, Any]]:
    """Train one model, and measure it with all its modalities and with each alone."""
    processor = MetaTransformerProcessor(**{each: task.processor.processors[each] for each in modalities})
    model, training = train(
        task.model_class,
        options.trunk,
        processor,
        (Samples(task, "train", modalities), Samples(task, "val", *ways(modalities))),
        options.output / options.task / name.replace(" ", "_") / str(seed),
        call={name: value for name, value in task.call.items() if name.removesuffix("_kwargs") in modalities},
        config=config,
        seed=seed,
        num_train_epochs=options.epochs,
        **{**task.options, "tokenizers": {each: task.options["tokenizers"].get(each, {}) for each in modalities}},
    )
    console.print(f"{name}, seed {seed}: validation {training['validation']:.3f}, {training['seconds']:.0f} s")
    return [
        {"model": name, "given": " + ".join(each), "seed": seed, "metric": measure(model, task, each)}
        for each in ways(modalities)
    ]


# 4. Report
def check(task: Task, means: pd.DataFrame) -> list[str]:
    """Does fusion pay, and what does a missing modality cost? Sentences."""
    both, singles = " + ".join(task.modalities), {each: means.loc[f"{each} alone", each] for each in task.modalities}
    best = max(singles.values(), key=lambda value: task.better * value)
    sentences = []
    for fusion in (each for each in means.index if not each.endswith("alone")):
        gain = task.better * (means.loc[fusion, both] - best)
        loss = min(task.better * (means.loc[fusion, each] - single) for each, single in singles.items())
        sentences.append(
            f"{fusion}: {gain:+.3f} beside the best single modality; with one missing, at worst {loss:+.3f} beside a "
            "model of the other alone (more is better)"
        )
    return sentences


def draw(task: Task, table: pd.DataFrame, means: pd.DataFrame, file: Path) -> None:
    """Each model with what it is given: the seeds as points, the mean as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4))
    colours = dict(zip(means.columns, ("tab:green", "tab:blue", "tab:orange"), strict=True))
    for place, name in enumerate(means.index):
        for shift, (given, colour) in zip((-0.2, 0, 0.2), colours.items(), strict=True):
            own = table[(table["model"] == name) & (table["given"] == given)]["metric"]
            if len(own):
                axis.plot([place + shift - 0.09, place + shift + 0.09], [own.mean()] * 2, color=colour, linewidth=2.5)
                axis.scatter([place + shift] * len(own), own, color=colour, s=12, zorder=3)
    for given, colour in colours.items():
        axis.plot([], [], color=colour, linewidth=2.5, label=f"given {given}")
    axis.set_xticks(range(len(means)), [name.replace(" ", "\n") for name in means.index])
    axis.set_ylabel("accuracy" if task.better > 0 else "RMSE")
    axis.legend(fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, choices={"task": list(TASKS)}, epochs=16, seeds=3)
    task = TASKS[options.task](options.data)
    console.print(", ".join(f"{len(part)} samples {split}" for split, part in task.splits.items()))
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for modality in task.modalities:
            found += run(task, options, f"{modality} alone", [modality], seed)
        for fusion in FUSIONS:
            found += run(task, options, fusion, task.modalities, seed, fusion=fusion, modality_dropout=DROPOUT)
    table = pd.DataFrame(found)
    grouped = table.groupby(["model", "given"], sort=False)["metric"]
    columns = [" + ".join(task.modalities), *task.modalities]
    means = grouped.mean().unstack().reindex(table["model"].unique())[columns]
    folder = options.output / options.task
    print_table(f"{options.task}, test split, mean of {options.seeds} seeds", means, folder / "scores.csv")
    if options.seeds > 1:
        spread = grouped.std().unstack().reindex(means.index)[columns]
        print_table("Deviation over seeds", spread, folder / "deviations.csv")
    for sentence in check(task, means):
        console.print(sentence)
    draw(task, table, means, folder / "fusion.png")
    console.print(f"Written: scores.csv and fusion.png in {folder}")


if __name__ == "__main__":
    main()
