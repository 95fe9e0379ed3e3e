"""The configuration: named shapes and refused values."""

import pytest

from meta_transformer import MetaTransformerConfig


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("tiny", (192, 12, 3, 768)),
        ("small", (384, 12, 6, 1536)),
        ("base_patch16", (768, 12, 12, 3072)),
        ("large_patch14", (1024, 24, 16, 4096)),
    ],
)
def test_named_shapes(name, shape):
    config = getattr(MetaTransformerConfig, name)(modalities=["image", "audio"], num_labels=7)
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert tuple(getattr(config, field) for field in fields) == shape
    assert list(config.modalities) == ["audio", "image"]
    assert config.modalities["image"].patch_size == (14 if name == "large_patch14" else 16)
    assert config.num_labels == 7


def test_the_default_needs_no_argument():
    assert list(MetaTransformerConfig().modalities) == ["image"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["smell"]}, "Unknown modality 'smell'"),
        ({"modalities": []}, "modalities is empty"),
        ({"modalities": {"image": 3}}, "must be a dict or ImageTokenizerConfig"),
        ({"modalities": {"image": {"patch_size": "large"}}}, "patch_size"),
        ({"heads": ["poetry"]}, "Unknown head 'poetry'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "multiple of num_attention_heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is a probability below 1"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(Exception, match=message) as caught:
        MetaTransformerConfig(**options)
    assert "Strict" in type(caught.value).__name__ or isinstance(caught.value, ValueError | TypeError)


def test_assignment_is_checked_too():
    config = MetaTransformerConfig()
    with pytest.raises(ValueError, match="Unknown modality 'smell'"):
        config.modalities = ["smell"]
    with pytest.raises(Exception, match="hidden_size"):
        config.hidden_size = "wide"
