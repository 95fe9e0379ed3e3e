"""Inertial recordings to tokens: a stack of strided convolutions over time, with learned positions.

Arrives: `imu_values` `(batch, steps, channels)` and, for recordings of different length, `imu_mask` `(batch, steps)`.
Leaves: `(batch, tokens, hidden)`, with a mask if there was one.

OneLLM (Han et al. 2024, section 3.1) makes tokens by one convolution of 10 steps over all channels, of which every
window is a token; `kernel_sizes=[10], strides=[1]` is that convolution, with norm, bias and padded ends. Different from
the original beside these: strides, so that a token stands for several steps; layers with a norm and a non-linearity,
because a frozen trunk leaves it to the tokenizer to tell movements apart, each twice as wide as the one before; any
length, without a step being lost at the end.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional

from ..sequence import StepLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["ImuTokenizer", "ImuTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class ImuTokenizerConfig(TokenizerConfig):
    """Options of the IMU tokenizer.

    Attributes:
        num_channels: Channels of the recordings, as of the processor.
        kernel_sizes: Steps that each convolution spans, one for each layer.
        strides: Steps from one output of a layer to the next, at most its kernel size; a token stands for as many
            steps of the recording as their product.
        max_positions: Tokens for which positions are learned. Longer recordings get positions interpolated from these.
    """

    num_channels: int = 6
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 5])
    strides: list[int] = field(default_factory=lambda: [2, 2])
    max_positions: int = 128

    def validate_sizes(self) -> None:
        if self.num_channels < 1 or self.max_positions < 1:
            raise ValueError(
                f"num_channels and max_positions must be at least 1, got {self.num_channels} and {self.max_positions}."
            )
        if not self.kernel_sizes or len(self.kernel_sizes) != len(self.strides):
            raise ValueError(
                f"kernel_sizes and strides must have one entry for each layer, got {self.kernel_sizes} and "
                f"{self.strides}."
            )
        pairs = zip(self.kernel_sizes, self.strides, strict=True)
        if any(not 1 <= stride <= size for size, stride in pairs):
            raise ValueError(
                f"strides must be at least 1 and at most kernel_sizes, or steps would be left out, got {self.strides} "
                f"and {self.kernel_sizes}."
            )


class ImuTokenizer(ModalityTokenizer):
    """Strided convolutions and positions; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = ImuTokenizerConfig
    config: ImuTokenizerConfig

    def __init__(self, config: ImuTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        last = len(config.strides) - 1
        widths = [max(1, hidden_size >> (last - layer)) for layer in range(last + 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, width, size, stride=stride)
            for before, width, size, stride in zip(
                [config.num_channels, *widths], widths, config.kernel_sizes, config.strides, strict=False
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.positions = InterpolatedPositions(config.max_positions, hidden_size)

    def forward(self, imu_values: Tensor, imu_mask: Tensor | None = None) -> TokenSequence:
        """Tokenize a batch of recordings.

        Args:
            imu_values: `(batch, steps, channels)`, normalised, one step or more.
            imu_mask: `(batch, steps)`, true for the steps at the start that belong to the recording, not reached by
                what lies after them; `None` when all recordings fill the tensor. A recording without any true step gets
                no real token.

        Returns:
            `(batch, ceil(steps / strides), hidden)` with a `StepLayout` of the padded batch.

        Raises:
            ValueError: Not three dimensions, no step, another number of channels than the tokenizer was made for, or as
                `read_mask`.
        """
        self._check(imu_values)
        mask, (lengths,) = read_mask("imu_mask", imu_mask, imu_values, [1])
        steps, first, step = lengths.expand(imu_values.shape[0]), 0, 1
        signal = imu_values.to(self.positions.table.dtype)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            if index:
                signal = functional.gelu(signal)
            if mask is not None:  # not by a product: zero times NaN is NaN
                signal = signal.masked_fill(~mask[:, :, None], 0)
            size, stride = self.config.kernel_sizes[index], self.config.strides[index]
            # Output i is centred on steps i * stride to (i + 1) * stride - 1, and the last of them on the last steps.
            front = (size - stride) // 2
            first, step = first - front * step, step * stride
            end = size - stride - front + stride - 1
            signal = norm(convolution(functional.pad(signal.mT, (front, end))).mT)
            lengths = (lengths + stride - 1) // stride
            mask = None if mask is None else first_places([lengths], signal.shape[1:2])
        tokens = signal + self.positions(lengths, signal.shape[1])
        layout = StepLayout((signal.shape[1],), (self._reach(),), (step,), first, imu_values.shape[1], steps)
        return TokenSequence(tokens, mask, layout)

    def _reach(self) -> int:
        """Steps of the recording that one token sees."""
        reach, step = 1, 1
        for size, stride in zip(self.config.kernel_sizes, self.config.strides, strict=True):
            reach, step = reach + (size - 1) * step, step * stride
        return reach

    def _check(self, imu_values: Tensor) -> None:
        shape, channels = tuple(imu_values.shape), self.config.num_channels
        if len(shape) != 3 or shape[2] != channels or shape[1] == 0:
            raise ValueError(
                f"imu_values must have shape (batch, steps, {channels}), got {shape}. Make them with an ImuProcessor "
                f"of {channels // 3} sensors, or make the tokenizer with your num_channels."
            )
