"""X-ray processor: pictures and DICOM files, against PIL and numpy."""

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
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.xray import XrayProcessor
from tests.support.fuzz import finite_or_refused
from tests.support.radiographs import TWELVE_BITS, dataset, raw, values, written

RANDOM = np.random.default_rng(0)
RESCALED = {"RescaleSlope": "2.5", "RescaleIntercept": "-1024"}


def chest_pictures():
    """Arrays of 8 bits: chest X-rays of children, or noise where there is no data."""
    data = os.environ.get("META_TRANSFORMER_DATA")
    if data:
        return list(np.load(Path(data, "xray/pneumoniamnist/pneumoniamnist.npz"))["train_images"][:6])
    return list(RANDOM.integers(0, 256, size=(6, 28, 28), dtype=np.uint8))


def test_pictures_of_8_and_16_bits_keep_the_range_of_their_type():
    for picture in (*chest_pictures(), TWELVE_BITS):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        expected = torch.from_numpy(picture / np.float32(np.iinfo(picture.dtype).max))[None]
        for form in (picture, buffer.getvalue(), torch.from_numpy(picture), Image.fromarray(picture)):
            assert_close(values(raw(), form), expected)


def test_percentiles_stretch_a_picture():
    picture = (chest_pictures()[0] // 4 + 50).astype(np.uint8)
    low, high = np.percentile(picture, [2, 98])
    found = values(raw(intensity_window="percentiles", percentiles=(2, 98)), picture)[0]
    assert_close(found, torch.from_numpy(((picture - low) / (high - low)).clip(0, 1)).float())


def test_fit_gives_the_training_images_mean_0_and_standard_deviation_1():
    pictures = chest_pictures()
    found = XrayProcessor().fit(pictures)(pictures)["xray_values"]
    assert found.mean().item() == pytest.approx(0, abs=1e-5)
    assert found.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_fit_reads_dicom_files_and_can_fix_the_window():
    files = [written(dataset(TWELVE_BITS, **RESCALED)), written(dataset(TWELVE_BITS // 2, **RESCALED))]
    processor = XrayProcessor().fit(files, fix_window=True)
    physical = np.stack([TWELVE_BITS, TWELVE_BITS // 2]) * 2.5 - 1024
    assert processor.intensity_window == pytest.approx(np.percentile(physical, [1, 99]), abs=50)
    assert processor(files)["xray_values"].mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("shape", "size", "expected"), [((40, 30), 20, (20, 15)), ((30, 400), 20, (2, 20))])
def test_one_size_is_the_longer_side_and_the_aspect_stays(shape, size, expected):
    picture = RANDOM.integers(0, 256, size=shape, dtype=np.uint8)
    assert values(XrayProcessor(size=size), picture).shape == (1, *expected)
    # PIL's bicubic with antialiasing rounds to 8 bits.
    reference = np.asarray(Image.fromarray(picture).resize(expected[::-1], Image.Resampling.BICUBIC), np.float32) / 255
    assert_close(values(raw(size=size), picture)[0], torch.from_numpy(reference), rtol=0, atol=2 / 255)


def test_a_side_never_vanishes():
    assert values(XrayProcessor(size=8), np.zeros((1, 100), np.uint8)).shape == (1, 1, 8)


def test_images_of_different_aspect_are_padded_and_masked():
    batch = XrayProcessor(size=16)([np.zeros((40, 20), np.uint8), np.zeros((20, 40), np.uint8)])
    assert batch["xray_values"].shape == (2, 1, 16, 16)
    assert batch["xray_mask"].sum(dim=(1, 2)).tolist() == [128, 128]
    assert set(XrayProcessor(size=[16, 16])([np.zeros((40, 20), np.uint8)] * 2)) == {"xray_values"}


def test_settings_and_statistics_survive_json(tmp_path):
    pictures = chest_pictures()
    processor = XrayProcessor(intensity_window="percentiles", size=20, frame=0, voi_index=None).fit(pictures)
    MetaTransformerProcessor(xray=processor).save_pretrained(tmp_path)
    loaded = MetaTransformerProcessor.from_pretrained(tmp_path)
    assert loaded.xray.to_dict() == processor.to_dict()
    assert torch.equal(loaded(xray=pictures)["xray_values"], processor(pictures)["xray_values"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame": -1}, "frame must be None or a number counted from 0, got -1"),
        ({"voi_index": "first"}, "voi_index must be None or a number counted from 0"),
        ({"intensity_window": "voi"}, "'percentiles', 'type' or two numbers, got 'voi'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        XrayProcessor(**options)


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (np.full((8, 8), np.nan), ValueError, "NaN"),
        (np.zeros((8, 8), np.int16), ValueError, "int16 have no known range"),
        (b"no image", ValueError, "cannot identify"),
        ("no/such/file.dcm", ValueError, "No such file"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_bad_images_are_refused_with_their_index(sample, error, message):
    with pytest.raises(error, match=rf"xray\[1\].*{message}"):
        XrayProcessor()([TWELVE_BITS, sample])


ELEMENTS = {
    "BitsStored": st.integers(0, 17),
    "HighBit": st.integers(0, 17),
    "PixelRepresentation": st.integers(0, 1),
    "Rows": st.integers(0, 40),
    "NumberOfFrames": st.integers(0, 3),
    "PhotometricInterpretation": st.sampled_from(["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "ARGB", ""]),
    "RescaleSlope": st.sampled_from(["1", "0", "-2.5", "1e30", ""]),
    "RescaleIntercept": st.sampled_from(["0", "-1024", ""]),
    "WindowCenter": st.sampled_from(["0", "-100", "1e9", "", ["1", "2"]]),
    "WindowWidth": st.sampled_from(["0", "1", "400", "", ["1", "2", "3"]]),
    "VOILUTFunction": st.sampled_from(["LINEAR", "SIGMOID", "LINEAR_EXACT", "OTHER"]),
}
DICOM = st.fixed_dictionaries({}, optional=ELEMENTS).map(lambda elements: dataset(TWELVE_BITS, **elements))
FILE = written(dataset(TWELVE_BITS, WindowCenter="2000", WindowWidth="1500"))
ANY = st.one_of(
    DICOM,
    st.integers(0, len(FILE)).map(lambda end: FILE[:end]),
    st.tuples(st.integers(132, 700), st.integers(0, 255)).map(
        lambda at: FILE[: at[0]] + bytes(at[1:]) + FILE[at[0] + 1 :]
    ),
    st.binary(max_size=40).map(lambda tail: b"\0" * 128 + b"DICM" + tail),
    st.sampled_from(["u1", "u2", "i2", "f4", "f8"]).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    ),
    st.none(),
    st.text(max_size=8),
    st.just("no/such/file.dcm"),
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40, deadline=None)
@given(
    samples=st.one_of(ANY, st.lists(ANY, max_size=3)),
    window=st.sampled_from(["percentiles", "type", [0.0, 1.0]]),
    frame=st.sampled_from([None, 0, 2]),
    voi_index=st.sampled_from([None, 0, 1]),
    size=st.sampled_from([None, 5, [3, 7]]),
)
def test_any_input_gives_finite_values_or_a_sentence(samples, window, frame, voi_index, size):
    processor = XrayProcessor(intensity_window=window, frame=frame, voi_index=voi_index, size=size)
    finite_or_refused(lambda: processor(samples))
