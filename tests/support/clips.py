"""Clips made here: an array, and files of it in the formats that people have."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from meta_transformer.processors.video import VideoProcessor

CLIP = np.random.default_rng(0).integers(0, 256, size=(6, 20, 30, 3), dtype=np.uint8)
FORMATS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "avi with B-frames": ("avi", "libx264", "yuv420p"),
    "mpegts": ("mpegts", "libx264", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
    "raw": ("h264", "libx264", "yuv420p"),
}


def encode(
    kind: str = "mp4",
    frames: int = 20,
    rate: int = 10,
    times: list[int] | None = None,
    size: tuple[int, int] = (64, 48),
    **options: str,
) -> bytes:
    """A file whose frame number `n` is of the one grey level `5 + 10 n % 240`; `times` are in milliseconds."""
    container_format, codec, pixel_format = FORMATS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            level = np.full((size[1], size[0], 3), 5 + 10 * number % 240, np.uint8)
            frame = av.VideoFrame.from_ndarray(level, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = times[number] if times else number * 1000 // rate, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode(data: bytes | Path) -> np.ndarray:
    """All frames as PyAV gives them, one after the other."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def raw(**options: Any) -> VideoProcessor:
    """A processor that scales to 0..1 and keeps the size."""
    return VideoProcessor(**{"image_mean": 0.0, "image_std": 1.0, **options})


def values(processor: VideoProcessor, sample: Any, **kwargs: Any) -> torch.Tensor:
    return processor(sample, **kwargs)["pixel_values_videos"][0]


def numbers(clip: torch.Tensor) -> list[int]:
    """The numbers of the frames of a file of `encode`, from their levels."""
    return [round((level - 5) / 10) for level in (clip.mean(dim=(1, 2, 3)) * 255).tolist()]


def tensor(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
