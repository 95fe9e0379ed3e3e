"""Images as people have them to tensors: files, bytes, PIL, numpy and torch; 8 and 16 bit; 1, 3 or any channels.

Leaves: `pixel_values` `(batch, channels, height, width)`, normalised, padded with zeros to the largest image of the
batch, and `pixel_mask` `(batch, height, width)`, true where there is image, if the images differ in size.
"""

import struct
from io import BytesIO
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature

from ..extras import needs
from .base import ModalityProcessor, errors_at, several
from .readers.arrays import to_array

__all__ = ["DataFormat", "ImageProcessor", "check_range", "file_of", "first_bytes"]

DataFormat = Literal["channels_first", "channels_last"]

_MAX_PIXELS = 100_000_000  # of one image after resizing to one number

# Weights of red, green and blue in luminance (ITU-R BT.601), as PIL's conversion to grey
_LUMINANCE = (0.299, 0.587, 0.114)


class ImageProcessor(ModalityProcessor):
    """Decode, scale to 0..1, bring to a number of channels, resize, crop, normalise, pad.

    Modalities that are images of another kind are subclasses: `word` is what errors call a sample, `input_prefix` what
    the names of the tensors begin with.

    Args:
        num_channels: Channels that leave. Grey images are repeated and colour images turned grey to fit; an alpha
            channel is dropped. Any other number must be the images' own.
        size: `None` keeps every image's size; a number is the shorter side after resizing; two are height and width.
        crop_size: Centre crop after resizing, one number for both sides or height and width; `None` for none.
        interpolation: `"bicubic"`, `"bilinear"` (both antialiased) or `"nearest-exact"`.
        image_mean: Subtracted after scaling to 0..1: one number, or one for each channel.
        image_std: Divided by afterwards, as `image_mean`.
        float_range: Lowest and highest value of arrays of floats, which are scaled from there to 0..1.
    """

    word: ClassVar[str] = "image"
    input_prefix: ClassVar[str] = "pixel"

    num_channels: int
    size: int | list[int] | None
    crop_size: int | list[int] | None
    interpolation: str
    image_mean: float | list[float]
    image_std: float | list[float]
    float_range: list[float]

    def __init__(
        self,
        *,
        num_channels: int = 3,
        size: int | list[int] | None = None,
        crop_size: int | list[int] | None = None,
        interpolation: Literal["bicubic", "bilinear", "nearest-exact"] = "bicubic",
        image_mean: float | list[float] = 0.5,
        image_std: float | list[float] = 0.5,
        float_range: tuple[float, float] | list[float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        if not isinstance(num_channels, Integral) or num_channels < 1:
            raise ValueError(f"num_channels must be an integer of at least 1, got {num_channels!r}.")
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            if isinstance(value, list | tuple) and len(value) != num_channels:
                raise ValueError(f"{name} must be one number or {num_channels}, one for each channel, got {value}.")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, got {value}.")
        if np.min(image_std) <= 0:
            raise ValueError(f"image_std must be positive, got {image_std}.")
        for name, value in (("size", size), ("crop_size", crop_size)):
            sides: Any = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
            if value is not None and not all(isinstance(side, Integral) and side >= 1 for side in sides):
                raise ValueError(f"{name} must be one positive number of pixels or two, or None, got {value!r}.")
        check_range("float_range", float_range)
        if interpolation not in ("bicubic", "bilinear", "nearest-exact"):
            raise ValueError(f"interpolation must be 'bicubic', 'bilinear' or 'nearest-exact', got {interpolation!r}.")
        super().__init__(
            num_channels=num_channels,
            size=size,
            crop_size=crop_size,
            interpolation=interpolation,
            image_mean=image_mean,
            image_std=image_std,
            float_range=list(float_range),
            **kwargs,
        )

    def tokenizer_config(self) -> dict[str, Any]:
        return {"num_channels": self.num_channels}

    def __call__(
        self,
        samples: Any,
        *,
        input_data_format: DataFormat | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Process one image or a list of images, of any sizes.

        Args:
            samples: Each a path, bytes of a file, PIL image, `{"path", "bytes"}` dict of `datasets`, or numpy or torch
                array `(height, width)`, `(channels, height, width)` or `(height, width, channels)`; an array of four
                dimensions is a batch. Integers are unsigned, of 8 or 16 bits; floats lie in `float_range`.
            input_data_format: Which of the two orders arrays have; by default told from their shape.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `pixel_values`, and `pixel_mask` if the images differ in size.

        Raises:
            ValueError: No image, an unreadable or empty one, NaN or values out of range, a number of channels that
                cannot be converted, or an array whose order of dimensions cannot be told.
            TypeError: A sample of another type.
        """
        images = []
        for index, sample in enumerate(self._as_list(samples)):
            with errors_at(f"{self.word}[{index}]"):
                image = self._resize(self._decode(sample, input_data_format))
            images.append(self._normalize(self._crop(image)))
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        data = {
            f"{self.input_prefix}_values": torch.stack(
                [functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
            )
        }
        if any(image.shape[1:] != (height, width) for image in images):
            mask = torch.zeros(len(images), height, width, dtype=torch.bool)
            for row, image in zip(mask, images, strict=True):
                row[: image.shape[1], : image.shape[2]] = True
            data[f"{self.input_prefix}_mask"] = mask
        return BatchFeature({name: value.numpy() for name, value in data.items()}, tensor_type=return_tensors)

    def _as_list(self, samples: Any) -> list[Any]:
        return [samples] if self._is_one(samples) else list(several(samples, self.word)[1])

    def _is_one(self, samples: Any) -> bool:
        """Whether this is one sample, though it may be something that can be iterated over."""
        if isinstance(samples, np.ndarray | Tensor):
            return samples.dtype != object and samples.ndim != 4
        return isinstance(samples, str | PathLike | bytes | dict) or hasattr(samples, "getbands")

    def _decode(self, sample: Any, data_format: DataFormat | None) -> Tensor:
        """One sample of any kind to values of 0..1 `(channels, height, width)`, in the size it came with."""
        return self._to_channels(self._to_unit_range(self._to_array(sample, data_format)))

    def _normalize(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (self.image_mean, self.image_std))
        return (image - mean) / std

    def _to_array(self, sample: Any, data_format: DataFormat | None) -> np.ndarray:
        """Decode to an array `(channels, height, width)` with the values it came with."""
        sample = file_of(sample)
        if isinstance(sample, str | PathLike | bytes):
            sample = _open(sample)
        if hasattr(sample, "getbands"):  # a PIL image, without importing PIL to ask
            return _pil_to_array(sample)
        if not isinstance(sample, np.ndarray | Tensor):
            raise TypeError(
                f"An image must be a path, bytes, PIL image, numpy array or torch tensor, got {type(sample).__name__}."
            )
        sample = to_array(sample)
        # In the byte order of this machine, which files need not have
        return self._channels_first(sample.astype(sample.dtype.newbyteorder("="), copy=False), data_format)

    def _channels_first(self, array: np.ndarray, data_format: DataFormat | None) -> np.ndarray:
        if array.size == 0:
            raise ValueError(f"the array is empty, shape {array.shape}.")
        if array.ndim == 2:
            return array[None]
        if array.ndim != 3:
            raise ValueError(f"an image has 2 or 3 dimensions, got shape {array.shape}.")
        if data_format not in (None, "channels_first", "channels_last"):
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', got {data_format!r}.")
        if data_format is None:
            usual = {self.num_channels, 1, 3, 4}
            first, last = array.shape[0] in usual, array.shape[2] in usual
            if first == last:
                raise ValueError(
                    f"cannot tell which dimension of {array.shape} holds the channels; "
                    "pass input_data_format='channels_first' or 'channels_last'."
                )
            data_format = "channels_first" if first else "channels_last"
        return array if data_format == "channels_first" else np.moveaxis(array, -1, 0)

    def _to_unit_range(self, array: np.ndarray) -> Tensor:
        if array.dtype == np.bool_:
            return torch.from_numpy(array.astype(np.float32))
        if array.dtype in (np.uint8, np.uint16):
            return torch.from_numpy(array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max))
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"values of type {array.dtype} have no known range; convert to uint8 (0..255), uint16 (0..65535) or "
                "float."
            )
        low, high = self.float_range
        if not np.isfinite(array).all():
            raise ValueError("the image holds NaN or infinity; replace those pixels first.")
        if array.min() < low or array.max() > high:
            raise ValueError(
                f"floats must lie in float_range {low}..{high}, got {array.min():g}..{array.max():g}; scale them, or "
                "set float_range of the processor."
            )
        return torch.from_numpy(((array - low) / (high - low)).astype(np.float32))

    def _to_channels(self, image: Tensor) -> Tensor:
        channels = image.shape[0]
        if channels == self.num_channels:
            return image
        if channels in (2, 4) and self.num_channels in (1, 3):
            return self._to_channels(image[:-1])  # alpha
        if channels == 1 and self.num_channels == 3:
            return image.expand(3, -1, -1)
        if channels == 3 and self.num_channels == 1:
            return (image * torch.tensor(_LUMINANCE)[:, None, None]).sum(dim=0, keepdim=True)
        raise ValueError(
            f"it has {channels} channels, but this processor and its model were made for {self.num_channels}; "
            "select or convert channels first, or make both with num_channels of your images."
        )

    def _resize(self, image: Tensor) -> Tensor:
        if self.size is None:
            return image
        height, width = image.shape[1:]
        size = self._scaled(height, width, self.size) if isinstance(self.size, int) else list(self.size)
        if size == [height, width]:
            return image
        antialias = self.interpolation != "nearest-exact"
        resized = functional.interpolate(image[None], size=size, mode=self.interpolation, antialias=antialias)[0]
        return resized.clamp(0, 1)  # bicubic overshoots at edges

    def _scaled(self, height: int, width: int, size: int) -> list[int]:
        """Height and width of an image of this shape, with its aspect, after resizing to one number."""
        shorter = min(height, width)  # the other side is rounded down, as torchvision does
        scaled = [size * height // shorter, size * width // shorter]
        if scaled[0] * scaled[1] > _MAX_PIXELS:
            raise ValueError(
                f"{height} x {width} pixels would become {scaled[0]} x {scaled[1]}, because size={size} is the shorter "
                "side; crop the image, or set size=[height, width]."
            )
        return scaled

    def _crop(self, image: Tensor) -> Tensor:
        if self.crop_size is None:
            return image
        size = [self.crop_size] * 2 if isinstance(self.crop_size, int) else self.crop_size
        for axis, length in enumerate(size, start=1):
            missing = max(0, length - image.shape[axis])
            if missing:  # black borders around what is too small; all rounding is torchvision's
                before = [missing // 2, missing - missing // 2]
                image = functional.pad(image, before if axis == 2 else [0, 0, *before])
            image = image.narrow(axis, round((image.shape[axis] - length) / 2), length)
        return image

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        sizes = random.integers(20, 48, size=(batch_size, 2))
        return [random.integers(0, 256, size=(self.num_channels, *size), dtype=np.uint8) for size in sizes]


def file_of(sample: Any) -> Any:
    """The bytes or the path in a `{"path", "bytes"}` dict of `datasets`; any other sample as it is."""
    return sample.get("bytes") or sample.get("path") if isinstance(sample, dict) else sample


def first_bytes(sample: Any, count: int) -> bytes:
    """How a file begins, by which its format can be told; nothing for a sample that is no path and no bytes.

    Args:
        sample: Any.
        count: How many bytes at most.

    Raises:
        OSError: There is no such file.
    """
    if isinstance(sample, bytes):
        return sample[:count]
    if not isinstance(sample, str | PathLike):
        return b""
    with open(sample, "rb") as file:
        return file.read(count)


def check_range(name: str, value: Any) -> None:
    """Refuse what is no pair of finite numbers, the lower one first.

    Args:
        name: Of the setting.
        value: The setting.
    """
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 2 or not all(isinstance(each, Real) for each in numbers):
        raise ValueError(f"{name} must be two numbers, the lowest and the highest value, got {value!r}.")
    if not np.isfinite(numbers).all() or not 0 < float(numbers[1]) - float(numbers[0]) < np.inf:
        raise ValueError(f"{name} must be finite, the lower value first and the difference finite, got {value!r}.")


def _open(source: str | PathLike | bytes) -> Any:
    """A PIL image from a file or its bytes, turned upright by its EXIF orientation."""
    with needs("Pillow to read image files", "image"):
        from PIL import Image, ImageOps
    try:
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            image = image.convert("I;16")  # these formats have at most 16 bits
        return ImageOps.exif_transpose(image)
    except (SyntaxError, EOFError, IndexError, KeyError, struct.error) as error:  # of damaged files, by format
        raise ValueError(f"the file is damaged: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} Shrink the image first, or raise PIL.Image.MAX_IMAGE_PIXELS.") from error


def _pil_to_array(image: Any) -> np.ndarray:
    """Channels-first array of a PIL image; greyscale of more than 8 bits keeps its depth."""
    if image.mode.startswith("I"):  # "I" is PIL's name for integers of 32 bits, "I;16" and the like for those of 16
        return np.asarray(image).astype(np.int32 if image.mode == "I" else np.uint16)[None]
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA", "F"):
        image = image.convert("RGB")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
