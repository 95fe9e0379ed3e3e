"""One frozen trunk learns a real task from each of the twelve modalities.

    META_TRANSFORMER_DATA=../shared/data python examples/03_twelve_modalities.py
    python examples/03_twelve_modalities.py --modalities graph imu --encoder timm/vit_tiny_patch16_224.augreg_in21k

For each modality, a tokenizer and a classification head are trained on the data set of `recipes/<modality>.py`; the
trunk is the same for all and stays as it is. Options and the best epoch were chosen on validation data; the test split
is measured once, beside the majority class and the baseline of the set's card, which is made again in the same run
where that is cheap. Each model is saved, and must predict the same when a fresh process has loaded it. What is finished
is kept under `--output`: a run that was stopped goes on where it was, unless its recipe, encoder or epochs are others
now; `--fresh` starts anew.

Prints a table, and writes it with a bar chart to `--output`; to `docs/results/`, if it shows what the package does as
it is: all modalities, with neither `--encoder` nor `--epochs`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from recipes.base import nano_trunk, predict, train, write_json
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import logging

from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor, list_modalities

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [name for name in list_modalities() if (Path(__file__).parent / "recipes" / f"{name}.py").exists()]
console = Console()


# 1. Train, or take up what an earlier run has finished
def results(modalities: list[str], data: Path, encoder: str | None, output: Path, epochs: int | None) -> list[dict]:
    rows = []
    for number, modality in enumerate(modalities, start=1):
        file = output / modality / "row.json"
        forget_other_settings(output / modality, settings(modality, encoder, epochs))
        if not file.exists():
            console.rule(f"{number} of {len(modalities)}: {modality}")
            recipe = import_module(f"recipes.{modality}").recipe(data)
            counts = ", ".join(
                f"{len(getattr(recipe, part).labels)} {part}" for part in ("train", "validation", "test")
            )
            console.print(f"{recipe.dataset}: {counts} samples of {recipe.num_labels} classes")
            trunk = encoder or nano_trunk(output / "trunk")
            row = train(recipe, trunk, output / modality, epochs=epochs)
            if predict_in_fresh_process(modality, output / modality) != row.pop("predictions"):
                raise RuntimeError(f"The reloaded model of {modality!r} predicts otherwise than the trained one.")
            write_json(file, row)
            shutil.rmtree(output / modality / "trainer")
        rows.append(json.loads(file.read_text()))
    return rows


def settings(modality: str, encoder: str | None, epochs: int | None) -> dict[str, Any]:
    """What a result depends on, beside the package."""
    code = (Path(__file__).parent / "recipes" / f"{modality}.py").read_bytes()
    return {"encoder": encoder, "epochs": epochs, "recipe": hashlib.sha256(code).hexdigest()}


def forget_other_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Empty the folder of a modality that was trained in another way."""
    file = folder / "settings.json"
    if not file.exists() or json.loads(file.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(file, wanted)


# 2. Load in a fresh process and predict
def predict_in_fresh_process(modality: str, folder: Path) -> list[int]:
    """This script run anew with `--predict`."""
    command = [sys.executable, __file__, "--predict", modality, str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def predict_from(modality: str, folder: Path, data: Path) -> list[int]:
    recipe = import_module(f"recipes.{modality}").recipe(data)
    model = MetaTransformerForClassification.from_pretrained(folder)
    return predict(recipe, model, MetaTransformerProcessor.from_pretrained(folder))


# 3. Report
TITLES = ["modality", "data set", "metric", "majority", "card", "measured", "ours", "won", "trained", "sec", "baseline"]


def columns(row: dict[str, Any]) -> list[str]:
    baseline, quoted = row["card"]
    measured = "-" if row["baseline"] is None else f"{row['baseline']:.3f}"
    won = "yes" if row["test"] > best_baseline(row) else "no"
    scores = [f"{row['majority']:.3f}", f"{quoted:.3f}", measured, f"{row['test']:.3f}", won]
    counts = [f"{row['trainable']:,}", f"{row['seconds']:.0f}{'+' if row['resumed'] else ''}"]
    return [row["modality"], row["dataset"].split("/")[1], row["metric"], *scores, *counts, baseline]


def best_baseline(row: dict[str, Any]) -> float:
    """What the card quotes, or what was measured, whichever is better."""
    return max(row["card"][1], row["baseline"] or 0.0)


def print_table(rows: list[dict[str, Any]]) -> None:
    shown = [place for place, title in enumerate(TITLES) if title not in ("data set", "trained", "baseline")]
    table = Table(title="One frozen trunk, test splits", box=SIMPLE, padding=0)
    for place in shown:
        table.add_column(TITLES[place], justify="left" if place < 3 else "right", no_wrap=True)
    for row in rows:
        cells = columns(row)
        table.add_row(*(cells[place] for place in shown))
    console.print(table)


def write_report(rows: list[dict[str, Any]], trunk: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Twelve modalities, one frozen trunk",
        "",
        f"Written by `examples/03_twelve_modalities.py`. Trunk: {trunk}.",
        "Scores on the test splits; options and epochs were chosen on validation data. `card` is the baseline that the",
        "set's card quotes, `measured` our making of it in this run, with features that may differ; `won`: whether",
        "ours is above both. `trained` counts the parameters of tokenizer and head. `sec` is the time of training;",
        "with a +, of the last part of one that was stopped.",
        "",
        f"| {' | '.join(TITLES)} |",
        f"|{' --- |' * len(TITLES)}",
        *(f"| {' | '.join(columns(row))} |" for row in rows),
        "",
        *(f"- {row['modality']}: {row['note']}" for row in rows if row["note"]),
        "",
        "![Test scores by modality](twelve_modalities.png)",
        "",
    ]
    (folder / "twelve_modalities.md").write_text("\n".join(lines))
    write_json(folder / "twelve_modalities.json", rows)
    draw(rows, folder / "twelve_modalities.png")


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(13, 4.5))
    places = np.arange(len(rows))
    bars = {
        "majority": [row["majority"] for row in rows],
        "baseline": [best_baseline(row) for row in rows],
        "frozen trunk": [row["test"] for row in rows],
    }
    for offset, (label, values) in zip((-0.28, 0, 0.28), bars.items(), strict=True):
        drawn = axes.bar(places + offset, values, width=0.27, label=label)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    axes.set_xticks(places, [f"{row['modality']}\n{row['metric']}" for row in rows], fontsize=8)
    axes.set(ylim=(0, 1.15), ylabel="test score")
    axes.legend(ncols=3, loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modalities", nargs="+", choices=RECIPES, default=RECIPES, metavar="WORD")
    parser.add_argument("--encoder", help="pretrained weights; without, a small trunk of random weights")
    parser.add_argument("--epochs", type=int, help="instead of each recipe's own number")
    parser.add_argument("--output", type=Path, default=Path("outputs/03_twelve_modalities"))
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has finished")
    parser.add_argument("--predict", nargs=2, metavar=("WORD", "FOLDER"), help="only load a model and predict")
    arguments = parser.parse_args()
    data = Path(os.environ.get("META_TRANSFORMER_DATA") or "no-data")
    if not data.is_dir():
        sys.exit("Set META_TRANSFORMER_DATA to the folder of the data sets; this example trains on nothing else.")
    logging.set_verbosity_error()
    if arguments.predict:
        print(json.dumps(predict_from(arguments.predict[0], Path(arguments.predict[1]), data)))
        return
    if arguments.fresh:
        for modality in arguments.modalities:
            shutil.rmtree(arguments.output / modality, ignore_errors=True)
    rows = results(arguments.modalities, data, arguments.encoder, arguments.output, arguments.epochs)
    print_table(rows)
    as_it_is = arguments.modalities == RECIPES and arguments.encoder is None and arguments.epochs is None
    folder = ROOT / "docs" / "results" if as_it_is else arguments.output
    write_report(rows, arguments.encoder or "192 wide, 4 deep, random weights", folder)
    console.print(f"Written: {folder}/twelve_modalities.md, .json and .png")


if __name__ == "__main__":
    main()
