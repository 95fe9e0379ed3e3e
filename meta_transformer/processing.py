"""`MetaTransformerProcessor`: one processor for any subset of the modalities."""

import inspect
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

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
        return [name for modality in self.processors for name in MODALITIES[modality].model_input_names]

    def tokenizer_configs(self) -> dict[str, dict[str, Any]]:
        """`modalities` for a `MetaTransformerConfig` whose tokenizers fit these processors."""
        return {modality: processor.tokenizer_config() for modality, processor in self.processors.items()}

    def __call__(self, *, return_tensors: str | None = "pt", **inputs: Any) -> BatchFeature:
        """Process samples of one or more modalities.

        Args:
            return_tensors: `"pt"` or `"np"`.
            inputs: By modality, one sample or a list of them, as that modality's processor takes them; by
                `<modality>_kwargs`, a dict of further arguments for that processor; and any argument that a processor
                in use takes, such as `sampling_rate`.

        Returns:
            The tensors of all modalities together.

        Raises:
            ValueError: An unknown modality, one without processor here, no sample, or different numbers of samples.
            TypeError: An argument that none of the processors in use takes.
        """
        samples = {modality: inputs.pop(modality) for modality in list(inputs) if modality in MODALITIES}
        samples = {modality: value for modality, value in samples.items() if value is not None}
        if absent := [modality for modality in samples if modality not in self.processors]:
            raise ValueError(f"No processor for {absent} here, only for {list(self.processors)}.")
        if not samples and not inputs:
            raise ValueError(f"Nothing to process. Give samples of at least one of {list(self.processors)}.")
        arguments = self._route(samples, inputs)
        batch = BatchFeature()
        sizes: dict[str, int] = {}
        for modality, value in samples.items():
            with torch.autocast("cpu", enabled=False):  # raw data is processed in full precision wherever it happens
                features = self.processors[modality](value, return_tensors=return_tensors, **arguments[modality])
            sizes[modality] = len(next(iter(features.values())))
            batch.update(features)
        if len(set(sizes.values())) > 1:
            raise ValueError(f"All modalities must have the same number of samples, got {sizes}.")
        return batch

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
