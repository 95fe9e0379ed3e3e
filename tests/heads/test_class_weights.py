"""Class weights against torch's losses and scikit-learn's balanced weights."""

from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForMultiTask,
    MetaTransformerForSegmentation,
    MetaTransformerForTokenClassification,
)
from meta_transformer.heads.class_weights import balanced_class_weights

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PICTURES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 0, -100, 0, 2])
WEIGHTS = [0.5, 4.0, 1.5]


def make_model(model_class: Any = MetaTransformerForClassification, **options: Any) -> Any:
    torch.manual_seed(0)
    config = {name: options.pop(name) for name in ("problem_type",) if name in options}
    heads = {model_class.head_name: options}
    return model_class(MetaTransformerConfig(**SHAPE, modalities=["image"], num_labels=3, heads=heads, **config)).eval()


def test_weighted_loss_is_torchs_but_for_the_mean_over_labels() -> None:
    output = make_model(class_weights=WEIGHTS)(pixel_values=PICTURES, labels=LABELS)
    expected = functional.cross_entropy(output.logits, LABELS, torch.tensor(WEIGHTS), reduction="sum") / 7
    assert_close(output.loss, expected)
    assert not torch.isclose(output.loss, make_model()(pixel_values=PICTURES, labels=LABELS).loss, rtol=0.01)


def test_with_balanced_weights_the_loss_over_a_data_set_is_torchs_mean() -> None:
    weights = balanced_class_weights(LABELS, 3)
    output = make_model(class_weights=weights, label_smoothing=0.0)(pixel_values=PICTURES, labels=LABELS)
    assert_close(output.loss, functional.cross_entropy(output.logits, LABELS, torch.tensor(weights)))


def test_weights_of_a_multi_label_problem_are_torchs_pos_weight() -> None:
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
    output = make_model(class_weights=WEIGHTS)(pixel_values=PICTURES[:4], labels=labels)
    assert_close(output.loss, torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))(output.logits, labels))


def test_weights_of_a_segmentation_are_those_of_pixels() -> None:
    labels = torch.randint(0, 3, (8, 32, 32), generator=torch.Generator().manual_seed(0))
    labels[0, :9] = -100
    output = make_model(MetaTransformerForSegmentation, class_weights=WEIGHTS)(pixel_values=PICTURES, labels=labels)
    total = functional.cross_entropy(output.logits, labels, torch.tensor(WEIGHTS), reduction="sum")
    assert_close(output.loss, total / (labels != -100).sum())


def test_accumulated_gradients_are_those_of_the_big_batch(tmp_path) -> None:
    """One step of SGD by `Trainer` with classes of uneven weights: a batch of 8, and 4 accumulated batches of 2."""
    rows = [{"pixel_values": picture, "labels": label} for picture, label in zip(PICTURES, LABELS, strict=True)]
    ends = []
    for batch_size in (8, 2):
        model = make_model(class_weights=WEIGHTS)
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=8 // batch_size, max_steps=1,
            learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0, optim="sgd", report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        ends.append(model.state_dict())
    assert max((ends[0][name] - value).abs().max() for name, value in make_model().state_dict().items()) > 1e-3
    for name, value in ends[0].items():
        assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5)


def test_tasks_of_a_multi_task_model_have_weights_of_their_own() -> None:
    task = {"head": "classification", "num_labels": 3, "options": {"class_weights": WEIGHTS}}
    model = make_model(MetaTransformerForMultiTask, tasks={"kind": task})
    output = model(pixel_values=PICTURES, labels={"kind": LABELS})
    logits = output.outputs["kind"].logits
    assert_close(output.loss, functional.cross_entropy(logits, LABELS, torch.tensor(WEIGHTS), reduction="sum") / 7)


@pytest.mark.parametrize(
    "model_class",
    [MetaTransformerForClassification, MetaTransformerForSegmentation, MetaTransformerForTokenClassification],
)
@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [0.0, 0.0, 0.0], []])
def test_what_can_be_no_weights_is_refused(model_class: Any, weights: list[float]) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match="class_weights must be finite numbers"):
        make_model(model_class, class_weights=weights)


@pytest.mark.parametrize("model_class", [MetaTransformerForClassification, MetaTransformerForSegmentation])
def test_more_or_fewer_weights_than_classes_are_refused(model_class: Any) -> None:
    for weights in ([1.0, 2.0], [1.0] * 4):
        with pytest.raises(ValueError, match="class_weights must be 3 numbers, one a class, got"):
            make_model(model_class, class_weights=weights)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list], ids=["numpy", "torch", "list"])
def test_balanced_weights_are_those_of_scikit_learn(kind: Any) -> None:
    labels = np.random.default_rng(0).choice(4, size=200, p=[0.7, 0.1, 0.15, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert balanced_class_weights(kind(labels), 4) == pytest.approx(expected)


def test_balanced_weights_of_labels_of_several_lengths_count_all_known_ones() -> None:
    labels = [[0, 1, -100], [1], np.array([2, 1])]
    assert balanced_class_weights(labels, 3) == pytest.approx(compute_class_weight(
        "balanced", classes=np.arange(3), y=[0, 1, 1, 2, 1]
    ))  # fmt: skip


def test_balanced_weights_of_a_multi_label_problem_are_negatives_through_positives() -> None:
    labels = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    assert balanced_class_weights(labels, 2) == pytest.approx([1 / 3, 3])


def test_labels_of_which_no_weights_follow_are_refused() -> None:
    for labels, message in (
        ([0, 0, 2], r"none of the classes \[1\] of 3"),
        ([], r"none of the classes \[0, 1, 2\]"),
        ([0, 3], r"must lie in 0\.\.2, got 3"),
        ([0.5, 1.0], r"must lie in 0\.\.2, got 0\.5"),
        ([[0.5, 1.0, 0.0]], "zeros and ones"),
    ):
        with pytest.raises(ValueError, match=message):
            balanced_class_weights(labels, 3)
