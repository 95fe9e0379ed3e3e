"""`MetaTransformerProcessor`: one processor for any subset of the modalities."""

import inspect
from collections.abc import Mapping, Sequence
from numbers import Number
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import BatchFeature, ProcessorMixin

from .checkpoints.atomic import atomic_folder, refuse_unfinished
from .checkpoints.foreign import read_foreign
from .checkpoints.hub import push_files
from .configuration import MetaTransformerConfig
from .processors.base import ModalityProcessor
from .registry import MODALITIES

__all__ = ["MetaTransformerProcessor"]


class MetaTransformerProcessor(ProcessorMixin):
    """Raw data of several modalities in, one `BatchFeature` of tensors out, ready for `model(**batch)`.

    Args:
        processors: A processor for each modality, by its name; `True` stands for that modality's defaults.

    Raises:
        ValueError: A name is no registered modality, or there is none at all.
    """

    def __init__(self, **processors: ModalityProcessor | bool) -> None:
        if not processors:
            raise ValueError(f"Give a processor for at least one modality of {MODALITIES.names()}.")
        self.processors: dict[str, ModalityProcessor] = {}
        for modality, processor in processors.items():
            processor_class = MODALITIES[modality].processor_class
            processor = processor_class() if processor is True else processor
            if not isinstance(processor, processor_class):
                raise TypeError(f"{modality} must be a {processor_class.__name__} or True, got {processor!r}.")
            self.processors[modality] = processor
        self.chat_template = None
        # Trainer asks every processor for the special tokens of its tokenizer: there are none.
        self.tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)

    def __getattr__(self, name: str) -> ModalityProcessor:
        try:
            return self.__dict__["processors"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute or modality {name!r}.") from None

    @classmethod
    def get_attributes(cls) -> list[str]:
        """No fixed attributes: which modalities there are differs from processor to processor."""
        return []

    @property
    def model_input_names(self) -> list[str]:
        """The names of all tensors that this processor may return."""
        return [name for modality in self.processors for name in MODALITIES[modality].all_input_names]

    def tokenizer_configs(self) -> dict[str, dict[str, Any]]:
        """`modalities` for a `MetaTransformerConfig` whose tokenizers fit these processors."""
        return {modality: processor.tokenizer_config() for modality, processor in self.processors.items()}

    def __call__(
        self, rows: Sequence[Mapping[str, Any]] | None = None, *, return_tensors: str | None = "pt", **inputs: Any
    ) -> BatchFeature:
        """Process samples of one or more modalities.

        Args:
            rows: Samples that may have different modalities, each a dict by modality. `None` and what is not there are
                the same. A tuple holds several of one modality, such as three images of one sample.
            return_tensors: `"pt"` or `"np"`.
            inputs: Without `rows`, the same by columns: by modality, one sample or a list of them, as that modality's
                processor takes them, `None` or a tuple in it as above. By `<modality>_kwargs`, a dict of further
                arguments for that processor; and any argument that a processor in use takes, such as `sampling_rate`.

        Returns:
            The tensors of all modalities together. Where not every sample has exactly one of a modality, the modality's
            tensors hold those that there are, and `<modality>_samples`, `(rows,)`, which sample each belongs to.

        Raises:
            ValueError: An unknown modality, one without processor here, no sample, a sample without any modality, or
                different numbers of samples.
            TypeError: Rows that are no dicts, or an argument that none of the processors in use takes.
        """
        if rows is not None:
            inputs |= self._columns(rows, inputs)
        samples = {modality: inputs.pop(modality) for modality in list(inputs) if modality in MODALITIES}
        samples = {modality: value for modality, value in samples.items() if value is not None}
        if absent := [modality for modality in samples if modality not in self.processors]:
            raise ValueError(f"No processor for {absent} here, only for {list(self.processors)}.")
        if not samples and not inputs:
            raise ValueError(f"Nothing to process. Give samples of at least one of {list(self.processors)}.")
        arguments = self._route(samples, inputs)
        batch = BatchFeature()
        sizes: dict[str, int] = {}
        present: dict[str, list[int] | None] = {}
        for modality, value in samples.items():
            value, owners, sizes[modality] = _flatten(value)
            present[modality] = owners
            if owners == []:
                continue  # of all samples, none has it
            with torch.autocast("cpu", enabled=False):  # raw data is processed in full precision wherever it happens
                features = self.processors[modality](value, return_tensors=return_tensors, **arguments[modality])
            made = len(next(iter(features.values())))
            if owners is not None and made != len(owners):
                raise ValueError(
                    f"{modality} holds {len(owners)} samples, but they make {made}: a tuple stands for several; "
                    "give one sample as a list or an array."
                )
            sizes[modality] = sizes[modality] or made
            batch.update(features)
            if owners is not None:
                numbers = np.array(owners)
                batch[MODALITIES[modality].samples_name] = (
                    torch.from_numpy(numbers) if return_tensors == "pt" else numbers
                )
        self._check_sizes(sizes, present)
        return batch

    @staticmethod
    def _check_sizes(sizes: dict[str, int], owners: dict[str, list[int] | None]) -> None:
        if len(set(sizes.values())) > 1:
            raise ValueError(f"All modalities must have the same number of samples, got {sizes}.")
        if any(own is None for own in owners.values()):
            return  # a modality that every sample has
        found = {number for own in owners.values() for number in own or ()}
        if empty := sorted(set(range(next(iter(sizes.values())))) - found):
            raise ValueError(f"The samples {empty} have no modality of {list(owners)}; leave them out.")

    def _columns(self, rows: Any, others: dict[str, Any]) -> dict[str, list[Any]]:
        """From samples by modality to modalities by sample."""
        if isinstance(rows, Mapping) or not isinstance(rows, Sequence) or isinstance(rows, str):
            raise TypeError(
                f"rows must be a list of samples, each a dict by modality, got {type(rows).__name__}; one sample is "
                "[{'image': picture}], columns are keywords: processor(image=[...])."
            )
        if not rows:
            raise ValueError("rows is an empty list; give at least one sample.")
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(f"rows[{number}] must be a dict by modality, got {type(row).__name__}.")
            if unknown := [name for name in row if name not in self.processors]:
                raise ValueError(
                    f"rows[{number}] has the keys {unknown}, for which there is no processor here, only for "
                    f"{list(self.processors)}."
                )
        modalities = [modality for modality in self.processors if any(modality in row for row in rows)]
        if both := [modality for modality in modalities if others.get(modality) is not None]:
            raise ValueError(f"{both} are in rows and beside them; give each modality once.")
        if not modalities:
            raise ValueError(f"No sample has any modality. Give at least one of {list(self.processors)}.")
        return {modality: [row.get(modality) for row in rows] for modality in modalities}

    def _route(self, samples: dict[str, Any], inputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Sort keyword arguments by the processor that takes them; those of modalities that are absent fall away."""
        arguments = {modality: dict(inputs.pop(f"{modality}_kwargs", None) or {}) for modality in self.processors}
        for name, value in inputs.items():
            takers = [
                modality
                for modality, processor in self.processors.items()
                if name in inspect.signature(type(processor).__call__).parameters
            ]
            if not takers:
                raise ValueError(
                    f"{name!r} is no modality, nor an argument of the processors here, {list(self.processors)}; known "
                    f"modalities are {MODALITIES.names()}."
                )
            for modality in takers:
                arguments[modality].setdefault(name, value)
        return {modality: arguments[modality] for modality in samples}

    def to_dict(self) -> dict[str, Any]:
        """The state, one block for each modality."""
        blocks = {modality: processor.to_dict() for modality, processor in self.processors.items()}
        return {"processor_class": type(self).__name__, "processors": blocks}

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Write `processor_config.json`, whole or not at all.

        Args:
            save_directory: A folder, made if absent.
            push_to_hub: Whether to upload what was written afterwards.
            options: With `push_to_hub`, `repo_id` (by default the name of the folder) and what `push_to_hub` takes.

        Returns:
            The paths of the files.
        """
        folder = Path(save_directory)
        with atomic_folder(folder) as staging:
            super().save_pretrained(staging)
            files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        if push_to_hub:
            push_files(folder, files, options.pop("repo_id", folder.resolve().name), **options)
        return [str(folder / name) for name in files]

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Upload to a repository of the hub, made if absent.

        To share model and processor together, pass the processor to the model's `push_to_hub`.

        Args:
            repo_id: `"owner/name"`, or a name in the own namespace.
            options: `private`, `token`, `revision`, `create_pr`, `commit_message`, `commit_description` as of the
                model's method.

        Returns:
            The commit: `oid`, `commit_url`, `pr_url`.
        """
        with TemporaryDirectory() as folder:
            files = [Path(path).relative_to(folder).as_posix() for path in self.save_pretrained(folder)]
            return push_files(Path(folder), files, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike | nn.Module, **kwargs: Any
    ) -> "MetaTransformerProcessor":
        """Load a saved processor, or the image preprocessing that belongs to foreign weights.

        Args:
            pretrained_model_name_or_path: A folder or a hub repository, of this package or of foreign weights; whatever
                `MetaTransformerModel.from_pretrained` takes.
            kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

        Returns:
            The processor; of foreign weights, one for images with the source's size, mean and deviation.

        Raises:
            ValueError: There is no processor, or the source's preprocessing cannot be expressed.
        """
        name, state = pretrained_model_name_or_path, {}
        refuse_unfinished(name, kwargs.get("subfolder"))
        if not isinstance(name, nn.Module) and not Path(name).is_file():
            state, _ = cls.get_processor_dict(name, **kwargs)
        if "processors" not in state:
            foreign = read_foreign(name, **kwargs)
            if foreign is None:
                raise ValueError(f"{name} holds no MetaTransformerProcessor: no block 'processors'.")
            return cls(image=MODALITIES["image"].processor_class(**foreign.image_processor))
        processors: dict[str, Any] = {
            modality: MODALITIES[modality].processor_class.from_dict(block)
            for modality, block in state["processors"].items()
        }
        return cls(**processors)

    @classmethod
    def from_config(cls, config: MetaTransformerConfig) -> "MetaTransformerProcessor":
        """A processor for each modality of `config`, made to fit its tokenizer; what has to be fitted is not."""
        processors: dict[str, Any] = {
            modality: MODALITIES[modality].processor_class.for_tokenizer(options.to_dict())
            for modality, options in config.modalities.items()
        }
        return cls(**processors)


_WHOLE = (str, bytes, bytearray, memoryview, tuple)  # sequences that are no list of samples


def _flatten(value: Any) -> tuple[Any, list[int] | None, int]:
    """The samples of one modality that there are.

    Args:
        value: As the modality's processor takes it; or a list in which `None` stands for no sample, and a tuple for
            several.

    Returns:
        What the processor takes; the sample that each belongs to, `None` if they are all there, one each; and how many
        samples there are, 0 if only the processor can tell.
    """
    if isinstance(value, Sequence) and not isinstance(value, _WHOLE):
        value = list(value)  # a column of a data set is none
    # Not sparse: the numbers of one sample, such as a series with gaps, or its points as tuples of numbers.
    sparse = isinstance(value, list) and any(each is None or _is_several(each) for each in value)
    if not sparse or any(isinstance(each, Number) for each in value):
        return value, None, 0
    several = [() if each is None else each if _is_several(each) else (each,) for each in value]
    owners = [number for number, own in enumerate(several) for _ in own]
    return [each for own in several for each in own], owners, len(value)


def _is_several(value: Any) -> bool:
    return type(value) is tuple and not any(isinstance(each, Number) for each in value)
