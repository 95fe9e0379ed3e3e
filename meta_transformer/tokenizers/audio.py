"""Log-mel spectrograms to tokens: overlapping patches of frequency and time, plus positions learned for both.

Arrives: `input_features` `(batch, frames, mels)` and, for clips of different length, `input_features_mask`
`(batch, frames)`. Leaves: `(batch, frequencies * times, hidden)`, the lowest frequency's patches first, with a mask if
there was one.

AST (Gong, Chung and Glass 2021, section 2.1): patches of 16 x 16 that overlap by 6, so 12 rows for 128 mels. Different
from the original, where every clip is cut or padded to ten seconds: any length. The last patch of time is completed
with zeros instead of dropped; so is the last one of frequency, unless it had less than a quarter of a stride to add,
which keeps AST's 12 rows, blind for the uppermost 2 of 128 mels. Positions are one table for frequency and one for
time; the latter is stretched for clips that are longer than it, each to its own length, so that a clip gets the same
tokens alone and in a ragged batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from ..sequence import GridLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig, pair
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["AudioTokenizer", "AudioTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class AudioTokenizerConfig(TokenizerConfig):
    """Options of the audio tokenizer.

    Attributes:
        num_mel_bins: Mel bins of the spectrograms, as of the processor.
        patch_size: Mel bins and frames of a patch: one number for both, or two.
        stride: Mel bins and frames from one patch to the next: one number for both, or two. Below `patch_size` the
            patches overlap; a larger stride, which would skip frames, is refused.
        max_time_positions: Patches in time for which positions are learned, 128 for 12.9 seconds with the defaults.
            Longer clips get positions interpolated from these.
    """

    num_mel_bins: int = 128
    patch_size: int | list[int] = 16
    stride: int | list[int] = 10
    max_time_positions: int = 128

    def validate_sizes(self) -> None:
        for name in ("patch_size", "stride"):
            value = getattr(self, name)
            if (isinstance(value, list) and len(value) != 2) or min(pair(value)) < 1:
                raise ValueError(f"{name} must be one positive number or two (frequency, time), got {value}.")
        if any(step > size for step, size in zip(pair(self.stride), pair(self.patch_size), strict=True)):
            raise ValueError(
                f"stride {self.stride} is larger than patch_size {self.patch_size}, which would leave out what lies "
                "between the patches; use a stride of at most patch_size."
            )
        if self.num_mel_bins < pair(self.patch_size)[0]:
            raise ValueError(
                f"num_mel_bins {self.num_mel_bins} is smaller than a patch of {pair(self.patch_size)[0]}; use more "
                "mel bins or a smaller patch_size."
            )
        if self.max_time_positions < 1:
            raise ValueError(f"max_time_positions must be at least 1, got {self.max_time_positions}.")


class AudioTokenizer(ModalityTokenizer):
    """Projection of overlapping patches with learned positions; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = AudioTokenizerConfig

    def __init__(self, config: AudioTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.num_mel_bins = config.num_mel_bins
        self.patch_size, self.stride = pair(config.patch_size), pair(config.stride)
        frequencies, rest = divmod(config.num_mel_bins - self.patch_size[0], self.stride[0])
        complete = 4 * rest >= self.stride[0]
        frequencies += 1 + complete
        self.mel_padding = self.stride[0] - rest if complete else 0
        self.projection = nn.Conv2d(1, hidden_size, self.patch_size, stride=self.stride)
        self.frequency_positions = nn.Parameter(torch.zeros(frequencies, hidden_size))
        self.time_positions = InterpolatedPositions(config.max_time_positions, hidden_size)

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.frequency_positions, std=std)

    def forward(self, input_features: Tensor, input_features_mask: Tensor | None = None) -> TokenSequence:
        """Tokenize a batch of spectrograms.

        Args:
            input_features: `(batch, frames, mels)`, normalised log-mel energies, one frame or more.
            input_features_mask: `(batch, frames)`, true for the frames at the start that belong to the clip, not
                reached by what lies after them; `None` when all clips fill the tensor. A clip without any true frame
                gets no real token.

        Returns:
            `(batch, frequencies * times, hidden)`, frequency by frequency, with a `GridLayout` of the padded batch.

        Raises:
            ValueError: Not three dimensions, no frame, another number of mel bins than the tokenizer was made for, or
                as `read_mask`.
        """
        self._check(input_features)
        frames = input_features.shape[1]
        mask, (lengths,) = read_mask("input_features_mask", input_features_mask, input_features, [1])
        if mask is not None:  # not by a product: zero times NaN is NaN
            input_features = input_features.masked_fill(~mask[:, :, None], 0)
        (_, patch), (_, stride) = self.patch_size, self.stride
        # With stride - 1 frames more, the convolution's rounding down leaves no frame out.
        padding = max(patch - frames, stride - 1)
        spectrogram = functional.pad(input_features.transpose(1, 2), (0, padding, 0, self.mel_padding))
        patches = self.projection(spectrogram[:, None])  # (batch, hidden, frequencies, times)
        frequencies, times = patches.shape[2:]
        own_times = torch.where(lengths > 0, ((lengths - patch).clamp(min=0) + stride - 1) // stride + 1, 0)
        positions = self.frequency_positions[:, None] + self.time_positions(own_times, times)[:, None]
        if mask is not None:
            mask = first_places([own_times], [times])[:, None].expand(-1, frequencies, -1).flatten(1)
        layout = GridLayout((frequencies, times), self.patch_size, self.stride)
        return TokenSequence(patches.flatten(2).transpose(1, 2) + positions.flatten(1, 2), mask, layout)

    def _check(self, input_features: Tensor) -> None:
        shape = tuple(input_features.shape)
        if len(shape) != 3 or shape[2] != self.num_mel_bins or shape[1] == 0:
            raise ValueError(
                f"input_features must have shape (batch, frames, {self.num_mel_bins}), got {shape}. Make them with "
                f"AudioProcessor(num_mel_bins={self.num_mel_bins}), or make the tokenizer with your num_mel_bins."
            )
