"""The image tokenizer against timm's patch embedding and position resampling."""

import pytest
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch.testing import assert_close

from meta_transformer.tokenizers.image import ImageTokenizer, ImageTokenizerConfig

HIDDEN = 24


def tokenizer(**options):
    torch.manual_seed(0)
    made = ImageTokenizer(ImageTokenizerConfig(**{"patch_size": 8, "image_size": 32, **options}), HIDDEN)
    torch.nn.init.normal_(made.positions)
    return made


def timm_tokens(made, images):
    """The same by timm, for image sides that are multiples of the patch."""
    patches = PatchEmbed(None, made.patch_size, images.shape[1], HIDDEN, strict_img_size=False)
    patches.proj.load_state_dict(made.projection.state_dict())
    grid = [images.shape[2] // made.patch_size[0], images.shape[3] // made.patch_size[1]]
    return patches(images) + resample_abs_pos_embed(made.positions, grid, list(made.position_grid), num_prefix_tokens=0)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 40), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_equals_timm_at_any_size_and_number_of_channels(size, channels):
    made, images = tokenizer(num_channels=channels), torch.randn(2, channels, *size)
    sequence = made(images)
    assert_close(sequence.embeddings, timm_tokens(made, images))
    assert sequence.mask is None
    assert sequence.layout.shape == (size[0] // 8, size[1] // 8)


def test_patches_need_not_be_square():
    made, images = tokenizer(patch_size=[4, 8]), torch.randn(1, 3, 32, 32)
    assert made(images).layout.shape == (8, 4)
    assert_close(made(images).embeddings, timm_tokens(made, images))


def test_sides_that_are_no_multiples_of_the_patch_are_padded_with_zeros():
    made, images = tokenizer(), torch.randn(2, 3, 19, 33)
    padded = torch.zeros(2, 3, 24, 40)
    padded[:, :, :19, :33] = images
    assert_close(made(images).embeddings, made(padded).embeddings)


def test_an_image_gets_the_same_tokens_alone_and_in_a_ragged_batch_with_garbage_around_it():
    made = tokenizer()
    sizes = [(19, 33), (32, 32), (40, 9)]
    images = [torch.randn(3, *size) for size in sizes]
    batch, mask = torch.full((3, 3, 40, 33), float("nan")), torch.zeros(3, 40, 33, dtype=torch.bool)
    for row, filled, image in zip(batch, mask, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
        filled[: image.shape[1], : image.shape[2]] = True
    together = made(batch, mask)
    assert together.layout.shape == (5, 5)
    for index, image in enumerate(images):
        alone = made(image[None])
        assert together.mask[index].sum() == len(alone)
        assert_close(together.embeddings[index][together.mask[index]], alone.embeddings[0])


def test_an_image_of_the_configured_size_has_the_positions_as_they_were_learned():
    """Of 28 pixels in patches of 8: the fourth row and column are padded."""
    made = tokenizer(image_size=28)
    torch.nn.init.zeros_(made.projection.weight)
    torch.nn.init.zeros_(made.projection.bias)
    assert_close(made(torch.randn(1, 3, 28, 28)).embeddings, made.positions, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 7])
def test_other_numbers_of_channels_repeat_the_three_over_and_over_or_sum_them_for_one(channels):
    source, target = (ImageTokenizerConfig(patch_size=8, image_size=32, num_channels=count) for count in (3, channels))
    made = tokenizer()
    colours = made.projection.weight
    adapted = ImageTokenizer.inherit_image_weights(made.state_dict(), source, target)["projection.weight"]
    assert adapted.shape[1] == channels
    for channel in range(channels):
        expected = colours.sum(dim=1) if channels == 1 else colours[:, channel % 3] * 3 / channels
        assert_close(adapted[:, channel], expected)


def test_gradients_reach_the_positions_through_resampling():
    made = tokenizer()
    made(torch.randn(1, 3, 48, 48)).embeddings.sum().backward()
    assert (made.positions.grad != 0).all()


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="num_channels"):
        tokenizer()(torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize(
    "options", [{"patch_size": 0}, {"patch_size": [8, 8, 8]}, {"image_size": 4}, {"num_channels": 0}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(Exception, match="patch_size|image_size|num_channels"):
        tokenizer(**options)
