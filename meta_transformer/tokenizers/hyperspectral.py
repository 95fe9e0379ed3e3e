"""Hyperspectral samples to tokens: groups of neighbouring bands, of the middle pixel or of every patch.

Arrives: `hyperspectral_values` `(batch, bands, height, width)`, with `wavelengths` `(batch, bands)` in nm and
`hyperspectral_mask` of the values' shape. Leaves, row-major with a mask if there was one:

- `tokenization="spectral"`: `(batch, groups, hidden)`, the spectrum of the pixel in the middle as a sequence. A token
  is one linear map of `bands_per_token` neighbouring bands in a window around that pixel: groupwise spectral embedding
  (SpectralFormer, Hong et al. 2021). Different from the original, whose first and last group wrap
  around to the other end of the spectrum: the bands are mirrored at both ends.
- `tokenization="spatial_spectral"`: `(batch, groups * rows * columns, hidden)`, patches of bands, height and width, as
  masked autoencoders for such cubes have them (SpectralGPT, Hong et al. 2024, section III-A).

One map serves all groups, whatever their number, and where a group lies in the spectrum is told by its wavelength:
sines and cosines of it through a small network (as the wavelengths of DOFA, Xiong et al. 2024, section 3.2, but added
to the tokens). So sensors with other bands share one tokenizer.
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional

from ..sequence import GridLayout, ImageLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig, pair
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["HyperspectralTokenizer", "HyperspectralTokenizerConfig"]

_PERIODS = 20.0, 20_000.0  # nm: from twice the usual distance of bands to more than the whole range of sensors
_SPREAD = 400.0, 2500.0  # nm over which bands without wavelengths are spread


@strict
@dataclass(kw_only=True)
class HyperspectralTokenizerConfig(TokenizerConfig):
    """Options of the hyperspectral tokenizer.

    Attributes:
        tokenization: `"spectral"` for the pixel in the middle as a sequence of groups of bands, `"spatial_spectral"`
            for patches of bands, height and width.
        bands_per_token: Neighbouring bands in one token.
        band_stride: Bands from one token to the next, at most `bands_per_token`; `None` for as many as it holds.
            SpectralFormer has 3 bands and a stride of 1.
        window_size: Height and width of the window around the middle pixel, for `"spectral"`.
        patch_size: Height and width of a patch, one number for both or two, for `"spatial_spectral"`.
        max_spatial_positions: Rows, and columns, of patches for which positions are learned, for
            `"spatial_spectral"`. Larger samples get positions interpolated from these.
        spectral_positions: What tells where a token lies in the spectrum: `"wavelength"`, which the samples must then
            have, or `"index"`, the band's number as a share of their count.
        num_frequencies: Sines, and cosines, of a spectral position.
    """

    tokenization: Literal["spectral", "spatial_spectral"] = "spectral"
    bands_per_token: int = 4
    band_stride: int | None = None
    window_size: int = 1
    patch_size: int | list[int] = 3
    max_spatial_positions: int = 16
    spectral_positions: Literal["wavelength", "index"] = "index"
    num_frequencies: int = 16

    def validate_sizes(self) -> None:
        for name in ("bands_per_token", "window_size", "max_spatial_positions", "num_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if (isinstance(self.patch_size, list) and len(self.patch_size) != 2) or min(pair(self.patch_size)) < 1:
            raise ValueError(f"patch_size must be one positive number of pixels or two, got {self.patch_size}.")
        if self.band_stride is not None and not 1 <= self.band_stride <= self.bands_per_token:
            raise ValueError(
                f"band_stride must be from 1 to bands_per_token, {self.bands_per_token}, got {self.band_stride}; a "
                "larger one would leave bands out."
            )


class _SpectralPositions(nn.Module):
    """Fourier features of wavelengths, and a small network on them; `(..., )` in nm to `(..., hidden)`.

    Periods rise geometrically from twice the distance of neighbouring bands to more than the sensors' range.
    """

    def __init__(self, num_frequencies: int, hidden_size: int) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.inner = nn.Linear(2 * num_frequencies, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)

    def forward(self, wavelengths: Tensor) -> Tensor:
        shortest, longest = (log(period) for period in _PERIODS)
        periods = torch.linspace(shortest, longest, self.num_frequencies, device=wavelengths.device).exp()
        phases = 2 * pi * wavelengths.float()[..., None] / periods
        features = torch.cat([phases.sin(), phases.cos()], dim=-1).to(self.inner.weight.dtype)
        return self.outer(functional.gelu(self.inner(features)))


class HyperspectralTokenizer(ModalityTokenizer):
    """Groupwise spectral embedding, or patches of bands and pixels; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = HyperspectralTokenizerConfig

    # Half precision rounds 1000 nm to whole bands.
    full_precision_inputs: ClassVar[frozenset[str]] = frozenset({"wavelengths"})

    config: HyperspectralTokenizerConfig

    def __init__(self, config: HyperspectralTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.spatial = config.tokenization == "spatial_spectral"
        self.patch_size = pair(config.patch_size if self.spatial else config.window_size)
        self.group, self.stride = config.bands_per_token, config.band_stride or config.bands_per_token
        # So that group j lies around the bands from j * stride on, and every band is in one.
        self.first_band = (self.stride - 1) // 2 - (self.group - 1) // 2
        values = self.patch_size[0] * self.patch_size[1]
        self.projection = nn.Conv1d(values, hidden_size, self.group, stride=self.stride)
        self.spectral_positions = _SpectralPositions(config.num_frequencies, hidden_size)
        if self.spatial:
            self.row_positions = InterpolatedPositions(config.max_spatial_positions, hidden_size)
            self.column_positions = InterpolatedPositions(config.max_spatial_positions, hidden_size)

    def forward(
        self,
        hyperspectral_values: Tensor,
        wavelengths: Tensor | None = None,
        hyperspectral_mask: Tensor | None = None,
    ) -> TokenSequence:
        """Tokenize a batch of samples.

        Args:
            hyperspectral_values: `(batch, bands, height, width)`, normalised; at least one of each.
            wavelengths: `(batch, bands)` in nm, if and only if the tokenizer was made with
                `spectral_positions="wavelength"`.
            hyperspectral_mask: Of the values' shape, true in the first bands, rows and columns, which the sample fills;
                `None` when all samples fill the tensor. A sample without any true value gets no real token.

        Returns:
            `(batch, groups, hidden)` with a `GridLayout`, or `(batch, groups * rows * columns, hidden)` with an
            `ImageLayout`, of the padded batch along these axes.

        Raises:
            ValueError: Other shapes, wavelengths missing, or wavelengths that the tokenizer was not made for, or as
                `read_mask`.
        """
        self._check(hyperspectral_values, wavelengths)
        pixels = hyperspectral_values
        mask, lengths = read_mask("hyperspectral_mask", hyperspectral_mask, pixels, [1, 2, 3])
        if mask is not None:
            pixels = pixels.masked_fill(~mask, 0)  # not by a product: zero times NaN is NaN
            if wavelengths is not None:
                wavelengths = wavelengths.masked_fill(~first_places(lengths[:1], pixels.shape[1:2]), 0)
        values = pixels
        groups = -(-values.shape[1] // self.stride)
        grid = [-(-size // patch) for size, patch in zip(values.shape[2:], self.patch_size, strict=True)]
        if not self.spatial:
            grid = [1, 1]
        num_bands = (groups - 1) * self.stride + self.group
        bands = self.first_band + torch.arange(num_bands, device=values.device).expand(len(lengths[0]), -1)
        for axis, (count, patch) in enumerate(zip(grid, self.patch_size, strict=True)):
            places = torch.arange(count * patch, device=values.device).expand(len(lengths[0]), -1)
            if not self.spatial:
                places = places + (lengths[1 + axis] // 2 - patch // 2)[:, None]
            values = _take(values, 2 + axis, places, lengths[1 + axis])
        values = _take(values, 1, bands, lengths[0])
        tokens = self._project(values, grid)
        positions = self._where(wavelengths, bands, lengths[0])[:, :, None, None]
        own = [-(-length // size) for length, size in zip(lengths, (self.stride, *self.patch_size), strict=True)]
        if self.spatial:
            positions = positions + self.row_positions(own[1], grid[0])[:, None, :, None]
            positions = positions + self.column_positions(own[2], grid[1])[:, None, None, :]
        tokens = (tokens + positions).flatten(1, 3)
        if mask is not None:
            mask = first_places(own if self.spatial else [own[0], *(o.clamp(max=1) for o in own[1:])], (groups, *grid))
            mask = mask.flatten(1)
        if not self.spatial:
            return TokenSequence(tokens, mask, GridLayout((groups,), (self.group,), (self.stride,)))
        height, width = pixels.shape[2:]
        sizes = None if mask is None else torch.stack(lengths[1:], dim=1)
        shape, steps = (groups, *grid), (self.stride, *self.patch_size)
        layout = ImageLayout(shape, (self.group, *self.patch_size), steps, (height, width), sizes, pixels)
        return TokenSequence(tokens, mask, layout)

    def _project(self, values: Tensor, grid: list[int]) -> Tensor:
        """Bands and pixels in whole patches to `(batch, groups, rows, columns, hidden)`."""
        (rows, columns), (height, width) = grid, self.patch_size
        cells = values.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        cells = cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)  # (batch, rows, columns, pixels of a patch, bands)
        tokens = self.projection(cells.flatten(0, 2)).transpose(1, 2)
        return tokens.unflatten(0, (values.shape[0], rows, columns)).permute(0, 3, 1, 2, 4)

    def _where(self, wavelengths: Tensor | None, bands: Tensor, count: Tensor) -> Tensor:
        """Spectral positions `(1 or batch, groups, hidden)`, each of the mean over the group's bands.

        Args:
            wavelengths: `(batch, bands)`, or `None`.
            bands: `(1 or batch, places)`, number of the band at each place of the projection's input, before mirroring.
            count: `(1 or batch,)`, bands of each sample.
        """
        low, high = _SPREAD
        if wavelengths is None:
            places = low + (high - low) * (bands + 0.5) / count.clamp(min=1)[:, None]
        else:
            bands, count = bands.expand(len(wavelengths), -1), count.expand(len(wavelengths))
            places = _take(wavelengths.float(), 1, bands, count)
        real = (bands >= 0) & (bands < count[:, None])
        places = torch.where(real, places, 0).unfold(1, self.group, self.stride).sum(dim=-1)
        return self.spectral_positions(places / real.unfold(1, self.group, self.stride).sum(dim=-1).clamp(min=1))

    def _check(self, values: Tensor, wavelengths: Tensor | None) -> None:
        shape = tuple(values.shape)
        if len(shape) != 4 or 0 in shape[1:]:
            raise ValueError(
                f"hyperspectral_values must have shape (batch, bands, height, width), got {shape}. Make them with "
                "HyperspectralProcessor; a spectrum has height and width 1."
            )
        wanted = self.config.spectral_positions
        if (wavelengths is None) != (wanted == "index"):
            raise ValueError(
                f"The tokenizer was made with spectral_positions={wanted!r}, but wavelengths are "
                f"{'missing' if wavelengths is None else 'given'}; make it with processor.tokenizer_configs() of a "
                "processor that was fitted on such samples."
            )
        if wavelengths is not None and tuple(wavelengths.shape) != shape[:2]:
            raise ValueError(
                f"wavelengths must have shape {shape[:2]}, (batch, bands), got {tuple(wavelengths.shape)}."
            )


def _take(values: Tensor, dim: int, index: Tensor, lengths: Tensor) -> Tensor:
    """Entries along one dimension, mirrored at both ends of each sample's own length, the end itself repeated.

    Args:
        values: `(batch, ...)`.
        dim: Which.
        index: `(1 or batch, places)`, below 0 and beyond the length too.
        lengths: `(1 or batch,)`.
    """
    period = 2 * lengths.clamp(min=1)[:, None]
    index = index % period
    index = torch.minimum(index, period - 1 - index)
    if len(index) == 1:
        return values.index_select(dim, index[0])
    shape = [1] * values.dim()
    shape[0], shape[dim] = index.shape
    return values.gather(dim, index.view(shape).expand(*values.shape[:dim], -1, *values.shape[dim + 1 :]))
