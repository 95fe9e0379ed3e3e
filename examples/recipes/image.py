"""CIFAR-10, a subset: what is in the photograph? 350 pictures of 32 x 32 for each of ten classes to learn from."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from meta_transformer.processors.image import ImageProcessor

from .base import Recipe, splits_of
from .metrics import accuracy


def recipe(data: Path) -> Recipe:
    """Patches of 8 x 8 behind convolutions; crops at random, mirrored at random."""
    folder = data / "image/cifar10_small"
    table = pd.read_csv(folder / "labels.csv")
    table["image"] = [np.asarray(Image.open(folder / path)) for path in table["path"]]
    classes = sorted(table["label"].unique())
    splits = splits_of(table, "image", classes)
    return Recipe(
        modality="image",
        dataset="image/cifar10_small",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=ImageProcessor(image_mean=[0.491, 0.482, 0.447], image_std=[0.247, 0.243, 0.262]),
        metric="accuracy",
        score=accuracy,
        card=("SVM on HOG", 0.544),
        classes=classes,
        tokenizer={"patch_size": 8, "image_size": 32, "patch_embedding": "convolutional", "stem_depth": 2},
        epochs=40,
        learning_rate=3e-3,
        batch_size=64,
        label_smoothing=0.1,
        augment=crop_and_mirror,
    )


def crop_and_mirror(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shifts of up to 4 pixels, and every other picture mirrored (He et al. 2016, section 4.2)."""
    return {**batch, "pixel_values": mirrored(shifted(batch["pixel_values"], 4), axis=3)}


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Each of `(batch, channels, height, width)` moved by up to so many pixels; its edges are repeated."""
    batch, _, height, width = images.shape
    padded = functional.pad(images, [pixels] * 4, mode="replicate")
    top, left = torch.randint(2 * pixels + 1, (2, batch, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    moved = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def mirrored(images: Tensor, axis: int) -> Tensor:
    """Every other image of `(batch, ...)` reversed along an axis, at random."""
    chosen = torch.rand(len(images), *[1] * (images.dim() - 1)) < 0.5
    return torch.where(chosen, images.flip(axis), images)
