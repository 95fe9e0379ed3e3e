"""Heads that need one modality, on batches in which samples have different ones, in every way of fusion."""

import pytest
import torch
from torch.testing import assert_close

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForMultiTask,
    MetaTransformerForObjectDetection,
    MetaTransformerForSegmentation,
)

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FUSIONS = pytest.mark.parametrize("fusion", ["early", "gated", "bottleneck"])
RANDOM = torch.Generator().manual_seed(0)
PICTURES = {"pixel_values": torch.randn(2, 3, 32, 48, generator=RANDOM)}
TEXTS = {"input_ids": torch.randint(10, 200, (2, 5), generator=RANDOM)}


def make(model_class, head, fusion="early", **options):
    torch.manual_seed(0)
    config = MetaTransformerConfig(
        **SHAPE, modalities=["image", "text"], fusion=fusion, num_labels=2, initializer_range=0.3, heads=head, **options
    )
    return model_class(config).eval()


@FUSIONS
def test_detection_tokens_see_the_picture(fusion):
    model = make(MetaTransformerForObjectDetection, {"object_detection": {"decoder": "set"}}, fusion)
    other = {"pixel_values": PICTURES["pixel_values"].flip(2)}
    first, second = (model(**pictures, **TEXTS).logits for pictures in (PICTURES, other))
    assert (first - second).abs().max() > 1e-2


@FUSIONS
def test_detection_tokens_are_read_whichever_modalities_the_head_reads(fusion):
    options = {"decoder": "set", "num_detection_tokens": 4}
    everything = make(MetaTransformerForObjectDetection, {"object_detection": options}, fusion)
    pictures = make(
        MetaTransformerForObjectDetection, {"object_detection": options | {"modalities": ["image"]}}, fusion
    )
    assert_close(pictures(**PICTURES, **TEXTS).logits, everything(**PICTURES, **TEXTS).logits)


def test_a_learned_token_in_place_of_a_picture_is_not_segmented():
    model = make(MetaTransformerForSegmentation, {"segmentation": {"channels": 32}}, absent_tokens=True)
    one = {"pixel_values": PICTURES["pixel_values"][:1], "image_samples": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"reads 'image', which the samples \[1\]"):
        model(**one, **TEXTS)
    assert model(**PICTURES, **TEXTS).logits.shape == (2, 2, 32, 48)


def test_two_pictures_of_a_sample_are_refused():
    model = make(MetaTransformerForSegmentation, {"segmentation": {"channels": 32}})
    with pytest.raises(
        ValueError, match=r"exactly one segment .* got \['image \(ImageLayout\)', 'image \(ImageLayout\)'\]"
    ):
        model(**PICTURES, image_samples=torch.tensor([0, 0]))


@FUSIONS
def test_a_task_refuses_samples_without_its_modalities(fusion):
    tasks = {name: {"head": "classification", "num_labels": 2, "modalities": [name]} for name in ("image", "text")}
    model = make(MetaTransformerForMultiTask, {"multi_task": {"tasks": tasks}}, fusion)
    one = {"pixel_values": PICTURES["pixel_values"][:1], "image_samples": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"reads 'image', which the samples \[1\]"):
        model(**one, **TEXTS)
    assert set(model(**PICTURES, **TEXTS).outputs) == {"image", "text"}
