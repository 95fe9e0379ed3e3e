"""Log-mel features beside Kaldi's filter bank in torchaudio, which they equal."""

from functools import partial

import torch
from torch import Tensor
from torchaudio.compliance.kaldi import fbank

from meta_transformer.processors.audio import AudioProcessor

from .bars import Bar, in_turns

SECONDS, RATE, TOLERANCE = 10, 16_000, 1e-3


def measure(repeats: int) -> list[Bar]:
    """Ten seconds of noise, one clip a call."""
    waveform = 0.1 * torch.randn(SECONDS * RATE, generator=torch.Generator().manual_seed(0))
    ours, peer = partial(log_mel, AudioProcessor(mean=0.0, std=0.5), waveform), partial(kaldi, waveform)
    difference = (ours() - peer()).abs().max().item()
    if difference > TOLERANCE:
        raise AssertionError(f"The features differ by {difference}.")
    times = in_turns(repeats, ours, peer)
    note = f"ours is the whole processor; they differ by {difference:.0e} at most"
    return [Bar(f"{SECONDS} s at {RATE} Hz, 128 mels", "torchaudio's kaldi.fbank", *times, 1.0, note)]


def log_mel(processor: AudioProcessor, waveform: Tensor) -> Tensor:
    return processor([waveform], sampling_rate=RATE)["input_features"][0]


def kaldi(waveform: Tensor) -> Tensor:
    """With the options of AST."""
    return fbank(
        (waveform - waveform.mean())[None],
        num_mel_bins=128,
        sample_frequency=RATE,
        window_type="hanning",
        htk_compat=True,
        use_energy=False,
        dither=0.0,
    )
