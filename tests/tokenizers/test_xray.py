"""The X-ray tokenizer against timm: its inputs and defaults, and what it takes over from models of colour images."""

import pytest
import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch.testing import assert_close

from meta_transformer import MetaTransformerModel
from meta_transformer.tokenizers.xray import XrayTokenizer, XrayTokenizerConfig

HIDDEN = 24
OPTIONS = {"patch_size": 8, "image_size": 32}


@torch.no_grad()
def test_tokens_are_timms_for_each_image_of_a_ragged_batch():
    torch.manual_seed(0)
    tokenizer = XrayTokenizer(XrayTokenizerConfig(**OPTIONS), HIDDEN)
    torch.nn.init.normal_(tokenizer.positions)
    patches = PatchEmbed(None, 8, 1, HIDDEN, strict_img_size=False)
    patches.proj.load_state_dict(tokenizer.projection.state_dict())
    values, mask = torch.randn(2, 1, 19, 33), torch.ones(2, 19, 33, dtype=torch.bool)
    mask[1, 10:] = mask[1, :, 9:] = False
    found = tokenizer(values, mask)
    for index, (height, width, grid) in enumerate([(19, 33, (3, 5)), (10, 9, (2, 2))]):
        image = torch.zeros(1, 1, 8 * grid[0], 8 * grid[1])
        image[0, :, :height, :width] = values[index, :, :height, :width]
        positions = resample_abs_pos_embed(tokenizer.positions, list(grid), [4, 4], num_prefix_tokens=0)
        real = found.mask[index].view(3, 5)
        assert real[: grid[0], : grid[1]].all()
        assert real.sum() == grid[0] * grid[1]
        assert_close(found.embeddings[index][real.flatten()], (patches(image) + positions)[0])


def test_one_channel_is_the_default():
    assert XrayTokenizer(XrayTokenizerConfig(), HIDDEN).projection.weight.shape == (HIDDEN, 1, 16, 16)


@torch.no_grad()
def test_a_timm_model_gives_the_features_of_the_same_picture_in_three_channels():
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    theirs = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"xray": OPTIONS})
    assert_close(model.tokenizers["xray"].projection.weight, theirs.patch_embed.proj.weight.sum(dim=1, keepdim=True))
    values = torch.randn(2, 1, 32, 32)
    expected = theirs.forward_features(values.expand(-1, 3, -1, -1))
    assert_close(model(xray_values=values).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (torch.zeros(2, 3, 8, 8), None, r"xray_values must have shape \(batch, 1, height, width\).*XrayProcessor"),
        (torch.zeros(2, 1, 8, 8), torch.ones(2, 8), "xray_mask must have shape"),
    ],
)
def test_tensors_of_another_shape_are_refused_by_name(values, mask, message):
    with pytest.raises(ValueError, match=message):
        XrayTokenizer(XrayTokenizerConfig(**OPTIONS), HIDDEN)(values, mask)
