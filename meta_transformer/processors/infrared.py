"""Infrared images to tensors: pictures of 8 or 16 bits, raw counts, temperatures; one channel by default.

Leaves: `infrared_values` `(batch, channels, height, width)`, normalised, padded with zeros to the largest image of the
batch, and `infrared_mask` `(batch, height, width)`, true where there is image, if the images differ in size.
"""

from io import BytesIO
from typing import Any, ClassVar, Literal

import numpy as np

from .image import DataFormat, file_of, first_bytes
from .intensity_window import Window, WindowedImageProcessor

__all__ = ["InfraredProcessor"]

_NUMPY_MAGIC = b"\x93NUMPY"


class InfraredProcessor(WindowedImageProcessor):
    """Decode, cut out a window of the values, bring to a number of channels, resize, crop, normalise, pad.

    Args:
        num_channels: Channels that leave, 1 or 3; as of `ImageProcessor`.
        intensity_window: Which values become 0..1, see `WindowedImageProcessor`; by default percentiles of each image.
        percentiles: The lower and the upper one, 0..100.
        dead_pixels: What becomes of NaN and infinity in arrays of floats: `"refuse"`, an error; `"median"`, the median
            of the channel's other pixels.
        image_settings: `size`, `crop_size`, `interpolation`, `image_mean`, `image_std` and `float_range` of
            `ImageProcessor`.
    """

    word: ClassVar[str] = "infrared"
    input_prefix: ClassVar[str] = "infrared"

    dead_pixels: str

    def __init__(
        self,
        *,
        num_channels: int = 1,
        intensity_window: Window = "percentiles",
        percentiles: tuple[float, float] | list[float] = (1.0, 99.0),
        dead_pixels: Literal["refuse", "median"] = "refuse",
        **image_settings: Any,
    ) -> None:
        if dead_pixels not in ("refuse", "median"):
            raise ValueError(f"dead_pixels must be 'refuse' or 'median', got {dead_pixels!r}.")
        super().__init__(
            num_channels=num_channels,
            intensity_window=intensity_window,
            percentiles=percentiles,
            dead_pixels=dead_pixels,
            **image_settings,
        )

    def _to_array(self, sample: Any, data_format: DataFormat | None) -> np.ndarray:
        sample = file_of(sample)
        if first_bytes(sample, len(_NUMPY_MAGIC)) == _NUMPY_MAGIC:
            sample = np.load(BytesIO(sample) if isinstance(sample, bytes) else sample, allow_pickle=False)
        return self._alive(super()._to_array(sample, data_format))

    def _alive(self, array: np.ndarray) -> np.ndarray:
        """The array without NaN and infinity."""
        if not np.issubdtype(array.dtype, np.floating):
            return array
        dead = ~np.isfinite(array)
        if not dead.any():
            return array
        if self.dead_pixels == "refuse":
            raise ValueError(
                f"{dead.sum()} of {dead.size} values are NaN or infinity, as of dead pixels; replace them, or set "
                "InfraredProcessor(dead_pixels='median')."
            )
        if dead.all(axis=(1, 2)).any():
            raise ValueError("all values of a channel are NaN or infinity; leave the image out.")
        median = np.nanmedian(np.where(dead, np.nan, array), axis=(1, 2), keepdims=True)
        return np.where(dead, median, array)

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        sizes = random.integers(20, 48, size=(batch_size, 2))  # raw counts of a 16-bit sensor
        return [random.integers(29_000, 31_000, size=(self.num_channels, *size)).astype(np.uint16) for size in sizes]
