"""SP-SW-HAR: does a person sit, stand up, walk, turn or sit down? Half seconds of a phone in the pocket, 6 channels.

The windows of the set's table, which lie in the recordings of 23 people. Test persons are others than those learned
from.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from meta_transformer.processors.imu import ImuProcessor

from .base import Recipe, Split
from .metrics import macro_f1

RATE = 100  # Hz, by the card; the times are those of delivery, and jump
COLUMNS = ["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro"]


def recipe(data: Path, device: str = "sp") -> Recipe:
    """A token stands for 80 ms of the phone's (`sp`) or the watch's (`sw`) sensors."""
    folder = data / "imu/sp_sw_har"
    table = pd.read_csv(folder / "windows.csv")
    table = table[table["device"] == device]
    recordings = {path: pd.read_csv(folder / path)[COLUMNS].to_numpy() for path in table["path"].unique()}
    classes = sorted(table["label"].unique())
    splits = {}
    for name, part in table.groupby("split"):
        rows = zip(part["path"], part["start_row"], part["end_row"], strict=True)
        windows = [recordings[path][start:end] for path, start, end in rows]
        splits[name] = Split(windows, [classes.index(label) for label in part["label"]])
    return Recipe(
        modality="imu",
        dataset="imu/sp_sw_har",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=ImuProcessor(sampling_rate=RATE).fit(splits["train"].samples, imu_sampling_rate=RATE),
        metric="macro-F1",
        score=macro_f1,
        card=("random forest on statistics", {"sp": 0.856, "sw": 0.821}[device]),
        baseline=partial(_statistics_forest, splits),
        classes=classes,
        tokenizer={"kernel_sizes": [7, 5, 5], "strides": [2, 2, 2]},
        call={"imu_sampling_rate": RATE},
        epochs=20,
        learning_rate=3e-3,
        batch_size=64,
        weight_decay=0.05,
        augment=disturb,
    )


def disturb(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another size, level and noise of each channel, each by about a tenth of its deviation."""
    values = batch["imu_values"]
    gain, level = 1 + 0.1 * torch.randn(2, len(values), 1, values.shape[2])
    return {**batch, "imu_values": values * gain + (level - 1) + 0.1 * torch.randn_like(values)}


def _statistics_forest(splits: dict[str, Split]) -> float:
    """Mean, deviation, extremes and mean step of each channel."""

    def statistics(split: Split) -> np.ndarray:
        windows = np.stack(split.samples)
        features = [function(windows, axis=1) for function in (np.mean, np.std, np.min, np.max)]
        return np.concatenate([*features, np.abs(np.diff(windows, axis=1)).mean(axis=1)], axis=1)

    forest = RandomForestClassifier(random_state=0).fit(statistics(splits["train"]), splits["train"].labels)
    return macro_f1(np.array(splits["test"].labels), forest.predict_proba(statistics(splits["test"])))
