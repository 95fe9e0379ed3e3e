"""X-ray images to tokens: as images, by default with one channel.

Arrives: `xray_values` `(batch, channels, height, width)` and, for images of different size, `xray_mask`
`(batch, height, width)`. Leaves: `(batch, rows * columns, hidden)` in row-major order, with a mask if there was one.

Weights of a model of colour images are taken over: summed over the colours for one channel, so that an X-ray image
gives what it gives as a grey picture.
"""

from dataclasses import dataclass
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor

from ..sequence import TokenSequence
from .base import TokenizerConfig
from .image import ImageTokenizerConfig, PatchTokenizer

__all__ = ["XrayTokenizer", "XrayTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class XrayTokenizerConfig(ImageTokenizerConfig):
    """Options of the X-ray tokenizer, those of `ImageTokenizerConfig`.

    Attributes:
        num_channels: Channels of the images, one by default.
    """

    num_channels: int = 1


class XrayTokenizer(PatchTokenizer):
    """Tokens of X-ray images, see `PatchTokenizer`."""

    input_prefix: ClassVar[str] = "xray"

    config_class: ClassVar[type[TokenizerConfig]] = XrayTokenizerConfig

    def forward(self, xray_values: Tensor, xray_mask: Tensor | None = None) -> TokenSequence:
        """`tokenize_images`, of `xray_values` `(batch, channels, height, width)` and their `xray_mask`."""
        return self.tokenize_images(xray_values, xray_mask)
