"""The cases of the generic suite: every registered head on every registered modality, at a tiny size."""

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForTask,
    MetaTransformerModel,
    MetaTransformerProcessor,
)
from meta_transformer.registry import HEADS, MODALITIES, list_modalities
from meta_transformer.sequence import Layout
from meta_transformer.training import DataCollatorForMetaTransformer

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
        return copy.deepcopy(fitted(self.modality))

    def batch(self, count: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
        return copy.deepcopy(processed(self.modality, count, seed))

    def rows(self, count: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
        """The samples of `batch`, each processed alone."""
        return copy.deepcopy(processed_alone(self.modality, count, seed))

    def config(self, **options: Any) -> MetaTransformerConfig:
        heads = {self.head: HEADS[self.head].head_class.dummy_config()} if self.head else {}
        own = {"modalities": self.processor().tokenizer_configs(), "heads": heads}
        return MetaTransformerConfig(**{**TINY, **own, **options})

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

    @staticmethod
    def prediction(output: Any) -> torch.Tensor:
        """The first tensor of a model's output behind the loss."""
        return tree_leaves({name: value for name, value in output.items() if name != "loss"})[0]

    def label_rows(self, count: int = 4) -> list[Any]:
        """The label of each sample of `rows`."""
        model = self.model()
        sequences = [model.model.tokenize(**row) for row in self.rows(count)]
        # Of a batch, so that samples get different labels; a row alone says which shape they have.
        together = model.head.dummy_labels(model.model.tokenize(**self.batch(count)))
        alone = [model.head.dummy_labels(sequence)[0] for sequence in sequences]
        return [self.cut(label, own) for label, own in zip(together, alone, strict=True)]

    def labels(self, count: int = 4) -> Any:
        return self.model().head.label_collator()(self.label_rows(count))

    def raw_rows(self, count: int = 4) -> list[dict[str, Any]]:
        """Raw samples, each a dict."""
        samples = self.samples(count)
        rows = samples.to_dict("records") if hasattr(samples, "to_dict") else list(samples)
        return [{self.modality: row} for row in rows]

    def data(self, count: int = 4) -> list[dict[str, Any]]:
        """Raw samples with their labels, as the collator takes them."""
        labels = self.label_rows(count)
        return [{**row, "labels": label} for row, label in zip(self.raw_rows(count), labels, strict=True)]

    @staticmethod
    def cut(whole: Any, like: Any) -> Any:
        """A tensor without what was padded to it, by one that was not; anything else as it is."""
        if not isinstance(whole, torch.Tensor):
            return whole
        return whole[tuple(slice(size) for size in like.shape)]

    def collator(self) -> DataCollatorForMetaTransformer:
        return DataCollatorForMetaTransformer.for_model(self.model(), self.processor(), **self.raw)


# What most tests begin with is made once for each modality.
@cache
def fitted(modality: str) -> MetaTransformerProcessor:
    case = Case(modality)
    processor = MODALITIES[modality].processor_class()
    processor.fit(case.samples(16), **case.raw)
    return MetaTransformerProcessor(**{modality: processor})


@cache
def processed(modality: str, count: int, seed: int) -> dict[str, torch.Tensor]:
    case = Case(modality)
    return dict(fitted(modality)(**{modality: case.samples(count, seed)}, **case.raw))


@cache
def processed_alone(modality: str, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    case, processor = Case(modality), fitted(modality)
    samples = case.samples(count, seed)
    rows = [samples.iloc[[i]] if hasattr(samples, "iloc") else [samples[i]] for i in range(count)]
    return [dict(processor(**{modality: row}, **case.raw)) for row in rows]


@pytest.fixture(params=list_modalities())
def modality_case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@cache
def layout(modality: str) -> Layout | None:
    case = Case(modality)
    with torch.no_grad():
        return MetaTransformerModel(case.config()).tokenize(**case.rows(1)[0]).segments[0].layout


def pairs() -> list[tuple[str, str]]:
    """Every modality with every head that accepts it."""
    return [
        (modality, head.name)
        for modality in list_modalities()
        for head in HEADS
        if not head.head_class.layouts or head.head_class.accepts(layout(modality))
    ]


PAIRS = pairs()
SEPARABLE = [(modality, head) for modality, head in PAIRS if not HEADS[head].head_class.couples_samples]


def cover(cases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Few of the pairs that have every modality and every head: heads with the least choice take theirs first."""
    of_head = {head: [pair for pair in cases if pair[1] == head] for _, head in cases}
    found: list[tuple[str, str]] = []
    for own in sorted(of_head.values(), key=len):
        free = [pair for pair in own if pair[0] not in {modality for modality, _ in found}]
        found.append((free or own)[0])
    missing = {modality for modality, _ in cases} - {modality for modality, _ in found}
    return found + [next(pair for pair in cases if pair[0] == modality) for modality in missing]


def by_tier(cases: list[tuple[str, str]]) -> dict[str, Any]:
    """Arguments of a fixture: each case, marked slow unless it is needed to cover all modalities and heads."""
    fast = cover(cases)
    params = [pytest.param(pair, marks=() if pair in fast else pytest.mark.slow) for pair in cases]
    return {"params": params, "ids": ["-".join(pair) for pair in cases]}


@pytest.fixture(params=PAIRS, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


@pytest.fixture(**by_tier(PAIRS))
def costly_case(request: pytest.FixtureRequest) -> Case:
    """A case of a test that takes seconds."""
    return Case(*request.param)


@pytest.fixture(**by_tier(SEPARABLE))
def separable_case(request: pytest.FixtureRequest) -> Case:
    """A case whose loss is a sum over samples, of a test that takes seconds."""
    return Case(*request.param)
