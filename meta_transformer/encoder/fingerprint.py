"""A hash that says whether two trunks hold the same weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, shapes, data types and every bit of the values.

    Args:
        tensors: The tensors by name; their order does not matter, nor does the device they lie on.

    Returns:
        64 hexadecimal digits (SHA-256). The same weights in another data type give another fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
