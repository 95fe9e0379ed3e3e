"""A hash of raw data and settings, by which what was made of them is found again."""

import glob
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["content_hash"]


def content_hash(value: Any) -> str:
    """Hash a value by what it holds.

    Files count by path, size and time of change, so that they need not be read.

    Args:
        value: Text, bytes, numbers, arrays, tensors, pictures, frames, graphs of PyTorch Geometric or networkx, paths;
            and dicts, lists and tuples of these.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError: Something else.
    """
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, str | os.PathLike):
        _add(digest, "text", os.fspath(value), _describe_file(value))
    elif isinstance(value, bytes | bytearray | memoryview):
        _add(digest, "bytes", len(value))
        digest.update(value)
    elif isinstance(value, np.ma.MaskedArray):
        _update(digest, ["masked", np.ma.getmaskarray(value), value.filled(0)])
    elif value is None or isinstance(value, bool | int | float | complex | np.generic):
        _add(digest, type(value).__name__, value)
    elif isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        _add(digest, "tensor", tuple(tensor.shape), tensor.dtype)
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        _add(digest, "array", value.shape, value.dtype)
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, Mapping):
        _add(digest, "mapping", len(value))
        for key in sorted(value, key=repr):
            _add(digest, key)
            _update(digest, value[key])
    elif isinstance(value, list | tuple | np.ndarray):
        _add(digest, type(value).__name__, len(value))
        for each in value:
            _update(digest, each)
    else:
        _update(digest, _contents(value))


def _add(digest: Any, *values: Any) -> None:
    digest.update(repr(values).encode("utf-8", "surrogatepass"))


def _describe_file(path: str | os.PathLike) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a text that is no path
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    # A header of ENVI's says how to read the file beside it.
    beside = Path(path).with_suffix("").name if Path(path).suffix.lower() == ".hdr" else None
    siblings = sorted(Path(path).parent.glob(f"{glob.escape(beside)}*")) if beside else []
    return (found.st_size, found.st_mtime_ns, *(each.stat().st_mtime_ns for each in siblings))


def _contents(value: Any) -> Any:
    """The plain values inside an object of another library."""
    kind = type(value).__name__
    if hasattr(value, "tobytes") and hasattr(value, "mode") and getattr(value, "n_frames", 1) == 1:  # PIL
        return [kind, value.mode, value.size, value.tobytes(), value.getpalette() if value.mode == "P" else None]
    if hasattr(value, "columns") and hasattr(value, "index"):  # pandas, by place: labels may stand twice
        columns = [value.iloc[:, place].tolist() for place in range(len(value.columns))]
        return [kind, list(map(str, value.columns)), list(map(str, value.index)), columns]
    if hasattr(value, "to_dict") and hasattr(value, "index"):
        return [kind, list(map(str, value.index)), value.tolist()]
    if kind in ("NAType", "Decimal", "timedelta", "Timedelta"):
        return [kind, str(value)]
    if hasattr(value, "to_dict"):  # PyTorch Geometric
        return [kind, value.to_dict()]
    if hasattr(value, "edges") and hasattr(value, "nodes"):  # networkx
        return [kind, value.is_directed(), value.graph, list(value.nodes(data=True)), list(value.edges(data=True))]
    if hasattr(value, "isoformat"):  # dates
        return [kind, value.isoformat()]
    raise TypeError(
        f"A sample holds a {kind}, whose contents cannot be told apart from those of another; give its file, array or "
        "bytes, or give keys, a text for each sample."
    )
