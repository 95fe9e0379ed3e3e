"""Arrays of any library as numpy's."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_array"]


def to_array(value: Any) -> np.ndarray:
    """Anything array-like as a numpy array.

    Args:
        value: A tensor on any device, of any type, with gradients or not (bfloat16 becomes float32); an array of numpy,
            whose masked entries, if it has any, become NaN; a list of such; or what numpy makes an array of.

    Returns:
        An array that may share memory with `value`. With masked entries it is floating.

    Raises:
        ValueError: A tensor without data, or sequences of different lengths.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"the tensor is {_kind(value)}; give a dense one that holds its values.")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ma.MaskedArray):
        if not np.ma.is_masked(value):
            return np.asarray(value.data)
        if value.dtype.kind not in "biuf":
            raise ValueError(f"the array has masked entries of type {value.dtype}; fill or leave them out first.")
        return value.astype(np.result_type(value.dtype, np.float32)).filled(np.nan)
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor | np.ma.MaskedArray) for each in value):
        value = [to_array(each) for each in value]  # numpy would drop masks, and refuse bfloat16
    return np.asarray(value)


def _kind(tensor: Tensor) -> str:
    return "on the meta device" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
