"""The data collator: labels of all kinds, and what it refuses."""

import numpy as np
import pytest
import torch

from meta_transformer import MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

IMAGE = np.zeros((16, 16, 3), np.uint8)
WAVE = np.sin(np.arange(4000) / 10)


@pytest.fixture
def collator():
    processor = MetaTransformerProcessor(image=True, audio=True)
    return DataCollatorForMetaTransformer(processor, {"audio_kwargs": {"sampling_rate": 16_000}})


def test_samples_are_padded_to_the_longest_of_their_batch(collator):
    batch = collator([{"audio": WAVE, "labels": 1}, {"audio": WAVE[:2000], "labels": 0}])
    assert batch["input_features_mask"].sum(dim=1).tolist() == [23, 11]  # 1 + (samples - 400) // 160
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("name", ["labels", "label", "label_ids"])
@pytest.mark.parametrize(
    "label", [2, 0.5, True, np.int64(2), torch.tensor(2), [1.0, 0.0], torch.tensor([1.0, 0.0])], ids=repr
)
def test_labels_of_every_kind_are_stacked(collator, name, label):
    batch = collator([{"image": IMAGE, name: label}] * 2)
    torch.testing.assert_close(batch["labels"], torch.stack([torch.as_tensor(label)] * 2))


@pytest.mark.parametrize("labels", [("cat", "dog"), (1, None), (1, [0, 1])], ids=repr)
def test_labels_that_make_no_tensor_are_refused(collator, labels):
    with pytest.raises(ValueError, match="'labels'.*label2id"):
        collator([{"image": IMAGE, "labels": label} for label in labels])


def test_a_label_that_is_missing_is_refused(collator):
    with pytest.raises(ValueError, match="'labels'"):
        collator([{"image": IMAGE, "labels": 1}, {"image": IMAGE}])


@pytest.mark.parametrize("order", [1, -1])
def test_samples_may_have_different_modalities(collator, order):
    batch = collator([{"image": IMAGE}, {"image": IMAGE, "audio": WAVE}][::order])
    assert len(batch["pixel_values"]) == 2
    assert batch["audio_samples"].tolist() == [1 if order == 1 else 0]
    assert "image_samples" not in batch


def test_a_sample_without_modality_is_refused(collator):
    with pytest.raises(ValueError, match=r"samples \[1\] have no modality"):
        collator([{"image": IMAGE}, {"image": None}])


def test_samples_that_the_processor_does_not_know_are_refused(collator):
    with pytest.raises(
        ValueError, match=r"keys \['picture'\], but none of the modalities.*remove_unused_columns=False"
    ):
        collator([{"picture": IMAGE}])
    with pytest.raises(ValueError, match="no samples"):
        collator([])
