"""Fine-tune a forecaster on your own long series.

    python examples/run_forecasting.py --data load.csv --look_back 96 --horizon 24 --output_dir outputs/load

`--data` is a CSV, TSV or Parquet file: a row a step, by time, with a column of time if there is one (`--column`; by
default the first that holds no numbers), columns of numbers, the channels, and if need be a column `split`. Without it
the last 15 % of the steps are the test split and the 15 % before them the validation split.

A tokenizer and a head are trained around a frozen trunk: `--encoder` names a pretrained one. MSE and MAE are those of
all windows of the test split, of values standardised by the steps that are learned from. `--output_dir` gets the model
with its processor and card, `all_results.json`, and `forecast.png`: three windows in the units of the data.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_shared import DataArguments, build, limited, predict, reported_split, start, train

from meta_transformer.cli.defaults import defaults_for
from meta_transformer.cli.pictures import picture_for
from meta_transformer.training.splits import read_source


@dataclass
class ForecastingArguments(DataArguments):
    """What is forecast from what."""

    look_back: int = field(default=96, metadata={"help": "Steps that a forecast is made from."})
    horizon: int = field(default=24, metadata={"help": "Steps to forecast."})
    column: str | None = field(default=None, metadata={"help": "Column of time."})


def main() -> None:
    model_arguments, data, arguments = start(
        __doc__,
        ForecastingArguments,
        metric="mse",
        greater_is_better=False,
        num_train_epochs=10.0,
        learning_rate=1e-3,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
    )
    if min(data.look_back, data.horizon) < 1:
        raise ValueError(f"--look_back and --horizon must be at least 1, got {data.look_back} and {data.horizon}.")
    steps: dict[str, Any] = {"look_back": data.look_back, "horizon": data.horizon}
    source = read_source(data.data, "time_series", task="forecasting", column=data.column, **steps)
    source.splits = limited(source.splits, data, arguments.seed)
    defaults = defaults_for("time_series", "forecasting", source, data.look_back, data.horizon)
    model, processor = build(model_arguments, "forecasting", {"time_series": source}, {"time_series": defaults})
    trainer, _ = train(model, processor, source.splits, arguments, model_arguments.call)
    if trainer.is_world_process_zero():
        rows = source.splits[reported_split(source.splits)]
        picture: Any = picture_for("forecasting", model, rows, processor)
        samples, output = predict(trainer, rows, picture.places)
        picture.add(picture.places, output, trainer.data_collator(samples)["labels"])
        print(f"Written: {picture.save(Path(str(arguments.output_dir)))}")


if __name__ == "__main__":
    main()
