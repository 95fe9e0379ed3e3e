"""The data collator: raw samples of any modality to a batch of tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..processing import MetaTransformerProcessor

__all__ = ["DataCollatorForMetaTransformer"]

_LABEL_NAMES = ("labels", "label", "label_ids")


@dataclass
class DataCollatorForMetaTransformer:
    """Process the raw samples of a batch together, so that they are padded to the longest of the batch alone.

    For `Trainer`, set `remove_unused_columns=False`: a data set's columns are modalities here, not model inputs.

    Attributes:
        processor: What turns raw samples into tensors.
        processor_kwargs: Arguments of the processor's call, such as `{"sampling_rate": 16_000}`.
    """

    processor: MetaTransformerProcessor
    processor_kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            samples: Each a raw sample by modality, with its label under `labels`, `label` or `label_ids` if it has one.

        Returns:
            Model inputs, and `labels`.

        Raises:
            ValueError: No sample, samples that hold different modalities, or none that the processor knows.
        """
        if not samples:
            raise ValueError("Cannot make a batch of no samples.")
        known = self.processor.processors
        modalities = [modality for modality in known if any(modality in sample for sample in samples)]
        if not modalities:
            raise ValueError(
                f"Samples have the keys {sorted(samples[0])}, but none of the modalities of the processor, "
                f"{list(self.processor.processors)}; rename the data set's columns to these."
            )
        try:
            raw: dict[str, Any] = {modality: [sample[modality] for sample in samples] for modality in modalities}
        except KeyError as error:
            raise ValueError(f"Some samples of the batch have modality {error}, and some have not.") from error
        batch = dict(self.processor(**raw, **self.processor_kwargs))
        for name in _LABEL_NAMES:
            if name in samples[0]:
                batch["labels"] = _stack_labels(name, samples)
        return batch


def _stack_labels(name: str, samples: list[Mapping[str, Any]]) -> Tensor:
    try:
        return torch.stack([torch.as_tensor(sample[name]) for sample in samples])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        values = [sample.get(name) for sample in samples[:3]]
        raise ValueError(
            f"The labels under {name!r}, {values} and so on, make no tensor ({error}). Give every sample a number, or "
            "numbers of the same shape; turn class names into numbers with config.label2id."
        ) from error
