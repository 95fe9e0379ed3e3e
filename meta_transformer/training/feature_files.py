"""Features on disk: files of many samples each, mapped into memory where they are read.

A file is written whole or not at all, and never changed. A part of a sample, which is what one head reads of one
sequence, lies at rows `offsets[i] : offsets[i + 1]` of `tokens` and `places`.
"""

import json
import os
import time
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .content_hash import content_hash
from .features import SampleFeatures

__all__ = ["FeatureFile", "FeatureWriter", "index_features"]

_FILE_BYTES = 64 * 2**20
_FILE_SECONDS = 60.0


class FeatureWriter:
    """Collect samples, and write a file of them every 64 MiB and every minute, and what is left at the end.

    A context: it also writes where an error ends it. What a killed process was writing is deleted at the start.

    Args:
        folder: Made if absent.

    Attributes:
        count: Samples taken in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.samples: dict[str, dict[str, SampleFeatures]] = {}
        self.bytes, self.started = 0, time.monotonic()
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink()

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()

    def add(self, key: str, sample: dict[str, SampleFeatures]) -> None:
        """Take a sample in, its parts by name."""
        self.samples[key] = sample
        self.count += 1
        self.bytes += sum(part.tokens.numel() * part.tokens.element_size() for part in sample.values())
        if self.bytes >= _FILE_BYTES or time.monotonic() - self.started >= _FILE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self.samples:
            self.folder.mkdir(parents=True, exist_ok=True)
            keys = list(self.samples)
            with NamedTemporaryFile(dir=self.folder, suffix=".tmp", delete=False) as file:
                temporary = Path(file.name)
            save_file(_merge(list(self.samples.values())), temporary, metadata={"keys": json.dumps(keys)})
            os.replace(temporary, self.folder / f"{content_hash(keys)}.safetensors")
        self.samples, self.bytes, self.started = {}, 0, time.monotonic()


def _merge(samples: list[dict[str, SampleFeatures]]) -> dict[str, Tensor]:
    tensors = {}
    for part in dict.fromkeys(name for sample in samples for name in sample):
        own = [sample.get(part) for sample in samples]
        there = [each for each in own if each is not None]
        counts = torch.tensor([0] + [0 if each is None else len(each.places) for each in own])
        tensors[f"{part}/tokens"] = torch.cat([each.tokens for each in there])
        tensors[f"{part}/places"] = torch.cat([each.places for each in there]).to(torch.int16)
        tensors[f"{part}/offsets"] = counts.cumsum(0)
    return tensors


class FeatureFile:
    """One file, opened.

    Args:
        path: The file.

    Raises:
        ValueError: It is damaged.
    """

    def __init__(self, path: Path) -> None:
        with _open(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        self.parts: dict[str, list[SampleFeatures]] = {}
        for name in (name.removesuffix("/offsets") for name in tensors if name.endswith("/offsets")):
            sizes = tensors[f"{name}/offsets"].diff().tolist()
            tokens, places = tensors[f"{name}/tokens"].split(sizes), tensors[f"{name}/places"].long().split(sizes)
            self.parts[name] = [SampleFeatures(*own) for own in zip(tokens, places, strict=True)]

    def sample(self, row: int) -> dict[str, SampleFeatures]:
        """The parts of one sample by name."""
        return {name: samples[row] for name, samples in self.parts.items()}


def index_features(folder: Path) -> dict[str, tuple[Path, int]]:
    """File and row of each sample, by its key."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with _open(path) as file:
            keys = json.loads(file.metadata()["keys"])
        found |= {key: (path, row) for row, key in enumerate(keys)}
    return found


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(
            f"The features in {path} are damaged ({error}); delete the file, they are made anew."
        ) from error
