"""Radiographs as pydicom makes them, and a processor that only scales them."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from meta_transformer.processors.xray import XrayProcessor

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
