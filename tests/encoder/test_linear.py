"""Linear layers whose bfloat16 products a processor may have to take in float32."""

import pytest
import torch
from torch import Tensor, nn

from meta_transformer.encoder import linear
from meta_transformer.encoder.linear import Linear, to_computable

INPUT = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[True, False], ids=["with arithmetic", "without arithmetic"])
def computes(request, monkeypatch) -> bool:
    monkeypatch.setattr(linear, "_COMPUTES_BFLOAT16", request.param)
    return request.param


def pair(bias: bool = True) -> tuple[Linear, nn.Linear]:
    """Ours in bfloat16, and torch's in float64 with the same weights."""
    ours = Linear(16, 8, bias=bias).bfloat16()
    reference = nn.Linear(16, 8, bias=bias).double()
    reference.load_state_dict(ours.state_dict())
    return ours, reference


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16_is_float64_rounded_once(computes: bool, bias: bool) -> None:
    ours, reference = pair(bias)
    expected = reference(INPUT.bfloat16().double())
    output = ours(INPUT.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=1e-3)


def test_gradients_are_those_of_float64(computes: bool) -> None:
    ours, reference = pair()

    def gradients(module: nn.Module, tokens: Tensor) -> list[Tensor]:
        tokens.requires_grad_()
        module(tokens).square().sum().backward()
        return [tokens.grad.double(), *(parameter.grad.double() for parameter in module.parameters())]

    got, expected = gradients(ours, INPUT.bfloat16()), gradients(reference, INPUT.bfloat16().double())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * other.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_types_stay_as_they_are(computes: bool, dtype: torch.dtype) -> None:
    tensor = INPUT.to(dtype)
    assert to_computable(tensor) is tensor


def test_bfloat16_stays_where_there_is_arithmetic_for_it(monkeypatch) -> None:
    tensor = INPUT.bfloat16()
    monkeypatch.setattr(linear, "_COMPUTES_BFLOAT16", True)
    assert to_computable(tensor) is tensor
    monkeypatch.setattr(linear, "_COMPUTES_BFLOAT16", False)
    assert to_computable(tensor).dtype == torch.float32


def test_weights_have_the_names_of_torch() -> None:
    assert Linear(16, 8).state_dict().keys() == nn.Linear(16, 8).state_dict().keys()
