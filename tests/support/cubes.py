"""Hyperspectral scenes, made up or real."""

import os
from pathlib import Path

import numpy as np
import scipy.io

NM = np.linspace(400, 2500, 24).tolist()


def scene(height: int = 12, width: int = 10, bands: int = 24, seed: int = 0) -> np.ndarray:
    """Counts of a sensor: smooth spectra, brighter and darker from pixel to pixel."""
    random = np.random.default_rng(seed)
    shape = 800 + 500 * np.sin(np.linspace(0, 6, bands)) + random.normal(0, 30, (height, width, bands))
    return (shape * random.uniform(0.5, 1.5, (height, width, 1))).astype(np.uint16)


def matlab_scene(folder: Path) -> Path:
    """A MATLAB 5 file with a cube `data` and a map `map`: San Diego airport, or made up where there is no data."""
    if data := os.environ.get("META_TRANSFORMER_DATA"):
        return Path(data) / "hyperspectral/anomaly_scenes/sandiego_plane.mat"
    path = folder / "scene.mat"
    scipy.io.savemat(path, {"data": scene(), "map": np.zeros((12, 10), np.uint8)})
    return path
