"""X-ray images to tensors: DICOM files as a viewer shows them, and pictures of 8 or 16 bits; one channel by default.

Leaves: `xray_values` `(batch, channels, height, width)`, normalised, padded with zeros to the largest image of the
batch, and `xray_mask` `(batch, height, width)`, true where there is image, if the images differ in size.
"""

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .image import DataFormat, file_of
from .intensity_window import Window, WindowedImageProcessor, to_window
from .readers.dicom import colour_pixels, grey_values, is_dataset, read_dicom, values_of_interest

__all__ = ["XrayProcessor"]


class XrayProcessor(WindowedImageProcessor):
    """Decode, cut out a window of the values, bring to a number of channels, resize, crop, normalise, pad.

    In what leaves, dense tissue is bright: images that are stored the other way round (MONOCHROME1) are inverted.

    Args:
        num_channels: Channels that leave; as of `ImageProcessor`.
        intensity_window: Which values become 0..1. `"type"`: of a DICOM file what its VOI LUT or window says, else the
            range of its stored bits; of pictures and arrays the range of their type. `"percentiles"` or two numbers:
            see `WindowedImageProcessor`; of a DICOM file values after the modality LUT.
        percentiles: The lower and the upper one, 0..100.
        size: `None` keeps every image's size; a number is the longer side after resizing, so that an image keeps its
            aspect and none has more than `size * size` pixels; two are height and width.
        frame: Which frame of a DICOM file of several, counted from 0; `None` refuses such files.
        voi_index: Which VOI LUT or window of a DICOM file of several; `None` uses none of them.
        image_settings: `crop_size`, `interpolation`, `image_mean`, `image_std` and `float_range` of `ImageProcessor`.
    """

    word: ClassVar[str] = "xray"
    input_prefix: ClassVar[str] = "xray"

    frame: int | None
    voi_index: int | None

    def __init__(
        self,
        *,
        num_channels: int = 1,
        intensity_window: Window = "type",
        percentiles: tuple[float, float] | list[float] = (1.0, 99.0),
        size: int | list[int] | None = None,
        frame: int | None = None,
        voi_index: int | None = 0,
        **image_settings: Any,
    ) -> None:
        for name, value in (("frame", frame), ("voi_index", voi_index)):
            if value is not None and (not isinstance(value, Integral) or value < 0):
                raise ValueError(f"{name} must be None or a number counted from 0, got {value!r}.")
        super().__init__(
            num_channels=num_channels,
            intensity_window=intensity_window,
            percentiles=percentiles,
            size=size,
            frame=frame,
            voi_index=voi_index,
            **image_settings,
        )

    def _is_one(self, samples: Any) -> bool:
        return is_dataset(samples) or super()._is_one(samples)

    def _decode(self, sample: Any, data_format: DataFormat | None) -> Tensor:
        dataset = read_dicom(file_of(sample))
        if dataset is None:
            return super()._decode(sample, data_format)
        pixels = colour_pixels(dataset, self.frame)
        if pixels is not None:
            return self._to_channels(self._to_unit_range(np.moveaxis(pixels, -1, 0)))
        grey = grey_values(dataset, self.frame)
        if self.intensity_window != "type":
            image = self._to_unit_range(grey.values[None])
        else:
            shown = None
            if self.voi_index is not None:
                shown = values_of_interest(grey.values, dataset, self.voi_index)
            if shown is None:
                image = to_window(grey.values, grey.lowest, grey.highest)[None]
            else:
                image = torch.from_numpy(shown.astype(np.float32))[None]
        return self._to_channels(1 - image if dataset.PhotometricInterpretation == "MONOCHROME1" else image)

    def _to_array(self, sample: Any, data_format: DataFormat | None) -> np.ndarray:
        dataset = read_dicom(file_of(sample))
        if dataset is None:
            return super()._to_array(sample, data_format)
        pixels = colour_pixels(dataset, self.frame)
        return grey_values(dataset, self.frame).values[None] if pixels is None else np.moveaxis(pixels, -1, 0)

    def _scaled(self, height: int, width: int, size: int) -> list[int]:
        longer = max(height, width)  # the other side is rounded, and never vanishes
        return [max(1, round(size * side / longer)) for side in (height, width)]
