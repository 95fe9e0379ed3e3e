"""The cases of the generic suite: every registered head on every registered modality, at a tiny size."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerForTask, MetaTransformerProcessor
from meta_transformer.registry import HEADS, MODALITIES, list_heads, list_modalities

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@dataclass
class Case:
    """One modality, and a head unless the behaviour is the modality's alone."""

    modality: str
    head: str | None = None

    @property
    def raw(self) -> dict[str, Any]:
        """Arguments of a processor for samples of the modality, without the samples."""
        return dict(MODALITIES[self.modality].processor_class.dummy_call_kwargs)

    def samples(self, count: int = 4, seed: int = 0) -> Any:
        return MODALITIES[self.modality].processor_class().dummy_samples(count, seed)

    def processor(self) -> MetaTransformerProcessor:
        processor = MODALITIES[self.modality].processor_class()
        processor.fit(self.samples(16), **self.raw)
        return MetaTransformerProcessor(**{self.modality: processor})

    def batch(self, count: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
        return dict(self.processor()(**{self.modality: self.samples(count, seed)}, **self.raw))

    def rows(self, count: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
        """The samples of `batch`, each processed alone."""
        processor, samples = self.processor(), self.samples(count, seed)
        rows = [samples.iloc[[i]] if hasattr(samples, "iloc") else [samples[i]] for i in range(count)]
        return [dict(processor(**{self.modality: row}, **self.raw)) for row in rows]

    def config(self, **options: Any) -> MetaTransformerConfig:
        return MetaTransformerConfig(**{**TINY, "modalities": self.processor().tokenizer_configs(), **options})

    @property
    def model_class(self) -> type[MetaTransformerForTask]:
        """The public class of the head."""
        return next(each for each in MetaTransformerForTask.__subclasses__() if each.head_name == self.head)

    def model(self, **options: Any) -> MetaTransformerForTask:
        torch.manual_seed(0)
        return self.model_class(self.config(**options)).eval()

    def lively_model(self, **options: Any) -> MetaTransformerForTask:
        """A model in which every weight matters: tables and projections too have entries of about 0.2."""
        model = self.model(**options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model

    def labels(self, count: int = 4) -> torch.Tensor:
        return HEADS[self.head].head_class.dummy_labels(count, self.config())


@pytest.fixture(params=list_modalities())
def modality_case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(params=[(modality, head) for modality in list_modalities() for head in list_heads()], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)
