"""PneumoniaMNIST: does the child have pneumonia? Chest X-rays of 28 x 28 pixels."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meta_transformer.processors.xray import XrayProcessor

from .base import Recipe, Split
from .baselines import pixel_svm
from .image import shifted
from .metrics import area_under_curve


def recipe(data: Path) -> Recipe:
    """Patches of 8 x 8 behind convolutions; shifted, and with another brightness and contrast, at random.

    Eight validation images that lie in the training split too, by the card, are left out.
    """
    arrays = np.load(data / "xray/pneumoniamnist/pneumoniamnist.npz")
    splits = {
        name: Split(list(arrays[f"{name}_images"]), arrays[f"{name}_labels"].ravel().tolist())
        for name in ("train", "val", "test")
    }
    learned = {image.tobytes() for image in splits["train"].samples}
    fresh = [place for place, image in enumerate(splits["val"].samples) if image.tobytes() not in learned]
    splits["val"] = Split(*([part[place] for place in fresh] for part in (splits["val"].samples, splits["val"].labels)))
    return Recipe(
        modality="xray",
        dataset="xray/pneumoniamnist",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=XrayProcessor().fit(splits["train"].samples),
        metric="AUC",
        score=area_under_curve,
        card=("SVM on pixels", 0.942),
        baseline=partial(pixel_svm, splits, area_under_curve, C=1),
        classes=["normal", "pneumonia"],
        tokenizer={"patch_size": 8, "image_size": 28, "patch_embedding": "convolutional"},
        epochs=10,
        learning_rate=3e-3,
        batch_size=64,
        augment=shift_and_light,
    )


def shift_and_light(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shifts of up to 2 pixels; brightness and contrast by up to 0.2."""
    images = shifted(batch["xray_values"], 2)
    contrast, brightness = 1 + 0.2 * (2 * torch.rand(2, len(images), 1, 1, 1) - 1)
    return {**batch, "xray_values": images * contrast + brightness - 1}
