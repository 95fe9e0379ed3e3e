"""Images to tokens: a projection of each patch, plus a position learned for its place.

Arrives: `pixel_values` `(batch, channels, height, width)` and, for images of different size, `pixel_mask`
`(batch, height, width)`. Leaves: `(batch, rows * columns, hidden)` in row-major order, with a mask if there was one.

ViT (Dosovitskiy et al. 2021, equation 1). Different from the original, and from Meta-Transformer: any height and width.
An image whose sides are no multiples of the patch is padded with zeros at the bottom and on the right; the position
table is resampled to each image's own grid, so that an image gets the same tokens alone and in a ragged batch.

On request a stack of convolutions makes the patches (Xiao et al. 2021), see `ConvolutionalStem`: on a frozen trunk that
was not trained for the images at hand, one linear projection is little.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from ..sequence import ImageLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig, pair
from .padding import first_places, read_mask
from .stem import ConvolutionalStem

__all__ = ["ImageTokenizer", "ImageTokenizerConfig", "PatchTokenizer"]


@strict
@dataclass(kw_only=True)
class ImageTokenizerConfig(TokenizerConfig):
    """Options of the image tokenizer.

    Attributes:
        num_channels: Channels of the images.
        patch_size: Height and width of a patch in pixels: one number for both, or two.
        image_size: Height and width in pixels for which positions are learned, one for each patch that such an image
            makes. Images of any other size get positions resampled from these.
        patch_bias: Whether the projection of patches has a bias; CLIP's has none.
        patch_embedding: `"linear"`, one projection of the pixels of a patch, which pretrained weights have; or
            `"convolutional"`, 3x3 convolutions that halve the image until a patch is one position, for patches whose
            sides are powers of two.
        stem_depth: Convolutions at each resolution of a convolutional stem. More of them see more before the trunk.
    """

    num_channels: int = 3
    patch_size: int | list[int] = 16
    image_size: int | list[int] = 224
    patch_bias: bool = True
    patch_embedding: Literal["linear", "convolutional"] = "linear"
    stem_depth: int = 1

    def validate_sizes(self) -> None:
        for name in ("patch_size", "image_size"):
            value = getattr(self, name)
            if (isinstance(value, list) and len(value) != 2) or min(pair(value)) < 1:
                raise ValueError(f"{name} must be one positive number of pixels or two, got {value}.")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {self.num_channels}.")
        if any(size < patch for size, patch in zip(pair(self.image_size), pair(self.patch_size), strict=True)):
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}.")

    def validate_patch_embedding(self) -> None:
        if self.stem_depth < 1 or (self.stem_depth > 1 and self.patch_embedding == "linear"):
            raise ValueError(
                f"stem_depth must be at least 1, and 1 without patch_embedding 'convolutional', got {self.stem_depth}."
            )
        sides = pair(self.patch_size)
        if self.patch_embedding == "convolutional" and (any(side & (side - 1) for side in sides) or max(sides) < 2):
            raise ValueError(
                f"patch_embedding 'convolutional' needs a patch_size of powers of two such as 8 or 16, got "
                f"{self.patch_size}."
            )


def _grid(config: ImageTokenizerConfig) -> list[int]:
    """Rows and columns of patches for which positions are learned."""
    # Rounded up, as images are padded.
    return [-(-size // patch) for size, patch in zip(pair(config.image_size), pair(config.patch_size), strict=True)]


class PatchTokenizer(ModalityTokenizer):
    """Patch projection with learned, resampled positions, for images of every kind; see the module's description.

    A modality is a subclass: `input_prefix` is what the names of its tensors begin with, and its `forward` has those
    names and calls `tokenize_images`.
    """

    input_prefix: ClassVar[str] = "pixel"

    config_class: ClassVar[type[TokenizerConfig]] = ImageTokenizerConfig

    config: ImageTokenizerConfig

    def __init__(self, config: ImageTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.patch_size = pair(config.patch_size)
        self.position_grid = tuple(_grid(config))
        if config.patch_embedding == "convolutional":
            self.stem = ConvolutionalStem(config.num_channels, hidden_size, self.patch_size, config.stem_depth)
            self.projection = nn.Conv2d(hidden_size, hidden_size, 1, bias=config.patch_bias)
        else:
            self.stem = None
            self.projection = nn.Conv2d(
                config.num_channels, hidden_size, self.patch_size, stride=self.patch_size, bias=config.patch_bias
            )
        self.positions = nn.Parameter(torch.zeros(1, self.position_grid[0] * self.position_grid[1], hidden_size))

    def init_parameters(self, std: float) -> None:
        init.trunc_normal_(self.positions, std=std)

    @classmethod
    def inherit_image_weights(cls, weights: dict[str, Tensor], source: Any, target: Any) -> dict[str, Tensor]:
        """All of them, resampled with timm's functions.

        Another number of channels than the source's 3: one channel gets the sum of the three, so that a grey image
        gives what it gives in three channels; more get the three over and over, red, green, blue, red and so on, times
        `3 / channels`, which gives the same only if their number is a multiple of 3. Another patch size: pseudo-inverse
        resizing (FlexiViT, Beyer et al. 2023, section 3.4). Another grid: bicubic interpolation of the positions. A
        bias that the source lacks is zero. A convolutional stem takes over nothing: it has no such weights.
        """
        if target.patch_embedding != "linear":
            return {}
        if source == target:
            return dict(weights)
        if source.patch_bias and not target.patch_bias:
            raise ValueError("patch_bias is false, but the source of the weights has such a bias; leave it out.")
        try:
            from timm.layers import resample_abs_pos_embed, resample_patch_embed
            from timm.models import adapt_input_conv
        except ImportError as error:
            raise ImportError('Adapting image weights needs timm: pip install "meta_transformer[image]"') from error
        patches = weights["projection.weight"]
        if source.num_channels != target.num_channels:
            if source.num_channels != 3:
                raise ValueError(
                    f"num_channels is {target.num_channels}, but weights are adapted from 3 channels only, and those "
                    f"of the source are for {source.num_channels}; leave it out."
                )
            patches = adapt_input_conv(target.num_channels, patches)
        adapted = {
            "projection.weight": resample_patch_embed(patches, list(pair(target.patch_size))),
            "positions": resample_abs_pos_embed(
                weights["positions"], _grid(target), _grid(source), num_prefix_tokens=0
            ),
        }
        if target.patch_bias:
            adapted["projection.bias"] = weights.get("projection.bias", torch.zeros(len(patches), dtype=patches.dtype))
        return adapted

    def tokenize_images(self, values: Tensor, mask: Tensor | None = None) -> TokenSequence:
        """Tokenize a batch of images.

        Args:
            values: `(batch, channels, height, width)`, normalised.
            mask: `(batch, height, width)`, true in the rectangle at the top left that the image fills; `None` when all
                images fill the tensor.

        Returns:
            `(batch, rows * columns, hidden)` with an `ImageLayout` of the padded batch.

        Raises:
            ValueError: Not four dimensions, another number of channels than the tokenizer was made for, or as
                `read_mask`.
        """
        self._check(values)
        mask, sizes = read_mask(f"{self.input_prefix}_mask", mask, values, [2, 3])
        if mask is not None:
            values = values.masked_fill(~mask[:, None], 0)
        pixels, (height, width) = values, values.shape[-2:]
        own_sizes = None if mask is None else torch.stack(sizes, 1)
        values = functional.pad(values, (0, -width % self.patch_size[1], 0, -height % self.patch_size[0]))
        grid = (values.shape[2] // self.patch_size[0], values.shape[3] // self.patch_size[1])
        own_grids = [-(-size // patch) for size, patch in zip(sizes, self.patch_size, strict=True)]
        mask = None if mask is None else first_places(own_grids, grid)
        patches = self.projection(values if self.stem is None else self.stem(values, mask))
        tokens = patches.flatten(2).transpose(1, 2)
        layout = ImageLayout(grid, self.patch_size, self.patch_size, (height, width), own_sizes, pixels)
        if mask is None:
            return TokenSequence(tokens + self._positions(grid), layout=layout)
        return TokenSequence(tokens + self._ragged_positions(torch.stack(own_grids, 1), grid), mask.flatten(1), layout)

    def _check(self, values: Tensor) -> None:
        name = f"{self.input_prefix}_values"
        if values.dim() != 4 or values.shape[1] != self.config.num_channels:
            processor = type(self).__name__.replace("Tokenizer", "Processor")
            raise ValueError(
                f"{name} must have shape (batch, {self.config.num_channels}, height, width), got "
                f"{tuple(values.shape)}. Convert the images with {processor}(num_channels="
                f"{self.config.num_channels}), or make the tokenizer with num_channels of your images."
            )

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table on a grid of `(rows, columns)`, as `(1, rows * columns, hidden)`."""
        # A graph takes other sizes too; to compare them already fixes them in it.
        if not torch.compiler.is_exporting() and grid == self.position_grid:
            return self.positions
        try:
            from timm.layers import resample_abs_pos_embed
        except ImportError as error:
            raise ImportError(
                f"Images of another size than {self.config.image_size} need timm to resample positions: "
                'pip install "meta_transformer[image]"'
            ) from error
        return resample_abs_pos_embed(self.positions, list(grid), list(self.position_grid), num_prefix_tokens=0)

    def _ragged_positions(self, sizes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Positions for grids of `sizes` `(batch, 2)` at the top left of `grid`, each resampled on its own."""
        positions = self.positions.new_zeros(len(sizes), *grid, self.hidden_size)
        for rows, columns in sizes[sizes.prod(dim=1) > 0].unique(dim=0).tolist():  # without samples without image
            table = self._positions((rows, columns)).view(1, rows, columns, self.hidden_size)
            same = (sizes == sizes.new_tensor([rows, columns])).all(dim=1)
            fitted = functional.pad(table, (0, 0, 0, grid[1] - columns, 0, grid[0] - rows))
            positions = torch.where(same[:, None, None, None], fitted, positions)
        return positions.flatten(1, 2)


class ImageTokenizer(PatchTokenizer):
    """Tokens of images, see `PatchTokenizer`."""

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> TokenSequence:
        """`tokenize_images`, of `pixel_values` `(batch, channels, height, width)` and their `pixel_mask`."""
        return self.tokenize_images(pixel_values, pixel_mask)
