"""One picture for each task: what was predicted beside what is true."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import needs

__all__ = ["ConfusionMatrix", "ForecastPlot", "ScatterPlot", "picture_for"]


class _Picture:
    """Takes batches in, and draws.

    Attributes:
        name: Of the file.
    """

    name: str
    size: tuple[float, float] = (6, 6)

    def add(self, numbers: list[int], output: Any, labels: Any) -> None:
        """Take a batch in: the numbers of its rows, the model's output, and the labels."""
        raise NotImplementedError(f"{type(self).__name__} defines no add.")

    def draw(self, figure: Any) -> None:
        """Draw into an empty figure."""
        raise NotImplementedError(f"{type(self).__name__} defines no draw.")

    def baseline(self) -> dict[str, float]:
        """Metrics of a prediction that knows nothing of the sample, to compare with."""
        return {}

    def save(self, folder: Path) -> Path:
        """Write the picture, whole or not at all."""
        with needs("matplotlib to draw", "cli"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        figure = Figure(figsize=self.size, layout="constrained")
        FigureCanvasAgg(figure)
        self.draw(figure)
        unfinished = folder / f".{self.name}.unfinished"
        figure.savefig(unfinished, dpi=110, format="png")
        os.replace(unfinished, folder / self.name)
        return folder / self.name


class ConfusionMatrix(_Picture):
    """Of classification: a row for each true class, a column for each predicted one."""

    name = "confusion_matrix.png"

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.counts = np.zeros((len(classes), len(classes)), np.int64)
        side = min(3 + 0.4 * len(classes), 20)
        self.size = (side, side)

    def add(self, numbers: list[int], output: Any, labels: Any) -> None:
        np.add.at(self.counts, (labels.cpu().numpy(), output["logits"].argmax(dim=-1).cpu().numpy()), 1)

    def baseline(self) -> dict[str, float]:
        """Accuracy of the class that is the most frequent."""
        return {"accuracy of the most frequent class": float(self.counts.sum(axis=1).max() / self.counts.sum())}

    def draw(self, figure: Any) -> None:
        axis, places = figure.subplots(), np.arange(len(self.classes))
        shares = self.counts / self.counts.sum(axis=1, keepdims=True).clip(1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_xticks(places, self.classes, rotation=90)
        axis.set_yticks(places, self.classes)
        axis.set(xlabel="predicted", ylabel="true")
        if len(self.classes) <= 30:
            for row, column in np.ndindex(*self.counts.shape):
                if self.counts[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axis.text(column, row, self.counts[row, column], ha="center", va="center", color=colour, fontsize=8)


class ScatterPlot(_Picture):
    """Of regression: what was measured against what was predicted."""

    name = "predictions.png"

    def __init__(self, names: list[str]) -> None:
        self.names, self.truth, self.predicted = names, [], []
        self.size = (4 * len(names), 4)

    def add(self, numbers: list[int], output: Any, labels: Any) -> None:
        self.predicted.append(output["logits"].float().cpu().numpy())
        self.truth.append(labels.float().cpu().numpy().reshape(len(numbers), -1))

    def baseline(self) -> dict[str, float]:
        """RMSE of the mean."""
        truth = np.concatenate(self.truth)
        return {"rmse of the mean": float(truth.std(axis=0).mean())}

    def draw(self, figure: Any) -> None:
        truth, predicted = np.concatenate(self.truth), np.concatenate(self.predicted)
        axes = figure.subplots(1, len(self.names), squeeze=False)[0]
        for place, (axis, name) in enumerate(zip(axes, self.names, strict=True)):
            axis.plot(truth[:, place], predicted[:, place], "o", alpha=0.5, markersize=4)
            axis.axline((truth[0, place], truth[0, place]), slope=1, color="black", linewidth=0.8)
            axis.set(title=name, xlabel="measured", ylabel="predicted")


class ForecastPlot(_Picture):
    """Of forecasting: three windows, what was seen, what followed and what was forecast, in the units of the data."""

    name = "forecast.png"

    def __init__(self, rows: Any, channels: list[str], restore: Any) -> None:
        self.rows, self.channels, self.restore = rows, channels[:4], restore
        self.places = np.linspace(0, len(rows) - 1, 3).astype(int).tolist()
        self.forecasts: dict[int, np.ndarray] = {}
        self.total, self.count = 0.0, 0
        self.size = (12, 2.5 * len(self.channels))

    def add(self, numbers: list[int], output: Any, labels: Any) -> None:
        for place, number in enumerate(numbers):
            if number in self.places:
                self.forecasts[number] = output["logits"][place].float().cpu().numpy()
            window = self.rows[number]["time_series"][-1:]
            last = np.nan_to_num(np.asarray(self.rows.scale(window)))
            self.total += float(np.square(labels[place].cpu().numpy() - last).mean())
            self.count += 1

    def baseline(self) -> dict[str, float]:
        """MSE of the last value, repeated."""
        return {"mse of the last value": self.total / self.count}

    def draw(self, figure: Any) -> None:
        axes = figure.subplots(len(self.channels), len(self.places), squeeze=False)
        for column, place in enumerate(self.places):
            row = self.rows[place]
            past = np.asarray(row["time_series"])
            future, forecast = self.restore(row["labels"]), self.restore(self.forecasts[place])
            steps = np.arange(-len(past), len(future))
            for number, (axis, name) in enumerate(zip(axes[:, column], self.channels, strict=True)):
                axis.plot(steps, np.concatenate([past, future])[:, number], color="0.6", label="measured")
                axis.plot(steps[len(past) :], forecast[:, number], color="tab:blue", label="forecast")
                axis.set(title=name if not column else None)
        axes[0, 0].legend(fontsize=8)


def picture_for(task: str, model: Any, rows: Any, processor: Any) -> _Picture:
    """The picture of a task.

    Args:
        task: Its word.
        model: That predicts.
        rows: That are predicted.
        processor: Of the model.
    """
    if task == "classification":
        return ConfusionMatrix([model.config.id2label[number] for number in sorted(model.config.id2label)])
    if task == "regression":
        options = model.head.config
        return ScatterPlot(options.target_names or [f"target_{number}" for number in range(options.num_targets)])
    series = processor.time_series
    channels = series.channels or [f"channel {number}" for number in range(rows.values.shape[1])]
    return ForecastPlot(rows, channels, series.restore)
