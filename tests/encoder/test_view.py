"""A view of a trunk: the same weights, everything else apart."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerModel
from meta_transformer.encoder.view import view_of

TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    return MetaTransformerModel(MetaTransformerConfig(**shape, layer_scale_init_value=0.5, drop_path_rate=0.5)).eval()


def test_it_computes_the_same_with_the_same_parameters(model):
    view = view_of(model.encoder, model.config)
    assert_close(view(TOKENS), model.encoder(TOKENS), rtol=0, atol=0)
    theirs = dict(model.encoder.named_parameters())
    assert all(parameter is theirs.pop(name) for name, parameter in view.named_parameters())
    assert theirs == {}
    assert not set(view.modules()) & set(model.encoder.modules())


def test_parameters_that_are_replaced_are_replaced_in_both(model):
    view = view_of(model.encoder, model.config)
    weights = {name: torch.randn_like(value) for name, value in model.encoder.state_dict().items()}
    model.encoder.load_state_dict(weights, assign=True)
    assert_close(view.state_dict(), weights, rtol=0, atol=0)


def test_mode_hooks_and_configuration_are_its_own(model):
    calls = []
    model.encoder.layers[0].register_forward_hook(lambda *_: calls.append("first"))
    config = copy.deepcopy(model.config)
    view = view_of(model.encoder, config)
    view.layers[0].register_forward_hook(lambda *_: calls.append("view"))
    view.train()
    assert not any(module.training for module in model.encoder.modules())
    view(TOKENS)
    model.encoder(TOKENS)
    assert calls == ["view", "first"]
    assert all(part.config is config for part in (view, view.layers[0].attention))
    assert model.encoder.config is model.config


def test_adapters_are_left_out_of_it_and_can_be_put_into_it(model):
    bare = model.encoder(TOKENS)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted = model.encoder(TOKENS)
    assert not torch.allclose(adapted, bare)
    view = view_of(model.encoder, model.config)
    assert_close(view(TOKENS), bare, rtol=0, atol=0)
    get_peft_model(view, LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    assert not torch.allclose(view(TOKENS), bare)
    assert_close(model.encoder(TOKENS), adapted, rtol=0, atol=0)


def test_a_part_with_another_forward_is_refused(model):
    model.encoder.layers[1].mlp.forward = model.encoder.layers[1].mlp.forward
    with pytest.raises(ValueError, match="FeedForward has another forward"):
        view_of(model.encoder, model.config)
