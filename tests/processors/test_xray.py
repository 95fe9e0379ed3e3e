"""X-ray processor: DICOM files that pydicom writes, against pydicom's own LUTs; pictures; against PIL and numpy."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless
from torch.testing import assert_close

from meta_transformer import MetaTransformerProcessor
from meta_transformer.processors.xray import XrayProcessor
from tests.support.fuzz import finite_or_refused

RANDOM = np.random.default_rng(0)
TWELVE_BITS = RANDOM.integers(0, 4096, size=(20, 30), dtype=np.uint16)
SIGNED = RANDOM.integers(-1000, 2000, size=(20, 30)).astype(np.int16)


def dataset(pixels, bits=12, syntax=ExplicitVRLittleEndian, **elements):
    """A radiograph as pydicom makes it."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.PhotometricInterpretation = "MONOCHROME2"
    made.SamplesPerPixel = 3 if pixels.ndim == 3 and pixels.shape[-1] == 3 else 1
    if made.SamplesPerPixel == 3:
        made.PhotometricInterpretation, made.PlanarConfiguration = "RGB", 0
        made.Rows, made.Columns = pixels.shape[:2]
    else:
        made.Rows, made.Columns = pixels.shape[-2:]
    made.BitsAllocated, made.BitsStored, made.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    big = syntax == ExplicitVRBigEndian
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    made["PixelData"].VR = "OW"
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def written(made, path=None):
    """The bytes of the dataset's file, also written to a path."""
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    if path is not None:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def table(entries, first=0, bits=16):
    """A sequence with one lookup table."""
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = np.asarray(entries, "<u2").tobytes()
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    return [item]


def raw(**options):
    """A processor that scales to 0..1 and does nothing else."""
    return XrayProcessor(image_mean=0.0, image_std=1.0, **options)


def values(processor, sample):
    return processor(sample)["xray_values"][0]


def by_pydicom(data, lowest, highest):
    """What pydicom shows of a file, scaled from the range of its output values."""
    read = pydicom.dcmread(io.BytesIO(data))
    shown = apply_voi_lut(apply_modality_lut(read.pixel_array, read), read).astype(np.float64)
    scaled = ((shown - lowest) / (highest - lowest)).clip(0, 1)
    inverted = read.PhotometricInterpretation == "MONOCHROME1"
    return torch.from_numpy(1 - scaled if inverted else scaled).float()[None]


RESCALED = {"RescaleSlope": "2.5", "RescaleIntercept": "-1024"}
FILES = {
    "12 bits in 16": (dataset(TWELVE_BITS), 0, 4095),
    "MONOCHROME1": (dataset(TWELVE_BITS, PhotometricInterpretation="MONOCHROME1"), 0, 4095),
    "8 bits": (dataset((TWELVE_BITS // 16).astype(np.uint8), bits=8), 0, 255),
    "16 bits": (dataset(TWELVE_BITS * 16, bits=16), 0, 65535),
    "signed": (dataset(SIGNED), -2048, 2047),
    "big endian": (dataset(TWELVE_BITS, syntax=ExplicitVRBigEndian), 0, 4095),
    "rescaled": (dataset(TWELVE_BITS, **RESCALED), -1024, 2.5 * 4095 - 1024),
    "window": (dataset(TWELVE_BITS, WindowCenter="2000", WindowWidth="1500"), 0, 4095),
    "window of one": (dataset(TWELVE_BITS, WindowCenter="2000", WindowWidth="1"), 0, 4095),
    "several windows": (dataset(TWELVE_BITS, WindowCenter=["900", "2000"], WindowWidth=["300", "1500"]), 0, 4095),
    "exact window": (
        dataset(TWELVE_BITS, WindowCenter="2000", WindowWidth="1500", VOILUTFunction="LINEAR_EXACT"),
        0,
        4095,
    ),
    "sigmoid": (dataset(TWELVE_BITS, WindowCenter="2000", WindowWidth="900", VOILUTFunction="SIGMOID"), 0, 4095),
    "signed, rescaled, window, MONOCHROME1": (
        dataset(SIGNED, WindowCenter="40", WindowWidth="400", PhotometricInterpretation="MONOCHROME1", **RESCALED),
        2.5 * -2048 - 1024,
        2.5 * 2047 - 1024,
    ),
    "VOI LUT": (dataset(TWELVE_BITS, VOILUTSequence=table(np.arange(4096) ** 2 // 256)), 0, 65535),
    "short VOI LUT that starts late": (
        dataset(TWELVE_BITS, VOILUTSequence=table(np.arange(0, 2000, 2), first=1500, bits=11)),
        0,
        2047,
    ),
    "VOI LUT before a window": (
        dataset(TWELVE_BITS, VOILUTSequence=table(4095 - np.arange(4096)), WindowCenter="9", WindowWidth="9"),
        0,
        65535,
    ),
    "modality LUT and window": (
        dataset(TWELVE_BITS, ModalityLUTSequence=table(np.arange(4096) * 3), WindowCenter="6000", WindowWidth="8000"),
        0,
        65535,
    ),
    "modality LUT": (dataset(TWELVE_BITS, ModalityLUTSequence=table(np.arange(4096) * 3)), 0, 65535),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore:.*RescaleType|.*Modality")
def test_a_dicom_file_looks_as_in_pydicom(name):
    made, lowest, highest = FILES[name]
    data = written(made)
    assert_close(values(raw(), data), by_pydicom(data, lowest, highest), rtol=0, atol=1e-6)


def test_a_falling_rescale_slope_turns_the_range_round():
    data = written(dataset(TWELVE_BITS, RescaleSlope="-1", RescaleIntercept="4095"))
    assert_close(values(raw(), data), torch.from_numpy(1 - TWELVE_BITS / 4095).float()[None])


def test_a_voi_lut_with_entries_of_8_bits_takes_all_indices():
    """Against the definition: pydicom's own function takes the index modulo 256 here."""
    made = dataset(TWELVE_BITS, VOILUTSequence=table(np.arange(4096) // 16, bits=8))
    assert_close(values(raw(), written(made))[0], torch.from_numpy(TWELVE_BITS // 16 / 255).float())


def test_all_forms_of_one_dicom_file_give_the_same(tmp_path):
    data = written(FILES["window"][0], tmp_path / "a.dcm")
    (tmp_path / "no_suffix").write_bytes(data)
    (tmp_path / "wrong_suffix.png").write_bytes(data)
    expected = values(raw(), data)
    for form in (
        tmp_path / "a.dcm",
        str(tmp_path / "a.dcm"),
        tmp_path / "no_suffix",
        tmp_path / "wrong_suffix.png",
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.dcm")},
        pydicom.dcmread(tmp_path / "a.dcm"),
    ):
        assert_close(values(raw(), form), expected)
        assert_close(values(raw(), [form]), expected)


def test_a_compressed_file_is_decoded():
    made = dataset(TWELVE_BITS)
    made.compress(RLELossless)
    assert_close(values(raw(), written(made)), values(raw(), written(dataset(TWELVE_BITS))))


def test_a_transfer_syntax_without_decoder_is_refused_with_the_remedy():
    made = dataset(TWELVE_BITS)
    made.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    made["PixelData"].VR = "OB"
    with pytest.raises(
        ValueError, match=r"xray\[0\]: cannot decode the pixels, transfer syntax JPEG Lossless.*pylibjpeg"
    ):
        XrayProcessor()(written(made))


def test_another_window_of_the_file_or_none_may_be_chosen():
    data = written(FILES["several windows"][0])
    second = written(FILES["window"][0])
    assert_close(values(raw(voi_index=1), data), values(raw(), second))
    assert_close(values(raw(voi_index=None), data)[0], torch.from_numpy(TWELVE_BITS / 4095).float())
    with pytest.raises(ValueError, match=r"voi_index is 2, but there are 2, counted from 0.*voi_index=None"):
        raw(voi_index=2)(data)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_of_the_processor_goes_before_that_of_the_file(kind):
    data = written(dataset(TWELVE_BITS, WindowCenter="9", WindowWidth="9", PhotometricInterpretation=kind, **RESCALED))
    physical = TWELVE_BITS * 2.5 - 1024
    for window, bounds in (([0, 5000], [0, 5000]), ("percentiles", np.percentile(physical, [1, 99]))):
        scaled = ((physical - bounds[0]) / (bounds[1] - bounds[0])).clip(0, 1)
        expected = torch.from_numpy(1 - scaled if kind == "MONOCHROME1" else scaled).float()
        assert_close(values(raw(intensity_window=window), data)[0], expected)


def test_a_file_of_several_frames_is_refused_unless_one_is_chosen():
    frames = np.stack([TWELVE_BITS, TWELVE_BITS[::-1], TWELVE_BITS // 2])
    data = written(dataset(frames, NumberOfFrames=3))
    with pytest.raises(
        ValueError, match=r"xray\[0\]: the DICOM file has 3 frames; choose one with XrayProcessor\(frame=0\)"
    ):
        XrayProcessor()(data)
    for index, frame in enumerate(frames):
        assert_close(values(raw(frame=index), data), values(raw(), written(dataset(frame))))
    with pytest.raises(ValueError, match="frame is 3, but the DICOM file has 3, counted from 0"):
        XrayProcessor(frame=3)(data)
    assert_close(values(raw(frame=0), written(dataset(TWELVE_BITS))), values(raw(), written(dataset(TWELVE_BITS))))


def test_a_colour_screenshot_becomes_grey_as_in_pil():
    colour = RANDOM.integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
    found = values(raw(), written(dataset(colour, bits=8)))
    assert_close(found, values(raw(), Image.fromarray(colour)))
    assert_close(
        values(raw(num_channels=3), written(dataset(colour, bits=8))),
        torch.from_numpy(colour / 255.0).float().permute(2, 0, 1),
    )


def bad_files():
    yield dataset(TWELVE_BITS, PhotometricInterpretation="PALETTE COLOR"), "'PALETTE COLOR', but X-ray images are"
    yield dataset(TWELVE_BITS, WindowCenter="9", WindowWidth="0"), "WindowWidth 0.0 make no LINEAR window"
    yield dataset(TWELVE_BITS, WindowCenter="9", WindowWidth="9", VOILUTFunction="CUBIC"), "'CUBIC' is not LINEAR"
    yield dataset(TWELVE_BITS, RescaleSlope="0", RescaleIntercept="1"), "RescaleSlope 0.0 .* make no values"
    yield dataset(TWELVE_BITS, PixelData=b"12"), "cannot decode the pixels"
    made = dataset(TWELVE_BITS)
    del made.PixelData
    yield made, "no PixelData"
    made = dataset(TWELVE_BITS)
    del made.BitsStored
    yield made, "decode the pixels"
    short = dataset(TWELVE_BITS, VOILUTSequence=table(np.arange(100)))
    short.VOILUTSequence[0].LUTDescriptor = [200, 0, 16]
    yield short, "has 100 entries of 16 bits"


@pytest.mark.parametrize(("made", "message"), list(bad_files()), ids=lambda each: each if isinstance(each, str) else "")
def test_bad_dicom_files_are_refused_with_their_index(made, message):
    with pytest.raises(ValueError, match=rf"(?s)xray\[1\].*{message}"):
        XrayProcessor()([TWELVE_BITS, made])


def test_a_file_without_preamble_is_told_from_a_picture(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"\0" * 200)
    with pytest.raises(ValueError, match=r"a.dcm' has no DICOM preamble.*pydicom.dcmread\(path, force=True\)"):
        XrayProcessor()(tmp_path / "a.dcm")


def test_a_truncated_dicom_file_is_refused():
    data = written(dataset(TWELVE_BITS))
    with pytest.raises(ValueError, match=r"xray\[0\]"):
        XrayProcessor()(data[:-500])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    data = written(dataset(TWELVE_BITS))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'pip install "meta_transformer\[medical\]"'):
        XrayProcessor()(data)
    assert values(XrayProcessor(), TWELVE_BITS).shape == (1, 20, 30)


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
FILE = written(FILES["window"][0])
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
