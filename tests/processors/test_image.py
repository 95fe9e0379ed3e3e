"""Images of all kinds, sizes, depths and channels; against PIL, torchvision and transformers."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.testing import assert_close
from torchvision.transforms import v2

from meta_transformer.processors.image import ImageProcessor
from tests.support.fuzz import finite_or_refused

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, size=(20, 30, 3), dtype=np.uint8)


@pytest.fixture
def raw():
    """A processor that scales to 0..1 and does nothing else."""
    return ImageProcessor(image_mean=0.0, image_std=1.0)


def values(processor, sample, **kwargs):
    return processor(sample, **kwargs)["pixel_values"][0]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def real_photograph():
    folder = os.environ.get("META_TRANSFORMER_DATA")
    if folder:
        return np.asarray(Image.open(next(Path(folder, "image", "cifar10_small", "test").rglob("*.jpg"))))
    return load_sample_images().images[0]


def test_all_forms_of_one_image_give_the_same(raw, tmp_path):
    data = encoded(Image.fromarray(COLOUR))
    (tmp_path / "a.png").write_bytes(data)
    expected = torch.from_numpy(COLOUR).permute(2, 0, 1) / 255
    for form in (
        COLOUR,
        torch.from_numpy(COLOUR).permute(2, 0, 1),
        COLOUR.astype(np.float64) / 255,
        Image.fromarray(COLOUR),
        data,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        Image.fromarray(COLOUR).convert("RGBA"),
    ):
        assert_close(values(raw, form), expected)


def test_a_photograph_is_resized_and_normalised_as_by_torchvision():
    photograph = real_photograph().copy()
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    processor = ImageProcessor(size=48, crop_size=[40, 44], image_mean=mean, image_std=std)
    reference = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(48, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop([40, 44]),
        ]
    )
    expected = (reference(photograph).clamp(0, 1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    assert_close(values(processor, photograph), expected, rtol=0, atol=1e-4)


def test_a_crop_larger_than_the_image_is_bordered_as_by_torchvision(raw):
    processor = ImageProcessor(crop_size=[25, 28], image_mean=0.0, image_std=1.0)
    assert_close(values(processor, COLOUR), v2.CenterCrop([25, 28])(values(raw, COLOUR)))


def test_exif_orientation_turns_the_image_upright(raw):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    data = encoded(Image.fromarray(COLOUR), exif=exif)
    assert_close(values(raw, data), torch.from_numpy(np.rot90(COLOUR, -1).copy()).permute(2, 0, 1) / 255)


def test_sixteen_bits_are_kept():
    deep = RANDOM.integers(0, 65536, size=(9, 7), dtype=np.uint16)
    processor = ImageProcessor(num_channels=1, image_mean=0.0, image_std=1.0)
    expected = torch.from_numpy(deep.astype(np.float32) / 65535)[None]
    assert len(np.unique(deep // 256)) < len(np.unique(deep))
    for form in (deep, encoded(Image.fromarray(deep)), torch.from_numpy(deep)):
        assert_close(values(processor, form), expected)


def test_colour_turns_grey_as_in_pil():
    processor = ImageProcessor(num_channels=1, image_mean=0.0, image_std=1.0)
    expected = np.asarray(Image.fromarray(COLOUR).convert("L"), dtype=np.float32)[None] / 255
    assert_close(values(processor, COLOUR), torch.from_numpy(expected), rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "RGBA", "F"])
def test_every_mode_of_pil_is_read(raw, mode):
    image = (
        Image.fromarray(COLOUR).convert(mode) if mode != "F" else Image.fromarray(RANDOM.random((20, 30), np.float32))
    )
    found = values(raw, image)
    assert found.shape == (3, 20, 30)
    assert 0 <= found.min() < found.max() <= 1


def test_any_number_of_channels_in_either_order():
    bands = RANDOM.random((7, 20, 30), dtype=np.float32)
    processor = ImageProcessor(num_channels=7, image_mean=[0.1] * 7, image_std=[0.5] * 7)
    expected = (torch.from_numpy(bands) - 0.1) / 0.5
    assert_close(values(processor, bands), expected)
    assert_close(values(processor, np.moveaxis(bands, 0, -1)), expected)


def test_images_of_different_size_are_padded_and_masked():
    small, large = COLOUR[:8, :12], COLOUR
    batch = ImageProcessor()([small, large])
    assert batch["pixel_values"].shape == (2, 3, 20, 30)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [8 * 12, 20 * 30]
    assert batch["pixel_values"][0][:, ~batch["pixel_mask"][0]].abs().max() == 0
    assert_close(batch["pixel_values"][0, :, :8, :12], values(ImageProcessor(), small))


def test_images_of_one_size_need_no_mask():
    assert set(ImageProcessor()([COLOUR, COLOUR])) == {"pixel_values"}
    assert ImageProcessor()(np.stack([COLOUR, COLOUR]))["pixel_values"].shape[0] == 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.full((8, 8), np.nan), "NaN"),
        (np.full((8, 8), 255.0), "float_range"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 8, 5), np.uint8), "cannot tell"),
        (np.zeros((3, 8, 3), np.uint8), "cannot tell"),
        (np.zeros(8, np.uint8), "2 or 3 dimensions"),
        (b"no image", "cannot identify"),
        ("no/such/file.png", "No such file"),
    ],
)
def test_bad_images_are_refused_with_their_index(sample, message):
    with pytest.raises(ValueError, match=rf"image\[1\].*{message}"):
        ImageProcessor()([COLOUR, sample])


def test_a_number_of_channels_that_cannot_be_converted_is_refused():
    with pytest.raises(ValueError, match="5 channels, but this processor and its model were made for 3"):
        ImageProcessor()(np.zeros((5, 8, 8), np.uint8), input_data_format="channels_first")


def test_a_truncated_file_is_refused():
    data = encoded(Image.fromarray(np.tile(COLOUR, (8, 8, 1))), "JPEG")
    with pytest.raises(ValueError, match="truncated"):
        ImageProcessor()(data[: len(data) // 2])


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"image\[0\].*got int"):
        ImageProcessor()([3])


def test_means_must_fit_the_channels():
    with pytest.raises(ValueError, match="image_mean"):
        ImageProcessor(num_channels=1, image_mean=[0.5, 0.5, 0.5])


def test_the_byte_order_of_an_array_does_not_matter():
    processor, deep = ImageProcessor(num_channels=1), RANDOM.integers(0, 65536, size=(9, 7), dtype=np.uint16)
    assert_close(values(processor, deep.astype(">u2")), values(processor, deep))


def test_tensors_of_bfloat16_are_taken(raw):
    image = torch.rand(3, 9, 7).bfloat16()
    assert_close(values(raw, image), image.float())


@pytest.mark.parametrize("highest", [3000, 70_000])
def test_a_file_of_32_bits_is_refused_whatever_its_values(highest):
    picture = Image.fromarray(np.array([[0, highest]], np.int32))
    for form in (picture, encoded(picture, "TIFF")):
        with pytest.raises(ValueError, match="int32 have no known range"):
            ImageProcessor()(form)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_file_of_16_bits_keeps_its_range(raw, kind):
    deep = np.array([[0, 3000, 65535]], np.uint16)
    expected = torch.from_numpy(deep / np.float32(65535)).expand(3, -1, -1)
    ppm = b"P5 3 1 65535\n" + deep.astype(">u2").tobytes()  # which Pillow does not write with 16 bits
    assert_close(values(raw, ppm if kind == "PPM" else encoded(Image.fromarray(deep), kind)), expected)


def test_an_image_whose_longer_side_would_fill_the_memory_is_refused():
    strip = np.zeros((1, 6000), np.uint8)
    with pytest.raises(ValueError, match=r"image\[0\]: 1 x 6000 pixels would become 224 x 1344000.*set size="):
        ImageProcessor(size=224)(strip)
    assert values(ImageProcessor(size=[8, 40]), strip).shape == (3, 8, 40)
    assert values(ImageProcessor(size=8), strip[:, :100]).shape == (3, 8, 800)


def test_an_image_of_too_many_pixels_is_refused(monkeypatch):
    data = encoded(Image.fromarray(COLOUR))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image\[0\].*Shrink the image first"):
        ImageProcessor()(data)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 2.5},
        {"size": [1, 2, 3]},
        {"crop_size": []},
        {"num_channels": 1.0},
        {"image_std": float("nan")},
        {"image_mean": float("inf")},
        {"float_range": [1.0, 0.0]},
        {"float_range": [0.0]},
        {"float_range": [-1.7e308, 1.7e308]},
        {"interpolation": "cubic"},
    ],
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        ImageProcessor(**options)


PNG, JPEG = (encoded(Image.fromarray(COLOUR), kind) for kind in ("PNG", "JPEG"))
DAMAGED = st.tuples(st.sampled_from([PNG, JPEG]), st.integers(0, 900), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
)
ANY = st.one_of(
    st.sampled_from(["u1", "u2", ">u2", "i2", "f2", "f4", "f8", "c8", "?", "U1"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9))
    ),
    DAMAGED,
    st.none() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    st.dictionaries(st.sampled_from(["bytes", "path"]), st.none() | st.text(max_size=3) | DAMAGED, max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.one_of(ANY, st.lists(ANY, max_size=3)),
    channels=st.sampled_from([1, 3, 5]),
    size=st.sampled_from([None, 5, [3, 7]]),
    crop_size=st.sampled_from([None, 4]),
    order=st.sampled_from([None, "channels_first", "channels_last", "other"]),
)
def test_any_input_gives_finite_values_or_a_sentence(samples, channels, size, crop_size, order):
    processor = ImageProcessor(num_channels=channels, size=size, crop_size=crop_size)
    finite_or_refused(lambda: processor(samples, input_data_format=order))
