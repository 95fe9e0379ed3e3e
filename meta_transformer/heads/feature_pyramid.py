"""Features of a plain ViT as maps, and several of its layers as a pyramid of maps.

Arrives: encoded tokens with an `ImageLayout`. Leaves: maps `(batch, channels, rows, columns)`, one or several sizes.

A picture gives the same alone and in a ragged batch: norms are of single positions, positions behind the picture are
zero in front of each convolution, as what lies beyond the edge is, and are left out when maps are resized.
"""

from itertools import pairwise
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from ..sequence import Segment, TokenSequence
from .layers import layer_numbers

__all__ = ["FeatureMap", "FeaturePyramid", "MapBlock", "token_map"]

Scale = Literal["keep", "double", "halve"]

_LEAST_SHARE = 1e-3  # of a resized position that is picture; real ones have at least a quarter


class FeatureMap(NamedTuple):
    """A map of features, and which of its positions are picture.

    Attributes:
        features: `(batch, channels, rows, columns)`, zeros where the mask is false.
        mask: `(batch, rows, columns)` boolean, true in a rectangle at the top left; `None` when nothing is padded.
    """

    features: Tensor
    mask: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.features.shape[2], self.features.shape[3]

    def replace(self, features: Tensor) -> "FeatureMap":
        """Other features at the same positions."""
        if self.mask is not None:
            features = features.masked_fill(~self.mask[:, None], 0)
        return FeatureMap(features, self.mask)

    def resized(self, size: tuple[int, int]) -> Tensor:
        """Features at another number of rows and columns, bilinear; at edges those of the nearest position."""
        if size == self.size:
            return self.features
        features = functional.interpolate(self.features, size, mode="bilinear", align_corners=False)
        if self.mask is None:
            return features
        share = functional.interpolate(self.mask[:, None].to(features), size, mode="bilinear", align_corners=False)
        return features / share.clamp(min=_LEAST_SHARE)


def token_map(tokens: Tensor, sequence: TokenSequence, segment: Segment) -> FeatureMap:
    """The tokens of one segment, `(batch, all tokens, width)`, as a map on their grid.

    Where a place has several tokens, as in cubes, it is their mean.
    """
    own = slice(segment.start, segment.start + segment.length)
    layout: Any = segment.layout
    grid = layout.shape
    mask = None if sequence.mask is None else sequence.mask[:, own].bool().unflatten(1, grid)
    features = tokens[:, own].transpose(1, 2).unflatten(2, grid)
    if len(grid) == 3:
        real = features.new_ones(1, 1, *grid) if mask is None else mask[:, None].to(features)
        features = features.where(real > 0, 0).sum(dim=2) / real.sum(dim=2).clamp(min=1)
        mask = None if mask is None else mask.any(dim=1)
    return FeatureMap(features, mask).replace(features)


class MapBlock(nn.Module):
    """One convolution, LayerNorm over the channels of each position, GELU.

    Args:
        inputs: Channels that arrive.
        outputs: Channels that leave.
        scale: `"keep"` the map's size, by a 3x3 convolution; `"double"` or `"halve"` it, by one of 2x2.
        eps: Of the norm.
    """

    def __init__(self, inputs: int, outputs: int, scale: Scale, eps: float) -> None:
        super().__init__()
        self.scale = scale
        if scale == "keep":
            self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        else:
            kind = nn.ConvTranspose2d if scale == "double" else nn.Conv2d
            self.convolution = kind(inputs, outputs, 2, stride=2)
        self.norm = nn.LayerNorm(outputs, eps=eps)

    def forward(self, features: FeatureMap) -> FeatureMap:
        """From a map to a map; one with odd sides is padded before it is halved."""
        values, mask = features
        if self.scale == "halve":
            values = functional.pad(values, (0, values.shape[3] % 2, 0, values.shape[2] % 2))
            mask = None if mask is None else mask[:, ::2, ::2]
        elif self.scale == "double" and mask is not None:
            mask = mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        values = self.norm(self.convolution(values).movedim(1, -1)).movedim(-1, 1)
        return FeatureMap(values, mask).replace(functional.gelu(values))


class FeaturePyramid(nn.Module):
    """Maps of falling size, each from one layer of the trunk.

    The simple feature pyramid of ViTDet (Li et al. 2022, section 3), which has no way from the top down. Different from
    it: layers may differ, earlier ones for finer maps (as in DPT, Ranftl et al. 2021, section 3.1); and channels are
    reduced by the first convolution, not by the last, so that it stays light.

    Args:
        layers: Numbers of hidden states, the first for the largest map; `None` for those at one, two, three and four
            quarters of the trunk. `[-1, -1, -1, -1]` is ViTDet's.
        channels: Of all maps.
        doublings: How often the largest map doubles the grid of patches. Each further map has half the size.
        model_config: The model's.
    """

    def __init__(self, layers: list[int] | None, channels: int, doublings: int, model_config: PreTrainedConfig) -> None:
        super().__init__()
        depth, eps = model_config.num_hidden_layers, model_config.layer_norm_eps
        quarters = [-(-depth * quarter // 4) for quarter in (1, 2, 3, 4)]
        self.numbers = layer_numbers(quarters if layers is None else layers, depth)
        self.norms, self.levels = nn.ModuleList(), nn.ModuleList()
        for level in range(len(self.numbers)):
            steps = doublings - level
            resize: Scale = "double" if steps > 0 else "halve"
            scales: list[Scale] = [*[resize] * abs(steps), "keep"]
            widths = [model_config.hidden_size, *[channels] * len(scales)]
            blocks = [MapBlock(*pair, scale, eps) for pair, scale in zip(pairwise(widths), scales, strict=True)]
            self.norms.append(nn.LayerNorm(model_config.hidden_size, eps=eps))
            self.levels.append(nn.Sequential(*blocks))

    def forward(self, sequence: TokenSequence, segment: Segment) -> list[FeatureMap]:
        """From `sequence.hidden_states` to maps of `(batch, channels, ...)`, the largest first.

        A map of the grid halved has half its rows and columns, rounded up.
        """
        return [
            level(token_map(norm(sequence.hidden_states[number]), sequence, segment))
            for number, norm, level in zip(self.numbers, self.norms, self.levels, strict=True)
        ]
