"""Weights of other libraries: features equal to the library's own, in both directions, without a bit lost.

The libraries themselves write the checkpoints, tiny ones with random weights. No hub is asked.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.push_to_hf_hub import save_for_hf as save_open_clip_for_hf
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTModel,
)

from meta_transformer import MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.checkpoints.foreign import SOURCES, export_foreign, read_foreign
from meta_transformer.processors.image import ImageProcessor

SIZE = (24, 32)  # of the images that positions are learned for, where a source can have two different sides


def randomise(model: nn.Module) -> nn.Module:
    """Weights of noise everywhere, so that no bias, norm or layer scale hides behind a zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1 and name.endswith(("weight", "gamma", "lambda1")):
                parameter.add_(1)
    return model.eval()


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@dataclass
class Case:
    """A model of another library.

    Attributes:
        source: Its name in `SOURCES`.
        build: Makes the model.
        save: Writes it as the library does and returns what to load.
        features: The library's own tokens for images, the final norm applied, with those of the class token.
        size: Height and width of its images.
        revive: Makes a model of the library again, from tensors by the names of its files.
        left_behind: Tensors of its files that are no part of an image encoder.
    """

    source: str
    build: Callable[[], nn.Module]
    save: Callable[[nn.Module, Path], Any]
    features: Callable[[nn.Module, Tensor], Tensor]
    size: tuple[int, int]
    revive: Callable[[nn.Module, dict[str, Tensor]], nn.Module]
    left_behind: tuple[str, ...] = ()


def revive(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """The same class with other weights of noise, then `tensors`, of which none may be superfluous."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


def revive_transformers(model: Any, tensors: dict[str, Tensor]) -> nn.Module:
    revived, info = type(model).from_pretrained(None, config=model.config, state_dict=tensors, output_loading_info=True)
    assert not info["unexpected_keys"]
    return revived


# timm


def timm_model(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": SIZE, "patch_size": 8, "num_classes": 3}
    return randomise(timm.create_model(name, **{**shape, **options}))


def save_timm(model: nn.Module, folder: Path, safe: bool = True) -> Path:
    save_for_hf(model, str(folder), safe_serialization=safe)
    return folder


def timm_case(name: str = "vit_tiny_patch16_224", left_behind: tuple[str, ...] = ("head",), **options: Any) -> Case:
    return Case(
        "timm",
        partial(timm_model, name, **options),
        save_timm,
        lambda model, pixels: model.forward_features(pixels),
        SIZE,
        revive,
        left_behind,
    )


# transformers

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCHES = {"image_size": 24, "patch_size": 8}


def vit(model_class: type = ViTModel, **options: Any) -> nn.Module:
    return randomise(model_class(ViTConfig(**SHAPE, **PATCHES, intermediate_size=48, encoder_stride=8, **options)))


def clip_vision(model_class: type = CLIPVisionModel, **options: Any) -> nn.Module:
    return randomise(model_class(CLIPVisionConfig(**SHAPE, **PATCHES, intermediate_size=48, **options)))


def clip() -> nn.Module:
    vision = CLIPVisionConfig(**SHAPE, **PATCHES, intermediate_size=48, hidden_act="gelu")
    text = CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, eos_token_id=2)
    return randomise(CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict())))


def dinov2(model_class: type = Dinov2Model, **options: Any) -> nn.Module:
    return randomise(model_class(Dinov2Config(**SHAPE, **PATCHES, mlp_ratio=2, **options)))


def save_transformers(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def clip_features(model: Any, pixels: Tensor) -> Tensor:
    model = getattr(model, "vision_model", model)
    return model.post_layernorm(model(pixels).last_hidden_state)


def vit_features(model: Any, pixels: Tensor) -> Tensor:
    model = model.base_model
    return model(pixels).last_hidden_state


def transformers_case(
    source: str, build: Callable[[], nn.Module], features: Callable, *left_behind: str, **save_options: Any
) -> Case:
    save = partial(save_transformers, **save_options)
    return Case(source, build, save, features, (24, 24), revive_transformers, left_behind)


# OpenCLIP


VISION = {"layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 2.0, "patch_size": 8, "image_size": list(SIZE)}


def open_clip_config(quick_gelu: bool, **vision: Any) -> dict[str, Any]:
    text = {"context_length": 4, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "quick_gelu": quick_gelu, "vision_cfg": {**VISION, **vision}, "text_cfg": text}


def open_clip_model(model_class: type, quick_gelu: bool, **vision: Any) -> nn.Module:
    model = randomise(model_class(**open_clip_config(quick_gelu, **vision)))
    model.visual.image_mean, model.visual.image_std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    return model


class NoTokenizer:
    """OpenCLIP saves a text tokenizer too, which a tower of images has no use for."""

    def save_pretrained(self, folder: Path) -> None:
        pass


def save_open_clip(quick_gelu: bool, vision: dict[str, Any], model: Any, folder: Path, safe: bool = True) -> Path:
    config = open_clip_config(quick_gelu, **vision)
    save_open_clip_for_hf(model, NoTokenizer(), config, folder, safe_serialization=safe)
    return folder


def open_clip_features(model: Any, pixels: Tensor) -> Tensor:
    tower = model.visual
    return tower.ln_post(tower.transformer(tower._embeds(pixels)))


def open_clip_case(model_class: type, quick_gelu: bool, *left_behind: str, **vision: Any) -> Case:
    return Case(
        "open_clip",
        partial(open_clip_model, model_class, quick_gelu, **vision),
        partial(save_open_clip, quick_gelu, vision),
        open_clip_features,
        SIZE,
        revive,
        ("visual.proj", "logit", *left_behind),
    )


TEXT = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")
CASES = {
    "timm ViT": timm_case(),
    "timm CLIP": timm_case("vit_base_patch16_clip_quickgelu_224"),
    "timm mean pooling": timm_case(global_pool="avg", left_behind=("head", "fc_norm")),
    "timm attention pooling": timm_case(global_pool="map", left_behind=("head", "attn_pool")),
    "timm layer scale": timm_case(init_values=1e-5, qkv_bias=False, act_layer="gelu_tanh"),
    "ViT": transformers_case("vit", vit, vit_features, "pooler"),
    "ViT new names": transformers_case("vit", vit, vit_features, "pooler", save_original_format=False),
    "ViT classifier": transformers_case("vit", partial(vit, ViTForImageClassification), vit_features, "classifier"),
    "ViT masked": transformers_case(
        "vit", partial(vit, ViTForMaskedImageModeling, qkv_bias=False), vit_features, "decoder", "embeddings.mask_token"
    ),
    "CLIP vision": transformers_case("clip", clip_vision, clip_features),
    "CLIP vision with projection": transformers_case(
        "clip", partial(clip_vision, CLIPVisionModelWithProjection), clip_features, "visual_projection"
    ),
    "CLIP": transformers_case(
        "clip", clip, clip_features, "text_model", "text_projection", "visual_projection", "logit_scale"
    ),
    "DINOv2": transformers_case("dinov2", dinov2, vit_features, "embeddings.mask_token"),
    "DINOv2 new names": transformers_case(
        "dinov2", dinov2, vit_features, "embeddings.mask_token", save_original_format=False
    ),
    "DINOv2 classifier": transformers_case(
        "dinov2", partial(dinov2, Dinov2ForImageClassification), vit_features, "embeddings.mask_token", "classifier"
    ),
    "OpenCLIP": open_clip_case(open_clip.CLIP, True, *TEXT),
    "OpenCLIP custom text": open_clip_case(
        open_clip.CustomTextCLIP, False, "text", ls_init_value=0.1, no_ln_pre=True, norm_kwargs={"eps": 1e-3}
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@torch.no_grad()
def encode(model: MetaTransformerModel, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).last_hidden_state


# In


@torch.no_grad()
def test_features_equal_the_sources_own(case: Case, tmp_path: Path) -> None:
    theirs = case.build()
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    pixels = images(*case.size)
    expected = case.features(theirs, pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(encode(ours, pixels), expected, rtol=0, atol=1e-5)


def test_the_fingerprint_of_the_file_is_that_of_the_model(case: Case, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    model = MetaTransformerModel.from_pretrained(name)
    assert model.config.freeze_encoder
    assert read_foreign(name).encoder_fingerprint() == model.encoder_fingerprint()


def test_official_blocks_give_the_features_of_timms_blocks(tmp_path: Path) -> None:
    """Exact names and shapes as published: 12 tensors for each of 12 blocks, LayerNorm of torch with its own epsilon."""
    blocks = randomise(nn.Sequential(*[Block(128, 2, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(12)]))
    torch.save(blocks.state_dict(), tmp_path / "Meta-Transformer_base_patch16_encoder.pth")
    assert len(blocks.state_dict()) == 144
    model = MetaTransformerModel.from_pretrained(tmp_path / "Meta-Transformer_base_patch16_encoder.pth")
    tokens = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(tokens), blocks(tokens), rtol=1e-5, atol=1e-5)
    assert (model.config.num_attention_heads, model.config.layer_norm_eps, model.config.pooling) == (2, 1e-5, "mean")
    assert not model.config.use_pre_layernorm and not model.config.use_final_layernorm


def test_official_blocks_keep_every_bit(tmp_path: Path) -> None:
    blocks = randomise(nn.Sequential(*[Block(64, 1, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(2)]))
    path = tmp_path / "encoder.pth"
    torch.save(blocks.state_dict(), path)
    model, info = MetaTransformerModel.from_pretrained(path, output_loading_info=True)
    assert read_foreign(path).encoder_fingerprint() == model.encoder_fingerprint()
    exported = export_foreign(model, "official")
    assert exported.keys() == blocks.state_dict().keys()
    assert all(torch.equal(exported[name], value) for name, value in blocks.state_dict().items())
    assert info["missing_keys"] == {
        "cls_token",
        "modality_embeddings.image",
        "tokenizers.image.positions",
        "tokenizers.image.projection.bias",
        "tokenizers.image.projection.weight",
    }


@pytest.mark.parametrize("size", [(24, 32), (40, 16), (48, 64)])
@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}])
def test_images_of_any_size_get_timms_features(size: tuple[int, int], options: dict[str, Any]) -> None:
    theirs = timm_model(dynamic_img_size=True, **options)
    ours = MetaTransformerModel.from_pretrained(theirs)
    pixels = images(*size)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
    torch.testing.assert_close(encode(ours, pixels), expected, rtol=0, atol=1e-5)


def test_sides_that_are_no_multiples_of_the_patch_are_padded_as_timm_does() -> None:
    theirs = timm_model(dynamic_img_size=True, dynamic_img_pad=True)
    pixels = images(29, 35)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
    torch.testing.assert_close(
        encode(MetaTransformerModel.from_pretrained(theirs), pixels), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("case", [CASES["timm CLIP"], CASES["ViT"], CASES["DINOv2"], CASES["CLIP vision"]])
@torch.no_grad()
def test_the_pooled_class_token_equals_the_sources_own(case: Case, tmp_path: Path) -> None:
    theirs, pixels = case.build(), images(*case.size)
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path)).get_features(pixel_values=pixels)
    if case.source == "timm":
        expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    elif case.source == "vit":
        expected = theirs(pixels).last_hidden_state[:, 0]  # its pooler is a head, which stays behind
    else:
        expected = theirs(pixels).pooler_output
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_mean_pooling_comes_along() -> None:
    theirs, pixels = timm_model(global_pool="avg", fc_norm=False), images(*SIZE)
    ours = MetaTransformerModel.from_pretrained(theirs)
    expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(ours.get_features(pixel_values=pixels), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_features_and_projection_give_open_clips_embedding(tmp_path: Path) -> None:
    case = CASES["OpenCLIP"]
    theirs, pixels = case.build(), images(*SIZE)
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    embedding = ours.get_features(pixel_values=pixels) @ theirs.visual.proj
    torch.testing.assert_close(embedding, theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)


def test_a_live_timm_model_shares_no_memory_with_ours() -> None:
    theirs = timm_model()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = MetaTransformerModel.from_pretrained(theirs)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    assert ours.config.encoder_name_or_path == "vit_tiny_patch16_224"


CLASSIC_CLIP = {"embeddings", "encoder", "pre_layrnorm", "post_layernorm"}


@torch.no_grad()
def test_clip_loads_by_the_names_that_hub_checkpoints_have(tmp_path: Path) -> None:
    """openai/clip-vit-base-patch16 holds a prefix for the tower and buffers that transformers no longer saves."""
    theirs = clip()
    tensors = {name: value.clone() for name, value in theirs.state_dict().items()}
    assert {name.split(".")[1] for name in tensors if name.startswith("vision_model.")} == CLASSIC_CLIP
    for tower, count in (("text_model", 77), ("vision_model", 10)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    pixels = images(24, 24)
    ours = MetaTransformerModel.from_pretrained(tmp_path)
    torch.testing.assert_close(encode(ours, pixels), clip_features(theirs, pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "vit."])
@torch.no_grad()
def test_vit_loads_by_the_names_that_hub_checkpoints_have(prefix: str, tmp_path: Path) -> None:
    """The names of google/vit-base-patch16-224, and of its base model, written out here."""
    theirs = vit()
    tensors = {}
    for name, value in theirs.state_dict().items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            for new, old in (
                ("attention.q_proj", "attention.attention.query"),
                ("attention.k_proj", "attention.attention.key"),
                ("attention.v_proj", "attention.attention.value"),
                ("attention.o_proj", "attention.output.dense"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                rest = rest.replace(new, old)
            name = f"encoder.layer.{number}.{rest}"
        tensors[f"{prefix}{name}"] = value.clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    theirs.config.save_pretrained(tmp_path)
    pixels = images(24, 24)
    expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(
        encode(MetaTransformerModel.from_pretrained(tmp_path), pixels), expected, rtol=0, atol=1e-5
    )


# Files


def split_in_two(file: Path) -> None:
    """Replace a safetensors file by two parts and an index, as large checkpoints come."""
    tensors = load_file(file)
    index: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        part = file.with_name(f"{file.stem}-{number:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in names}, part, {"format": "pt"})
        index |= dict.fromkeys(names, part.name)
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    file.unlink()


@pytest.mark.parametrize("kind", ["split", "pickled"])
def test_split_and_pickled_files_load_as_well(case: Case, kind: str, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    expected = MetaTransformerModel.from_pretrained(name).state_dict()
    file = next(tmp_path.glob("*.safetensors"))
    if kind == "split":
        split_in_two(file)
    else:
        pickled = "open_clip_pytorch_model.bin" if case.source == "open_clip" else "pytorch_model.bin"
        torch.save(load_file(file), tmp_path / pickled)
        file.unlink()
    loaded = MetaTransformerModel.from_pretrained(name).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


def test_a_tensor_too_many_is_an_error_that_names_it(case: Case, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    save_file({**load_file(file), "surprise.weight": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{case.source}' layout has no place for the tensors \['surprise.weight'\]"):
        MetaTransformerModel.from_pretrained(name)


def test_a_tensor_too_few_is_an_error_that_names_it(case: Case, tmp_path: Path) -> None:
    """Every single one that is no head: none may be left to chance."""
    name = case.save(case.build(), tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    tensors = load_file(file)
    spell = SOURCES[case.source].spell
    foreign = read_foreign(name)
    needed = [key for key in tensors if not spell(key).startswith(case.left_behind) and ".1." not in key]
    for key in needed:
        save_file({k: v for k, v in tensors.items() if k != key}, file, {"format": "pt"})
        with pytest.raises(ValueError, match="do not fit their own configuration, in our names: .* is missing"):
            _ = foreign.state_dict


# Out


def test_export_has_the_names_of_the_sources_own_file(case: Case, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    spell = SOURCES[case.source].spell
    expected = {spell(key) for key in load_file(file)}
    expected = {key for key in expected if not key.startswith(case.left_behind)}
    assert export_foreign(MetaTransformerModel.from_pretrained(name), case.source).keys() == expected


def test_what_is_exported_loads_again_without_a_bit_lost(case: Case, tmp_path: Path) -> None:
    model = MetaTransformerModel.from_pretrained(case.save(case.build(), tmp_path))
    file = next(tmp_path.glob("*.safetensors"))
    save_file(export_foreign(model, case.source), file, {"format": "pt"})
    again = MetaTransformerModel.from_pretrained(tmp_path)
    assert model.encoder_fingerprint() == again.encoder_fingerprint()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_the_source_gives_equal_features_with_what_is_exported(case: Case, tmp_path: Path) -> None:
    """Also after training: the embedding of the modality, which no source has, goes into the positions."""
    theirs = case.build()
    model = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    for parameter in [*model.modality_embeddings.values(), *model.encoder.layers[1].parameters(), model.cls_token]:
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    revived = case.revive(theirs, export_foreign(model, case.source)).eval()
    pixels = images(*case.size)
    torch.testing.assert_close(case.features(revived, pixels), encode(model, pixels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_go_from_one_library_to_another() -> None:
    theirs = timm_model("vit_base_patch16_clip_quickgelu_224", img_size=24, mlp_ratio=1.5)
    exported = export_foreign(MetaTransformerModel.from_pretrained(theirs), "clip")
    revived = revive_transformers(clip_vision(), exported).eval()
    pixels = images(24, 24)
    torch.testing.assert_close(clip_features(revived, pixels), theirs.forward_features(pixels), rtol=0, atol=1e-5)


def test_a_model_with_a_head_is_exported_without_it() -> None:
    theirs = timm_model()
    model = MetaTransformerForClassification.from_pretrained(theirs, num_labels=3)
    exported = export_foreign(model, "timm")
    assert exported.keys() == {name for name in theirs.state_dict() if not name.startswith("head")}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("clip", "'use_pre_layernorm': True"),
        ("dinov2", "'layer_scale': True"),
        ("official", "'use_final_layernorm': False"),
        ("resnet", "Unknown source 'resnet'. Known are: 'official', 'timm'"),
    ],
)
def test_export_to_a_layout_without_the_same_parts_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_foreign(MetaTransformerModel.from_pretrained(timm_model()), source)


def test_export_of_images_from_a_model_without_them_is_refused() -> None:
    model = MetaTransformerModel.from_pretrained(timm_model(), modalities=["audio"])
    with pytest.raises(ValueError, match=r"has modalities \['audio'\] only"):
        export_foreign(model, "timm")


# What the trunk cannot express


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"qk_norm": True}, "qk_norm"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, "register tokens"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no class token"),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, "no learned positions"),
        ("vit_tiny_patch16_224", {"proj_bias": False}, "projections without bias"),
        ("vit_tiny_patch16_224", {"act_layer": "mish"}, "the activation Mish"),
        ("vit_tiny_patch16_224", {"norm_layer": "rmsnorm"}, "another norm than LayerNorm"),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}, "a norm inside attention or feed-forward part"),
        ("vit_small_patch14_dinov2", {"mlp_layer": timm.layers.SwiGLUPacked}, "SwiGLU|GluMlp"),
        ("vit_base_patch32_plus_256", {"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "parallel"),
        ("deit_tiny_distilled_patch16_224", {}, "VisionTransformerDistilled"),
        ("eva02_tiny_patch14_224", {}, "the class Eva"),
        ("resnet10t", {}, "the class ResNet"),
    ],
)
def test_timm_models_that_the_trunk_cannot_express_are_refused(name: str, options: dict, message: str) -> None:
    shape = {} if name == "resnet10t" else {"embed_dim": 48, "depth": 1, "num_heads": 3}
    model = timm.create_model(name, **shape, **options)
    with pytest.raises(ValueError, match=rf"{name}.* no plain vision transformer.*({message})"):
        MetaTransformerModel.from_pretrained(model)


def test_a_folder_of_an_unsupported_timm_model_is_refused(tmp_path: Path) -> None:
    save_timm(timm_model(reg_tokens=2), tmp_path)
    with pytest.raises(ValueError, match="register tokens"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_an_architecture_that_timm_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "no_such_model", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match=r"timm cannot build the model of .*no_such_model"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_swiglu_of_dinov2_is_refused(tmp_path: Path) -> None:
    dinov2(use_swiglu_ffn=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SwiGLU"):
        MetaTransformerModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "vision",
    [
        {"attentional_pool": True},
        {"timm_model_name": "vit_base_patch16_224"},
        {"layers": [3, 4, 6, 3]},
        {"qk_norm": True},
        {"norm_kwargs": {"elementwise_affine": False}},
        {"pool_type": "avg", "final_ln_after_pool": True},
    ],
)
def test_towers_of_open_clip_that_the_trunk_cannot_express_are_refused(vision: dict, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip_config(False, **vision)}))
    with pytest.raises(ValueError, match=f"no plain vision transformer.*{list(vision)[-1]}"):
        MetaTransformerModel.from_pretrained(tmp_path)


# Preprocessing


def photo() -> Image.Image:
    """Smooth, since resizing in 8 bits and in floats differs by the rounding alone."""
    rows, columns = np.mgrid[0:60, 0:90]
    colours = [rows * 2, columns * 2, (rows + columns) * 1.5]
    return Image.fromarray(np.stack(colours, axis=-1).astype(np.uint8))


def close(ours: dict[str, Any], theirs: Tensor) -> None:
    pixels = ImageProcessor(**ours)(photo())["pixel_values"][0]
    torch.testing.assert_close(pixels, theirs, rtol=0, atol=0.03)


@pytest.mark.parametrize("crop", [{"crop_pct": 0.9, "crop_mode": "center"}, {"crop_pct": 1.0, "crop_mode": "squash"}])
def test_images_are_prepared_as_timm_does(crop: dict, tmp_path: Path) -> None:
    model = timm_model(img_size=32)
    model.pretrained_cfg.update(crop, mean=(0.4, 0.5, 0.6), std=(0.3, 0.4, 0.5), interpolation="bilinear")
    save_timm(model, tmp_path)
    foreign = read_foreign(tmp_path)
    transform = create_transform(**resolve_data_config({"input_size": (3, 32, 32)}, model=model))
    close(foreign.image_processor, transform(photo()))
    assert "state_dict" not in vars(foreign)  # no weight was read


@pytest.mark.parametrize("processor_class", [ViTImageProcessor, CLIPImageProcessor])
def test_images_are_prepared_as_transformers_does(processor_class: type, tmp_path: Path) -> None:
    vit().config.save_pretrained(tmp_path)
    clip_style = processor_class is CLIPImageProcessor
    size = {"shortest_edge": 30} if clip_style else {"height": 24, "width": 24}
    processor = processor_class(size=size, crop_size={"height": 24, "width": 24})
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    close(read_foreign(tmp_path).image_processor, processor(photo(), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    ("stored", "size", "crop_size"),
    [
        ({"size": 24}, [24, 24], None),  # ViT's, as Google's checkpoints have it
        ({"size": 24, "do_center_crop": True, "crop_size": 20}, 24, 20),  # CLIP's, as OpenAI's have it
        ({"size": {"shortest_edge": 30}, "do_center_crop": True, "crop_size": {"height": 24, "width": 20}}, 30, [24, 20]),
        ({"size": 24, "do_resize": False}, None, None),
    ],
)
def test_sizes_are_read_as_old_checkpoints_store_them(stored: dict, size: Any, crop_size: Any, tmp_path: Path) -> None:
    vit().config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, "resample": 3, "do_normalize": False}))
    settings = read_foreign(tmp_path).image_processor
    assert (settings["size"], settings["crop_size"], settings["interpolation"]) == (size, crop_size, "bicubic")
    assert (settings["image_mean"], settings["image_std"]) == (0.0, 1.0)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_images_are_prepared_as_open_clip_does(mode: str, tmp_path: Path) -> None:
    vision = {"image_size": 24}
    model = open_clip_model(open_clip.CLIP, False, **vision)
    model.visual.preprocess_cfg = {"resize_mode": mode, "interpolation": "bilinear"}
    save_open_clip(False, vision, model, tmp_path)
    transform = open_clip.image_transform(
        24, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode=mode, interpolation="bilinear"
    )
    close(read_foreign(tmp_path).image_processor, transform(photo()))


def test_preparation_that_has_no_equivalent_is_refused_only_when_asked_for() -> None:
    model = timm_model(img_size=32)
    model.pretrained_cfg["crop_mode"] = "border"
    foreign = read_foreign(model)
    with pytest.raises(ValueError, match=r"crop_mode 'border'.*make one with other settings"):
        _ = foreign.image_processor
