"""Presets of what trains in the trunk: which weights, which noise, and that it lasts beyond saving and loading."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.encoder.lora import lora_layers

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
NOISE = {"attention_dropout": 0.5, "drop_path_rate": 0.5}


def make_config(**options: Any) -> MetaTransformerConfig:
    image = {"image": {"image_size": 16, "patch_size": 8}}
    return MetaTransformerConfig(**{**SHAPE, "modalities": image, "use_pre_layernorm": True, **options})


def make_model(**options: Any) -> MetaTransformerForClassification:
    torch.manual_seed(0)
    return MetaTransformerForClassification(make_config(**options)).eval()


def make_batch() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def trained(model: nn.Module) -> set[str]:
    """Names of the trunk's own weights that take gradients."""
    return {name for name, parameter in model.trunk_parameters().items() if parameter.requires_grad}


def of_modules(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    encoder = model.model.encoder
    return {f"{path}.{name}" for path, m in encoder.named_modules() if isinstance(m, kind) for name in m._parameters}


def train_a_step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    model(**make_batch(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def adapted(**options: Any) -> MetaTransformerForClassification:
    """A model with adapters that change its output."""
    model = make_model()
    model.freeze_encoder("lora", **{"r": 4, "init_lora_weights": False, **options})
    return model


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_new_model_with_adapters_starts_as_its_trunk_alone(use_dora: bool) -> None:
    model = make_model(lora={"r": 4, "use_dora": use_dora})
    found = model(**make_batch()).logits
    for layer in lora_layers(model.model.encoder).values():
        layer.enable_adapters(False)
    assert_close(found, model(**make_batch()).logits)


def test_all_and_none_are_the_two_that_there_were() -> None:
    model = make_model()
    assert (trained(model), model.config.freeze_encoder) == (set(), True)
    model.freeze_encoder("none")
    assert (trained(model), model.config.freeze_encoder) == (set(model.trunk_parameters()), False)
    model.freeze_encoder("all")
    assert (trained(model), model.config.freeze_encoder) == (set(), True)


def test_the_last_blocks_train_with_the_final_norm() -> None:
    model = make_model()
    model.freeze_encoder("last_2")
    encoder = model.model.encoder
    parts = {"layers.1.": encoder.layers[1], "layers.2.": encoder.layers[2], "layernorm.": encoder.layernorm}
    assert trained(model) == {start + name for start, part in parts.items() for name, _ in part.named_parameters()}


def test_norms_alone_train() -> None:
    model = make_model()
    model.freeze_encoder("layernorm")
    assert trained(model) == of_modules(model, nn.LayerNorm)


def test_biases_alone_train() -> None:
    model = make_model(layer_scale_init_value=0.5)
    model.freeze_encoder("bias")
    biases = {name for name in of_modules(model, nn.Linear) | of_modules(model, nn.LayerNorm) if name.endswith("bias")}
    assert trained(model) == biases


@pytest.mark.parametrize("preset", ["all", "none", "last_1", "layernorm", "bias", "lora"])
def test_tokenizers_and_head_train_with_every_preset_and_a_step_moves_what_trains_alone(preset: str) -> None:
    model = make_model()
    model.freeze_encoder(preset)
    rest = [p for name, p in model.named_parameters() if ".encoder." not in name]
    assert all(parameter.requires_grad for parameter in rest)
    before = {name: parameter.detach().clone() for name, parameter in model.trunk_parameters().items()}
    train_a_step(model.train())
    train_a_step(model)
    moved = {name for name, parameter in model.trunk_parameters().items() if not torch.equal(parameter, before[name])}
    # Softmax does not see what all keys have in common, so that their biases get no gradient but rounding.
    assert {name for name in moved ^ trained(model) if not name.endswith("k_proj.bias")} == set()


def test_blocks_of_which_nothing_trains_are_silent_and_the_others_are_not() -> None:
    model = make_model(**NOISE).train()
    noisy = {"all": [], "none": [0, 1, 2], "last_1": [2], "layernorm": [0, 1, 2], "bias": [0, 1, 2], "lora": []}
    for preset, expected in noisy.items():
        model.freeze_encoder(preset)
        found = [i for i, layer in enumerate(model.model.encoder.layers) if layer.attention.training]
        assert found == expected, preset
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()


@pytest.mark.parametrize("preset", ["last_2", "layernorm", "bias", "lora"])
def test_a_preset_outlives_saving_and_loading(preset: str, tmp_path: Path) -> None:
    model = make_model()
    model.freeze_encoder(preset)
    model.save_pretrained(tmp_path)
    loaded = MetaTransformerForClassification.from_pretrained(tmp_path)
    assert (loaded.config.freeze_encoder, trained(loaded)) == (preset, trained(model))
    changed = MetaTransformerForClassification.from_pretrained(tmp_path, freeze_encoder="last_1")
    assert trained(changed) == {name for name in changed.trunk_parameters() if name.startswith(("layers.2", "layern"))}


def test_a_configuration_from_before_the_presets_is_read(tmp_path: Path) -> None:
    for value, preset in ((True, "all"), (False, "none")):
        config = make_config().to_dict() | {"freeze_encoder": value}
        del config["lora"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert MetaTransformerConfig.from_pretrained(tmp_path).freeze_preset == preset


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("last", "must be 'all', 'none', 'last_<k>'"),
        ("last_two", "got 'last_two'"),
        ("last_0", "the trunk has 3 blocks"),
        ("last_4", "the trunk has 3 blocks"),
        ("head", "got 'head'"),
    ],
)
def test_what_is_no_preset_is_refused_and_changes_nothing(preset: str, message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.freeze_encoder(preset)
    assert model.config.freeze_encoder is True
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        make_config(freeze_encoder=preset)


def test_new_adapters_leave_output_and_fingerprint_and_train_alone_in_the_trunk() -> None:
    model = make_model()
    expected, fingerprint = model(**make_batch()).logits, model.encoder_fingerprint()
    model.freeze_encoder("lora", r=4)
    assert torch.equal(model(**make_batch()).logits, expected)
    train_a_step(model.train())
    train_a_step(model)
    assert model.encoder_fingerprint() == fingerprint
    adapters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert len(adapters) == 3 * 2 * 2
    assert all(parameter.requires_grad and parameter.grad is None for parameter in adapters.values())
    assert all(parameter.abs().max() > 0 for parameter in adapters.values())
    rows = {group.name: (group.trainable, group.frozen) for group in model.parameter_summary()}
    assert rows["encoder.lora"] == (3 * 2 * 2 * 4 * 32, 0)
    assert rows["encoder"] == (0, sum(p.numel() for p in model.trunk_parameters().values()))


def test_adapters_compute_what_the_paper_says() -> None:
    model = adapted(lora_alpha=12, target_modules=["fc1"])
    layer = model.model.encoder.layers[0].mlp.fc1
    x = torch.randn(5, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert_close(layer(x), x @ layer.weight.T + layer.bias + 12 / 4 * x @ a.T @ b.T)


def test_adapters_train_whatever_the_preset() -> None:
    model = adapted()
    for preset in ("all", "last_1", "none"):
        model.freeze_encoder(preset)
        assert all(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_" in name)


def test_adapters_are_saved_and_loaded_with_the_whole_model(tmp_path: Path) -> None:
    model = adapted(target_modules=["q_proj", "fc2"])
    train_a_step(model)
    model.save_pretrained(tmp_path)
    loaded, info = MetaTransformerForClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(**make_batch()).logits, model(**make_batch()).logits)
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint()
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    base = MetaTransformerModel.from_pretrained(tmp_path).eval()
    assert torch.equal(base(**make_batch()).last_hidden_state, model.model(**make_batch()).last_hidden_state)
    with pytest.raises(ValueError, match="lora is None, but"):
        MetaTransformerForClassification.from_pretrained(tmp_path, config=make_config())


@pytest.mark.parametrize("source", ["own", "foreign"])
def test_adapters_can_be_asked_for_when_a_plain_checkpoint_is_loaded(source: str, tmp_path: Path) -> None:
    if source == "own":
        make_model().save_pretrained(tmp_path)
        plain: Any = tmp_path
    else:
        timm = pytest.importorskip("timm")
        plain = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0).eval()
    expected = MetaTransformerModel.from_pretrained(plain)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32)}
    options = {"freeze_encoder": "lora", "lora": {"r": 2}}
    config = MetaTransformerConfig(**{**expected.config.to_dict(), **options})
    for asked in (options, {"config": config}):
        model, info = MetaTransformerModel.from_pretrained(plain, output_loading_info=True, **asked)
        assert not info["missing_keys"]
        assert torch.equal(model(**batch).last_hidden_state, expected(**batch).last_hidden_state)
        assert (model.config.freeze_encoder, model.config.lora) == ("lora", {"r": 2})
        assert any(".lora_" in name for name, _ in model.named_parameters())
    assert config.freeze_encoder == "lora", "the user's own configuration stays as it is"


def test_a_model_made_with_adapters_starts_like_one_without() -> None:
    model, plain = make_model(freeze_encoder="lora"), make_model()
    weights = model.state_dict() | {f"model.encoder.{name}": p for name, p in model.trunk_parameters().items()}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    assert torch.equal(model(**make_batch()).logits, plain(**make_batch()).logits)
    adapters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    assert len(adapters) == 3 * 2 * 2
    assert all((".lora_B." in name) == (not parameter.any()) for name, parameter in adapters.items())


def test_merging_leaves_the_output_and_a_plain_model(tmp_path: Path) -> None:
    model = adapted()
    expected, fingerprint = model(**make_batch()).logits, model.encoder_fingerprint()
    model.merge_lora()
    assert_close(model(**make_batch()).logits, expected)
    assert model.encoder_fingerprint() != fingerprint
    assert (model.config.lora, model.config.freeze_encoder, trained(model)) == (None, True, set())
    model.save_pretrained(tmp_path)
    assert model.state_dict().keys() == make_model().state_dict().keys()
    assert_close(MetaTransformerForClassification.from_pretrained(tmp_path)(**make_batch()).logits, expected)
    with pytest.raises(ValueError, match="has no adapters"):
        model.merge_lora()
    model.freeze_encoder("lora")


def test_wrong_options_of_adapters_are_refused_and_change_nothing() -> None:
    model = make_model()
    for error, message, options in (
        (TypeError, "rank", {"rank": 4}),
        (TypeError, "must be numbers, text, lists or dicts", {"target_modules": {"q_proj"}}),
        (ValueError, "takes no modules_to_save", {"modules_to_save": ["head"]}),
        (ValueError, "takes no init_lora_weights='pissa'", {"init_lora_weights": "pissa"}),
        (ValueError, "nothing_like_it", {"target_modules": ["nothing_like_it"]}),
    ):
        with pytest.raises(error, match=message):
            model.freeze_encoder("lora", **options)
        assert (model.config.freeze_encoder, model.config.lora) == (True, None)
    with pytest.raises(TypeError, match="are for the preset 'lora', got 'all'"):
        model.freeze_encoder("all", r=4)
    model.freeze_encoder("lora", r=4)
    model.freeze_encoder("none")
    model.freeze_encoder("lora")
    assert model.config.lora == {"r": 4}
    with pytest.raises(ValueError, match="merge_lora"):
        model.freeze_encoder("lora", r=8)
