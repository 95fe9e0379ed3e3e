"""A frozen trunk forecasts electricity load and oil temperature: ETTh1, as the literature measures it.

    META_TRANSFORMER_DATA=../shared/data python examples/04_forecasting.py
    python examples/04_forecasting.py --look-back 336 --encoder timm/vit_tiny_patch16_224.augreg_in21k

Seven hourly series, standardised by the rows of training. From `--look-back` steps the next 96, 192, 336 and 720, at
every hour of the usual borders, none dropped. For each horizon a tokenizer and a forecasting head are trained; the
trunk, 192 wide and 4 deep with random weights unless `--encoder` names others, stays as it is. Each series is one token
(as in iTransformer, Liu et al. 2024), so that the trunk mixes series. The head's linear layers beside the tokens start
in closed form and what reads the tokens at zero: training, on absolute errors, finds what the tokens know beyond it.

The level of these series drifts. So training sees each series of each window moved up or down as a whole, by half a
deviation: what is learned then holds at levels that the rows of training do not have, too.

The best epoch is chosen on validation data. The test split is measured once, beside baselines made in the same run:
repeating the last value, and linear layers in closed form, shared by the series or one for each; and the layers that
the model starts from. `--rows 6912` leaves the test split alone: it trains on the first rows, chooses on the next 864,
a tenth of those of training, and measures on the 864 after.

Prints MSE and MAE of standardised values. Writes them, the models, and a plot of forecasts to `--output`. What is
finished is kept there: a run that was stopped goes on where it was, unless its settings are others now; `--fresh`
starts anew.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from task_runs import arguments, console, print_table, train
from torch.utils.data import Dataset

from meta_transformer import MetaTransformerForForecasting, MetaTransformerForTask, MetaTransformerProcessor
from meta_transformer.processors.time_series import TimeSeriesProcessor

HORIZONS = [96, 192, 336, 720]
# Rows of which the targets of each part are; the look-backs of its first windows begin before them.
BORDERS = {"train": (0, 8640), "validation": (8640, 11520), "test": (11520, 14400)}
OWN, START, OURS = "linear layer for each series", "the same, levels moved", "frozen trunk"
SHIFT = 0.5
RIDGE = [0.1, 1.0, 10.0, 100.0, 1e3, 1e4]


# 1. Windows
class Windows(Dataset):
    """Every window of some rows whose future lies inside them; rows as the collator takes them.

    With `shift`, each series of a window is moved as a whole, by a normal number of this deviation, anew every time.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        series: TimeSeriesProcessor,
        part: str,
        look_back: int,
        horizon: int,
        shift: float = 0.0,
    ) -> None:
        first, end = BORDERS[part]
        self.standardized = series.standardize(table.to_numpy()[max(first - look_back, 0) : end]).numpy()
        self.series, self.look_back, self.horizon, self.shift = series, look_back, horizon, shift

    def __len__(self) -> int:
        return len(self.standardized) - self.look_back - self.horizon + 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        values = self.standardized[index : index + self.look_back + self.horizon]
        if self.shift:
            values = values + self.shift * torch.randn(values.shape[1]).numpy()
        return {
            "time_series": self.series.restore(values[: self.look_back]),
            "labels": values[self.look_back :],
        }

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Standardised look-backs `(windows, series, look_back)`, futures `(windows, series, horizon)`; none moved."""
        size = self.look_back + self.horizon
        whole = np.lib.stride_tricks.sliding_window_view(self.standardized.astype(np.float64), size, axis=0)
        return whole[..., : self.look_back], whole[..., self.look_back :]


def errors(forecast: np.ndarray, future: np.ndarray) -> dict[str, float]:
    """Means over windows, series and steps."""
    error = forecast - future
    return {"MSE": float(np.square(error).mean()), "MAE": float(np.abs(error).mean())}


# 2. Baselines
class Linear:
    """One linear layer with a bias from look-back to future, the same for all series: ridge regression.

    Args:
        train: What it is fitted to; if it moves series, as if to every move.
        validation: What the strengths of the ridges are chosen on.
        normalised: Whether each look-back is brought to mean 0 and deviation 1 first.
        own: Whether each series then gets weights of its own, by a ridge regression of what is left.

    Attributes:
        validation: Its MSE on validation data.
        weights: `(series, look_back + 1, horizon)`, the bias last.
    """

    def __init__(self, train: Windows, validation: Windows, *, normalised: bool = False, own: bool = False) -> None:
        self.normalised = normalised
        steps, (past, future) = train.look_back, validation.arrays()
        grams, moments = [], []
        for inputs, targets in zip(*(np.moveaxis(each, 1, 0) for each in train.arrays()), strict=True):  # by series
            inputs, mean, std = self._inputs(inputs)
            shift = 0.0 if normalised else train.shift  # which normalising takes away
            level = shift * np.append(np.ones(steps), 0)
            grams.append(inputs.T @ inputs + len(inputs) * np.outer(level, level))
            moments.append(inputs.T @ ((targets - mean) / std) + len(inputs) * shift * level[:, None])

        def choose(candidates: list[np.ndarray]) -> None:
            found = []
            for self.weights in candidates:
                found.append((errors(self.predict(past), future)["MSE"], self.weights))
            self.validation, self.weights = min(found, key=lambda each: each[0])

        ridges = [strength * np.eye(steps + 1) for strength in RIDGE]
        choose([np.stack([np.linalg.solve(sum(grams) + ridge, sum(moments))] * len(grams)) for ridge in ridges])
        if own:
            shared, candidates = self.weights, [self.weights]
            for ridge in ridges:
                candidates.append(shared.copy())
                for place, (gram, moment) in enumerate(zip(grams, moments, strict=True)):
                    left = (moment - gram @ shared[place])[:steps]
                    candidates[-1][place, :steps] += np.linalg.solve((gram + ridge)[:steps, :steps], left)
            choose(candidates)

    def _inputs(self, past: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        mean, std = 0.0, 1.0
        if self.normalised:
            mean, std = past.mean(axis=-1, keepdims=True), past.std(axis=-1, keepdims=True).clip(1e-5)
        inputs = (past - mean) / std
        return np.concatenate([inputs, np.ones_like(inputs[..., :1])], axis=-1), mean, std

    def predict(self, past: np.ndarray) -> np.ndarray:
        """From look-backs `(windows, series, look_back)` to `(windows, series, horizon)`."""
        inputs, mean, std = self._inputs(past)
        return np.einsum("wsi,sih->wsh", inputs, self.weights, optimize=True) * std + mean

    @torch.no_grad()
    def start(self, model: Any) -> None:
        """Let the model's forecasts be these, if its tokenizer normalises as this does."""
        weights = torch.from_numpy(self.weights)
        model.head.skip.weight.copy_(weights[:, :-1].mT.flatten(0, 1)[:, None])
        model.head.decoder.weight.zero_()
        model.head.decoder.bias.copy_(weights[0, -1])


# 3. Predict
@torch.no_grad()
def predict(
    model: MetaTransformerForTask, processor: MetaTransformerProcessor, windows: Windows, size: int = 256
) -> np.ndarray:
    """Standardised forecasts `(windows, series, horizon)`."""
    forecasts = []
    for start in range(0, len(windows), size):
        samples = [windows[index]["time_series"] for index in range(start, min(start + size, len(windows)))]
        forecasts += [each["forecast"].T for each in model.post_process(model(**processor(time_series=samples)))]
    return np.stack(forecasts)


# 4. Report
def draw(test: Windows, forecasts: dict[str, np.ndarray], series: TimeSeriesProcessor, file: Path) -> None:
    """Two series at three evenly spaced hours of the test split, in the units of the data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = np.linspace(0, len(test) - 1, 5).astype(int)[1:-1]
    names = series.channels or []
    past, future = test.arrays()
    hours = np.arange(-test.look_back, test.horizon)

    def restored(values: np.ndarray) -> np.ndarray:
        return series.restore(values.T)

    figure, axes = pyplot.subplots(2, len(places), figsize=(4 * len(places), 5), sharex=True)
    for row, name in zip(axes, (names[0], names[-1]), strict=True):
        channel = names.index(name)
        for axis, place in zip(row, places, strict=True):
            known, truth = restored(past[place])[:, channel], restored(future[place])[:, channel]
            axis.plot(hours, np.concatenate([known, truth]), color="0.6", linewidth=1, label="measured")
            for method, colour in zip(forecasts, ("tab:orange", "tab:blue"), strict=True):
                line = restored(forecasts[method][place])[:, channel]
                axis.plot(hours[test.look_back :], line, color=colour, linewidth=1.3, label=method)
            axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        row[0].set_ylabel(name)
    for axis in axes[1]:
        axis.set_xlabel("hours from the forecast")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def main() -> None:
    options = arguments(__file__, __doc__, epochs=2, look_back=96, rows=BORDERS["train"][1])
    if options.rows < BORDERS["train"][1]:
        tenth = BORDERS["train"][1] // 10
        ends = [0, options.rows, options.rows + tenth, options.rows + 2 * tenth]
        BORDERS.update(zip(BORDERS, pairwise(ends), strict=True))
    table = pd.read_csv(options.data / "ts_forecast/etth1/ETTh1.csv", index_col="date", parse_dates=True)
    series = TimeSeriesProcessor().fit(table[slice(*BORDERS["train"])])
    processor = MetaTransformerProcessor(time_series=series)
    scores: dict[str, dict[str, float]] = {}
    seconds = 0.0
    for horizon in HORIZONS:
        parts = {part: Windows(table, series, part, options.look_back, horizon) for part in BORDERS}
        sizes = ", ".join(f"{len(windows):,} windows {part}" for part, windows in parts.items())
        console.print(f"Horizon {horizon}: {sizes}")
        moved = Windows(table, series, "train", options.look_back, horizon, shift=SHIFT)
        linear = {
            "linear layer": Linear(parts["train"], parts["validation"]),
            "linear layer, normalised": Linear(parts["train"], parts["validation"], normalised=True),
            OWN: Linear(parts["train"], parts["validation"], own=True),
            START: Linear(moved, parts["validation"], own=True),
        }
        model, training = train(
            MetaTransformerForForecasting,
            options.trunk,
            processor,
            (moved, parts["validation"]),
            options.output / f"horizon_{horizon}",
            tokenizer={"patch_length": options.look_back, "stride": options.look_back, "instance_norm": False},
            head={
                "horizon": horizon,
                "num_tokens": 1,
                "layers": "all",
                "loss": "mae",
                "skip_steps": options.look_back,
                "skip_channels": len(series.channels or []),
            },
            prepare=linear[START].start,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=3e-5,
            batch_eval_metrics=True,
            metric_for_best_model="mse",
            greater_is_better=False,
        )
        seconds += training["seconds"]
        chosen = {name: layer.validation for name, layer in linear.items()} | {OURS: training["validation"]}
        console.print("Validation MSE: " + ", ".join(f"{name} {value:.3f}" for name, value in chosen.items()))
        past, future = parts["test"].arrays()
        forecasts = {"last value": past[..., -1:]}
        forecasts |= {name: layer.predict(past) for name, layer in linear.items()}
        forecasts[OURS] = predict(model, processor, parts["test"])
        found = {name: errors(forecast, future) for name, forecast in forecasts.items()}
        for metric in ("MSE", "MAE"):
            for name, values in found.items():
                scores.setdefault(f"{metric}, {name}", {})[str(horizon)] = values[metric]
        if horizon == HORIZONS[0]:
            shown = {name: forecasts[name] for name in ("linear layer", OURS)}
            draw(parts["test"], shown, series, options.output / "forecasts.png")
    report = pd.DataFrame(scores).T
    report["mean"] = report.mean(axis=1)
    rows = "rows {} to {}".format(*BORDERS["test"])
    print_table(f"ETTh1, {rows}, standardised, by horizon", report, options.output / "scores.csv")
    console.print(f"Trained in {seconds:.0f} s. Written: scores.csv and forecasts.png in {options.output}")


if __name__ == "__main__":
    main()
