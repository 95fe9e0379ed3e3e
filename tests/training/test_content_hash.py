"""Hashes of raw samples: equal for equal contents, different for different ones."""

import os
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch_geometric.data import Data

from meta_transformer.training.content_hash import content_hash


def graph(weight: float) -> networkx.Graph:
    made = networkx.path_graph(3)
    made.edges[0, 1]["weight"] = weight
    return made


# Pairs of makers of values: equal within a maker, different between the two.
PAIRS: dict[str, tuple[Any, Any]] = {
    "text": (lambda: "a", lambda: "b"),
    "text and bytes": (lambda: "a", lambda: b"a"),
    "a number and its text": (lambda: 1, lambda: "1"),
    "integer and float": (lambda: 1, lambda: 1.0),
    "true and one": (lambda: True, lambda: 1),
    "none and its text": (lambda: None, lambda: "None"),
    "array": (lambda: np.arange(4), lambda: np.arange(4) + 1),
    "shapes": (lambda: np.arange(4), lambda: np.arange(4).reshape(2, 2)),
    "types": (lambda: np.arange(4, dtype=np.int32), lambda: np.arange(4, dtype=np.uint32)),
    "no dimension": (lambda: np.array(1.0), lambda: np.array(2.0)),
    "strided": (lambda: np.arange(8)[::2], lambda: np.arange(8)[1::2]),
    "objects": (lambda: np.array(["a", None], object), lambda: np.array(["b", None], object)),
    "tensor": (lambda: torch.arange(4), lambda: torch.arange(4) * 2),
    "bfloat16": (lambda: torch.ones(2, dtype=torch.bfloat16), lambda: torch.ones(2, dtype=torch.float16)),
    "nesting": (lambda: ["a", ["b"]], lambda: ["a", "b"]),
    "borders": (lambda: ["ab", "c"], lambda: ["a", "bc"]),
    "list and tuple": (lambda: ["a"], lambda: ("a",)),
    "dict": (lambda: {"a": 1, "b": 2}, lambda: {"a": 2, "b": 1}),
    "picture": (lambda: Image.new("L", (2, 3), 1), lambda: Image.new("L", (3, 2), 1)),
    "frame": (lambda: pd.DataFrame({"a": [1, 2]}), lambda: pd.DataFrame({"a": [1, 3]})),
    "time index": (
        lambda: pd.Series([1, 2], pd.date_range("2024", periods=2)),
        lambda: pd.Series([1, 2], pd.date_range("2025", periods=2)),
    ),
    "rows of one label": (
        lambda: pd.DataFrame({"a": [1, 2]}, index=["s", "s"]),
        lambda: pd.DataFrame({"a": [3, 2]}, index=["s", "s"]),
    ),
    "order of columns": (lambda: pd.DataFrame({"a": [1], "b": [2]}), lambda: pd.DataFrame({"b": [2], "a": [1]})),
    "mask": (lambda: np.ma.array([1, 2], mask=[0, 1]), lambda: np.ma.array([1, 2], mask=[1, 0])),
    "series": (lambda: pd.Series([1, 2], ["s", "s"]), lambda: pd.Series([3, 2], ["s", "s"])),
    "missing": (lambda: [pd.NA], lambda: [None]),
    "geometric": (lambda: Data(x=torch.ones(2, 1)), lambda: Data(x=torch.zeros(2, 1))),
    "networkx": (lambda: graph(1), lambda: graph(2)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
def test_values_are_told_apart_by_what_they_hold(pair: Any) -> None:
    one, other = pair
    assert content_hash(one()) == content_hash(one())
    assert content_hash(one()) != content_hash(other())


def test_the_order_of_a_dict_does_not_count() -> None:
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_that_was_written_again_counts_as_another(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"one")
    before = content_hash(kind(path))
    assert content_hash(kind(path)) == before
    path.write_bytes(b"three")
    assert content_hash(kind(path)) != before


def test_a_header_counts_with_the_file_beside_it(tmp_path: Path) -> None:
    header, data = tmp_path / "cube.hdr", tmp_path / "cube.img"
    header.write_text("ENVI")
    data.write_bytes(b"1")
    before = content_hash(header)
    os.utime(data, ns=(1, 1))
    assert content_hash(header) != before


def test_texts_that_can_be_no_path_are_hashed() -> None:
    assert content_hash("a\0b") != content_hash("a" * 5000)


def test_an_object_of_unknown_contents_is_refused() -> None:
    with pytest.raises(TypeError, match="give keys"):
        content_hash([object()])
