"""Image weights fit images of another kind than the source's, as timm would have it."""

from types import ModuleType

import pytest
import torch

from meta_transformer import MetaTransformerModel


@torch.no_grad()
def test_grey_images_give_the_features_of_the_same_in_three_channels(make: ModuleType) -> None:
    theirs = make.timm_model()
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"image": {"num_channels": 1}})
    grey = make.images(*make.SIZE)[:, :1]
    expected = theirs.forward_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(make.encode(model, grey), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_six_channels_respond_as_three_on_average(make: ModuleType) -> None:
    theirs, pixels = make.timm_model(), make.images(*make.SIZE)
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"image": {"num_channels": 6}})
    expected = theirs.forward_features(pixels)
    torch.testing.assert_close(make.encode(model, pixels.repeat(1, 2, 1, 1)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"image_size": [40, 16]}, (40, 16)),
        ({"image_size": [24, 36], "patch_size": 12}, (24, 36)),
        ({"patch_size": [4, 8]}, (24, 32)),
    ],
)
@torch.no_grad()
def test_another_size_of_images_or_patches_is_timms_own_resampling(
    make: ModuleType, options: dict, size: tuple[int, int]
) -> None:
    theirs = make.timm_model(dynamic_img_size=True)
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"image": options})
    theirs.set_input_size(options.get("image_size"), options.get("patch_size"))
    assert model.tokenizers["image"].position_grid == tuple(theirs.patch_embed.grid_size)
    pixels = make.images(*size)
    torch.testing.assert_close(make.encode(model, pixels), theirs.forward_features(pixels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_timm_leaves_out_at_the_end_of_an_image_needs_no_position(make: ModuleType) -> None:
    theirs = make.timm_model(img_size=(28, 39), patch_size=8)
    model = MetaTransformerModel.from_pretrained(theirs)
    assert model.tokenizers["image"].position_grid == (3, 4)
    pixels = make.images(28, 39)
    expected = theirs.forward_features(pixels)
    torch.testing.assert_close(make.encode(model, pixels[:, :, :24, :32]), expected, rtol=0, atol=1e-5)


def test_the_sources_patch_bias_cannot_be_left_out(make: ModuleType) -> None:
    with pytest.raises(ValueError, match="options of modality 'image' do not fit the weights: patch_bias is false"):
        MetaTransformerModel.from_pretrained(make.timm_model(), modalities={"image": {"patch_bias": False}})


def test_channels_are_adapted_from_three_only(make: ModuleType) -> None:
    with pytest.raises(
        ValueError, match="modality 'image' do not fit .* num_channels is 3, but .* from 3 channels only"
    ):
        MetaTransformerModel.from_pretrained(make.timm_model(in_chans=5), modalities={"image": {"num_channels": 3}})
