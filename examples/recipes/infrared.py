"""Infrared Solar Modules: which anomaly does the module have? Thermal crops of 40 x 24 pixels in twelve classes."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from meta_transformer.processors.infrared import InfraredProcessor

from .base import Recipe, splits_of
from .baselines import pixel_svm
from .image import mirrored, shifted
from .metrics import macro_f1


def recipe(data: Path) -> Recipe:
    """Patches of 8 x 8 behind convolutions; a window on the grey levels of each image; mirrored both ways."""
    folder = data / "infrared/solar_modules"
    table = pd.read_csv(folder / "labels.csv")
    table["image"] = [np.asarray(Image.open(folder / path)) for path in table["path"]]
    classes = sorted(table["label"].unique())
    splits = splits_of(table, "image", classes)
    return Recipe(
        modality="infrared",
        dataset="infrared/solar_modules",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=InfraredProcessor().fit(splits["train"].samples),
        metric="macro-F1",
        score=macro_f1,
        card=("SVM on pixels", 0.413),
        baseline=partial(pixel_svm, splits, macro_f1, C=10),
        classes=classes,
        tokenizer={"patch_size": 8, "image_size": [40, 24], "patch_embedding": "convolutional"},
        epochs=25,
        learning_rate=3e-3,
        batch_size=64,
        label_smoothing=0.1,
        augment=mirror_both_ways,
    )


def mirror_both_ways(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Upside down and left to right, each for every other image, and shifts of up to 2 pixels."""
    images = mirrored(mirrored(batch["infrared_values"], axis=2), axis=3)
    return {**batch, "infrared_values": shifted(images, 2)}
