"""Frozen means frozen: no gradient, no noise, through checkpointing and PEFT; and it can be undone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel

NOISE = {"attention_dropout": 0.5, "drop_path_rate": 0.5}
LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}


def make_config(**options: Any) -> MetaTransformerConfig:
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    image = {"image": {"image_size": 16, "patch_size": 8}}
    return MetaTransformerConfig(**{**shape, "modalities": image, "layer_scale_init_value": 0.5, **options})


def make_model(**options: Any) -> MetaTransformerModel:
    torch.manual_seed(0)
    return MetaTransformerModel(make_config(**options))


def make_batch() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def encode(model: nn.Module) -> Tensor:
    return model(**make_batch()).last_hidden_state


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of one step, by parameter; the same noise every time."""
    model.zero_grad()
    torch.manual_seed(0)
    encode(model).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def train_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    gradients(model)
    optimizer.step()


def test_a_frozen_trunk_takes_no_gradient_and_lets_it_through() -> None:
    frozen = gradients(make_model().train())
    assert frozen
    assert not [name for name in frozen if name.startswith("encoder.")]
    full = gradients(make_model(freeze_encoder=False).train())
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, full[name])


def test_a_frozen_trunk_draws_no_noise_in_training_mode() -> None:
    model = make_model(**NOISE)
    expected = encode(model.eval())
    torch.testing.assert_close(encode(model.train()), expected, atol=0, rtol=0)
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("option", NOISE)
def test_an_unfrozen_trunk_draws_noise_in_training_mode(option: str) -> None:
    model = make_model(freeze_encoder=False, **{option: NOISE[option]}).train()
    assert not torch.equal(encode(model), encode(model))


def test_noise_falls_silent_when_a_trunk_in_training_is_frozen() -> None:
    model = make_model(freeze_encoder=False, **NOISE).train()
    model.freeze_encoder()
    torch.testing.assert_close(encode(model), encode(model), atol=0, rtol=0)


def test_unfreezing_undoes_freezing() -> None:
    model = make_model(**NOISE).train()
    model.unfreeze_encoder()
    assert not torch.equal(encode(model), encode(model))
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}


def test_freezing_an_evaluating_model_leaves_it_evaluating() -> None:
    model = make_model().eval()
    model.unfreeze_encoder()
    model.freeze_encoder()
    assert not any(module.training for module in model.modules())


def test_dropout_of_the_head_stays_active_behind_a_frozen_trunk() -> None:
    model = MetaTransformerForClassification(make_config(heads={"classification": {"dropout": 0.5}}, **NOISE)).train()
    assert not torch.equal(model(**make_batch()).logits, model(**make_batch()).logits)


@contextmanager
def counted_layer_calls(model: MetaTransformerModel) -> Iterator[list[str]]:
    """Collect an entry whenever a layer computes its attention, also when it does so again for the backward pass."""
    calls: list[str] = []
    hooks = [
        layer.attention.register_forward_pre_hook(lambda *_: calls.append("attention"))
        for layer in model.encoder.layers
    ]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_activation_checkpointing_recomputes_each_layer_and_gives_equal_gradients(
    use_reentrant: bool, freeze_encoder: bool
) -> None:
    model = make_model(freeze_encoder=freeze_encoder, **NOISE).train()
    with counted_layer_calls(model) as calls:
        expected = gradients(model)
        assert len(calls) == 3
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    with counted_layer_calls(model) as calls:
        output = gradients(model)
        assert len(calls) == 6
    assert output.keys() == expected.keys()
    for name, gradient in output.items():
        torch.testing.assert_close(gradient, expected[name])


def test_activation_checkpointing_costs_nothing_in_evaluation() -> None:
    model = make_model().eval()
    model.activation_checkpointing_enable()
    with counted_layer_calls(model) as calls:
        gradients(model)
        assert len(calls) == 3


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_hidden_states_are_recorded_under_activation_checkpointing(use_reentrant: bool) -> None:
    model = make_model().train()
    expected = model(**make_batch(), output_hidden_states=True).hidden_states
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    states = model(**make_batch(), output_hidden_states=True).hidden_states
    assert len(states) == 3 + 1
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state, reference)


def test_peft_trains_the_adapter_alone_inside_a_frozen_trunk() -> None:
    model = get_peft_model(make_model(), LoraConfig(**LORA)).train()
    trained = set(gradients(model))
    assert len(trained) == 3 * 2 * 2
    assert all(".lora_" in name for name in trained)


def test_dropout_of_an_adapter_stays_active_inside_a_frozen_trunk() -> None:
    model = get_peft_model(make_model(**NOISE), LoraConfig(**LORA, lora_dropout=0.5))
    torch.testing.assert_close(encode(model.eval()), encode(model.eval()), atol=0, rtol=0)
    assert not torch.equal(encode(model.train()), encode(model.train()))


def test_a_frozen_trunk_stays_silent_around_an_adapter_without_dropout() -> None:
    model = get_peft_model(make_model(**NOISE), LoraConfig(**LORA))
    expected = encode(model.eval())
    torch.testing.assert_close(encode(model.train()), expected, atol=0, rtol=0)


ADAPTERS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "ia3": IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=list(ADAPTERS))
def test_the_fingerprint_sees_the_trunk_behind_an_adapter(adapter: PeftConfig) -> None:
    model = make_model()
    expected = model.encoder_fingerprint()
    wrapped = get_peft_model(model, adapter).train()
    assert wrapped.encoder_fingerprint() == expected
    before = encode(wrapped)
    train_a_step(wrapped)
    assert not torch.equal(encode(wrapped), before)
    assert wrapped.encoder_fingerprint() == expected
    assert wrapped.unload().encoder_fingerprint() == expected


def test_unfreezing_behind_an_adapter_trains_the_trunk_as_well() -> None:
    model = get_peft_model(make_model(), LoraConfig(**LORA)).train()
    model.unfreeze_encoder()
    trained = set(gradients(model))
    assert {name for name, _ in model.named_parameters() if ".encoder." in name} <= trained
    model.freeze_encoder()
    assert all(".lora_" in name for name in gradients(model))


def test_the_fingerprint_survives_training_of_a_frozen_trunk_alone() -> None:
    model = make_model().train()
    expected = model.encoder_fingerprint()
    train_a_step(model)
    assert model.encoder_fingerprint() == expected
    model.unfreeze_encoder()
    train_a_step(model)
    assert model.encoder_fingerprint() != expected
