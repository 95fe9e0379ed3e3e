"""The data collator: raw samples of any modality to a batch of tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..heads.base import stack_labels
from ..modeling import MetaTransformerForTask
from ..processing import MetaTransformerProcessor
from ..registry import HEADS

__all__ = ["DataCollatorForMetaTransformer"]

_LABEL_NAMES = ("labels", "label", "label_ids")


@dataclass
class DataCollatorForMetaTransformer:
    """Process the raw samples of a batch together, so that they are padded to the longest of the batch alone.

    For `Trainer`, set `remove_unused_columns=False`: a data set's columns are modalities here, not model inputs.

    Attributes:
        processor: What turns raw samples into tensors.
        processor_kwargs: Arguments of the processor's call, such as `{"sampling_rate": 16_000}`.
        collate_labels: What makes the labels of a batch from a list of labels: `model.head.label_collator()`. By
            default they are stacked, which is right for labels of one shape.
    """

    processor: MetaTransformerProcessor
    processor_kwargs: dict[str, Any] = field(default_factory=dict)
    collate_labels: Callable[[list[Any]], Any] = stack_labels

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch.

        Args:
            samples: Each a raw sample by modality, with its label under `labels`, `label` or `label_ids` if it has one.
                Modalities may differ from sample to sample; see `MetaTransformerProcessor`.

        Returns:
            Model inputs, and `labels`. What heads take beside labels, such as `future_time_features`, goes along under
            its own name.

        Raises:
            ValueError: No sample, or one without any modality that the processor knows.
        """
        if not samples:
            raise ValueError("Cannot make a batch of no samples.")
        known = self.processor.processors
        modalities = [modality for modality in known if any(modality in sample for sample in samples)]
        if not modalities:
            raise ValueError(
                f"Samples have the keys {sorted(samples[0])}, but none of the modalities of the processor, "
                f"{list(self.processor.processors)}; rename the data set's columns to these, and with "
                "Trainer set remove_unused_columns=False."
            )
        raw: dict[str, Any] = {modality: [sample.get(modality) for sample in samples] for modality in modalities}
        batch = {**self.processor(**raw, **self.processor_kwargs), **self.collate_others(samples)}
        # The longest first: accelerate cuts streamed batches to the rows of their first tensor.
        return dict(sorted(batch.items(), key=lambda each: -len(each[1]) if isinstance(each[1], Tensor) else 0))

    def collate_others(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What stands beside the modalities: `labels`, and what heads take of their own."""
        batch = {}
        for name in _LABEL_NAMES:
            if name in samples[0]:
                batch["labels"] = _collate(name, samples, self.collate_labels)
        for name in (name for head in HEADS for name in head.model_input_names if name in samples[0]):
            batch[name] = _collate(name, samples, stack_labels)
        return batch

    @classmethod
    def for_model(
        cls, model: MetaTransformerForTask, processor: MetaTransformerProcessor, **processor_kwargs: Any
    ) -> "DataCollatorForMetaTransformer":
        """A collator that makes labels as the model's head takes them; arguments as of the class."""
        return cls(processor, processor_kwargs, model.head.label_collator())


def _collate(name: str, samples: Sequence[Mapping[str, Any]], collate: Callable[[list[Any]], Any]) -> Any:
    try:
        return collate([sample[name] for sample in samples])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        values = str([sample.get(name) for sample in samples[:3]])
        raise ValueError(
            f"What stands under {name!r}, {values[:200]} and so on, makes no batch ({error}). Give every sample a "
            "number, or numbers of the same shape, or what the task takes, with DataCollatorForMetaTransformer."
            "for_model; turn class names into numbers with config.label2id."
        ) from error
