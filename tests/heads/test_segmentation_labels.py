"""Class maps of every kind as labels, and those that are refused."""

import pickle
from math import nan

import numpy as np
import pytest
import torch
from PIL import Image

from meta_transformer import MetaTransformerConfig, MetaTransformerForSegmentation, MetaTransformerProcessor
from meta_transformer.heads.class_maps import resize_class_map
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

CLASSES = np.array([[0, 1, 1], [2, 0, 255]], dtype=np.uint8)
EXPECTED = [[0, 1, 1], [2, 0, -100]]


def model(num_labels: int = 3, **options) -> MetaTransformerForSegmentation:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = MetaTransformerConfig(
        **shape, modalities=["image"], heads={"segmentation": options}, id2label=dict(enumerate("abcdef"[:num_labels]))
    )
    return MetaTransformerForSegmentation(config).eval()


@pytest.mark.parametrize(
    "label",
    [
        CLASSES,
        torch.from_numpy(CLASSES),
        Image.fromarray(CLASSES),
        CLASSES.tolist(),
        CLASSES.astype(np.uint16),
        CLASSES.astype(">i4").astype(np.int32),
        CLASSES.astype(np.float32),
    ],
    ids=["numpy", "torch", "pil", "list", "uint16", "int32", "float"],
)
def test_maps_of_every_kind_become_class_numbers(label) -> None:
    labels = model().head.label_collator()([label])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [EXPECTED]


def test_masks_are_classes_0_and_1() -> None:
    mask = CLASSES > 0
    collate = model(2).head.label_collator()
    assert collate([mask]).tolist() == collate([Image.fromarray(mask)]).tolist() == [[[0, 1, 1], [1, 0, 1]]]


def test_maps_of_different_size_are_padded_with_what_does_not_count() -> None:
    labels = model().head.label_collator()([np.ones((1, 3), int), np.zeros((2, 2), int)])
    assert labels.tolist() == [[[1, 1, 1], [-100] * 3], [[0, 0, -100], [0, 0, -100]]]


def test_the_number_that_does_not_count_is_an_option() -> None:
    assert model(ignore_index=9).head.label_collator()([[[9, 1]]]).tolist() == [[[-100, 1]]]


def test_the_label_collator_is_pickled_without_weights() -> None:
    collate = model().head.label_collator()
    assert len(pickle.dumps(collate)) < 1000
    assert pickle.loads(pickle.dumps(collate))([CLASSES]).tolist() == [EXPECTED]


def test_a_map_follows_its_picture_by_the_nearest_pixel() -> None:
    big = np.arange(12).reshape(3, 4)
    assert resize_class_map(big, (6, 8)).tolist() == np.kron(big, np.ones((2, 2), int)).tolist()
    random = torch.randint(0, 9, (31, 17), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(random[None, None].float(), (13, 29), mode="nearest-exact")[0, 0]
    assert torch.equal(resize_class_map(random, (13, 29)), expected.long())
    assert resize_class_map(big > 3, (2, 2)).dtype == torch.bool


def test_a_map_resized_to_the_processors_output_trains() -> None:
    processor = MetaTransformerProcessor(image=ImageProcessor(size=32))
    picture, classes = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8)
    batch = processor(image=picture)
    label = resize_class_map(classes, batch["pixel_values"].shape[-2:])
    collate = DataCollatorForMetaTransformer.for_model(model(), processor)
    assert model()(**collate([{"image": picture, "labels": label}])).loss.isfinite()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([[0, 3]], r"class numbers of 0..2, or 255 where a pixel does not count, got 3"),
        ([[0, -1]], "got -1"),
        ([[0.0, 0.5]], "got 0.5"),
        ([[0.0, nan]], "got nan"),
        (np.zeros((4, 5, 3), np.uint8), r"must have shape \(height, width\), got \(4, 5, 3\); turn colours"),
        (1, r"must have shape \(height, width\), got \(\)"),
    ],
)
def test_maps_that_are_none_are_refused_before_any_step(label, message) -> None:
    collate = DataCollatorForMetaTransformer.for_model(model(), MetaTransformerProcessor(image=True))
    with pytest.raises(ValueError, match=message):
        collate([{"image": np.zeros((8, 9, 3), np.uint8), "labels": label}])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 32, 33), r"must have shape \(2, 32, 48\), one map for each picture.*got \(2, 32, 33\)"),
        (torch.zeros(2), r"got \(2,\)"),
        (torch.full((2, 32, 48), 3), "class numbers of 0..2.*got 3"),
        (torch.full((2, 32, 48), 0.5), "got 0.5"),
    ],
)
def test_the_head_refuses_labels_that_do_not_fit(labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        model()(pixel_values=torch.zeros(2, 3, 32, 48), labels=labels)


def test_a_map_larger_than_its_picture_is_refused_in_a_ragged_batch() -> None:
    pictures = [np.zeros((20, 30, 3), np.uint8), np.zeros((32, 16, 3), np.uint8)]
    maps = [np.zeros((20, 30), int), np.zeros((32, 17), int)]
    collate = DataCollatorForMetaTransformer.for_model(model(), MetaTransformerProcessor(image=True))
    batch = collate([{"image": image, "labels": label} for image, label in zip(pictures, maps, strict=True)])
    with pytest.raises(ValueError, match=r"sample 1 reach beyond its picture of \[32, 16\] pixels"):
        model()(**batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"doublings": -1}, "doublings must be at least 0"),
        ({"dice_weight": -0.5}, "dice_weight must be at least 0"),
        ({"decoder": "unet"}, "decoder"),
        ({"decoder": "pyramid", "pyramid_layers": []}, "pyramid_layers is empty"),
        ({"decoder": "pyramid", "layers": "all"}, "layers must be 'last' with decoder 'pyramid'"),
        ({"pyramid_layers": [1]}, "pyramid_layers is for decoder 'pyramid'"),
        ({"ignore_index": 2}, "ignore_index is 2, the number of one of 3 classes"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        model(**options)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="2 classes or more, the background among them, got 1"):
        model(1)
