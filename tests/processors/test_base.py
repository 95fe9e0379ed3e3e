"""What the processors share in telling samples apart."""

import numpy as np
import pandas as pd
import pytest
import torch

from meta_transformer.processors.base import several
from meta_transformer.registry import MODALITIES


def test_several_gives_the_first_sample_and_all_of_them() -> None:
    first, samples = several(iter("abc"), "text")
    assert (first, "".join(samples)) == ("a", "abc")


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [([], ValueError, "is an empty list"), (3, TypeError, "got int"), (pd.DataFrame([1]), TypeError, "no table")],
)
def test_what_holds_no_samples_is_refused(samples: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        several(samples, "sound")


@pytest.mark.parametrize("modality", ["audio", "image", "infrared", "text", "video", "xray"])
def test_a_table_is_not_read_as_the_names_of_its_columns(modality: str) -> None:
    table = pd.DataFrame(np.zeros((3, 2)), columns=[0.25, 0.5])
    processor = MODALITIES[modality].processor_class()
    with pytest.raises(TypeError, match=f"{modality} must be no table, got DataFrame; give one column"):
        processor(table, **processor.dummy_call_kwargs)


@pytest.mark.parametrize("modality", ["audio", "image", "infrared", "video", "xray"])
def test_masked_values_are_no_measurements(modality: str) -> None:
    shape = {"audio": (2000,), "video": (2, 1, 20, 20)}.get(modality, (20, 20))
    array = np.ma.masked_array(np.full(shape, 0.5), mask=False, fill_value=1e20)
    processor = MODALITIES[modality].processor_class(**({} if modality == "audio" else {"num_channels": 1}))
    options = processor.dummy_call_kwargs
    for name, value in processor(array, **options).items():
        torch.testing.assert_close(value, processor(array.data, **options)[name])
    array[tuple(side // 2 for side in shape)] = np.ma.masked
    with pytest.raises(ValueError, match="NaN"):
        processor(array, **options)


@pytest.mark.parametrize("modality", ["audio", "image", "infrared", "xray", "imu", "time_series"])
@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 6, device="meta"), torch.zeros(4, 6).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_their_values_are_refused(modality: str, tensor: torch.Tensor) -> None:
    processor = MODALITIES[modality].processor_class()
    with pytest.raises(ValueError, match="meta device|sparse"):
        processor([tensor], **processor.dummy_call_kwargs)
