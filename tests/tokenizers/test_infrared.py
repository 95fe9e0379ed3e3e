"""The infrared tokenizer against timm: its inputs and defaults, and what it takes over from models of colour images."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.tokenizers.infrared import InfraredTokenizer, InfraredTokenizerConfig

HIDDEN = 24
OPTIONS = {"patch_size": 8, "image_size": 32}


def timm_model():
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0
    ).eval()


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_tokens_are_timms_for_each_image_of_a_ragged_batch(channels):
    torch.manual_seed(0)
    tokenizer = InfraredTokenizer(InfraredTokenizerConfig(**OPTIONS, num_channels=channels), HIDDEN)
    torch.nn.init.normal_(tokenizer.positions)
    patches = PatchEmbed(None, 8, channels, HIDDEN, strict_img_size=False)
    patches.proj.load_state_dict(tokenizer.projection.state_dict())
    values, mask = torch.randn(2, channels, 19, 33), torch.ones(2, 19, 33, dtype=torch.bool)
    mask[1, 10:] = mask[1, :, 9:] = False
    found = tokenizer(values, mask)
    for index, (height, width, grid) in enumerate([(19, 33, (3, 5)), (10, 9, (2, 2))]):
        image = torch.zeros(1, channels, 8 * grid[0], 8 * grid[1])
        image[0, :, :height, :width] = values[index, :, :height, :width]
        positions = resample_abs_pos_embed(tokenizer.positions, list(grid), [4, 4], num_prefix_tokens=0)
        real = found.mask[index].view(3, 5)
        assert real[: grid[0], : grid[1]].all()
        assert real.sum() == grid[0] * grid[1]
        assert_close(found.embeddings[index][real.flatten()], (patches(image) + positions)[0])


def test_one_channel_is_the_default():
    assert InfraredTokenizer(InfraredTokenizerConfig(), HIDDEN).projection.weight.shape == (HIDDEN, 1, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_weights_of_a_timm_model_are_summed_over_the_colours_for_one_channel(channels):
    theirs = timm_model()
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"infrared": {"num_channels": channels}})
    colours = theirs.patch_embed.proj.weight
    expected = colours.sum(dim=1, keepdim=True) if channels == 1 else colours
    assert_close(model.tokenizers["infrared"].projection.weight, expected)
    values = torch.randn(2, channels, 32, 32)
    features = model(infrared_values=values).last_hidden_state
    assert_close(features, theirs.forward_features(values.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_its_word_alone_is_enough():
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=1, num_heads=3, num_classes=0)
    model = MetaTransformerModel.from_pretrained(theirs, modalities=["infrared"])
    expected = theirs.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    assert_close(model.tokenizers["infrared"].projection.weight, expected)


def test_a_convolutional_stem_is_new_on_a_pretrained_trunk():
    theirs = timm_model()
    options = {"patch_embedding": "convolutional", "patch_size": 8, "image_size": 32}
    model, info = MetaTransformerModel.from_pretrained(
        theirs, modalities={"infrared": options}, output_loading_info=True
    )
    new = {name for name in model.state_dict() if name.startswith("tokenizers.infrared.")}
    assert new <= set(info["missing_keys"])
    assert_close(model.encoder.layers[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            None,
            r"infrared_values must have shape \(batch, 1, height, width\).*InfraredProcessor",
        ),
        (torch.zeros(2, 8, 8), None, "infrared_values must have shape"),
        (torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), "infrared_mask must have shape"),
    ],
)
def test_tensors_of_another_shape_are_refused_by_name(values, mask, message):
    with pytest.raises(ValueError, match=message):
        InfraredTokenizer(InfraredTokenizerConfig(**OPTIONS), HIDDEN)(values, mask)


def test_it_has_a_place_beside_images_in_one_model():
    config = MetaTransformerConfig.tiny(num_hidden_layers=1, modalities={"image": OPTIONS, "infrared": OPTIONS})
    output = MetaTransformerModel(config)(
        pixel_values=torch.randn(2, 3, 32, 32), infrared_values=torch.randn(2, 1, 16, 16)
    )
    assert output.last_hidden_state.shape == (2, 1 + 16 + 4, 192)
