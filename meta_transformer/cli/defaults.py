"""Settings with which each modality trains well on a small trunk, chosen on the validation data of small real sets."""

from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np

from ..registry import MODALITIES
from ..training.splits import Source

__all__ = ["Defaults", "defaults_for"]

_LOOKED_AT = 8  # samples by which settings are chosen


@dataclass
class Defaults:
    """What is set where the user sets nothing.

    Attributes:
        processor: Settings of the processor.
        tokenizer: Options of the tokenizer beside those that follow from the processor.
        head: Options of the head.
        epochs: Passes over what is learned from.
        learning_rate: Highest one, of a cosine schedule with warm-up.
        batch_size: Samples of a step.
        fit: Whether the processor learns from the samples.
    """

    processor: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    epochs: int = 20
    learning_rate: float = 2e-3
    batch_size: int = 32
    fit: bool = True


def defaults_for(modality: str, task: str, source: Source, look_back: int, horizon: int) -> Defaults:
    """The settings for a modality and a task, by the first samples where they depend on those."""
    if task == "forecasting":
        length = min(16, look_back)
        stride = max(1, length // 2)
        count = 1 + -(-(look_back - length) // stride)
        head = {"horizon": horizon, "num_tokens": count, "skip_steps": look_back}
        return Defaults({}, {"patch_length": length, "stride": stride}, head, 10, 1e-3, 64)
    found = _DEFAULTS.get(modality, lambda rows: Defaults())(source.splits["train"])
    found.head = {"pooling": "mean", **({"label_smoothing": 0.1} if task == "classification" else {})}
    return found


def _audio(rows: Any) -> Defaults:
    """All mel bins of 80 ms are a token, one every 40 ms, at the rate of the recordings up to 16 kHz."""
    import soundfile

    for index in range(min(_LOOKED_AT, len(rows))):
        sample = rows[index]["audio"]
        if isinstance(sample, dict):
            sample = BytesIO(sample["bytes"]) if sample.get("bytes") else sample["path"]
        with suppress(soundfile.SoundFileError):  # what cannot be read is told later, all of it together
            rate = soundfile.info(sample).samplerate
            break
    else:
        rate = 16_000
    settings = {"sampling_rate": min(16_000, rate), "num_mel_bins": 64}
    return Defaults(settings, {"patch_size": [64, 8], "stride": [64, 4]}, learning_rate=4e-3)


def _side(rows: Any) -> int:
    """Pixels of a side of most of the first pictures, or of the frames of clips, at most 128, in steps of 8."""
    sides, processor = [], MODALITIES[rows.modality].processor_class()
    for index in range(min(_LOOKED_AT, len(rows))):
        with suppress(ValueError, TypeError, OSError):
            sides.append(max(next(iter(processor(rows[index][rows.modality]).values())).shape[-2:]))
    return int(min(128, max(8, 8 * round(np.median(sides or [64]) / 8))))


def _picture(rows: Any) -> Defaults:
    """Patches of 8 pixels up to 64 of them, of 16 beyond, in front of them convolutions."""
    side = _side(rows)
    patch = 4 if side <= 16 else 8 if side <= 64 else 16
    stem = {"patch_embedding": "convolutional", "stem_depth": 2}
    tokenizer = {"image_size": side, "patch_size": patch, **stem}
    return Defaults({"size": [side, side]}, tokenizer, learning_rate=3e-3, batch_size=64)


def _video(rows: Any) -> Defaults:
    side = min(64, _side(rows))
    tokenizer = {"tubelet_size": 2, "patch_size": min(16, side), "image_size": side}
    return Defaults({"num_frames": 8, "size": [side, side]}, tokenizer)


def _graph(rows: Any) -> Defaults:
    settings: dict[str, Any] = {"identifiers": "none"}
    molecules = isinstance(rows[0]["graph"], str)
    if molecules:  # the values of their fields are known
        known: Any = MODALITIES["graph"].processor_class
        settings = known.for_molecules(**settings).to_dict()
        settings = {name: settings[name] for name in ("identifiers", "node_fields", "edge_fields")}
    tokenizer = {"edge_tokens": False, "max_degree": 8}
    return Defaults(settings, tokenizer, learning_rate=3e-3, fit=not molecules)


_DEFAULTS: dict[str, Any] = {
    "audio": _audio,
    "image": _picture,
    "infrared": _picture,
    "xray": _picture,
    "video": _video,
    "graph": _graph,
    "text": lambda rows: Defaults({"max_length": 512}, {"ngram_size": 3}, epochs=8, batch_size=64),
    "point_cloud": lambda rows: Defaults({"max_points": 1024}, {"num_groups": 24, "group_size": 16}),
    "tabular": lambda rows: Defaults({}, {"numerical_embedding": "piecewise_linear"}, learning_rate=1e-3),
    "time_series": lambda rows: Defaults({}, {"form": "convolution", "instance_norm": False}, learning_rate=3e-3),
    "imu": lambda rows: Defaults({}, {"kernel_sizes": [7, 5, 5], "strides": [2, 2, 2]}, learning_rate=3e-3),
    "hyperspectral": lambda rows: Defaults(),
}
