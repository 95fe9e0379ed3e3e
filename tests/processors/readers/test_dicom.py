"""DICOM files that pydicom writes, against pydicom's own LUTs, PIL and numpy."""

import io
import sys

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)
from torch.testing import assert_close

from meta_transformer.processors.xray import XrayProcessor
from tests.support.radiographs import SIGNED, TWELVE_BITS, dataset, raw, table, values, written


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
    colour = np.random.default_rng(0).integers(0, 256, size=(9, 7, 3), dtype=np.uint8)
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
    yield dataset(TWELVE_BITS, RescaleSlope="1e308", RescaleIntercept="1"), "RescaleSlope 1e.308 .* make no values"
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


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_is_read_by_the_way_that_its_error_tells(syntax):
    made, buffer = dataset(TWELVE_BITS, syntax=syntax), DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_dataset(buffer, made)
    read = pydicom.dcmread(io.BytesIO(buffer.getvalue()), force=True)
    assert_close(values(raw(), read), values(raw(), written(made)))
    assert "TransferSyntaxUID" not in read.file_meta  # the user's own dataset stays as it is
