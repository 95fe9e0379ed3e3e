"""Point clouds, made up or real, and what the processor makes of them."""

import os
from pathlib import Path

import numpy as np
import torch

from meta_transformer.processors.point_cloud import PointCloudProcessor

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(50, 3))
COLORS = RANDOM.integers(0, 256, size=(50, 3)).astype(np.uint8)
NORMALS = RANDOM.normal(size=(50, 3))


def scans(folder: Path) -> list[Path]:
    """Text files of objects in metres and of different size: real scans, or boxes where there is no data."""
    if data := os.environ.get("META_TRANSFORMER_DATA"):
        return sorted((Path(data) / "point_cloud/dales_objects/clouds").glob("*/*[05].xyz"))[::20]
    for index in range(4):
        np.savetxt(folder / f"{index}.xyz", RANDOM.uniform(0, 5, size=(150 + 50 * index, 3)), fmt="%.2f")
    return sorted(folder.glob("*.xyz"))


def raw(**options: object) -> PointCloudProcessor:
    """A processor that leaves coordinates as they are."""
    return PointCloudProcessor(normalization=None, **options)


def points(sample: object, **options: object) -> torch.Tensor:
    return raw(**options)(sample)["point_coordinates"][0]


def features(sample: object, **options: object) -> torch.Tensor:
    return raw(**options)(sample)["point_features"][0]


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
