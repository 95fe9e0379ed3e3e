"""`train`: from data to a model that is trained, evaluated and saved."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .console import CONFIG, Label, Seed

__all__ = ["train"]

_PAIRS = "name=value, may be repeated."


def train(
    data: Annotated[str, typer.Argument(help="Folder <class>/<file>, CSV or other table, or name of a data set.")],
    modality: Annotated[str, typer.Option("--modality", "-m", help="What the samples are, such as audio.")],
    task: Annotated[str, typer.Option(help="classification, regression or forecasting.")] = "classification",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; by default runs/<data>.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Pretrained trunk: a name of the hub, or a folder.")] = None,
    size: Annotated[str, typer.Option(help="Of a trunk of random weights: nano, tiny, small or base.")] = "nano",
    label: Label = None,
    column: Annotated[str | None, typer.Option(help="Column of the samples; of a series, that of time.")] = None,
    look_back: Annotated[int, typer.Option(min=1, help="Steps that a forecast is made from.")] = 96,
    horizon: Annotated[int, typer.Option(min=1, help="Steps to forecast.")] = 24,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over what is learned from.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Highest learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step.")] = None,
    freeze: Annotated[str, typer.Option(help="The trunk: all, none, last_2, layernorm, bias, lora.")] = "all",
    class_weights: Annotated[str | None, typer.Option(help="balanced: rare classes count more.")] = None,
    early_stopping: Annotated[int | None, typer.Option(min=1, help="Epochs without a better one, then stop.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples of a split, for a quick try.")] = None,
    processor: Annotated[list[str] | None, typer.Option(help=f"Settings of the processor: {_PAIRS}")] = None,
    tokenizer: Annotated[list[str] | None, typer.Option(help=f"Options of the tokenizer: {_PAIRS}")] = None,
    head: Annotated[list[str] | None, typer.Option(help=f"Options of the head: {_PAIRS}")] = None,
    call: Annotated[list[str] | None, typer.Option(help=f"Of the processor's call, as sampling_rate: {_PAIRS}")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read samples.")] = 0,
    check: Annotated[bool, typer.Option(help="Read every sample once before training.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run of this output has done.")] = False,
    config: CONFIG = None,
) -> None:
    """Train a tokenizer and a head on a frozen trunk.

    Ctrl-C saves; the same command goes on where it was stopped or killed. The best epoch on validation data is kept,
    and measured once on test data.
    """
    settings: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("config", "output")}
    for name in ("processor", "tokenizer", "head", "call"):
        settings[name] = settings[name] or []
    from .runs import TrainSettings, run_training

    folder = output or Path("runs") / Path(data).resolve().name
    raise typer.Exit(run_training(TrainSettings(output=folder, **settings)))
