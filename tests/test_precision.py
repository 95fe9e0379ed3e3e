"""Models in bfloat16 and int8, beside what float32 gives and beside the definition of dynamic quantisation."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.precision import set_precision

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
int8 = pytest.mark.skipif(
    not {"x86", "fbgemm", "onednn"} & set(torch.backends.quantized.supported_engines), reason="no int8 arithmetic"
)


def make_model() -> MetaTransformerForClassification:
    torch.manual_seed(0)
    config = MetaTransformerConfig(**TINY, modalities=["time_series"], num_labels=5)
    model = MetaTransformerForClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def values(count: int = 8) -> Tensor:
    return torch.randn(count, 64, 3, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: MetaTransformerForClassification) -> Tensor:
    return model(past_values=values()).logits.float()


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("int8", marks=int8)])
def test_features_stay_close_to_those_of_float32(precision: str) -> None:
    model = make_model()
    exact = model.get_features(past_values=values())
    close = set_precision(copy.deepcopy(model), precision).get_features(past_values=values()).float()
    assert not torch.equal(close, exact), "the premise: it does compute otherwise"
    assert functional.cosine_similarity(close, exact).min() > 0.99


@int8
@torch.no_grad()
def test_a_layer_multiplies_rounded_weights_and_rounded_values() -> None:
    """The definition: a scale for each channel of weights, and one of 7 bits for all values."""
    model = make_model()
    linear = model.model.encoder.layers[0].mlp.fc1
    x = torch.randn(10, 32)
    weight, bias = linear.weight.clone(), linear.bias.clone()
    set_precision(model, "int8")
    scale = weight.abs().amax(dim=1, keepdim=True) / 127.5
    rounded = (weight / scale).round().clamp(-128, 127) * scale
    step = (x.max().clamp(min=0) - x.min().clamp(max=0)) / 127
    expected = functional.linear(x, rounded, bias)
    error = (model.model.encoder.layers[0].mlp.fc1(x) - expected).abs()
    assert (error <= step * rounded.abs().sum(dim=1)).all()  # each value is off by a step at most
    assert error.mean() < 0.05 * expected.abs().mean()


@int8
def test_int8_changes_the_trunk_alone() -> None:
    model = make_model()
    others = {name: value.clone() for name, value in model.state_dict().items() if "encoder.layers" not in name}
    after = set_precision(model, "int8").state_dict()
    assert all(torch.equal(value, after[name]) for name, value in others.items())


@int8
@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub"])
def test_a_model_in_int8_is_not_saved(method: str, tmp_path: Path) -> None:
    model = set_precision(make_model(), "int8")
    with pytest.raises(ValueError, match="Save it before set_precision"):
        getattr(model, method)(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@int8
def test_int8_twice_is_refused() -> None:
    model = set_precision(make_model(), "int8")
    with pytest.raises(ValueError, match="load it again"):
        set_precision(model, "bfloat16")


@int8
def test_a_headless_model_can_be_in_int8() -> None:
    config = MetaTransformerConfig(**TINY, modalities=["time_series"])
    model = set_precision(MetaTransformerModel(config), "int8")
    assert model.get_features(past_values=values()).isfinite().all()


def test_float32_undoes_bfloat16_but_for_the_rounding() -> None:
    model = make_model()
    exact = logits(model)
    again = set_precision(set_precision(model, "bfloat16"), "float32")
    assert again.dtype == torch.float32
    torch.testing.assert_close(logits(again), exact, rtol=0.1, atol=0.05)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of .* got 'int4'"):
        set_precision(make_model(), "int4")


@pytest.mark.gpu
def test_int8_on_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="CPUs alone"):
        set_precision(make_model().cuda(), "int8")
