"""A stack of convolutions in the place of one linear projection of each patch.

Xiao et al. 2021, "Early Convolutions Help Transformers See Better", section 3: 3x3 convolutions of stride 2 down to the
patch size, each twice as wide as the one before; the projection to tokens that follows is the caller's. Different from
the original: LayerNorm over the channels of each position, as in ConvNeXt, instead of BatchNorm, and GELU, so that no
image sees another one of its batch; and positions without image are zero before each convolution, as what lies beyond
the edge is, so that an image gives the same alone and in a ragged batch.
"""

from torch import Tensor, nn

__all__ = ["ConvolutionalStem"]

_LEAST_WIDTH = 8  # channels of the first convolutions, however small the model


class _PositionLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position of `(batch, channels, height, width)`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvolutionalStem(nn.Module):
    """Images to one vector for each patch.

    Args:
        num_channels: Channels of the images.
        width: Channels that leave.
        patch_size: Height and width of a patch in pixels, powers of two, at least one of them above 1.
        depth: Convolutions at each resolution: the one that halves the image, and others that keep its size.
    """

    def __init__(self, num_channels: int, width: int, patch_size: tuple[int, int], depth: int = 1) -> None:
        super().__init__()
        halvings = [side.bit_length() - 1 for side in patch_size]
        steps = max(halvings)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for step in range(steps):
            channels = min(width, max(_LEAST_WIDTH, width >> (steps - 1 - step)))
            # The shorter side of a patch is halved in the first steps, and kept in the others.
            stride = (2 if step < halvings[0] else 1, 2 if step < halvings[1] else 1)
            for repeat in range(depth):
                self.convolutions.append(
                    nn.Conv2d(num_channels, channels, 3, stride=1 if repeat else stride, padding=1, bias=False)
                )
                self.norms.append(_PositionLayerNorm(channels))
                num_channels = channels
        self.activation = nn.GELU()

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reduce each patch to one position.

        Args:
            images: `(batch, channels, rows * patch height, columns * patch width)`, zeros where there is no image.
            mask: `(batch, rows, columns)`, true for the patches of an image at the top left; `None` if all are.

        Returns:
            `(batch, width, rows, columns)`, zeros where the mask is false.
        """
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            images = self.activation(norm(convolution(images)))
            if mask is not None:
                scale = [images.shape[axis] // mask.shape[axis - 1] for axis in (2, 3)]
                real = mask.repeat_interleave(scale[0], dim=1).repeat_interleave(scale[1], dim=2)
                images = images.masked_fill(~real[:, None], 0)
        return images
