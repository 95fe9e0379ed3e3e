"""What the trunk cannot express, and weights that are not exactly those of their configuration, are refused."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from meta_transformer import MetaTransformerModel
from meta_transformer.checkpoints.foreign import SOURCES, read_foreign


def test_a_tensor_too_many_is_an_error_that_names_it(case: Any, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    save_file({**load_file(file), "surprise.weight": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{case.source}' layout has no place for the tensors \['surprise.weight'\]"):
        MetaTransformerModel.from_pretrained(name)


def test_a_tensor_too_few_is_an_error_that_names_it(case: Any, tmp_path: Path) -> None:
    """Every single one that is no head: none may be left to chance."""
    name = case.save(case.build(), tmp_path)
    tensors = load_file(next(tmp_path.glob("*.safetensors")))
    spell = SOURCES[case.source].spell
    needed = [key for key in tensors if not spell(key).startswith(case.left_behind) and ".1." not in key]
    described = read_foreign(name)
    for key in needed:
        rest = {k: v for k, v in tensors.items() if k != key}
        foreign = replace(described, read_weights=lambda skip, rest=rest: rest)
        with pytest.raises(ValueError, match=r"do not fit their own configuration, in our names: .* is missing"):
            _ = foreign.state_dict


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


def test_a_folder_of_an_unsupported_timm_model_is_refused(make: ModuleType, tmp_path: Path) -> None:
    make.save_timm(make.timm_model(reg_tokens=2), tmp_path)
    with pytest.raises(ValueError, match="register tokens"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_an_architecture_that_timm_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "no_such_model", "pretrained_cfg": {}}))
    with pytest.raises(ValueError, match=r"timm cannot build the model of .*no_such_model"):
        MetaTransformerModel.from_pretrained(tmp_path)


def test_swiglu_of_dinov2_is_refused(make: ModuleType, tmp_path: Path) -> None:
    make.dinov2(use_swiglu_ffn=True).save_pretrained(tmp_path)
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
def test_towers_of_open_clip_that_the_trunk_cannot_express_are_refused(
    make: ModuleType, vision: dict, tmp_path: Path
) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": make.open_clip_config(False, **vision)}))
    with pytest.raises(ValueError, match=f"no plain vision transformer.*{list(vision)[-1]}"):
        MetaTransformerModel.from_pretrained(tmp_path)
