"""Infrared images to tokens: as images, by default with one channel.

Arrives: `infrared_values` `(batch, channels, height, width)` and, for images of different size, `infrared_mask`
`(batch, height, width)`. Leaves: `(batch, rows * columns, hidden)` in row-major order, with a mask if there was one.

Weights of a model of colour images are taken over: summed over the colours for one channel, so that an infrared image
gives what it gives as a grey picture.
"""

from dataclasses import dataclass
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor

from ..sequence import TokenSequence
from .base import TokenizerConfig
from .image import ImageTokenizerConfig, PatchTokenizer

__all__ = ["InfraredTokenizer", "InfraredTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class InfraredTokenizerConfig(ImageTokenizerConfig):
    """Options of the infrared tokenizer, those of `ImageTokenizerConfig`.

    Attributes:
        num_channels: Channels of the images, one by default.
    """

    num_channels: int = 1


class InfraredTokenizer(PatchTokenizer):
    """Tokens of infrared images, see `PatchTokenizer`."""

    input_prefix: ClassVar[str] = "infrared"

    config_class: ClassVar[type[TokenizerConfig]] = InfraredTokenizerConfig

    def forward(self, infrared_values: Tensor, infrared_mask: Tensor | None = None) -> TokenSequence:
        """`tokenize_images`, of `infrared_values` `(batch, channels, height, width)` and their `infrared_mask`."""
        return self.tokenize_images(infrared_values, infrared_mask)
