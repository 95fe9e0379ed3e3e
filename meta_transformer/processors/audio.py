"""Sound as people have it to log-mel spectrograms: files, bytes, arrays with a sampling rate, `datasets` columns.

Leaves: `input_features` `(batch, frames, mels)`, one frame every 10 ms, normalised, padded with zeros to the longest
clip of the batch, and `input_features_mask` `(batch, frames)`, true in the clip itself, if the clips differ in length.

The features are AST's (Gong, Chung and Glass 2021, section 2.1): Kaldi's log-mel filter bank of 25 ms Hann windows,
normalised with AudioSet's statistics to mean 0 and standard deviation 0.5.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from math import isfinite, sqrt
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature

from ..extras import needs
from .base import ModalityProcessor, errors_at, pad_to_longest, several
from .readers.arrays import to_array

__all__ = ["AudioProcessor"]

_FRAME_LENGTH, _FRAME_SHIFT = 25.0, 10.0  # ms
_MAX_CHANNELS = 2  # an array with more of them may be a batch of clips
_LOUDEST = 1e15  # the power of what is louder may be more than float32 holds
_MOST_HERTZ = 10**9
_MOST_WEIGHTS = 4e6  # of the filter that resamples


class AudioProcessor(ModalityProcessor):
    """Decode, mix to mono, resample, log-mel filter bank, normalise, pad.

    Args:
        sampling_rate: Rate in Hz to which all clips are resampled, at least 1000.
        num_mel_bins: Mel bins of a frame, between 20 Hz and half the sampling rate; at least 4.
        mean: Mean of the log-mel values, AudioSet's by default; `fit` sets your corpus's.
        std: Their standard deviation, as `mean`. Features are `(values - mean) / (2 * std)`.
    """

    dummy_call_kwargs: ClassVar[dict[str, Any]] = {"sampling_rate": 16_000}

    sampling_rate: int
    num_mel_bins: int
    mean: float
    std: float

    def __init__(
        self,
        *,
        sampling_rate: int = 16_000,
        num_mel_bins: int = 128,
        mean: float = -4.2677393,
        std: float = 4.5689974,
        **kwargs: Any,
    ) -> None:
        for name, value, least in (("sampling_rate", sampling_rate, 1000), ("num_mel_bins", num_mel_bins, 4)):
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if not isfinite(mean) or not isfinite(std) or std <= 0:
            raise ValueError(f"mean and std must be finite and std positive, got {mean} and {std}.")
        settings = {"sampling_rate": int(sampling_rate), "num_mel_bins": int(num_mel_bins)}
        super().__init__(**settings, mean=float(mean), std=float(std), **kwargs)

    def tokenizer_config(self) -> dict[str, Any]:
        return {"num_mel_bins": self.num_mel_bins}

    def __call__(
        self, samples: Any, *, sampling_rate: int | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """Process one clip or a list of clips, of any lengths.

        Args:
            samples: Each a path, the bytes of a file, a dict of a `datasets` column (`{"array", "sampling_rate"}`, or
                `{"bytes", "path"}` of `Audio(decode=False)`) or its decoder, or a numpy or torch array or list of
                numbers. Floats lie in -1..1; int16 and int32 are scaled to that. An array of two dimensions is one
                clip, its shorter dimension the channels, or the first if both are equal.
            sampling_rate: Rate in Hz of samples that do not carry their own, which are arrays and lists.
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `input_features`, and `input_features_mask` if the clips differ in number of frames. A clip shorter than
            one window of 25 ms is padded with silence to one frame.

        Raises:
            ValueError: No clip, an unreadable or empty one, NaN, infinity or more than 1e15, three dimensions, an array
                of more than 2 channels, no sampling rate, or one that contradicts the clip's own.
            TypeError: A sample or integers of another type.
        """
        clips = [(values - self.mean) / (2 * self.std) for values in self._log_mels(samples, sampling_rate)]
        features, mask = pad_to_longest(clips)
        data = {"input_features": features.numpy()}
        if mask is not None:
            data["input_features_mask"] = mask.numpy()
        return BatchFeature(data, tensor_type=return_tensors)

    def fit(self, samples: Any, *, sampling_rate: int | None = None) -> "AudioProcessor":
        """Set `mean` and `std` to those of the log-mel values of `samples`, over all frames and mel bins.

        Args:
            samples: As of `__call__`; an iterator is consumed clip by clip, so that a corpus need not fit in memory.
            sampling_rate: As of `__call__`.

        Returns:
            This processor.

        Raises:
            ValueError: As `__call__`, or all values are the same.
            TypeError: As `__call__`.
        """
        count, total, squares = 0, 0.0, 0.0
        for values in self._log_mels(samples, sampling_rate):
            values = values.double()
            count += values.numel()
            total += values.sum().item()
            squares += values.square().sum().item()
        variance = squares / count - (total / count) ** 2
        if variance < 1e-6:
            raise ValueError("All log-mel values of the samples are the same, as of silence; fit on clips with sound.")
        self.mean, self.std = total / count, sqrt(variance)
        return self

    def _log_mels(self, samples: Any, sampling_rate: int | None) -> Iterator[Tensor]:
        """Log-mel values `(frames, mels)` of one clip after the other."""
        for index, sample in enumerate(_one_by_one(samples)):
            with errors_at(f"audio[{index}]"):
                waveform = self._waveform(sample, sampling_rate)
            yield self._log_mel(waveform)

    def _waveform(self, sample: Any, sampling_rate: int | None) -> Tensor:
        """One clip of any kind to a mono waveform `(samples,)` at this processor's rate."""
        array, own_rate = _decode(sample)
        if own_rate is None and sampling_rate is None:
            raise ValueError(
                "an array does not tell its sampling rate; pass sampling_rate=<Hz>, or give the clip as "
                "{'array': ..., 'sampling_rate': <Hz>}."
            )
        if None not in (own_rate, sampling_rate) and own_rate != sampling_rate:
            raise ValueError(
                f"the clip has a sampling rate of {own_rate} Hz, but sampling_rate={sampling_rate} was passed; "
                "leave it out for clips that carry their own."
            )
        rate = sampling_rate if own_rate is None else own_rate
        if not isinstance(rate, Integral) or not 1 <= rate <= _MOST_HERTZ:
            raise ValueError(f"sampling_rate must be a positive integer, in Hz, of at most a billion, got {rate!r}.")
        waveform = torch.from_numpy(_mono(array))
        if rate == self.sampling_rate:
            return waveform
        ratio = _simple_ratio(int(rate), self.sampling_rate)
        return _torchaudio().functional.resample(waveform, ratio.numerator, ratio.denominator)

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """Kaldi's log-mel filter bank `(frames, mels)` with AST's options.

        As `torchaudio.compliance.kaldi.fbank(..., htk_compat=True, use_energy=False, window_type="hanning",
        dither=0)`, to 1e-3, in half its time: the filters are kept, and a frame's first sample, which Kaldi emphasises
        otherwise than the rest, is left out, as its weight in the window is 0.
        """
        length, shift, window, filters = _filter_bank(self.sampling_rate, self.num_mel_bins)
        waveform = functional.pad(waveform - waveform.mean(), (0, max(0, length - len(waveform))))
        frames = waveform.unfold(0, length, shift)
        frames = frames - frames.mean(dim=1, keepdim=True)
        emphasised = torch.sub(frames[:, 1:], frames[:, :-1], alpha=0.97).mul_(window[1:])
        spectrum = torch.view_as_real(torch.fft.rfft(emphasised, 2 * len(filters) - 2))
        power = spectrum[..., 0].square().addcmul_(spectrum[..., 1], spectrum[..., 1])
        return (power @ filters).clamp_(min=torch.finfo(torch.float32).eps).log_()

    def dummy_samples(self, batch_size: int, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        lengths = random.integers(4800, 9601, size=batch_size)
        return [random.uniform(-0.5, 0.5, size=length).astype(np.float32) for length in lengths]


def _one_by_one(samples: Any) -> Iterator[Any]:
    """The clips of `samples`, be it one clip, a sequence or an iterator."""
    array = isinstance(samples, np.ndarray | Tensor) and samples.dtype != object
    if array or isinstance(samples, str | PathLike | bytes | Mapping) or hasattr(samples, "get_all_samples"):
        yield samples
        return
    first, clips = several(samples, "audio")
    yield from [list(clips)] if isinstance(first, Real) else clips


def _decode(sample: Any) -> tuple[np.ndarray, int | None]:
    """The samples of a clip, as `_mono` takes them, and the sampling rate if the clip carries one."""
    if isinstance(sample, Mapping):
        if sample.get("array") is not None:
            return _decode(sample["array"])[0], sample.get("sampling_rate")
        source = sample.get("bytes") or sample.get("path")
        if source is None:
            raise ValueError(f"a dict must hold 'array' and 'sampling_rate', 'bytes' or 'path', got {sorted(sample)}.")
        sample = source
    if isinstance(sample, str | PathLike | bytes):
        return _read(sample)
    if hasattr(sample, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` gives for a decoded column
        decoded = sample.get_all_samples()
        return decoded.data.mean(dim=0).numpy(), decoded.sample_rate
    if isinstance(sample, np.ndarray | Tensor | list | tuple):
        return to_array(sample), None
    raise TypeError(
        "a clip must be a path, bytes, a dict with 'array' or 'bytes', a numpy or torch array or a list of numbers, "
        f"got {type(sample).__name__}."
    )


def _read(source: str | PathLike | bytes) -> tuple[np.ndarray, int]:
    """Mono samples and sampling rate of a file or its bytes."""
    with needs("soundfile to read audio files", "audio"):
        import soundfile
    in_memory = isinstance(source, bytes)
    if not in_memory and not Path(source).is_file():
        raise ValueError(f"there is no file {str(source)!r}.")
    try:
        array, rate = soundfile.read(BytesIO(source) if in_memory else source, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        name = f"{len(source)} bytes" if in_memory else repr(str(source))
        raise ValueError(f"cannot read {name} as an audio file (WAV, FLAC, OGG, MP3): {error}") from error
    return array.mean(axis=1), rate


def _mono(array: np.ndarray) -> np.ndarray:
    """One channel `(samples,)` of float32 in -1..1."""
    if array.size == 0:
        raise ValueError(f"the clip is empty, shape {array.shape}; leave it out.")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"an array must have shape (samples,), (channels, samples) or (samples, channels), got {array.shape}; give "
            "several clips as a list."
        )
    if array.dtype in (np.int16, np.int32):
        array = array.astype(np.float32) / np.float32(-float(np.iinfo(array.dtype).min))
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"samples of type {array.dtype} have no known range; convert them to floats in -1..1, int16 or int32."
        )
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        array = array.astype(np.float32)
    if not (np.abs(array) <= _LOUDEST).all():
        raise ValueError(f"the clip holds NaN or infinity, or more than {_LOUDEST:g}; replace those samples first.")
    if array.ndim == 2:
        if min(array.shape) > _MAX_CHANNELS:
            raise ValueError(
                f"shape {array.shape} would be one clip of {min(array.shape)} channels; give several clips as a list, "
                "such as list(array)."
            )
        array = array.mean(axis=0 if array.shape[0] <= array.shape[1] else 1)
    return array


def _simple_ratio(rate: int, target: int) -> Fraction:
    """`rate / target`, to 0.03 %, so that the filter, one of `rate` weights for each of `target` phases, stays small.

    Ratios of usual rates are exact: with a denominator of at most `n`, the error is at most half of `1 / n`.
    """
    ratio = Fraction(max(rate, target), min(rate, target))
    ratio = ratio.limit_denominator(max(1, int(sqrt(_MOST_WEIGHTS / ratio))))
    return ratio if rate > target else 1 / ratio


@lru_cache(maxsize=8)
def _filter_bank(sampling_rate: int, num_mel_bins: int) -> tuple[int, int, Tensor, Tensor]:
    """What all frames share.

    Returns:
        Samples of a frame and from one to the next, as Kaldi rounds; the window `(samples,)`; the mel filters
        `(frequencies, mels)` for a transform of the next power of two.
    """
    length, shift = (int(sampling_rate * milliseconds * 0.001) for milliseconds in (_FRAME_LENGTH, _FRAME_SHIFT))
    size = 1 << (length - 1).bit_length()
    # No warping of the frequencies: 100 and -500 say where it would begin and end, 1 that there is none.
    filters, _ = _torchaudio().compliance.kaldi.get_mel_banks(
        num_mel_bins, size, sampling_rate, 20.0, 0.0, 100.0, -500.0, 1.0
    )
    return length, shift, torch.hann_window(length, periodic=False), functional.pad(filters, (0, 1)).T.contiguous()


def _torchaudio() -> Any:
    """Torchaudio with the parts that are used here."""
    with needs("the torchaudio of the same release as torch", "audio"):
        import torchaudio
        import torchaudio.compliance.kaldi
        import torchaudio.functional
    return torchaudio
