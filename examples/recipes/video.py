"""Surveillance cameras: is there a fight? Two seconds a clip; single frames and the length of a clip tell nothing."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor
from torch.nn import functional

from meta_transformer.processors.video import VideoProcessor

from .base import Recipe, Split, splits_of
from .metrics import accuracy

HEIGHT, WIDTH = 16, 24


def recipe(data: Path) -> Recipe:
    """Changes between 16 small grey frames: with 196 clips, anything that stands still is learned by heart."""
    folder = data / "video/fight_surveillance"
    options = {"num_frames": 16, "num_channels": 1, "size": [HEIGHT, WIDTH], "interpolation": "bilinear"}
    table = pd.read_csv(folder / "labels.csv")
    # Decoded once, and not in every epoch.
    read = VideoProcessor(**options, image_mean=0.0, image_std=1.0)
    table["clip"] = [read(folder / path)["pixel_values_videos"][0].numpy() for path in table["path"]]
    splits = splits_of(table, "clip", ["noFight", "fight"])
    return Recipe(
        modality="video",
        dataset="video/fight_surveillance",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=VideoProcessor(**options, represent="changes", image_mean=0.0, image_std=0.1),
        metric="accuracy",
        score=accuracy,
        card=("forest on motion energy", 0.711),
        baseline=partial(_motion_energy_forest, splits),
        classes=["no fight", "fight"],
        tokenizer={"tubelet_size": 4, "patch_size": 8, "image_size": [HEIGHT, WIDTH]},
        epochs=20,
        learning_rate=2e-3,
        batch_size=32,
        weight_decay=0.05,
        label_smoothing=0.1,
        augment=move,
    )


def move(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mirror, reverse in time and weaken or strengthen some clips; shift all of them by up to 2 pixels."""
    clips = batch["pixel_values_videos"]
    mirrored, reversed_ = torch.rand(2, len(clips), 1, 1, 1, 1) < 0.5
    clips = torch.where(mirrored, clips.flip(-1), clips)
    clips = torch.where(reversed_, clips.flip(1), clips)
    clips = clips * torch.empty(len(clips), 1, 1, 1, 1).uniform_(0.7, 1.3)
    top, left = torch.randint(0, 5, (2,)).tolist()
    padded = functional.pad(clips[:, :, 0], (2, 2, 2, 2), mode="replicate")
    return {**batch, "pixel_values_videos": padded[:, :, None, top : top + HEIGHT, left : left + WIDTH]}


def _motion_energy_forest(splits: dict[str, Split]) -> float:
    """Statistics of the absolute changes over the whole picture, and their means in 6 parts of it."""

    def features(split: Split) -> np.ndarray:
        changes = [np.abs(np.diff(clip[:, 0], axis=0)) for clip in split.samples]
        energy = [each.mean(axis=(1, 2)) for each in changes]
        parts = [each.mean(axis=0).reshape(2, 8, 3, 8).mean(axis=(1, 3)).ravel() for each in changes]
        statistics = [[each.mean(), each.std(), each.max(), each.min()] for each in energy]
        return np.concatenate([statistics, np.sort(parts, axis=1)], axis=1)

    model = RandomForestClassifier(300, random_state=0).fit(features(splits["train"]), splits["train"].labels)
    return float(model.score(features(splits["test"]), splits["test"].labels))
