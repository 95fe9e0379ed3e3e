"""`evaluate` and `predict`: what a saved model is worth, and what it says."""

from pathlib import Path
from typing import Annotated

import typer

from .console import CONFIG, Batch, Label

__all__ = ["evaluate", "predict"]

_Model = Annotated[str, typer.Argument(help="Folder or name of a saved model, or with --encoder of a task pack.")]
_Encoder = Annotated[str | None, typer.Option(help="Trunk of a task pack: its name or folder.")]
_Column = Annotated[str | None, typer.Option(help="Column of the samples; of a series, that of time.")]


def evaluate(
    model: _Model,
    data: Annotated[str, typer.Argument(help="As of train.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for results and picture; by default <model>/<split>.")
    ] = None,
    label: Label = None,
    column: _Column = None,
    batch_size: Batch = 64,
    encoder: _Encoder = None,
    config: CONFIG = None,
) -> None:
    """Measure a saved model on data with labels."""
    from .measuring import evaluate_model

    evaluate_model(model, data, split, output, label=label, column=column, batch_size=batch_size, encoder=encoder)


def predict(
    model: _Model,
    files: Annotated[list[str], typer.Argument(help="Files, a folder of files, or a table; text and SMILES as such.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="predictions.csv, .jsonl or .parquet.")] = None,
    column: _Column = None,
    batch_size: Batch = 64,
    encoder: _Encoder = None,
    look_back: Annotated[int | None, typer.Option(min=1, help="Steps that a forecast is made from.")] = None,
    call: Annotated[list[str] | None, typer.Option(help="Of the processor's call: name=value.")] = None,
    config: CONFIG = None,
) -> None:
    """Predict, with probabilities where there are classes.

    What cannot be read is named and left out; the exit status is 1 then.
    """
    from .predicting import predict_files

    options = {"column": column, "batch_size": batch_size, "encoder": encoder, "look_back": look_back}
    raise typer.Exit(predict_files(model, files, output, call=call or [], **options))
