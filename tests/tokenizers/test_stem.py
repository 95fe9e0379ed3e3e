"""The convolutional stem against plain torch layers, and the image tokenizer that has one."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from meta_transformer.tokenizers.stem import ConvolutionalStem

HIDDEN = 32


def tokenizer(**options):
    torch.manual_seed(0)
    options = {"patch_size": 8, "image_size": 32, "patch_embedding": "convolutional", **options}
    made = ImageTokenizer(ImageTokenizerConfig(**options), HIDDEN)
    torch.nn.init.normal_(made.positions)
    return made


def ragged(sizes, fill, channels=3):
    """Random images, their batch with `fill` around them, and its mask."""
    images = [torch.randn(channels, *size) for size in sizes]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch, mask = torch.full((len(sizes), channels, height, width), fill), torch.zeros(len(sizes), height, width).bool()
    for row, filled, image in zip(batch, mask, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
        filled[: image.shape[1], : image.shape[2]] = True
    return images, batch, mask


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_convolutions_norms_and_activations_of_torch_one_after_the_other(depth):
    stem, images = ConvolutionalStem(3, HIDDEN, (8, 8), depth), torch.randn(2, 3, 32, 24)
    expected = images
    assert len(stem.convolutions) == 3 * depth
    for index, convolution in enumerate(stem.convolutions):
        stride = 1 if index % depth else 2
        expected = functional.conv2d(expected, convolution.weight, stride=stride, padding=1).permute(0, 2, 3, 1)
        expected = functional.gelu(functional.layer_norm(expected, [expected.shape[-1]], eps=1e-5)).permute(0, 3, 1, 2)
    assert_close(stem(images), expected)


def test_each_convolution_is_twice_as_wide_as_the_one_before():
    stem = ConvolutionalStem(3, 384, (16, 16))
    assert [convolution.out_channels for convolution in stem.convolutions] == [48, 96, 192, 384]


@pytest.mark.parametrize(("patch_size", "grid"), [(2, (12, 20)), (4, (6, 10)), ([4, 8], (6, 5)), ([8, 1], (3, 40))])
def test_one_token_comes_of_each_patch(patch_size, grid):
    sequence = tokenizer(patch_size=patch_size)(torch.randn(1, 3, 24, 40))
    assert sequence.layout.shape == grid
    assert sequence.embeddings.shape == (1, grid[0] * grid[1], HIDDEN)


def test_a_token_sees_its_neighbourhood_and_nothing_far_away():
    stem = ConvolutionalStem(1, HIDDEN, (4, 4))
    image = torch.zeros(1, 1, 32, 32)
    changed = image.clone()
    changed[..., 16, 16] = 1.0
    differs = (stem(image) != stem(changed)).any(dim=1)[0]
    assert differs.nonzero().tolist() == [[4, 4]]


@pytest.mark.parametrize(("patch_size", "depth"), [(8, 1), ([4, 8], 1), ([8, 2], 2)])
@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_an_image_gets_the_same_tokens_alone_and_in_a_ragged_batch_with_garbage_around_it(patch_size, depth, fill):
    made = tokenizer(patch_size=patch_size, stem_depth=depth)
    images, batch, mask = ragged([(19, 33), (32, 32), (40, 9), (1, 1)], fill)
    together = made(batch, mask)
    for index, image in enumerate(images):
        alone = made(image[None])
        assert alone.mask is None
        assert_close(together.embeddings[index][together.mask[index]], alone.embeddings[0], rtol=1e-5, atol=1e-5)


def test_garbage_around_an_image_changes_no_gradient():
    gradients = []
    for fill in (0.0, float("nan")):
        made = tokenizer()
        torch.manual_seed(1)
        _, batch, mask = ragged([(19, 33), (40, 9)], fill)
        sequence = made(batch, mask)
        sequence.embeddings[sequence.mask].square().sum().backward()
        gradients.append([parameter.grad for parameter in made.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients[1])
    assert_close(gradients[1], gradients[0])


def test_sides_that_are_no_multiples_of_the_patch_are_padded_with_zeros():
    made, images = tokenizer(), torch.randn(2, 3, 19, 33)
    padded = functional.pad(images, (0, 7, 0, 5))
    assert_close(made(images).embeddings, made(padded).embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_come_close(dtype):
    made = tokenizer()
    _, batch, mask = ragged([(19, 33), (40, 9)], 0.0)
    expected = made(batch, mask).embeddings
    found = made.to(dtype)(batch.to(dtype), mask).embeddings
    assert found.dtype == dtype
    assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def model(**options):
    options = {"patch_size": 4, "image_size": 16, "patch_embedding": "convolutional", **options}
    torch.manual_seed(0)
    return MetaTransformerModel(
        MetaTransformerConfig.tiny(num_hidden_layers=1, modalities={"image": options}, hidden_size=48)
    ).eval()


def test_every_weight_of_the_stem_is_initialised_saved_and_loaded(tmp_path):
    made, pixels = model(), torch.randn(2, 3, 16, 20)
    made.save_pretrained(tmp_path)
    loaded = MetaTransformerModel.from_pretrained(tmp_path)
    assert any("stem" in name for name in loaded.state_dict())
    assert torch.equal(loaded(pixel_values=pixels).last_hidden_state, made(pixel_values=pixels).last_hidden_state)
    blank = MetaTransformerModel.from_pretrained(None, config=made.config, state_dict={})
    for name, weight in blank.tokenizers["image"].stem.named_parameters():
        if "convolutions" in name:
            assert weight.std().item() == pytest.approx(0.02, rel=0.2)  # transformers' own, as of norms below
        else:
            assert weight.unique().item() == (1 if name.endswith("weight") else 0)


def test_it_compiles_to_one_graph_and_exports():
    made, pixels = model(), torch.randn(2, 3, 16, 16)
    expected = made(pixel_values=pixels).last_hidden_state
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert_close(compiled(pixel_values=pixels).last_hidden_state, expected)
    program = torch.export.export(made, (), {"pixel_values": pixels})
    assert_close(program.module()(pixel_values=pixels).last_hidden_state, expected)


def test_every_weight_gets_a_gradient():
    made = model()
    made(pixel_values=torch.randn(2, 3, 16, 16)).last_hidden_state.square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in made.tokenizers["image"].parameters())


@pytest.mark.parametrize("patch_size", [12, 1, [16, 24]])
def test_a_patch_whose_sides_are_no_powers_of_two_is_refused(patch_size):
    with pytest.raises(Exception, match=r"powers of two such as 8 or 16, got"):
        ImageTokenizerConfig(patch_size=patch_size, patch_embedding="convolutional")


@pytest.mark.parametrize("options", [{"stem_depth": 0}, {"stem_depth": 2, "patch_embedding": "linear"}])
def test_a_depth_without_stem_is_refused(options):
    with pytest.raises(Exception, match="stem_depth must be at least 1, and 1 without"):
        tokenizer(**options)


def test_another_patch_embedding_is_refused():
    with pytest.raises(Exception, match="patch_embedding"):
        ImageTokenizerConfig(patch_embedding="quadratic")


def test_linear_patches_have_no_stem():
    assert set(tokenizer(patch_embedding="linear").state_dict()) == {
        "projection.weight",
        "projection.bias",
        "positions",
    }
