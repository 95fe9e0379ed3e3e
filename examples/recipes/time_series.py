"""Japanese Vowels: which of nine men speaks? Series of 12 channels and 7 to 29 steps, 30 of each speaker to learn from.

Of the five sets of the UCR and UEA archives in the data folder this one has the most series to learn from, several
channels and different lengths. `recipe(data, "GunPoint")` and so on makes a recipe of the others.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from torch import Tensor

from meta_transformer.processors.time_series import TimeSeriesProcessor

from .base import Recipe, Split
from .metrics import accuracy

# Stats forests of the cards.
CARDS = {"GunPoint": 0.907, "ItalyPowerDemand": 0.964, "ArrowHead": 0.760, "BasicMotions": 1.0, "JapaneseVowels": 0.965}


def read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Series `(steps, channels)` and class names of a file of the UCR and UEA archives."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line]
    series = [[channel.replace("?", "nan").split(",") for channel in row[:-1]] for row in rows]
    return [np.array(channels, np.float64).T for channels in series], [row[-1] for row in rows]


def statistics(series: list[np.ndarray]) -> np.ndarray:
    """Mean, deviation and extremes of each channel, `(series, features)`, which are the card's."""
    functions = (np.mean, np.std, np.min, np.max)
    return np.stack([np.concatenate([function(values, axis=0) for function in functions]) for values in series])


def add_noise(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Three tenths of each channel's deviation."""
    values = batch["past_values"]
    return {**batch, "past_values": values + 0.3 * torch.randn_like(values)}


def recipe(data: Path, name: str = "JapaneseVowels") -> Recipe:
    folder = data / "ts_classification" / name
    series, train_classes = read_ts(folder / f"{name}_TRAIN.ts")
    test, test_classes = read_ts(folder / f"{name}_TEST.ts")
    classes = sorted(set(train_classes))
    labels, test_labels = ([classes.index(each) for each in part] for part in (train_classes, test_classes))
    # The archive has no validation part: a fifth of the training part, of every class the same share.
    train, validation, train_labels, validation_labels = train_test_split(
        series, labels, test_size=0.2, stratify=labels, random_state=0
    )

    def forest() -> float:
        model = RandomForestClassifier(random_state=0).fit(statistics(series), labels)
        return float(accuracy_score(test_labels, model.predict(statistics(test))))

    return Recipe(
        modality="time_series",
        dataset=f"ts_classification/{name}",
        train=Split(train, train_labels),
        validation=Split(validation, validation_labels),
        test=Split(test, test_labels),
        processor=TimeSeriesProcessor().fit(train),
        metric="accuracy",
        score=accuracy,
        card=("statistics, random forest", CARDS[name]),
        baseline=forest if name == "JapaneseVowels" else None,  # the other cards have other statistics
        classes=classes,
        tokenizer={"form": "convolution", "instance_norm": False},
        epochs=15,
        learning_rate=3e-3,
        batch_size=32,
        weight_decay=0.05,
        augment=add_noise,
    )
