"""Foreign weights give the features of the library that they are from, and reach the trunk without a bit changed."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import nn

from meta_transformer import MetaTransformerModel
from meta_transformer.checkpoints.foreign import export_foreign, read_foreign


@torch.no_grad()
def test_features_equal_the_sources_own(make: ModuleType, case: Any, tmp_path: Path) -> None:
    theirs = case.build()
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    pixels = make.images(*case.size)
    expected = case.features(theirs, pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(make.encode(ours, pixels), expected, rtol=0, atol=1e-5)


def test_the_fingerprint_of_the_file_is_that_of_the_model(case: Any, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    model = MetaTransformerModel.from_pretrained(name)
    assert model.config.freeze_encoder
    assert read_foreign(name).encoder_fingerprint() == model.encoder_fingerprint()


def test_official_blocks_give_the_features_of_timms_blocks(make: ModuleType, tmp_path: Path) -> None:
    """Exact names and shapes as published: 12 tensors for each of 12 blocks, torch's own LayerNorm."""
    blocks = make.randomise(nn.Sequential(*[Block(128, 2, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(12)]))
    torch.save(blocks.state_dict(), tmp_path / "Meta-Transformer_base_patch16_encoder.pth")
    assert len(blocks.state_dict()) == 144
    model = MetaTransformerModel.from_pretrained(tmp_path / "Meta-Transformer_base_patch16_encoder.pth")
    tokens = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(tokens), blocks(tokens), rtol=1e-5, atol=1e-5)
    assert (model.config.num_attention_heads, model.config.layer_norm_eps, model.config.pooling) == (2, 1e-5, "mean")
    assert not model.config.use_pre_layernorm and not model.config.use_final_layernorm


def test_official_blocks_keep_every_bit(make: ModuleType, tmp_path: Path) -> None:
    blocks = make.randomise(nn.Sequential(*[Block(64, 1, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(2)]))
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
def test_images_of_any_size_get_timms_features(
    make: ModuleType, size: tuple[int, int], options: dict[str, Any]
) -> None:
    theirs = make.timm_model(dynamic_img_size=True, **options)
    ours = MetaTransformerModel.from_pretrained(theirs)
    pixels = make.images(*size)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
    torch.testing.assert_close(make.encode(ours, pixels), expected, rtol=0, atol=1e-5)


def test_sides_that_are_no_multiples_of_the_patch_are_padded_as_timm_does(make: ModuleType) -> None:
    theirs = make.timm_model(dynamic_img_size=True, dynamic_img_pad=True)
    pixels = make.images(29, 35)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
    torch.testing.assert_close(
        make.encode(MetaTransformerModel.from_pretrained(theirs), pixels), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("case", ["timm CLIP", "ViT", "DINOv2", "CLIP vision"], indirect=True)
@torch.no_grad()
def test_the_pooled_class_token_equals_the_sources_own(make: ModuleType, case: Any, tmp_path: Path) -> None:
    theirs, pixels = case.build(), make.images(*case.size)
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path)).get_features(pixel_values=pixels)
    if case.source == "timm":
        expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    elif case.source == "vit":
        expected = theirs(pixels).last_hidden_state[:, 0]  # its pooler is a head, which stays behind
    else:
        expected = theirs(pixels).pooler_output
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_mean_pooling_comes_along(make: ModuleType) -> None:
    theirs, pixels = make.timm_model(global_pool="avg", fc_norm=False), make.images(*make.SIZE)
    ours = MetaTransformerModel.from_pretrained(theirs)
    expected = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(ours.get_features(pixel_values=pixels), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_features_and_projection_give_open_clips_embedding(make: ModuleType, tmp_path: Path) -> None:
    case = make.CASES["OpenCLIP"]
    theirs, pixels = case.build(), make.images(*make.SIZE)
    ours = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    embedding = ours.get_features(pixel_values=pixels) @ theirs.visual.proj
    torch.testing.assert_close(embedding, theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)


def test_a_live_timm_model_shares_no_memory_with_ours(make: ModuleType) -> None:
    theirs = make.timm_model()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = MetaTransformerModel.from_pretrained(theirs)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    assert ours.config.encoder_name_or_path == "vit_tiny_patch16_224"


@torch.no_grad()
def test_clip_loads_by_the_names_that_hub_checkpoints_have(make: ModuleType, tmp_path: Path) -> None:
    """openai/clip-vit-base-patch16 holds a prefix for the tower and buffers that transformers no longer saves."""
    theirs = make.clip()
    tensors = {name: value.clone() for name, value in theirs.state_dict().items()}
    modules = {name.split(".")[1] for name in tensors if name.startswith("vision_model.")}
    assert modules == {"embeddings", "encoder", "pre_layrnorm", "post_layernorm"}
    for tower, count in (("text_model", 77), ("vision_model", 10)):
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    pixels = make.images(24, 24)
    ours = MetaTransformerModel.from_pretrained(tmp_path)
    torch.testing.assert_close(make.encode(ours, pixels), make.clip_features(theirs, pixels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "vit."])
@torch.no_grad()
def test_vit_loads_by_the_names_that_hub_checkpoints_have(make: ModuleType, prefix: str, tmp_path: Path) -> None:
    """The names of google/vit-base-patch16-224, and of its base model, written out here."""
    theirs = make.vit()
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
    pixels = make.images(24, 24)
    expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(
        make.encode(MetaTransformerModel.from_pretrained(tmp_path), pixels), expected, rtol=0, atol=1e-5
    )
