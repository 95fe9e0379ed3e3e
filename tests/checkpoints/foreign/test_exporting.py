"""Weights go out as they came in: by the source's names, for the source's own classes, without a bit changed."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meta_transformer import MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.checkpoints.foreign import SOURCES, export_foreign


def test_export_has_the_names_of_the_sources_own_file(case: Any, tmp_path: Path) -> None:
    name = case.save(case.build(), tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    spell = SOURCES[case.source].spell
    expected = {spell(key) for key in load_file(file)}
    expected = {key for key in expected if not key.startswith(case.left_behind)}
    assert export_foreign(MetaTransformerModel.from_pretrained(name), case.source).keys() == expected


def test_what_is_exported_loads_again_without_a_bit_lost(case: Any, tmp_path: Path) -> None:
    model = MetaTransformerModel.from_pretrained(case.save(case.build(), tmp_path))
    file = next(tmp_path.glob("*.safetensors"))
    save_file(export_foreign(model, case.source), file, {"format": "pt"})
    again = MetaTransformerModel.from_pretrained(tmp_path)
    assert model.encoder_fingerprint() == again.encoder_fingerprint()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_the_source_gives_equal_features_with_what_is_exported(make: ModuleType, case: Any, tmp_path: Path) -> None:
    """Also after training: the embedding of the modality, which no source has, goes into the positions."""
    theirs = case.build()
    model = MetaTransformerModel.from_pretrained(case.save(theirs, tmp_path))
    for parameter in [*model.modality_embeddings.values(), *model.encoder.layers[1].parameters(), model.cls_token]:
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    revived = case.revive(theirs, export_foreign(model, case.source)).eval()
    pixels = make.images(*case.size)
    torch.testing.assert_close(case.features(revived, pixels), make.encode(model, pixels), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_go_from_one_library_to_another(make: ModuleType) -> None:
    theirs = make.timm_model("vit_base_patch16_clip_quickgelu_224", img_size=24, mlp_ratio=1.5)
    exported = export_foreign(MetaTransformerModel.from_pretrained(theirs), "clip")
    revived = make.revive_transformers(make.clip_vision(), exported).eval()
    pixels = make.images(24, 24)
    torch.testing.assert_close(make.clip_features(revived, pixels), theirs.forward_features(pixels), rtol=0, atol=1e-5)


def test_a_model_with_a_head_is_exported_without_it(make: ModuleType) -> None:
    theirs = make.timm_model()
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
def test_export_to_a_layout_without_the_same_parts_is_refused(make: ModuleType, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_foreign(MetaTransformerModel.from_pretrained(make.timm_model()), source)


def test_export_of_images_from_a_model_without_them_is_refused(make: ModuleType) -> None:
    model = MetaTransformerModel.from_pretrained(make.timm_model(), modalities=["audio"])
    with pytest.raises(ValueError, match=r"has modalities \['audio'\] only"):
        export_foreign(model, "timm")
