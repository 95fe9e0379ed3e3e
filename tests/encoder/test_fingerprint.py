"""The fingerprint of weights: a function of names, shapes, types and bits, and of nothing else."""

import hashlib
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.encoder import fingerprint

WEIGHTS = {"a": torch.tensor([[1.0, -2.5], [0.0, 8.0]]), "b": torch.tensor([3, 4])}


def make_config() -> MetaTransformerConfig:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return MetaTransformerConfig(**shape, modalities={"image": {"image_size": 16, "patch_size": 8}})


def test_is_the_hash_of_the_written_out_bytes() -> None:
    """Task packs store fingerprints, so that the recipe must never change."""
    recipe = b"a (2, 2) torch.float32" + struct.pack("<4f", 1, -2.5, 0, 8)
    recipe += b"b (2,) torch.int64" + struct.pack("<2q", 3, 4)
    assert fingerprint(WEIGHTS) == hashlib.sha256(recipe).hexdigest()


def test_does_not_depend_on_order_or_memory_layout() -> None:
    columns_first = WEIGHTS["a"].T.contiguous().T.requires_grad_()
    every_second = torch.tensor([3, 0, 4, 0])[::2]
    other = {"b": every_second, "a": columns_first}
    assert fingerprint(other) == fingerprint(WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        {"c": WEIGHTS["b"]},
        {"a": torch.tensor([[1.0, -2.5], [-0.0, 8.0]])},
        {"a": torch.tensor([[1.0, -2.5000002], [0.0, 8.0]])},
        {"a": WEIGHTS["a"].view(4, 1)},
        {"a": WEIGHTS["a"].double()},
        {"b": WEIGHTS["b"].flip(0)},
    ],
    ids=["one more", "sign of zero", "last bit", "shape", "type", "order of values"],
)
def test_differs_when_anything_differs(change: dict[str, Tensor]) -> None:
    assert fingerprint({**WEIGHTS, **change}) != fingerprint(WEIGHTS)


def test_differs_when_two_names_are_swapped() -> None:
    assert fingerprint({"a": WEIGHTS["b"], "b": WEIGHTS["a"]}) != fingerprint(WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_takes_every_type_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    digest = fingerprint({"a": torch.ones(shape, dtype=dtype)})
    assert len(digest) == 64
    assert (digest == fingerprint({"a": torch.zeros(shape, dtype=dtype)})) == (shape == (0,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_does_not_depend_on_the_device() -> None:
    assert fingerprint({name: tensor.cuda() for name, tensor in WEIGHTS.items()}) == fingerprint(WEIGHTS)


def test_covers_every_weight_of_the_trunk_and_no_other() -> None:
    model = MetaTransformerModel(make_config())
    expected = model.encoder_fingerprint()
    for name, parameter in model.named_parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.flatten()[0] += 1
        assert (model.encoder_fingerprint() != expected) == name.startswith("encoder."), name
        with torch.no_grad():
            parameter.copy_(before)
    assert model.encoder_fingerprint() == expected


def test_of_a_model_is_that_of_its_encoder_with_and_without_head(tmp_path: Path) -> None:
    task = MetaTransformerForClassification(make_config())
    expected = fingerprint(dict(task.model.encoder.named_parameters()))
    assert task.encoder_fingerprint() == task.model.encoder_fingerprint() == expected
    task.save_pretrained(tmp_path)
    for model_class in (MetaTransformerModel, MetaTransformerForClassification):
        assert model_class.from_pretrained(tmp_path).encoder_fingerprint() == expected


def test_of_the_same_weights_in_half_precision_is_another() -> None:
    model = MetaTransformerModel(make_config())
    assert model.encoder_fingerprint() != model.bfloat16().encoder_fingerprint()
