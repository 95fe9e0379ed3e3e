"""Video as people have it to tensors: files, bytes, arrays, lists of frames, `datasets` columns; any length and rate.

Leaves: `pixel_values_videos` `(batch, frames, channels, height, width)`, normalised, padded with zeros to the longest
clip and the largest frames of the batch; `padding_mask_videos` `(batch, frames)`, true in the clip, if the clips differ
in number of frames; `pixel_mask_videos` `(batch, height, width)`, true in the frames, if they differ in size.

Frames are chosen by the time at which they are shown, so that files of variable frame rate are sampled evenly. A file
is decoded frame by frame, and only the chosen frames are kept, at the size that leaves.
"""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from math import ceil, isfinite
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature

from ..extras import needs
from .base import errors_at, several
from .image import DataFormat, ImageProcessor
from .readers.video_files import Timeline

__all__ = ["VideoProcessor"]

_DEFAULT_FRAMES = 16
_MAX_FRAMES = 100_000  # of one clip; more of them are a wrong rate or a damaged time
_INSTANT = 1e-6  # s; moments that are this close to the next frame show it, whatever the rounding


class VideoProcessor(ImageProcessor):
    """Decode, choose frames, and for each of them what `ImageProcessor` does: channels, resize, crop, normalise.

    Args:
        num_frames: Frames of every clip, at moments spread evenly over it, the middles of as many equal parts; of a
            clip that has fewer, frames are repeated. `"all"` takes each frame once. 16 if `frames_per_second` is not
            given, and not to be combined with it.
        frames_per_second: Frames for each second of a clip, from its start on.
        represent: `"frames"`, or `"changes"`: how much each pixel differs, as an absolute value in 0..1, from the frame
            chosen before; the first frame shows what the second does. What stands still is then gone, so that a model
            learns from motion alone, as of cameras that do not move. An `image_mean` of 0 and an `image_std` of about
            0.1 suit it.
        num_channels: Channels that leave, as of `ImageProcessor`.
        size: `None` keeps the size of frames; a number is the shorter side after resizing; two are height and width.
        crop_size: Centre crop after resizing, one number for both sides or height and width; `None` for none.
        interpolation: `"bicubic"`, `"bilinear"` (both antialiased) or `"nearest-exact"`.
        image_mean: Subtracted after scaling to 0..1: one number, or one for each channel.
        image_std: Divided by afterwards, as `image_mean`.
        float_range: Lowest and highest value of arrays of floats, which are scaled from there to 0..1.
    """

    num_frames: int | Literal["all"] | None
    frames_per_second: float | None
    represent: str

    def __init__(
        self,
        *,
        num_frames: int | Literal["all"] | None = None,
        frames_per_second: float | None = None,
        represent: Literal["frames", "changes"] = "frames",
        num_channels: int = 3,
        size: int | list[int] | None = None,
        crop_size: int | list[int] | None = None,
        interpolation: Literal["bicubic", "bilinear", "nearest-exact"] = "bicubic",
        image_mean: float | list[float] = 0.5,
        image_std: float | list[float] = 0.5,
        float_range: tuple[float, float] | list[float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        if num_frames is not None and frames_per_second is not None:
            raise ValueError(
                f"Give num_frames or frames_per_second, not both; got {num_frames!r} and {frames_per_second!r}."
            )
        if frames_per_second is not None:
            frames_per_second = _rate("frames_per_second", frames_per_second)
        elif num_frames is None:
            num_frames = _DEFAULT_FRAMES
        if num_frames is not None and num_frames != "all":
            if not isinstance(num_frames, Integral) or isinstance(num_frames, bool) or num_frames < 1:
                raise ValueError(f"num_frames must be a positive integer or 'all', got {num_frames!r}.")
            num_frames = int(num_frames)
        if represent not in ("frames", "changes"):
            raise ValueError(f"represent must be 'frames' or 'changes', got {represent!r}.")
        super().__init__(
            num_frames=num_frames,
            frames_per_second=frames_per_second,
            represent=represent,
            num_channels=num_channels,
            size=size,
            crop_size=crop_size,
            interpolation=interpolation,
            image_mean=image_mean,
            image_std=image_std,
            float_range=float_range,
            **kwargs,
        )

    def __call__(
        self,
        samples: Any,
        *,
        frame_rate: float | None = None,
        input_data_format: DataFormat | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Process one clip or a list of clips, of any lengths and sizes.

        Args:
            samples: Each a path or the bytes of a video file, a `{"path", "bytes"}` dict of `datasets` or the decoder
                of its decoded column, a dict `{"array", "frame_rate"}`, a numpy or torch array `(frames, height, width,
                channels)` or `(frames, channels, height, width)`, or a list of frames, each of them whatever
                `ImageProcessor` takes. A flat list is one clip if it holds images (of PIL, or arrays of two or three
                dimensions), and else a list of clips; an array of five dimensions is a batch. Values are those of
                images: unsigned integers of 8 or 16 bits, or floats in `float_range`.
            frame_rate: Frames in a second of clips that do not carry their own rate, which are arrays and lists of
                frames. It is needed where frames are chosen by `frames_per_second`.
            input_data_format: Which of the two orders arrays have; by default told from their shape.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `pixel_values_videos`, with `padding_mask_videos` if the clips differ in number of frames and
            `pixel_mask_videos` if they differ in size.

        Raises:
            ValueError: No clip, an unreadable, damaged or empty one, frames of different size in one clip, no rate
                where one is needed, or one that differs by more than 1 % from the clip's own, or what `ImageProcessor`
                refuses.
            TypeError: A sample of another type.
        """
        frame_rate = None if frame_rate is None else _rate("frame_rate", frame_rate)
        clips = []
        for index, sample in enumerate(_one_by_one(samples)):
            with errors_at(f"video[{index}]"):
                clip = self._clip(sample, frame_rate, input_data_format)
            clips.append(self._normalize(_changes(clip) if self.represent == "changes" else clip))
        data = {name: value.numpy() for name, value in _pad(clips).items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def _clip(self, sample: Any, rate: float | None, data_format: DataFormat | None) -> Tensor:
        """One clip of any kind to its chosen frames, `(frames, channels, height, width)`, in 0..1."""
        if isinstance(sample, Mapping):
            own = sample.get("frame_rate")
            rate = _agreed(None if own is None else _rate("frame_rate", own), rate)
            found = sample["array"] if sample.get("array") is not None else sample.get("bytes") or sample.get("path")
            if found is None:
                raise ValueError(f"a dict must hold 'array', 'bytes' or 'path', got {sorted(map(str, sample))}.")
            sample = found
        if isinstance(sample, str | PathLike | bytes):
            return self._from_file(sample, rate)
        if hasattr(sample, "get_frame_played_at"):
            return self._from_decoder(sample, rate)
        return self._from_frames(sample, rate, data_format)

    def _moments(self, start: float, end: float) -> np.ndarray | None:
        """The moments in seconds whose frames are wanted of a clip from `start` to `end`; `None` for all frames."""
        if self.frames_per_second is not None:
            count = max(1, ceil((end - start - _INSTANT) * self.frames_per_second))
            if count > _MAX_FRAMES:
                raise ValueError(
                    f"{end - start:g} seconds would be {count} frames; use num_frames, or fewer frames_per_second."
                )
            return start + np.arange(count) / self.frames_per_second
        if not isinstance(self.num_frames, int):
            return None
        return start + (np.arange(self.num_frames) + 0.5) * ((end - start) / self.num_frames)

    def _choose(self, starts: np.ndarray, end: float) -> np.ndarray:
        """Indices, in order, of the frames to take of those that are shown from `starts` `(frames,)` on, in seconds."""
        moments = self._moments(starts[0], end)
        if moments is None:
            return np.arange(len(starts))
        return np.maximum(np.searchsorted(starts, moments + _INSTANT, side="right") - 1, 0)

    def _from_frames(self, frames: Any, rate: float | None, data_format: DataFormat | None) -> Tensor:
        """An array of four dimensions or a sequence of frames."""
        if _is_array(frames):
            if frames.ndim != 4:
                raise ValueError(
                    f"an array must have shape (frames, height, width, channels) or (frames, channels, height, width), "
                    f"got {tuple(frames.shape)}; give grey clips a dimension of 1 channel, one image as array[None]."
                )
        elif not isinstance(frames, list | tuple):
            raise TypeError(
                "a clip must be a path, bytes, a dict with 'array', 'bytes' or 'path', a numpy or torch array or a "
                f"list of frames, got {type(frames).__name__}."
            )
        if len(frames) == 0:
            raise ValueError("the clip holds no frame; leave it out.")
        if self.frames_per_second is not None and rate is None:
            raise ValueError(
                "frames are chosen by time, but an array or a list does not tell its own; pass frame_rate=<frames "
                "in a second of the clip>, or give the clip as {'array': ..., 'frame_rate': ...}."
            )
        rate = rate or 1.0
        chosen, repeats = np.unique(
            self._choose(np.arange(len(frames)) / rate, len(frames) / rate), return_inverse=True
        )
        images = []
        for index in chosen.tolist():
            with errors_at(f"frame {index}"):
                images.append(self._image(frames[index], data_format))
        return _stack(images)[torch.from_numpy(repeats)]

    def _from_decoder(self, decoder: Any, rate: float | None) -> Tensor:
        """The `VideoDecoder` of torchcodec, which `datasets` gives for a decoded column."""
        start, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
        _agreed(len(decoder) / (end - start), rate)
        moments = self._moments(start, end)
        if moments is None:
            return _stack([self._image(decoder[index]) for index in range(len(decoder))])
        return _stack([self._image(decoder.get_frame_played_at(moment).data) for moment in moments.tolist()])

    def _from_file(self, source: str | PathLike | bytes, rate: float | None) -> Tensor:
        """A video file or its bytes."""
        with needs("PyAV to read video files", "video"):
            import av
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise ValueError(f"there is no file {str(source)!r}.")
        name = f"{len(source)} bytes" if isinstance(source, bytes) else repr(str(source))

        def open_container() -> Any:
            return av.open(BytesIO(source) if isinstance(source, bytes) else str(source))

        try:
            with open_container() as container:
                timeline = Timeline(container)
            _agreed(timeline.rate, rate)
            chosen, repeats = np.unique(self._choose(timeline.starts, timeline.end), return_inverse=True)
            images: list[Tensor] = []
            for seek in (True, False):  # without, if it did not lead where it should
                with open_container() as container:
                    images = [self._image(frame, "channels_last") for frame in timeline.frames(container, chosen, seek)]
                if len(images) == len(chosen):
                    break
        except av.FFmpegError as error:
            raise ValueError(f"cannot read {name} as a video file (MP4, WebM, AVI, GIF): {error}") from error
        except ValueError as error:
            raise ValueError(f"cannot read {name}: {error}") from error
        return _stack(images)[torch.from_numpy(repeats)]

    def _image(self, frame: Any, data_format: DataFormat | None = None) -> Tensor:
        """One frame of any kind to a tensor `(channels, height, width)` in 0..1, resized and cropped."""
        return self._crop(self._resize(self._decode(frame, data_format)))

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        shapes = random.integers([3, 17, 17], [7, 36, 36], size=(batch_size, 3))
        return [
            random.integers(0, 256, size=(frames, height, width, self.num_channels), dtype=np.uint8)
            for frames, height, width in shapes
        ]


def _rate(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")
    return float(value)


def _agreed(own: float | None, given: float | None) -> float | None:
    """The clip's own rate, or else the one that was given; both may be known, but not to differ."""
    if own is not None and given is not None and abs(own - given) > 0.01 * own:
        raise ValueError(
            f"the clip has {own:g} frames per second, but frame_rate={given:g} was passed; leave it out for clips that "
            "carry their own."
        )
    return given if own is None else own


def _is_array(sample: Any) -> bool:
    return isinstance(sample, np.ndarray | Tensor) and sample.dtype != object


def _is_image(sample: Any) -> bool:
    """Whether a member of a list is a frame, which makes the list one clip."""
    return hasattr(sample, "getbands") or (_is_array(sample) and sample.ndim in (2, 3))


def _one_by_one(samples: Any) -> Iterator[Any]:
    """The clips of `samples`, be it one clip, a batch, a sequence or an iterator."""
    single = isinstance(samples, str | PathLike | bytes | Mapping) or hasattr(samples, "get_frame_played_at")
    if single or (_is_array(samples) and samples.ndim != 5):
        yield samples
        return
    first, clips = several(samples, "video")
    yield from [list(clips)] if _is_image(first) else clips


def _stack(images: Sequence[Tensor]) -> Tensor:
    """The frames of one clip, `(frames, channels, height, width)`."""
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"the frames of a clip must have one height and width, got {sorted(sizes)}; set size=[height, width] or "
            "crop_size of the processor."
        )
    return torch.stack(list(images))


def _changes(clip: Tensor) -> Tensor:
    """Absolute difference of each frame to the one before, of the first to the one after; zero for a single frame."""
    differences = clip.diff(dim=0).abs()
    return torch.cat([differences[:1], differences]) if len(differences) else torch.zeros_like(clip)


def _pad(clips: Sequence[Tensor]) -> dict[str, Tensor]:
    """Clips `(frames, channels, height, width)` of any sizes as one batch, with masks where they differ."""
    shapes = torch.tensor([clip.shape for clip in clips])
    frames, channels, height, width = shapes.amax(dim=0).tolist()
    pixels = torch.zeros(len(clips), frames, channels, height, width)
    for row, clip in zip(pixels, clips, strict=True):
        row[: clip.shape[0], :, : clip.shape[2], : clip.shape[3]] = clip
    data = {"pixel_values_videos": pixels}
    lengths, heights, widths = (shapes[:, axis, None] for axis in (0, 2, 3))
    if (lengths != frames).any():
        data["padding_mask_videos"] = torch.arange(frames) < lengths
    if (heights != height).any() or (widths != width).any():
        inside = (torch.arange(height) < heights)[:, :, None] & (torch.arange(width) < widths)[:, None]
        data["pixel_mask_videos"] = inside
    return data
