"""Finding and reading files of weights, in local folders and on the hub."""

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

__all__ = ["HUB_OPTIONS", "Location", "check_safetensors", "read_tensors"]

# What `from_pretrained` takes that says where files lie, and how to get them.
HUB_OPTIONS = frozenset(
    {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token", "variant"}
)


@dataclass(frozen=True)
class Location:
    """A local folder, or else a repository on the hub.

    Attributes:
        name: Path of the folder or name of the repository.
        options: Those of `HUB_OPTIONS` that the user gave.
    """

    name: str
    options: Mapping[str, Any]

    def file(self, filename: str) -> Path | None:
        """Path of a file, downloaded if need be; `None` if there is none of that name, or none within reach.

        Raises:
            OSError: Neither a folder nor a repository.
        """
        try:
            found = self._cached_file(filename, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            if isinstance(error.__cause__, HFValidationError):
                raise FileNotFoundError(f"{self.name} is no folder, no file, and no name of a repository.") from error
            raise
        return None if found is None else Path(found)

    def absence(self, filename: str, message: str) -> Exception:
        """The error to raise where `filename` and all that could stand for it are nowhere to be found.

        Returns:
            A `ValueError` with the message; an `OSError` if nobody knows, because the hub is out of reach.
        """
        if not Path(self.name).is_dir():
            try:
                self._cached_file(filename)
            except OSError as error:
                if isinstance(error.__cause__, LocalEntryNotFoundError):
                    return OSError(f"Cannot find {self.name}: {error}")
        return ValueError(message)

    def _cached_file(self, filename: str, **options: Any) -> str | None:
        options |= {key: value for key, value in self.options.items() if key != "variant"}
        return cached_file(self.name, filename, **options)

    def json(self, filename: str) -> dict[str, Any] | None:
        """Contents of a JSON file, `None` if there is none of that name.

        Raises:
            ValueError: The file is no JSON object.
        """
        path = self.file(filename)
        if path is None:
            return None
        try:
            contents = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no valid JSON ({error}); download or save it again.") from error
        if not isinstance(contents, dict):
            raise ValueError(f"{path} holds {type(contents).__name__}, not a JSON object; download or save it again.")
        return contents

    def weights(self, *filenames: str) -> list[Path]:
        """The first of the files that exists, or the parts of it if it is split, named by `<file>.index.json`.

        With the option `variant`, that word stands in front of the suffix, as in `model.fp16.safetensors`.

        Raises:
            ValueError: None of the files is there, or one of the parts is not.
            OSError: The same, while the hub is out of reach.
        """
        for filename in filenames:
            if path := self.file(self._variant(filename)):
                return [path]
            if index := self.json(self._variant(f"{filename}.index.json")):
                parts = {part: self.file(part) for part in sorted(set(index["weight_map"].values()))}
                if missing := [part for part, path in parts.items() if path is None]:
                    message = f"{self.name} lacks {missing}, which {filename}.index.json names; get them too."
                    raise self.absence(missing[0], message)
                return [path for path in parts.values() if path is not None]
        names = [self._variant(filename) for filename in filenames]
        raise self.absence(names[0], f"{self.name} holds no weights: none of the files {names}, whole or in parts.")

    def _variant(self, filename: str) -> str:
        stem, _, suffix = filename.rpartition(".")
        return f"{stem}.{self.options['variant']}.{suffix}" if self.options.get("variant") else filename


def read_tensors(paths: Iterable[Path], skip: Callable[[str], bool] = lambda name: False) -> dict[str, Tensor]:
    """Read the tensors of one or more files.

    Args:
        paths: Files in safetensors format by the suffix `.safetensors`, others pickled by `torch.save`. Of a pickle
            nothing but tensors and plain containers is read.
        skip: Says of a tensor's name whether to leave that tensor out.

    Raises:
        ValueError: A file is truncated, damaged, or holds something else than named tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _read_safetensors(path, skip) if path.suffix == ".safetensors" else _read_pickle(path, skip)
    return tensors


def check_safetensors(paths: Iterable[Path]) -> None:
    """Refuse files that are truncated or not in safetensors format; reads their headers alone.

    Raises:
        ValueError: Names the file.
    """
    for path in paths:
        _read_safetensors(path, skip=lambda name: True)


def _read_safetensors(path: Path, skip: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if not skip(name)}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(
            f"{path} is truncated, damaged or not in safetensors format ({error}). Download or save it again."
        ) from error


def _read_pickle(path: Path, skip: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated, damaged, or holds more than tensors, which is not read for safety. Download it "
            "again, or save the model's state_dict() alone."
        ) from error
    if not isinstance(contents, Mapping) or not all(isinstance(value, Tensor) for value in contents.values()):
        raise ValueError(f"{path} holds no tensors by name at its top level; save the model's state_dict() alone.")
    return {name: value for name, value in contents.items() if not skip(name)}
