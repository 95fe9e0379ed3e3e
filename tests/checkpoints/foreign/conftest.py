"""Models of other libraries, tiny ones with random weights, which the libraries themselves write to disk."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.push_to_hf_hub import save_for_hf as save_open_clip_for_hf
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
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
    ViTModel,
)

from meta_transformer import MetaTransformerModel

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


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each model in turn."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The functions of this file, which no test can import."""
    return sys.modules[__name__]


@torch.no_grad()
def encode(model: MetaTransformerModel, pixels: Tensor) -> Tensor:
    return model(pixel_values=pixels).last_hidden_state
