"""Video tokenizer: against transformers' ViViT, a loop over tubelets, the image tokenizer and a live model of timm."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional
from torch.testing import assert_close
from transformers import VivitConfig
from transformers.models.vivit.modeling_vivit import VivitTubeletEmbeddings

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.processors.video import VideoProcessor
from meta_transformer.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from meta_transformer.tokenizers.video import VideoTokenizer, VideoTokenizerConfig

HIDDEN = 24


def make(positions: bool = True, **options: object) -> VideoTokenizer:
    """A tokenizer with random weights, its positions zero on request."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(VideoTokenizerConfig(**{"patch_size": 8, "image_size": 32, **options}), HIDDEN).eval()
    for table in (tokenizer.tubelets.positions, tokenizer.time_positions.table):
        nn.init.normal_(table, std=float(positions))
    return tokenizer


def clips(*shapes: tuple[int, int, int], channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(frames, channels, height, width, generator=generator) for frames, height, width in shapes]


def batch_of(samples: list[Tensor], padding: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    frames, height, width = (max(sample.shape[axis] for sample in samples) for axis in (0, 2, 3))
    pixels = torch.full((len(samples), frames, samples[0].shape[1], height, width), padding)
    times = torch.zeros(len(samples), frames, dtype=torch.bool)
    inside = torch.zeros(len(samples), height, width, dtype=torch.bool)
    for index, sample in enumerate(samples):
        pixels[index, : sample.shape[0], :, : sample.shape[2], : sample.shape[3]] = sample
        times[index, : sample.shape[0]] = True
        inside[index, : sample.shape[2], : sample.shape[3]] = True
    return pixels, times, inside


# What the tokens are


@torch.no_grad()
@pytest.mark.parametrize("tubelet", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_tokens_equal_vivits_tubelet_embeddings(tubelet: int, channels: int) -> None:
    tokenizer = make(positions=False, tubelet_size=tubelet, num_channels=channels)
    config = VivitConfig(
        image_size=32, num_frames=8, tubelet_size=[tubelet, 8, 8], num_channels=channels, hidden_size=HIDDEN
    )
    reference = VivitTubeletEmbeddings(config)
    weight = tokenizer.tubelets.projection.weight.unflatten(1, (tubelet, channels)).transpose(1, 2)
    reference.projection.load_state_dict({"weight": weight, "bias": tokenizer.tubelets.projection.bias})
    pixels = torch.stack(clips((8, 32, 32), (8, 32, 32), channels=channels))
    assert_close(tokenizer(pixels).embeddings, reference(pixels), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8])
def test_tokens_equal_a_loop_over_tubelets(frames: int) -> None:
    """Of clips that are no multiples: black borders at the bottom and on the right, the last frame again at the end."""
    tokenizer = make(tubelet_size=3, patch_size=[4, 6], image_size=[12, 12], max_time_positions=3)
    (clip,) = clips((frames, 10, 7))
    clip = functional.pad(clip, (0, 5, 0, 2))
    weight, bias = tokenizer.tubelets.projection.weight, tokenizer.tubelets.projection.bias
    places = tokenizer.tubelets.positions.view(3, 2, HIDDEN)
    tokens = []
    for time, start in enumerate(range(0, frames, 3)):
        for row in range(3):
            for column in range(2):
                token = bias + places[row, column] + tokenizer.time_positions.table[time]
                for offset in range(3):
                    frame = clip[min(start + offset, frames - 1)]
                    patch = frame[:, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
                    token = token + (weight[:, 3 * offset : 3 * offset + 3] * patch).sum(dim=(1, 2, 3))
                tokens.append(token)
    sequence = tokenizer(clip[None, :, :, :10, :7])
    assert_close(sequence.embeddings[0], torch.stack(tokens), atol=1e-4, rtol=0)
    assert sequence.mask is None
    assert sequence.layout.shape == (-(-frames // 3), 3, 2)
    assert sequence.layout.patch_size == sequence.layout.stride == (3, 4, 6)


@torch.no_grad()
def test_one_frame_with_tubelets_of_one_frame_has_the_tokens_of_the_image() -> None:
    tokenizer = make(tubelet_size=1)
    tokenizer.time_positions.table.zero_()
    (clip,) = clips((3, 40, 24))
    expected = tokenizer.tubelets(clip).embeddings  # each frame an image
    assert_close(tokenizer(clip[None]).embeddings.view(3, -1, HIDDEN), expected)


@torch.no_grad()
def test_longer_clips_interpolate_the_positions_of_time() -> None:
    tokenizer = make(max_time_positions=4)
    tokenizer.tubelets.positions.zero_()
    still = torch.ones(1, 18, 3, 8, 8)
    tokens = tokenizer(still).embeddings[0] - tokenizer(still[:, :2]).embeddings[0]
    table = tokenizer.time_positions.table
    expected = functional.interpolate(table.T[None], 9, mode="linear", align_corners=True)[0].T
    assert_close(tokens, expected - table[:1], atol=1e-5, rtol=0)


# Batches


@torch.no_grad()
@pytest.mark.parametrize("garbage", [0.0, 1e30, float("nan"), float("inf")])
def test_a_clip_has_the_same_tokens_alone_and_in_a_ragged_batch_with_garbage_around_it(garbage: float) -> None:
    tokenizer = make(max_time_positions=2)
    samples = clips((5, 19, 33), (8, 32, 32), (1, 40, 9), (6, 40, 33))
    together = tokenizer(*batch_of(samples, garbage))
    assert together.layout.shape == (4, 5, 5)
    assert together.embeddings.isfinite().all()
    for index, sample in enumerate(samples):
        alone = tokenizer(sample[None])
        assert together.mask[index].sum() == len(alone)
        assert_close(together.embeddings[index][together.mask[index]], alone.embeddings[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("which", [0, 1])
def test_either_mask_may_be_left_out(which: int) -> None:
    tokenizer = make()
    samples = clips(*([(3, 24, 24), (8, 24, 24)], [(4, 24, 24), (4, 9, 17)])[which])
    pixels, times, inside = batch_of(samples, float("nan"))
    masks = ({"padding_mask_videos": times}, {"pixel_mask_videos": inside})[which]
    part, whole = tokenizer(pixels, **masks), tokenizer(pixels, times, inside)
    assert torch.equal(part.mask, whole.mask)
    assert_close(part.embeddings[part.mask], whole.embeddings[whole.mask])


def test_garbage_in_the_padding_changes_no_gradient() -> None:
    found = []
    for garbage in (0.0, float("nan")):
        tokenizer = make()
        pixels, times, inside = batch_of(clips((3, 24, 24), (8, 9, 17)), garbage)
        sequence = tokenizer(pixels.requires_grad_(), times, inside)
        sequence.embeddings[sequence.mask].square().sum().backward()
        real = times[:, :, None, None, None] & inside[:, None, None]
        gradient = pixels.grad.masked_fill(~real, 0)
        assert_close(pixels.grad, gradient, rtol=0, atol=0)
        found.append([gradient, *(parameter.grad for parameter in tokenizer.parameters())])
    assert_close(found[0], found[1])


@torch.no_grad()
def test_a_clip_without_frames_gets_no_token() -> None:
    pixels, times, _ = batch_of(clips((4, 16, 16), (3, 16, 16)))
    times[1], pixels[1] = False, float("nan")
    sequence = make()(pixels, times)
    assert sequence.mask.sum(dim=1).tolist() == [2 * 4, 0]
    assert sequence.embeddings.isfinite().all()


@torch.no_grad()
def test_the_processors_tensors_fit() -> None:
    processor = VideoProcessor(num_frames="all")
    batch = processor(processor.dummy_samples(4))
    sequence = make(**processor.tokenizer_config())(**batch)
    assert sequence.embeddings.shape[:2] == sequence.mask.shape
    assert {"padding_mask_videos", "pixel_mask_videos"} < set(batch)


class Embeddings(nn.Module):
    """A tokenizer whose result `torch.export` knows the type of."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixels: Tensor) -> Tensor:
        return self.tokenizer(pixels).embeddings


def test_exports_with_any_number_of_clips() -> None:
    """Frames and sizes are fixed, because positions are resampled to them."""
    tokens = Embeddings(make())
    pixels = torch.stack(clips(*[(7, 24, 24)] * 3))
    program = export(tokens, (pixels,), dynamic_shapes={"pixels": {0: Dim("batch")}})
    assert_close(program.module()(pixels[:2]), tokens(pixels[:2]))


@torch.no_grad()
def test_a_ragged_batch_compiles() -> None:
    tokenizer = make()
    pixels, times, _ = batch_of(clips((3, 24, 24), (8, 24, 24)))
    compiled = torch.compile(tokenizer, fullgraph=True, backend="aot_eager")
    assert_close(compiled(pixels, times).embeddings, tokenizer(pixels, times).embeddings)


# What is inherited


def images(count: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def timm_model(**options: object) -> nn.Module:
    """A tiny model of timm with weights of noise, so that no bias or position hides behind a zero."""
    torch.manual_seed(3)
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": (24, 32), "patch_size": 8, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **{**shape, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


PATCHES = {"patch_size": 8, "image_size": [24, 32]}


@torch.no_grad()
@pytest.mark.parametrize("tubelet", [1, 2, 3])
def test_a_still_video_has_the_tokens_that_timm_gives_its_image(tubelet: int) -> None:
    theirs = timm_model()
    options = {**PATCHES, "tubelet_size": tubelet}
    model, info = MetaTransformerModel.from_pretrained(theirs, modalities={"video": options}, output_loading_info=True)
    assert not info["missing_keys"]
    pixels = images(2)
    tokens = model.tokenize(pixel_values_videos=pixels[:, None].expand(-1, 6, -1, -1, -1)).embeddings
    expected = theirs._pos_embed(theirs.patch_embed(pixels))
    assert_close(tokens[:, :1], expected[:, :1])
    times = tokens[:, 1:].view(2, -1, 12, 32)
    assert times.shape[1] == 6 / tubelet
    assert_close(times, expected[:, None, 1:].expand_as(times), rtol=0, atol=1e-6)


@torch.no_grad()
def test_one_tubelet_has_the_features_that_timm_gives_the_image() -> None:
    theirs, pixels = timm_model(), images(2)
    model = MetaTransformerModel.from_pretrained(theirs, modalities={"video": PATCHES})
    features = model(pixel_values_videos=pixels[:, None].expand(-1, 2, -1, -1, -1)).last_hidden_state
    assert_close(features, theirs.forward_features(pixels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_sizes_are_those_of_the_image_model_unless_given(tmp_path: Path) -> None:
    theirs, pixels = timm_model(), images(2)
    save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    for modalities in (["video"], "video", {"video": {"tubelet_size": 2}}):
        model = MetaTransformerModel.from_pretrained(tmp_path, modalities=modalities)
        features = model(pixel_values_videos=pixels[:, None].expand(-1, 2, -1, -1, -1)).last_hidden_state
        assert_close(features, theirs.forward_features(pixels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_patches_and_positions_of_another_size_are_the_image_tokenizers() -> None:
    options = {"patch_size": 12, "image_size": [36, 24]}
    model = MetaTransformerModel.from_pretrained(timm_model(), modalities={"video": options, "image": options})
    pixels = images(2, 36, 24)
    video = model.tokenizers["video"](pixels[:, None].expand(-1, 2, -1, -1, -1))
    assert_close(video.embeddings, model.tokenizers["image"](pixels).embeddings)


@torch.no_grad()
def test_a_tubelet_starts_as_its_central_frame() -> None:
    model = MetaTransformerModel.from_pretrained(timm_model(), modalities={"video": {**PATCHES, "tubelet_size": 3}})
    pixels = images(3)[None]
    changed = pixels.clone()
    changed[:, [0, 2]] = 7.0
    tokenizer = model.tokenizers["video"]
    assert_close(tokenizer(changed).embeddings, tokenizer(pixels).embeddings)


def test_all_frames_of_a_tubelet_train() -> None:
    model = MetaTransformerModel.from_pretrained(timm_model(), modalities={"video": PATCHES})
    model(pixel_values_videos=images(4)[None]).last_hidden_state.sum().backward()
    gradient = model.tokenizers["video"].tubelets.projection.weight.grad
    assert all(gradient[:, channels].abs().max() > 0 for channels in (slice(0, 3), slice(3, 6)))
    assert model.tokenizers["video"].time_positions.table.grad[:2].abs().min() > 0


@torch.no_grad()
def test_the_weights_of_an_image_tokenizer_in_memory_are_inherited() -> None:
    tokenizer, image = make(), ImageTokenizer(ImageTokenizerConfig(patch_size=4, image_size=16), HIDDEN)
    nn.init.normal_(image.positions)
    tokenizer.inherit_image_tokenizer(image)
    same = make(patch_size=4, image_size=16)
    same.inherit_image_tokenizer(image)
    pixels = images(2, 16, 20)
    video = same(pixels[:, None].expand(-1, 4, -1, -1, -1)).embeddings.view(2, 2, -1, HIDDEN)
    assert_close(video, image(pixels).embeddings[:, None].expand_as(video), rtol=0, atol=1e-6)


def test_an_image_tokenizer_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 8, this one 24"):
        make().inherit_image_tokenizer(ImageTokenizer(ImageTokenizerConfig(), 8))


def test_convolutional_stems_are_not_inherited() -> None:
    stem = ImageTokenizer(ImageTokenizerConfig(patch_embedding="convolutional"), HIDDEN)
    with pytest.raises(ValueError, match="patch_embedding 'linear'"):
        make().inherit_image_tokenizer(stem)
    with pytest.raises(ValueError, match="patch_embedding 'linear'"):
        make(patch_embedding="convolutional").inherit_image_tokenizer(ImageTokenizer(ImageTokenizerConfig(), HIDDEN))
    options = {**PATCHES, "patch_embedding": "convolutional"}
    model = MetaTransformerModel.from_pretrained(timm_model(), modalities={"video": options})
    assert model(pixel_values_videos=images(4)[None]).last_hidden_state.isfinite().all()


@torch.no_grad()
def test_a_convolutional_stem_does_not_depend_on_the_batch() -> None:
    tokenizer = make(patch_embedding="convolutional")
    samples = clips((5, 19, 33), (8, 32, 32))
    together = tokenizer(*batch_of(samples, float("nan")))
    for index, sample in enumerate(samples):
        expected = tokenizer(sample[None]).embeddings[0]
        assert_close(together.embeddings[index][together.mask[index]], expected, atol=1e-4, rtol=1e-4)


# What is refused


@pytest.mark.parametrize("shape", [(2, 4, 1, 16, 16), (4, 3, 16, 16), (2, 0, 3, 16, 16), (2, 4, 3, 0, 16)])
def test_tensors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, frames, 3, height, width\), got .* VideoProcessor\(num_channels=3"):
        make()(torch.zeros(shape))


@pytest.mark.parametrize(
    "masks",
    [
        {"padding_mask_videos": torch.ones(2, 5, dtype=torch.bool)},
        {"pixel_mask_videos": torch.ones(2, 4, 16, 16, dtype=torch.bool)},
    ],
)
def test_masks_of_another_shape_are_refused(masks: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(masks))} must have shape"):
        make()(torch.zeros(2, 4, 3, 16, 16), **masks)


@pytest.mark.parametrize(
    "options",
    [{"tubelet_size": 0}, {"max_time_positions": 0}, {"patch_size": 0}, {"image_size": 4}, {"num_channels": 0}],
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=next(iter(options))):
        make(**options)


def test_options_survive_json(tmp_path: Path) -> None:
    options = {"tubelet_size": 4, "patch_size": [8, 4], "image_size": 64, "max_time_positions": 5, "num_channels": 1}
    config = MetaTransformerConfig.tiny(modalities={"video": options})
    config.save_pretrained(tmp_path)
    loaded = MetaTransformerConfig.from_pretrained(tmp_path)
    assert loaded.modalities["video"] == config.modalities["video"] == VideoTokenizerConfig(**options)
