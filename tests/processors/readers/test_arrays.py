"""Arrays of any library: against numpy's own masks and torch's own conversions."""

import numpy as np
import pytest
import torch

from meta_transformer.processors.readers.arrays import to_array

VALUES = np.array([[1.5, -2.0], [0.25, 8.0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_keep_their_values(dtype: torch.dtype) -> None:
    np.testing.assert_array_equal(to_array(torch.tensor(VALUES, dtype=dtype)), VALUES)
    np.testing.assert_array_equal(to_array(list(torch.tensor(VALUES, dtype=dtype))), VALUES)


def test_tensors_with_gradients_and_lazy_signs_are_read() -> None:
    tensor = torch.tensor([1 + 2j], requires_grad=True).conj()
    np.testing.assert_array_equal(to_array(tensor), [1 - 2j])
    np.testing.assert_array_equal(to_array(tensor.imag), [-2])


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64])
def test_masked_entries_become_nan(dtype: type) -> None:
    masked = np.ma.masked_equal(np.array([[1, 9], [9, 2]], dtype), 9)
    expected = [[1, np.nan], [np.nan, 2]]
    np.testing.assert_array_equal(to_array(masked), expected)
    np.testing.assert_array_equal(to_array(list(masked)), expected)


def test_without_masked_entries_the_type_stays() -> None:
    assert to_array(np.ma.array([1, 2], np.uint8)).dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2, device="meta"), "on the meta device"),
        (torch.eye(2).to_sparse(), "is sparse"),
        (torch.eye(2).to_sparse_csr(), "is sparse"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "is quantized"),
        (np.ma.array(["a", "b"], mask=[True, False]), "fill or leave them out"),
        ([[1], [2, 3]], "inhomogeneous"),
    ],
)
def test_what_has_no_values_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_array(value)
