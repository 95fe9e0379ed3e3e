"""For every modality: whatever lies beside a sample, and however the trunk runs, a sample's numbers are its own."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerModel, MetaTransformerProcessor
from meta_transformer.registry import MODALITIES, list_modalities

from .conftest import TINY, Case

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_execution_equals_padded(modality_case, implementation):
    outputs = []
    for packing in (True, False):
        torch.manual_seed(0)
        options = {"packing": packing, "attn_implementation": implementation, "initializer_range": 0.2}
        model = MetaTransformerModel(modality_case.config(**options)).eval()
        outputs.append(model(**modality_case.batch(), output_hidden_states=True))
    packed, padded = outputs
    keep = slice(None) if padded.attention_mask is None else padded.attention_mask
    assert_close(packed.pooler_output, padded.pooler_output, **TOLERANCE)
    for one, other in zip(packed.hidden_states, padded.hidden_states, strict=True):
        assert_close(one[keep], other[keep], rtol=1e-4, atol=1e-4)


def other(modality: str) -> str:
    """The next modality in the registry."""
    names = list_modalities()
    return names[(names.index(modality) + 1) % len(names)]


class Pair:
    """One modality beside another one, in a batch of samples that have both, the first, the second, two of the first.

    The second sample of the two has two segments of the first modality.
    """

    def __init__(self, modality: str) -> None:
        self.cases = {name: Case(name) for name in (modality, other(modality))}
        self.processor = MetaTransformerProcessor(
            **{name: case.processor().processors[name] for name, case in self.cases.items()}
        )
        first, second = ([row[name] for row in case.raw_rows(4)] for name, case in self.cases.items())
        one, two = self.cases
        self.samples = [{one: first[0], two: second[0]}, {one: first[1]}, {two: second[1]}]
        self.samples.append({one: (first[2], first[3]), two: second[2]})

    def batch(self, *numbers: int) -> dict[str, torch.Tensor]:
        arguments = {f"{name}_kwargs": case.raw for name, case in self.cases.items()}
        return dict(self.processor([self.samples[number] for number in numbers], **arguments))

    def model(self, **options) -> MetaTransformerModel:
        torch.manual_seed(0)
        config = MetaTransformerConfig(**{**TINY, "modalities": self.processor.tokenizer_configs(), **options})
        model = MetaTransformerModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model


@pytest.fixture(params=list_modalities())
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def gradients(model: MetaTransformerModel, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, TINY["hidden_size"])
    sum((model(**batch).pooler_output * weights).sum() for batch in batches).backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_alone_is_padded_is_packed_is_shuffled_is_among_others(pair, pooling):
    model = pair.model(pooling=pooling)
    alone = torch.cat([model(**pair.batch(number)).pooler_output for number in range(4)])
    for packing in (True, False):
        model.config.packing = packing
        for numbers in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3], [1, 1, 0]):
            assert_close(model(**pair.batch(*numbers)).pooler_output, alone[numbers], **TOLERANCE)


def test_gradients_of_a_mixed_batch_are_those_of_its_samples_alone(pair):
    model = pair.model()
    alone = gradients(model, [pair.batch(number) for number in range(4)])
    for packing in (True, False):
        model.config.packing = packing
        together = gradients(model, [pair.batch(3, 1, 0, 2)])
        assert together.keys() == alone.keys()
        for name, gradient in alone.items():
            scale = gradient.abs().max().clamp(min=1).item()
            assert_close(
                together[name] / scale, gradient / scale, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_names_of_sample_numbers_are_known_to_the_model(modality_case):
    batch = modality_case.batch()
    name = MODALITIES[modality_case.modality].samples_name
    model = MetaTransformerModel(modality_case.config()).eval()
    found = model(**batch, **{name: torch.arange(4)}).pooler_output
    assert_close(found, model(**batch).pooler_output, **TOLERANCE)
