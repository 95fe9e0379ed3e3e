"""DALES Objects: which of five kinds of object is a piece of a laser scan from the air? 101 to 1,024 points."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from meta_transformer.processors.point_cloud import PointCloudProcessor

from .base import Recipe, Split, splits_of
from .metrics import accuracy

CLASSES = ["building", "car", "fence", "pole", "tree"]


def recipe(data: Path) -> Recipe:
    """Coordinates in metres, because size tells more than shape here; 24 groups of 16 points."""
    folder = data / "point_cloud/dales_objects"
    table = pd.read_csv(folder / "labels.csv")
    table["points"] = [np.loadtxt(folder / path, dtype=np.float32) for path in table["path"]]
    splits = splits_of(table, "points", CLASSES)
    return Recipe(
        modality="point_cloud",
        dataset="point_cloud/dales_objects",
        train=splits["train"],
        validation=splits["val"],
        test=splits["test"],
        processor=PointCloudProcessor(normalization=None),
        metric="accuracy",
        score=accuracy,
        card=("geometry forest", 0.973),
        baseline=partial(_forest, splits),
        classes=CLASSES,
        tokenizer={"num_groups": 24, "group_size": 16},
        epochs=20,
        label_smoothing=0.1,
        learning_rate=2e-3,
        batch_size=32,
        augment=augment,
    )


def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn each cloud about the vertical, mirror every other one, and stretch it by up to 10 %."""
    points = batch["point_coordinates"]
    count = len(points)
    angle = torch.rand(count, 1) * 2 * torch.pi
    x, y, z = points.unbind(2)
    x = x * torch.where(torch.rand(count, 1) < 0.5, -1, 1)
    turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z], dim=2)
    return {**batch, "point_coordinates": turned * (0.9 + 0.2 * torch.rand(count, 1, 1))}


def _forest(splits: dict[str, Split]) -> float:
    """A random forest on sizes, densities and the shape of the point distribution."""
    model = RandomForestClassifier(500, random_state=0)
    model.fit([_geometry(points) for points in splits["train"].samples], splits["train"].labels)
    predicted = model.predict_proba([_geometry(points) for points in splits["test"].samples])
    return accuracy(np.array(splits["test"].labels), predicted)


def _geometry(points: np.ndarray) -> np.ndarray:
    """Extents, height statistics, eigenvalues of the covariance and their ratios, and the number of points."""
    size = np.ptp(points, axis=0)
    small, middle, large = np.linalg.eigvalsh(np.cov(points.T))
    ratios = [(large - middle) / large, (middle - small) / large, small / large]
    flat = np.linalg.eigvalsh(np.cov(points[:, :2].T))
    heights = np.quantile(points[:, 2], [0.25, 0.5, 0.75])
    return np.array([*sorted(size[:2]), size[2], *heights, points[:, 2].std(), *ratios, *flat, len(points)])
