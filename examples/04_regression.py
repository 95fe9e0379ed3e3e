"""How well does a molecule dissolve in water? A frozen trunk reads it as a graph.

    META_TRANSFORMER_DATA=../shared/data OMP_NUM_THREADS=1 python examples/04_regression.py
    python examples/04_regression.py --encoder timm/vit_tiny_patch16_224.augreg_in21k --epochs 10

A tokenizer and a regression head are trained on ESOL (Delaney 2004; 902 molecules, given as SMILES); the trunk, 192
wide and 4 deep with random weights unless `--encoder` names others, stays as it is. What is predicted is the logarithm
of the solubility in mol/l. The best epoch is chosen on the validation split. The test split is measured once, beside
two baselines made in the same run: the mean of the training molecules and a random forest on pieces of the SMILES.

Prints RMSE and MAE. Writes the table, the model, and `predictions.png` (truth and prediction) to `--output`. What is
finished is kept there: a run that was stopped goes on where it was, unless its settings are others now; `--fresh`
starts anew.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import make_pipeline
from task_runs import arguments, console, print_table, train

from meta_transformer import MetaTransformerForRegression, MetaTransformerProcessor
from meta_transformer.processors.graph import GraphProcessor

CARD = 0.700  # RMSE of the forest in the set's CARD
TARGET = "logS"
# Atoms are tokens, which hold the mean of their bonds: short sequences.
TOKENIZER = {"edge_tokens": False, "max_degree": 5}
HEAD = {"target_names": [TARGET], "loss": "huber", "pooling": "mean", "dropout": 0.1}


# 1. Data
def read(data: Path) -> dict[str, pd.DataFrame]:
    """The splits, each a row a molecule: `smiles`, `logS`."""
    table = pd.read_csv(data / "molecules/esol/esol.csv")
    return {split: part.reset_index(drop=True) for split, part in table.groupby("split")}


def rows(table: pd.DataFrame) -> list[dict]:
    """As the collator takes them."""
    return [
        {"graph": smiles, "labels": float(number)}
        for smiles, number in zip(table["smiles"], table[TARGET], strict=True)
    ]


# 2. Baseline
def forest(table: pd.DataFrame):
    """A random forest on the counts of all pieces of one to three characters of the SMILES."""
    pieces = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    return make_pipeline(pieces, RandomForestRegressor(300, random_state=0)).fit(table["smiles"], table[TARGET])


# 3. Predict
@torch.no_grad()
def predict(
    model: MetaTransformerForRegression, processor: MetaTransformerProcessor, molecules: list[str], batch: int = 64
) -> np.ndarray:
    """`(molecules,)`, in the unit of the labels."""
    found = []
    for start in range(0, len(molecules), batch):
        output = model(**processor(graph=molecules[start : start + batch]))
        found += [row[TARGET] for row in model.post_process(output)]
    return np.array(found)


# 4. Report
def errors(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {"RMSE": float(np.sqrt(np.square(predicted - truth).mean())), "MAE": float(abs(predicted - truth).mean())}


def draw(truth: np.ndarray, predictions: dict[str, np.ndarray], file: Path) -> None:
    """Truth against the predictions of each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shape = {"figsize": (5 * len(predictions), 5), "sharex": True, "sharey": True, "layout": "constrained"}
    figure, axes = pyplot.subplots(1, len(predictions), **shape)
    for axis, (name, predicted) in zip(axes, predictions.items(), strict=True):
        axis.plot(truth, predicted, "o", alpha=0.6)
        axis.axline((0, 0), slope=1, color="black", linewidth=0.8)
        axis.set(title=f"{name}, RMSE {errors(truth, predicted)['RMSE']:.2f}", xlabel="measured, log mol/l")
    axes[0].set_ylabel("predicted, log mol/l")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=25)
    splits = read(options.data)
    console.print(", ".join(f"{len(part)} molecules {split}" for split, part in splits.items()))
    processor = MetaTransformerProcessor(graph=GraphProcessor.for_molecules(identifiers="none"))
    known, truth = splits["train"][TARGET], splits["test"][TARGET].to_numpy()
    model, training = train(
        MetaTransformerForRegression,
        options.trunk,
        processor,
        (rows(splits["train"]), rows(splits["val"])),
        options.output,
        tokenizer=TOKENIZER,
        head={**HEAD, "target_mean": [known.mean()], "target_std": [known.std(ddof=0)]},
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        weight_decay=0.05,
        metric_for_best_model="rmse",
        greater_is_better=False,
    )
    console.print("Growing the random forest ...")
    smiles = splits["test"]["smiles"].tolist()
    predictions = {
        "mean of training molecules": np.full_like(truth, known.mean()),
        "random forest": forest(splits["train"]).predict(smiles),
        "frozen trunk": predict(model, processor, smiles),
    }
    table = pd.DataFrame({name: errors(truth, predicted) for name, predicted in predictions.items()}).T
    print_table("Solubility, test split, log mol/l", table, options.output / "scores.csv")
    console.print(
        f"{training['trainable']:,} parameters trained in {training['seconds']:.0f} s, validation RMSE "
        f"{training['validation']:.3f}; the set's CARD reports {CARD:.3f} RMSE for its forest on the test split."
    )
    draw(truth, predictions, options.output / "predictions.png")
    console.print(f"Written: scores.csv and predictions.png in {options.output}")


if __name__ == "__main__":
    main()
