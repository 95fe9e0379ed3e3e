"""What every processor is: raw samples of one modality in, a `BatchFeature` of padded tensors out."""

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, FeatureExtractionMixin

__all__ = ["ModalityProcessor", "errors_at", "pad_to_longest", "several"]


@contextmanager
def errors_at(place: str) -> Generator[None]:
    """Name the place in the errors of one sample: `ValueError`, of which `OSError` becomes one, and `TypeError`.

    Args:
        place: Such as `"audio[3]"`.
    """
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{place}: {error}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{place}: {error}") from error


def several(samples: Any, word: str) -> tuple[Any, Iterator[Any]]:
    """The first of several samples, and an iterator over all of them.

    Args:
        samples: A sequence or an iterator of them.
        word: What errors call them.

    Raises:
        ValueError: There is none.
        TypeError: Nothing that can be iterated over, or a table, which would give the names of its columns.
    """
    if hasattr(samples, "columns"):
        raise TypeError(f"{word} must be no table, got {type(samples).__name__}; give one column, such as table[name].")
    try:
        rest = iter(samples)
    except TypeError:
        raise TypeError(f"{word} must be a sample or a list of samples, got {type(samples).__name__}.") from None
    first = next(rest, rest)
    if first is rest:
        raise ValueError(f"{word} is an empty list; give at least one sample.")
    return first, chain([first], rest)


def pad_to_longest(samples: Sequence[Tensor], value: float = 0) -> tuple[Tensor, Tensor | None]:
    """Stack samples that differ in their first dimension.

    Args:
        samples: Each `(length, ...)`.
        value: What the padding is filled with.

    Returns:
        `(samples, longest, ...)`, and the mask `(samples, longest)`, true in the samples; `None` if none is padded.
    """
    lengths = torch.tensor([len(sample) for sample in samples])
    padded = pad_sequence(list(samples), batch_first=True, padding_value=value)
    ragged = bool((lengths != lengths[0]).any())
    return padded, torch.arange(padded.shape[1]) < lengths[:, None] if ragged else None


def _plain(value: Any) -> Any:
    """A setting without numpy's types, which JSON does not have."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


class ModalityProcessor(FeatureExtractionMixin):
    """Base of the processors. They run on the CPU and hold no weights, only settings that JSON can store.

    A subclass passes its settings, all of them keyword-only, to `super().__init__`; they become attributes and the
    saved state. What it learns from data in `fit` is kept in settings too, and set when all of it is known, so that a
    `fit` that fails changes nothing. It defines `__call__`, whose first parameter are the samples.
    """

    # Keyword arguments that `__call__` needs for what `dummy_samples` makes.
    dummy_call_kwargs: ClassVar[dict[str, Any]] = {}

    def __init__(self, **settings: Any) -> None:
        known = self._setting_names()
        if unknown := sorted(set(settings) - known - {"feature_extractor_type", "processor_class"}):
            raise TypeError(f"{type(self).__name__} has no setting {unknown}. It has {sorted(known)}.")
        super().__init__(**{name: _plain(value) for name, value in settings.items()})

    def to_dict(self) -> dict[str, Any]:
        """The settings; attributes that begin with an underscore are none."""
        return {name: value for name, value in super().to_dict().items() if name[0] != "_"}

    @classmethod
    def _setting_names(cls) -> set[str]:
        """The keyword-only parameters of `__init__`, and those that it passes on to the classes above."""
        classes = [each for each in cls.__mro__ if issubclass(each, ModalityProcessor)]
        parameters = [each for one in classes for each in inspect.signature(one.__init__).parameters.values()]
        return {each.name for each in parameters if each.kind == each.KEYWORD_ONLY}

    def __call__(self, samples: Any, *, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Turn one sample or a list of samples into tensors, the batch dimension first."""
        raise NotImplementedError(f"{type(self).__name__} defines no __call__.")

    def fit(self, samples: Any, **kwargs: Any) -> "ModalityProcessor":
        """Learn from training samples what the settings need, such as statistics; by default nothing is needed."""
        return self

    def tokenizer_config(self) -> dict[str, Any]:
        """The options of the tokenizer that follow from this processor, such as the number of columns of a table."""
        return {}

    @classmethod
    def for_tokenizer(cls, options: dict[str, Any]) -> "ModalityProcessor":
        """A processor with the defaults, except for settings that are options of the tokenizer too.

        Args:
            options: The tokenizer's, by name.
        """
        known = cls._setting_names()
        return cls(**{name: value for name, value in options.items() if name in known})

    def dummy_samples(self, batch_size: int, seed: int = 0) -> Any:
        """Raw samples of different sizes that this processor, as it is set and fitted, takes; made at random.

        Tests, dry runs and the snippets of model cards use them. A processor that has to be fitted makes samples to fit
        on as long as it is not.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no dummy_samples.")
