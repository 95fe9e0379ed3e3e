"""The one registry mechanism: what a modality and what a head is made of, under which word it is known.

A registration is the whole act of adding a modality or a head, from inside the package or from outside. Nothing else
enumerates modalities: configuration, processor, model, checkpoints and the generic tests all read these two registries.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .heads.base import HeadConfig, TaskHead
from .processors.base import ModalityProcessor
from .tokenizers.base import ModalityTokenizer, TokenizerConfig

__all__ = [
    "HEADS",
    "MODALITIES",
    "Head",
    "Modality",
    "Registry",
    "list_heads",
    "list_modalities",
    "register_head",
    "register_modality",
]


@dataclass(frozen=True)
class Modality:
    """What one modality consists of; see `register_modality`."""

    name: str
    processor_class: type[ModalityProcessor]
    tokenizer_class: type[ModalityTokenizer]

    @property
    def config_class(self) -> type[TokenizerConfig]:
        """The tokenizer's configuration class, as annotated on the tokenizer."""
        return self.tokenizer_class.config_class

    def is_earlier_version_of(self, other: "Modality") -> bool:
        """Whether the other is the same code run again, such as a cell of a notebook."""
        return _same_origin(self.tokenizer_class, other.tokenizer_class)

    @property
    def model_input_names(self) -> tuple[str, ...]:
        """The keyword tensors that the tokenizer takes, which are those that the processor makes."""
        return tuple(inspect.signature(self.tokenizer_class.forward).parameters)[1:]

    @property
    def samples_name(self) -> str:
        """The name of the tensor `(rows,)` that says which sample each row of the others belongs to."""
        return f"{self.name}_samples"

    @property
    def all_input_names(self) -> tuple[str, ...]:
        """The names of all its tensors that a model takes."""
        return (*self.model_input_names, self.samples_name)


@dataclass(frozen=True)
class Head:
    """What one head consists of; see `register_head`."""

    name: str
    head_class: type[TaskHead]

    @property
    def config_class(self) -> type[HeadConfig]:
        """The head's configuration class."""
        return self.head_class.config_class

    @property
    def model_input_names(self) -> tuple[str, ...]:
        """The keyword tensors that the head takes beside labels."""
        return self.head_class.model_input_names

    all_input_names = model_input_names

    def is_earlier_version_of(self, other: "Head") -> bool:
        """As of `Modality`."""
        return _same_origin(self.head_class, other.head_class)


def _same_origin(first: type, second: type) -> bool:
    """Whether two classes are definitions of the same name in the same module."""
    return (first.__module__, first.__qualname__) == (second.__module__, second.__qualname__)


Entry = TypeVar("Entry", Modality, Head)


class Registry(Generic[Entry]):
    """A dictionary that refuses duplicates and whose error for an unknown key lists the known ones."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry) -> None:
        if not entry.name.isidentifier() or entry.name != entry.name.lower():
            raise ValueError(
                f"{self.kind} name must be a lower-case identifier such as 'point_cloud', got {entry.name!r}."
            )
        earlier: Any = self._entries.get(entry.name)
        if earlier is not None and not earlier.is_earlier_version_of(entry):
            raise ValueError(f"The {self.kind} {entry.name!r} is registered already; choose another name.")
        self._entries[entry.name] = entry

    def remove(self, name: str) -> None:
        del self._entries[self[name].name]

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            known = ", ".join(repr(key) for key in self._entries)
            raise ValueError(
                f"Unknown {self.kind} {name!r}. Known are: {known}. Import the package that registers it, or call "
                f"register_{self.kind}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        return list(self._entries)


MODALITIES: Registry[Modality] = Registry("modality")
HEADS: Registry[Head] = Registry("head")


def register_modality(
    name: str, *, processor_class: type[ModalityProcessor], tokenizer_class: type[ModalityTokenizer]
) -> None:
    """Make a modality known under `name`: to configurations, processors, models and their checkpoints.

    Args:
        name: The one word for the modality, a lower-case identifier. It becomes the processor's keyword argument.
        processor_class: A `ModalityProcessor`: raw samples in, padded tensors out.
        tokenizer_class: A `ModalityTokenizer`: those tensors in, `TokenSequence` out. The parameters of its `forward`
            are the modality's model inputs.

    Raises:
        ValueError: The name is taken or no identifier, or another modality has a model input of the same name.
    """
    entry = Modality(name, processor_class, tokenizer_class)
    for other in (other for other in MODALITIES if other.name != name):
        if shared := set(entry.all_input_names) & set(other.all_input_names):
            raise ValueError(
                f"The model inputs {sorted(shared)} of modality {name!r} belong to {other.name!r} already; "
                f"rename those parameters of {tokenizer_class.__name__}.forward."
            )
    MODALITIES.add(entry)


def register_head(name: str, *, head_class: type[TaskHead]) -> None:
    """Make a head known under `name`, the word that its model class and its checkpoints refer to it by.

    Args:
        name: The task, a lower-case identifier such as `"classification"`.
        head_class: A `TaskHead`: encoded `TokenSequence` in, output with loss and prediction out.

    Raises:
        ValueError: The name is taken or no identifier.
    """
    HEADS.add(Head(name, head_class))


def list_modalities() -> list[str]:
    """The names of all registered modalities."""
    return MODALITIES.names()


def list_heads() -> list[str]:
    """The names of all registered heads."""
    return HEADS.names()
