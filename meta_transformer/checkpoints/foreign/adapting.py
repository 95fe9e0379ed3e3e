"""Fitting a source's patch projection and positions to images of another kind."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...tokenizers.base import pair

__all__ = ["adapt_images"]

_PATCHES, _POSITIONS = "tokenizers.image.projection.weight", "tokenizers.image.positions"


def adapt_images(tensors: Mapping[str, Tensor], source: Any, target: Any) -> dict[str, Tensor]:
    """Resample weights of the image tokenizer, with timm's functions.

    Args:
        tensors: The weights by the names of `MetaTransformerModel`; only those of the image tokenizer change.
        source: The `ImageTokenizerConfig` that they were trained with.
        target: The one that they are for. Another number of channels: the mean response stays. Another patch size:
            pseudo-inverse resizing (FlexiViT, Beyer et al. 2023, section 3.4). Another grid: bicubic interpolation of
            the positions.

    Raises:
        ValueError: The patch bias differs, or the number of channels cannot be adapted.
    """
    if source == target:
        return dict(tensors)
    if source.patch_bias != target.patch_bias:
        raise ValueError(
            f"patch_bias of modality 'image' is {target.patch_bias}, but {source.patch_bias} in the source of the "
            "weights; leave it out."
        )
    try:
        from timm.layers import resample_abs_pos_embed, resample_patch_embed
        from timm.models import adapt_input_conv
    except ImportError as error:
        raise ImportError('Adapting image weights needs timm: pip install "meta_transformer[image]"') from error
    patches, positions = tensors[_PATCHES], tensors[_POSITIONS]
    if source.num_channels != target.num_channels:
        if source.num_channels != 3:
            raise ValueError(
                f"num_channels of modality 'image' is {target.num_channels}, but weights are adapted from 3 channels "
                f"only, and those of the source are for {source.num_channels}; leave it out."
            )
        patches = adapt_input_conv(target.num_channels, patches)
    patches = resample_patch_embed(patches, list(pair(target.patch_size)))
    positions = resample_abs_pos_embed(positions, _grid(target), _grid(source), num_prefix_tokens=0)
    return {**tensors, _PATCHES: patches, _POSITIONS: positions}


def _grid(config: Any) -> list[int]:
    """Rows and columns of patches."""
    return [size // patch for size, patch in zip(pair(config.image_size), pair(config.patch_size), strict=True)]
