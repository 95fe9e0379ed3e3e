"""Grey values of DICOM images: what the standard lays between stored pixels and what a viewer shows.

DICOM PS3.3, sections C.11.1 (modality LUT: stored values to physical ones) and C.11.2 (VOI LUT: the part of these that
is of interest). Both are written out here, and tested against pydicom's own; pydicom reads and decodes the files.
"""

from collections.abc import Generator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np

from ...extras import needs
from ..image import first_bytes

if TYPE_CHECKING:
    from pydicom import Dataset
else:
    Dataset = Any

__all__ = ["GreyValues", "colour_pixels", "grey_values", "is_dataset", "read_dicom", "values_of_interest"]

_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@contextmanager
def _damage_refused() -> Generator[None]:
    """What pydicom raises over damaged elements, which it reads when they are asked for, as `ValueError`."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # of pydicom's own classes and of many others
        raise ValueError(f"the DICOM file is damaged: {error}") from error


@dataclass(frozen=True)
class GreyValues:
    """Values after the modality LUT.

    Attributes:
        values: `(height, width)` float64.
        lowest: The lowest value that the file could hold.
        highest: The highest one.
    """

    values: np.ndarray
    lowest: float
    highest: float


def _pydicom() -> Any:
    """Pydicom with the parts that are used here."""
    with needs("pydicom to read DICOM files", "medical"):
        import pydicom
        import pydicom.pixels
    return pydicom


def is_dataset(sample: Any) -> bool:
    """Whether this is pydicom's `Dataset`, told without importing pydicom."""
    return any(each.__module__ == "pydicom.dataset" and each.__name__ == "Dataset" for each in type(sample).__mro__)


@_damage_refused()
def read_dicom(sample: Any) -> Dataset | None:
    """The dataset of a DICOM file, told by its preamble; `None` for anything else.

    Args:
        sample: A path, the bytes of a file, a dataset, or anything else.

    Raises:
        ValueError: It has a suffix of DICOM files but no preamble, or cannot be read.
        OSError: There is no such file.
        ImportError: It is DICOM, and pydicom is not installed.
    """
    if is_dataset(sample):
        return sample
    if first_bytes(sample, 132)[128:] != b"DICM":
        if isinstance(sample, str | PathLike) and fspath(sample).lower().endswith(_SUFFIXES):
            raise ValueError(
                f"{fspath(sample)!r} has no DICOM preamble. If it is DICOM all the same, give the dataset that "
                "pydicom.dcmread(path, force=True) returns."
            )
        return None
    return _pydicom().dcmread(BytesIO(sample) if isinstance(sample, bytes) else sample)


@_damage_refused()
def colour_pixels(dataset: Dataset, frame: int | None) -> np.ndarray | None:
    """Pixels `(height, width, 3)` of a colour image, such as a screenshot; `None` for a grey one.

    Args:
        dataset: A DICOM image.
        frame: As of `grey_values`.

    Raises:
        ValueError: As `grey_values`.
    """
    return _pixels(dataset, frame) if dataset.get("PhotometricInterpretation") in _COLOURS else None


@_damage_refused()
def grey_values(dataset: Dataset, frame: int | None) -> GreyValues:
    """Decoded pixels of a grey image after its modality LUT or its rescale slope and intercept.

    Args:
        dataset: A DICOM image.
        frame: Which frame of several, counted from 0; `None` refuses several.

    Raises:
        ValueError: No image, or neither grey nor colour; several frames and none chosen; a transfer syntax without
            decoder; damaged pixels or tables.
    """
    kind = dataset.get("PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(
            f"its PhotometricInterpretation is {kind!r}, but X-ray images are MONOCHROME1, MONOCHROME2 or RGB; convert "
            "it first."
        )
    stored = _pixels(dataset, frame)
    try:
        bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        lowest, highest = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        if dataset.get("ModalityLUTSequence"):
            values, highest = _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
            return GreyValues(values, 0, highest)
        slope, intercept = (
            float(default if dataset.get(name) is None else dataset.get(name))
            for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
    except Exception as error:
        raise ValueError(f"the DICOM file says wrongly how its values are stored: {error}") from error
    ends = sorted((lowest * slope + intercept, highest * slope + intercept))
    if not np.isfinite([*ends, ends[1] - ends[0]]).all() or slope == 0:
        raise ValueError(f"RescaleSlope {slope} and RescaleIntercept {intercept} of the DICOM file make no values.")
    return GreyValues(stored.astype(np.float64) * slope + intercept, *ends)


@_damage_refused()
def values_of_interest(values: np.ndarray, dataset: Dataset, index: int) -> np.ndarray | None:
    """Values after the VOI LUT, a table or a window, as 0..1; `None` if the file has none.

    A table goes before a window where there are both.

    Args:
        values: `(height, width)`, after the modality LUT.
        dataset: A DICOM image.
        index: Which of several tables or windows, counted from 0.

    Returns:
        `(height, width)` float64.

    Raises:
        ValueError: There is none of that index, or it makes no sense.
    """
    try:
        tables = [item for item in dataset.get("VOILUTSequence") or [] if "LUTDescriptor" in item and "LUTData" in item]
        centres, widths = (_numbers(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
        choices = len(tables) or min(len(centres), len(widths))
        if choices and index >= choices:
            raise ValueError(f"voi_index is {index}, but there are {choices}, counted from 0; choose another one.")
        if tables:
            shown, highest = _look_up(values, tables[index], dataset)
            return shown / highest
        if choices:
            return _in_window(values, centres[index], widths[index], str(dataset.get("VOILUTFunction") or "LINEAR"))
    except Exception as error:
        raise ValueError(
            f"the VOI LUT of the DICOM file cannot be applied: {error} XrayProcessor(voi_index=None) ignores it."
        ) from error
    return None


def _in_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Section C.11.2.1.2.1 for LINEAR, C.11.2.1.3 for the others; 0..1 instead of a range of output values."""
    if not np.isfinite([centre, width]).all() or width < 1e-6 or (function == "LINEAR" and width < 1):
        raise ValueError(f"WindowCenter {centre} and WindowWidth {width} make no {function} window.")
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-700, 700)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ValueError(f"VOILUTFunction {function!r} is not LINEAR, LINEAR_EXACT or SIGMOID.")
    if width == 0:
        return (values > centre).astype(np.float64)
    return ((values - centre) / width + 0.5).clip(0, 1)


def _look_up(values: np.ndarray, item: Dataset, dataset: Dataset) -> tuple[np.ndarray, float]:
    """Values in a lookup table (section C.11.1.1), beyond its ends the last entry, and the highest possible entry.

    Not pydicom's function, which takes the index modulo 256 where the table has entries of 8 bits.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data, count = item.LUTData, count or 1 << 16
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        data = np.frombuffer(data, np.uint8 if bits <= 8 and len(data) < 2 * count else "<u2" if little else ">u2")
    table = np.asarray(data, np.float64)[:count]
    if len(table) < count or not 1 <= bits <= 16:
        raise ValueError(f"its table has {len(table)} entries of {bits} bits, but says {item.LUTDescriptor}.")
    return table[(values - first).round().clip(0, count - 1).astype(np.int64)], float((1 << bits) - 1)


def _numbers(value: Any) -> list[float]:
    """The values of an element that may have none, one or several."""
    if value is None or value == "":
        return []
    several = isinstance(value, list | tuple) or hasattr(value, "append")  # pydicom's MultiValue is no list
    return [float(each) for each in value] if several else [float(value)]


def _with_syntax(dataset: Dataset) -> Dataset:
    """The dataset; of one without transfer syntax, as of a file without preamble, a copy with that it was read by."""
    implicit, little = dataset.original_encoding
    if "TransferSyntaxUID" in getattr(dataset, "file_meta", ()) or implicit is None:
        return dataset
    uid = _pydicom().uid
    dataset = copy(dataset)
    dataset.file_meta = _pydicom().dataset.FileMetaDataset()
    explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _pixels(dataset: Dataset, frame: int | None) -> np.ndarray:
    """Stored values `(height, width)` or `(height, width, 3)`."""
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise ValueError(f"the DICOM file has {frames} frames; choose one with XrayProcessor(frame=0), or split it.")
    if frame is not None and frame >= frames:
        raise ValueError(f"frame is {frame}, but the DICOM file has {frames}, counted from 0.")
    if "PixelData" not in dataset:
        raise ValueError("the DICOM file holds no image: it has no PixelData.")
    pydicom = _pydicom()
    try:
        return pydicom.pixels.pixel_array(_with_syntax(dataset), index=frame or 0)
    except Exception as error:
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        raise ValueError(
            f"cannot decode the pixels, transfer syntax {getattr(syntax, 'name', syntax)}: "
            f"{' '.join(str(error).split())}. Where a decoder is missing, install one (pylibjpeg, gdcm), or convert "
            "the file to an uncompressed syntax."
        ) from error
