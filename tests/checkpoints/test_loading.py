"""`from_pretrained`: how it tells layouts apart, what it takes from its arguments, and what it refuses."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel, ViTConfig, ViTModel
from transformers.utils import logging as transformers_logging

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.checkpoints.foreign import export_foreign

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5, "img_size": 24, "patch_size": 8}


def randomise(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def vit() -> nn.Module:
    """A live model of timm's."""
    return randomise(timm.create_model("vit_tiny_patch16_224", **SHAPE, num_classes=3))


@pytest.fixture
def folder(vit: nn.Module, tmp_path: Path) -> Path:
    """The same in timm's hub layout."""
    save_for_hf(vit, str(tmp_path / "vit"), safe_serialization=True)
    return tmp_path / "vit"


@pytest.fixture
def native(tmp_path: Path) -> Path:
    model = randomise(MetaTransformerModel(MetaTransformerConfig(**TINY)))
    model.save_pretrained(tmp_path / "native")
    return tmp_path / "native"


@torch.no_grad()
def check_features(model: Any, theirs: Any) -> None:
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    ours = model.base_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(ours, theirs.forward_features(pixels), rtol=0, atol=1e-5)


# Arguments


def test_the_configuration_follows_the_source(folder: Path) -> None:
    config = MetaTransformerModel.from_pretrained(folder).config
    assert {name: getattr(config, name) for name in TINY} == TINY
    assert (config.layer_norm_eps, config.hidden_act, config.pooling) == (1e-6, "gelu", "cls")
    assert (config.use_pre_layernorm, config.use_final_layernorm, config.layer_scale_init_value) == (False, True, None)
    image = config.modalities["image"]
    assert (image.num_channels, image.patch_size, image.image_size, image.patch_bias) == (3, 8, 24, True)
    assert config.encoder_name_or_path == str(folder)


def test_fields_of_the_configuration_are_arguments(folder: Path) -> None:
    model, info = MetaTransformerForClassification.from_pretrained(
        folder,
        modalities=["audio", "image"],
        id2label={0: "bark", 1: "meow", 2: "moo"},
        heads={"classification": {"pooling": "mean"}},
        pooling="mean",
        freeze_encoder=False,
        output_loading_info=True,
    )
    assert list(model.config.modalities) == ["audio", "image"]
    assert (model.config.num_labels, model.config.id2label[2], model.config.pooling) == (3, "moo", "mean")
    assert model.head.config.pooling == "mean"
    assert all(parameter.requires_grad for parameter in model.parameters())
    new = {"head", "model.tokenizers.audio", "model.modality_embeddings.audio"}
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith(tuple(new))}


def test_only_what_is_new_is_initialised(vit: nn.Module) -> None:
    model = MetaTransformerForClassification.from_pretrained(vit, num_labels=2)
    check_features(model, vit)
    assert model.head.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert not model.head.classifier.bias.any()


def test_the_trunk_alone_serves_other_modalities(vit: nn.Module) -> None:
    model, info = MetaTransformerModel.from_pretrained(vit, modalities=["audio"], output_loading_info=True)
    assert list(model.tokenizers) == ["audio"]
    assert not any(name.startswith(("encoder", "cls_token")) for name in info["missing_keys"])
    fresh = MetaTransformerModel.from_pretrained(vit)
    assert model.encoder_fingerprint() == fresh.encoder_fingerprint()
    assert torch.equal(model.cls_token, fresh.cls_token)


def test_the_trunk_is_frozen_after_loading(folder: Path) -> None:
    model = MetaTransformerModel.from_pretrained(folder).train()
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.tokenizers.parameters())
    assert not model.encoder.training


def test_a_configuration_may_be_given_whole(folder: Path) -> None:
    image = {"patch_size": 8, "image_size": 24}
    config = MetaTransformerConfig(**TINY, layer_norm_eps=1e-6, modalities={"image": image, "audio": None})
    model = MetaTransformerModel.from_pretrained(folder, config=config)
    assert list(model.tokenizers) == ["audio", "image"]
    assert model.config.encoder_name_or_path == str(folder)
    assert config.encoder_name_or_path is None


@pytest.mark.parametrize("way", ["fields", "config"])
def test_another_trunk_than_the_sources_is_refused(way: str, folder: Path) -> None:
    wrong = {"hidden_size": 48, "num_hidden_layers": 3, "layer_norm_eps": 1e-5}
    given = wrong if way == "fields" else {"config": MetaTransformerConfig(**{**TINY, **wrong})}
    message = (
        "hidden_size is 48, but 32 in the source; num_hidden_layers is 3, but 2 .*layer_norm_eps is 1e-05, but 1e-06"
    )
    with pytest.raises(ValueError, match=message):
        MetaTransformerModel.from_pretrained(folder, **given)


def test_an_unknown_argument_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        MetaTransformerModel.from_pretrained(folder, no_such_option=1)


def test_the_data_type_is_the_files_unless_another_is_asked_for(vit: nn.Module) -> None:
    assert MetaTransformerModel.from_pretrained(vit.bfloat16()).dtype == torch.bfloat16
    model = MetaTransformerModel.from_pretrained(vit, dtype=torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_can_be_chosen(implementation: str, vit: nn.Module) -> None:
    model = MetaTransformerModel.from_pretrained(vit, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    check_features(model, vit)


def test_a_device_map_can_be_given(vit: nn.Module) -> None:
    model = MetaTransformerModel.from_pretrained(vit, device_map={"": "cpu"})
    check_features(model, vit)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


# What is refused


def test_a_folder_of_no_known_layout_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no config\.json.*timm.*transformers.*OpenCLIP.*official Meta-Transformer"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_a_model_of_another_type_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type 'bert'.*'vit', 'clip', 'clip_vision_model', 'dinov2'"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_a_single_file_that_is_not_the_official_one_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no official Meta-Transformer file.*give the folder"):
        MetaTransformerModel.from_pretrained(folder / "model.safetensors")


def test_a_live_model_of_another_library_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is no plain vision transformer"):
        MetaTransformerModel.from_pretrained(nn.Linear(2, 2))


def test_weights_of_another_width_than_their_configuration_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["embed_dim"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cls_token has shape \(1, 1, 32\), not \(1, 1, 64\).*same checkpoint"):
        MetaTransformerModel.from_pretrained(folder)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_a_damaged_configuration_is_an_error_that_names_it(native: Path) -> None:
    truncate(native / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is no valid JSON.*download or save it again"):
        MetaTransformerModel.from_pretrained(native)


def test_our_own_file_that_is_truncated_is_an_error_that_names_it(native: Path) -> None:
    truncate(native / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated.*Download or save it again"):
        MetaTransformerModel.from_pretrained(native)


def test_a_variant_of_our_own_can_be_named(native: Path) -> None:
    (native / "model.safetensors").rename(native / "model.fp32.safetensors")
    MetaTransformerModel.from_pretrained(native, variant="fp32")
    truncate(native / "model.fp32.safetensors")
    with pytest.raises(ValueError, match=r"model\.fp32\.safetensors is truncated"):
        MetaTransformerModel.from_pretrained(native, variant="fp32")


def test_our_own_weights_are_never_read_from_a_pickle(native: Path) -> None:
    torch.save(load_file(native / "model.safetensors"), native / "pytorch_model.bin")
    (native / "model.safetensors").unlink()
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=r"holds no weights: none of the files \['model.safetensors'\]"):
            MetaTransformerModel.from_pretrained(native, **options)


@pytest.mark.parametrize("lost", [True, False])
def test_a_part_that_is_lost_or_truncated_is_an_error_that_names_it(lost: bool, tmp_path: Path) -> None:
    MetaTransformerModel(MetaTransformerConfig(**TINY)).save_pretrained(tmp_path, max_shard_size="50KB")
    part = min(tmp_path.glob("model-*.safetensors"))
    part.unlink() if lost else truncate(part)
    with pytest.raises(ValueError, match=rf"lacks \['{part.name}'\]" if lost else f"{part.name} is truncated"):
        MetaTransformerModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_a_save_that_was_interrupted_is_refused(first: bool, native: Path) -> None:
    (native / ".unfinished-save").mkdir()
    if first:
        (native / "config.json").unlink()
    with pytest.raises(ValueError, match="was interrupted"):
        MetaTransformerModel.from_pretrained(native)


# Our own checkpoints


def test_a_loaded_trunk_is_saved_and_loaded_as_our_own(folder: Path, tmp_path: Path) -> None:
    model = MetaTransformerModel.from_pretrained(folder, modalities=["image", "audio"])
    model.save_pretrained(tmp_path / "own")
    again, info = MetaTransformerModel.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not any(info.values())
    assert again.config.encoder_name_or_path == str(folder)
    assert again.encoder_fingerprint() == model.encoder_fingerprint()
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())


def test_a_configuration_and_tensors_need_no_files() -> None:
    model = randomise(MetaTransformerModel(MetaTransformerConfig(**TINY)))
    again = MetaTransformerModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert again.encoder_fingerprint() == model.encoder_fingerprint()
    assert not any(parameter.requires_grad for parameter in again.encoder.parameters())


# What is said while loading


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Any:
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        yield caplog
    transformers_logging.disable_propagation()


@pytest.mark.parametrize("model_class", [ViTModel, CLIPVisionModel])
def test_loading_what_the_source_has_says_nothing(model_class: type, tmp_path: Path, messages: Any) -> None:
    config_class = ViTConfig if model_class is ViTModel else CLIPVisionConfig
    model: PreTrainedModel = model_class(config_class(**TINY, image_size=24, patch_size=8))
    model.save_pretrained(tmp_path)
    MetaTransformerModel.from_pretrained(tmp_path)
    assert messages.records == []


def test_loading_with_a_new_head_names_nothing_but_the_head(folder: Path, messages: Any) -> None:
    MetaTransformerForClassification.from_pretrained(folder)
    (record,) = messages.records
    assert record.levelno == logging.WARNING
    rows = [line.split("|")[0].strip() for line in record.getMessage().splitlines() if "| MISSING" in line]
    assert set(rows) == {f"head.{part}.{kind}" for part in ("classifier", "layernorm") for kind in ("weight", "bias")}


def test_adapters_find_the_foreign_trunk_again(vit: nn.Module, folder: Path) -> None:
    """PEFT stores where the base model came from, and loads it from there."""
    model = MetaTransformerModel.from_pretrained(folder)
    assert model.name_or_path == model.config.name_or_path == str(folder)
    assert export_foreign(model, "timm").keys() == {name for name in vit.state_dict() if not name.startswith("head")}
