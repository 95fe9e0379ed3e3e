"""Images whose values are measurements: which part of their range becomes 0..1.

A radiometric or a radiographic image holds more than the 256 grey levels of a picture, and most of them are not used.
`WindowedImageProcessor` cuts a window out of them, for infrared and X-ray images alike.
"""

from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .base import errors_at
from .image import DataFormat, ImageProcessor, check_range

__all__ = ["Window", "WindowedImageProcessor", "to_window"]

_LARGEST = 1e300  # the difference of what is larger may be infinite

Window = Literal["percentiles", "type"] | list[float] | tuple[float, float]


class WindowedImageProcessor(ImageProcessor):
    """An `ImageProcessor` with a window on the values.

    Args:
        num_channels: As of `ImageProcessor`.
        intensity_window: `"percentiles"`, those of each image; two numbers, the same values for all images, in the unit
            that arrays and files have, such as kelvin or raw counts; or `"type"`, the whole range of the type, as of
            `ImageProcessor`. What lies outside the window is clipped.
        percentiles: The lower and the upper one, 0..100, for `"percentiles"` and for `fit`.
        image_settings: The other settings of `ImageProcessor`.
    """

    intensity_window: Any  # not `window`, which transformers' feature extractors do not save
    percentiles: list[float]

    def __init__(
        self,
        *,
        num_channels: int = 1,
        intensity_window: Window = "percentiles",
        percentiles: tuple[float, float] | list[float] = (1.0, 99.0),
        **image_settings: Any,
    ) -> None:
        if isinstance(intensity_window, str):
            if intensity_window not in ("percentiles", "type"):
                raise ValueError(
                    f"intensity_window must be 'percentiles', 'type' or two numbers, got {intensity_window!r}."
                )
        else:
            check_range("intensity_window", intensity_window)
        check_range("percentiles", percentiles)
        if percentiles[0] < 0 or percentiles[1] > 100:
            raise ValueError(f"percentiles must lie in 0..100, got {percentiles}.")
        super().__init__(
            num_channels=num_channels,
            intensity_window=intensity_window if isinstance(intensity_window, str) else list(intensity_window),
            percentiles=list(percentiles),
            **image_settings,
        )

    def fit(
        self, samples: Any, *, fix_window: bool = False, input_data_format: DataFormat | None = None
    ) -> "WindowedImageProcessor":
        """Set `image_mean` and `image_std` to those of each channel over all pixels of `samples`.

        Args:
            samples: As of `__call__`.
            fix_window: Whether to set `intensity_window` first, to the `percentiles` of the values of all samples, of
                which each counts the same, so that equal values of different images stay equal. Samples are read twice
                then.
            input_data_format: As of `__call__`.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`, or all values are the same.
            TypeError: As `__call__`.
        """
        samples = self._as_list(samples)
        fitted = copy(self)
        if fix_window:
            fitted.intensity_window = self._common_window(samples, input_data_format)
        count, total, squares = 0, torch.zeros(self.num_channels).double(), torch.zeros(self.num_channels).double()
        for index, sample in enumerate(samples):
            with errors_at(f"{self.word}[{index}]"):
                pixels = fitted._decode(sample, input_data_format).double().flatten(1)
            count, total = count + pixels.shape[1], total + pixels.sum(dim=1)
            squares = squares + pixels.square().sum(dim=1)
        std = (squares / count - (total / count).square()).clamp(min=0).sqrt()
        if (std < 1e-6).any():
            raise ValueError("image_std cannot be fitted: all values of a channel are the same; fit on other samples.")
        self.intensity_window = fitted.intensity_window
        self.image_mean, self.image_std = (total / count).tolist(), std.tolist()
        return self

    def _common_window(self, samples: list[Any], data_format: DataFormat | None) -> list[float]:
        """The percentiles of the values of all samples, of which each counts the same."""
        kept = []
        for index, sample in enumerate(samples):
            with errors_at(f"{self.word}[{index}]"):
                values = self._measurements(self._to_array(sample, data_format))
            kept.append(np.quantile(values, np.linspace(0, 1, 257)))  # so that a corpus need not fit in memory
        low, high = np.percentile(kept, self.percentiles).tolist()
        if low >= high:
            raise ValueError(f"intensity_window cannot be fitted: nearly all values of the samples are {low:g}.")
        return [low, high]

    def _to_unit_range(self, array: np.ndarray) -> Tensor:
        if self.intensity_window == "type":
            return super()._to_unit_range(array)
        values = self._measurements(array)
        own = self.intensity_window == "percentiles"
        low, high = np.percentile(values, self.percentiles) if own else self.intensity_window
        if low == high:  # of an image that is flat but for a few pixels
            low, high = values.min(), values.max()
        return to_window(values, low, high)

    def _measurements(self, array: np.ndarray) -> np.ndarray:
        """The values that the window is laid over, in double precision and without an alpha channel."""
        if array.shape[0] in (2, 4) and self.num_channels in (1, 3):
            array = array[:-1]
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_) or np.iscomplexobj(array):
            raise ValueError(f"values of type {array.dtype} are no measurements; give integers or floats.")
        array = array.astype(np.float64)
        if not (np.abs(array) <= _LARGEST).all():
            raise ValueError(f"the image holds NaN or infinity, or more than {_LARGEST:g}; replace those pixels first.")
        return array


def to_window(values: np.ndarray, low: float, high: float) -> Tensor:
    """Values from `low` to `high` as 0..1, those outside clipped; 0.5 throughout for a window without width.

    Args:
        values: `(...)`, of at most 1e300 in size.
        low: What becomes 0.
        high: What becomes 1.

    Returns:
        `(...)` float32.
    """
    if high <= low:
        return torch.full(values.shape, 0.5)
    return torch.from_numpy(((values.clip(low, high) - low) / (high - low)).astype(np.float32))
