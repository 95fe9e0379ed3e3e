"""Scenes: the patches around pixels of a hyperspectral cube, and a map of the class of every pixel.

Patches are copied out of the cube when they are asked for, so that there are never more of them than one batch. Where a
patch reaches over the border, the cube is mirrored, the border itself repeated, as in the code of SpectralFormer (Hong
et al. 2021).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import index as as_index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .modeling import MetaTransformerForTask
from .processing import MetaTransformerProcessor
from .processors.readers.cubes import Cube, as_cube

__all__ = ["Patches", "ScenePrediction", "patches_of", "predict_scene"]


class Patches:
    """The patches around some pixels of one cube, as a sequence; made by `patches_of`.

    `patches[i]` is one, `(patch, patch, bands)`; a slice, a list or array of numbers or of booleans gives
    `(count, patch, patch, bands)`. Each is a copy, of the cube's own type of numbers. `torch.utils.data` and `Trainer`
    take it as a data set, or as a column of one.

    Attributes:
        coordinates: `(count, 2)`, row and column of the pixel in the middle of each patch. Of an even size it is the
            one below and to the right of the centre.
        labels: `(count,)`, the pixels' labels; `None` unless a map of labels was given.
        patch_size: Height and width in pixels.
    """

    def __init__(self, cube: Cube, coordinates: np.ndarray, labels: np.ndarray | None, patch_size: int) -> None:
        self.coordinates, self.labels, self.patch_size = coordinates, labels, patch_size
        self._cube = cube
        values = cube.values
        if not isinstance(values, np.memmap):
            values = np.ascontiguousarray(values)
        # One pixel after the other, whose spectra are copied whole; a view, if the cube is stored so.
        self._pixels = values.reshape(-1, values.shape[2]) if values.flags.c_contiguous else None
        self._values = values

    def __len__(self) -> int:
        return len(self.coordinates)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if isinstance(index, list | tuple):
            index = np.asarray(index, np.int64 if not index else None)
        if not isinstance(index, slice | np.ndarray):
            index = as_index(index)
        height, width = self._values.shape[:2]
        offsets = np.arange(self.patch_size) - self.patch_size // 2
        places = self.coordinates[index]
        rows = _mirrored(places[..., 0, None] + offsets, height)[..., :, None]
        columns = _mirrored(places[..., 1, None] + offsets, width)[..., None, :]
        if self._pixels is None:
            return self._cube.decode(np.asarray(self._values[rows, columns]))
        return self._cube.decode(np.asarray(self._pixels.take(rows * width + columns, axis=0)))


def patches_of(cube: Any, pixels: Any, patch_size: int, *, variable: str | None = None) -> Patches:
    """The patches around pixels of a cube.

    Args:
        cube: Path, array `(height, width, bands)` or whatever else the hyperspectral processor takes as one sample. A
            memory-mapped one stays on disk.
        pixels: Either a map of labels, of the cube's height and width, whose pixels above 0 are taken, row by row; or
            rows and columns `(count, 2)`.
        patch_size: Height and width in pixels.
        variable: Which variable of a MATLAB file; by default the only one of three dimensions.

    Returns:
        A sequence of `(patch_size, patch_size, bands)`.

    Raises:
        ValueError: A map of another size than the cube's, a pixel outside it, or a size below 1.
        TypeError: Pixels that are no integers.
    """
    cube = as_cube(cube, variable=variable)
    shape = cube.values.shape[:2]
    if as_index(patch_size) < 1:
        raise ValueError(f"patch_size must be at least 1, got {patch_size}.")
    pixels = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
    if not np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != bool:
        raise TypeError(f"pixels must be integers, rows and columns or a map of labels, got {pixels.dtype}.")
    if pixels.shape == shape:
        places = np.argwhere(pixels > 0)
        return Patches(cube, places, pixels[tuple(places.T)], patch_size)
    if pixels.ndim != 2 or pixels.shape[1] != 2:
        raise ValueError(
            f"pixels must be a map of labels of the cube's size {shape}, or rows and columns (count, 2), got shape "
            f"{pixels.shape}."
        )
    outside = ((pixels < 0) | (pixels >= shape)).any(axis=1)
    if outside.any():
        wrong = pixels[outside][0].tolist()
        raise ValueError(f"the pixel at row and column {wrong} lies outside the cube of {shape[0]} x {shape[1]}.")
    return Patches(cube, pixels.astype(np.int64), None, patch_size)


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    """Places beyond the border, reflected into `0..size - 1`."""
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


@dataclass(frozen=True)
class ScenePrediction:
    """A map of classes.

    Attributes:
        classes: `(height, width)` int64, the number of each pixel's class; -1 where nothing was predicted.
        probabilities: `(height, width, classes)` float32, zeros where nothing was predicted; `None` unless asked for.
    """

    classes: np.ndarray
    probabilities: np.ndarray | None


@torch.inference_mode()
def predict_scene(
    model: MetaTransformerForTask,
    processor: MetaTransformerProcessor,
    cube: Any,
    *,
    patch_size: int,
    where: Any = None,
    batch_size: int = 256,
    probabilities: bool = False,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    **kwargs: Any,
) -> ScenePrediction:
    """Classify the pixels of a scene, batch by batch: of patches there are never more than one batch in memory.

    Args:
        model: A `MetaTransformerForClassification` of single labels with the modality `hyperspectral`, on any device.
            It predicts in evaluation mode and is left as it was.
        processor: The one that it was trained with.
        cube: As of `patches_of`.
        patch_size: Height and width of the patches that it was trained on.
        where: `(height, width)`, true for the pixels to classify, such as those that hold data; by default all.
        batch_size: Pixels that are processed together.
        probabilities: Whether to keep them too, which takes 4 bytes for each pixel and class.
        progress: Wraps the iterable of batches to show how far it is, such as `tqdm.tqdm` or `rich.progress.track`.
        kwargs: Of `patches_of` and of the processor's call: `variable`, `wavelengths`.

    Returns:
        The map.

    Raises:
        ValueError: `where` is of another size or names no pixel, or as `patches_of` and the processor.
    """
    cube = as_cube(cube, variable=kwargs.pop("variable", None))
    if cube.wavelengths is not None:
        kwargs.setdefault("wavelengths", cube.wavelengths)
    height, width = cube.values.shape[:2]
    chosen = np.ones((height, width), bool) if where is None else np.asarray(where).astype(bool)
    if chosen.shape != (height, width) or not chosen.any():
        raise ValueError(f"where must be a map of {height} x {width} that is true somewhere, got {chosen.shape}.")
    patches = patches_of(cube, chosen, patch_size)
    classes = np.full((height, width), -1, np.int64)
    kept: np.ndarray | None = None
    starts: Iterable[int] = range(0, len(patches), batch_size)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for start in starts if progress is None else progress(starts):
            part = slice(start, start + batch_size)
            batch = processor(hyperspectral=patches[part], **kwargs).to(model.device)
            logits = model(**batch).logits.float()
            rows, columns = patches.coordinates[part].T
            classes[rows, columns] = logits.argmax(dim=-1).cpu().numpy()
            if probabilities:
                if kept is None:
                    kept = np.zeros((height, width, logits.shape[-1]), np.float32)
                kept[rows, columns] = logits.softmax(dim=-1).cpu().numpy()
    finally:
        for module, training in modes.items():
            module.training = training
    return ScenePrediction(classes, kept)
