"""PneumoniaMNIST: does the child have pneumonia? Chest X-rays of 28 x 28 pixels."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from meta_transformer.processors.xray import XrayProcessor

from .base import Recipe, Split
from .image import shifted
from .metrics import area_under_curve


def recipe(data: Path) -> Recipe:
    """Patches of 8 x 8 behind convolutions; shifted, and with another brightness and contrast, at random."""
    arrays = np.load(data / "xray/pneumoniamnist/pneumoniamnist.npz")
    splits = {
        name: Split(list(arrays[f"{name}_images"]), arrays[f"{name}_labels"].ravel().tolist())
        for name in ("train", "val", "test")
    }
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
        baseline=partial(_pixel_svm, splits),
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


def _pixel_svm(splits: dict[str, Split]) -> float:
    train, test = (np.stack(splits[name].samples).reshape(len(splits[name].samples), -1) for name in ("train", "test"))
    model = make_pipeline(StandardScaler(), SVC(C=1)).fit(train, splits["train"].labels)
    return float(roc_auc_score(splits["test"].labels, model.decision_function(test)))
