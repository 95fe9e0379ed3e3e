"""The token classification head: loss against torch, metrics against scikit-learn, labels checked and padded."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional
from torch.testing import assert_close
from transformers import EvalPrediction, Trainer, TrainingArguments

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForTokenClassification,
    MetaTransformerProcessor,
)
from meta_transformer.heads.token_classification import TokenClassificationHeadConfig, pad_labels
from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NAMES = {0: "left", 1: "middle", 2: "right"}
EDGES = [[0, 1], [1, 2], [2, 3], [1, 4]]


def path(num_nodes: int) -> dict:
    features = np.random.default_rng(num_nodes).normal(size=(num_nodes, 2))
    return {"edges": [edge for edge in EDGES if max(edge) < num_nodes], "node_features": features}


GRAPHS = [path(5), path(3), path(4)]
LABELS = [[0, 1, 2, -100, 1], [2, 2, 0], [1, -100, 0, 2]]


def processor(**settings) -> MetaTransformerProcessor:
    return MetaTransformerProcessor(graph=GraphProcessor(num_identifiers=4, **settings).fit(GRAPHS))


def model_of(made: MetaTransformerProcessor, **options) -> MetaTransformerForTokenClassification:
    torch.manual_seed(0)
    config = MetaTransformerConfig(
        **TINY, modalities=made.tokenizer_configs(), id2label=NAMES, heads={"token_classification": options}
    )
    return MetaTransformerForTokenClassification(config).eval()


def logits_and_labels(**options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a padded batch, and logits and labels of the origins whose label is known."""
    made = processor()
    labels = pad_labels(LABELS)
    output = model_of(made, **options)(**made(graph=GRAPHS), labels=labels)
    assert output.logits.shape == (3, 5, 3)
    return output.loss, output.logits[labels != -100], labels[labels != -100]


def test_the_loss_is_that_of_torch_on_the_known_labels() -> None:
    loss, logits, labels = logits_and_labels()
    assert_close(loss, functional.cross_entropy(logits, labels))


def test_label_smoothing_is_that_of_torch() -> None:
    loss, logits, labels = logits_and_labels(label_smoothing=0.2)
    assert_close(loss, functional.cross_entropy(logits, labels, label_smoothing=0.2))


def test_class_weights_are_those_of_torch_but_for_the_mean_over_labels() -> None:
    weights = [0.5, 2.0, 1.0]
    loss, logits, labels = logits_and_labels(class_weights=weights)
    total = functional.cross_entropy(logits, labels, weight=torch.tensor(weights), reduction="sum")
    assert_close(loss, total / len(labels))


def test_the_loss_over_accumulated_batches_sums_to_that_of_the_whole() -> None:
    made = processor()
    model = model_of(made, class_weights=[0.5, 2.0, 1.0])
    whole = model(**made(graph=GRAPHS), labels=pad_labels(LABELS)).loss
    parts = [
        model(**made(graph=[graph]), labels=pad_labels([labels]), num_items_in_batch=10).loss
        for graph, labels in zip(GRAPHS, LABELS, strict=True)
    ]
    assert_close(sum(parts), whole)


def test_a_batch_without_a_known_label_has_no_loss() -> None:
    made = processor()
    assert model_of(made)(**made(graph=GRAPHS), labels=torch.full((3, 5), -100)).loss == 0


def test_another_order_of_the_nodes_gives_the_logits_in_that_order() -> None:
    made = processor()
    model, order = model_of(made), [3, 0, 4, 1, 2]
    place = np.argsort(order)
    renamed = {"edges": place[np.array(EDGES)], "node_features": GRAPHS[0]["node_features"][order]}
    expected = model(**made(graph=GRAPHS[:1])).logits[0]
    assert_close(model(**made(graph=[renamed])).logits[0], expected[order], rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[3]).abs().max() > 1e-3


def test_the_seed_alone_is_classified_on_request() -> None:
    made = processor(seed_nodes=True)
    batch = made(graph=[{**graph, "seed": seed} for graph, seed in zip(GRAPHS, [4, 0, 2], strict=True)])
    every, seeds = model_of(made), model_of(made, seed_only=True)
    output = seeds(**batch, labels=torch.tensor([1, 2, -100]))
    assert_close(output.logits[:, 0], every(**batch).logits[[0, 1, 2], [4, 0, 2]])
    assert_close(output.loss, functional.cross_entropy(output.logits[:2, 0], torch.tensor([1, 2])))
    assert seeds.head.label_collator()([1, 2, 0]).shape == (3, 1)


def test_the_seed_of_samples_without_one_is_refused() -> None:
    made = processor()
    with pytest.raises(ValueError, match="seed_only needs graphs with a marked node, got 'graph' without"):
        model_of(made, seed_only=True)(**made(graph=GRAPHS))


def test_post_processing_gives_a_name_for_each_origin_and_none_for_padding() -> None:
    made = processor()
    model = model_of(made)
    output = model(**made(graph=GRAPHS))
    names = model.post_process(output)
    assert [len(each) for each in names] == [5, 3, 4]
    assert names[1] == [NAMES[each] for each in output.logits[1, :3].argmax(dim=1).tolist()]


def test_metrics_equal_scikit_learn_where_labels_are_known() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 7, 3)).astype(np.float32), random.integers(3, size=(6, 7))
    labels[random.random((6, 7)) < 0.4] = -100
    logits[:2, 5:], labels[:2, 5:] = -100, -100
    found = model_of(processor()).metrics()(EvalPrediction(logits, labels))
    true, predicted = labels[labels != -100], logits.argmax(axis=2)[labels != -100]
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found["f1"] == pytest.approx(f1_score(true, predicted, average="macro"))


def test_trainer_joins_batches_of_different_length(tmp_path) -> None:
    made = processor()
    model = model_of(made)
    rows = [{"graph": graph, "labels": labels} for graph, labels in zip(GRAPHS, LABELS, strict=True)]
    arguments = TrainingArguments(
        tmp_path, per_device_eval_batch_size=1, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    collator = DataCollatorForMetaTransformer.for_model(model, made)
    prediction = Trainer(model, arguments, data_collator=collator, compute_metrics=model.metrics()).predict(rows)
    whole = model(**made(graph=GRAPHS))
    assert_close(torch.as_tensor(prediction.predictions), whole.logits, rtol=1e-4, atol=1e-5)
    assert model.post_process({"logits": torch.as_tensor(prediction.predictions)}) == model.post_process(whole)
    known = pad_labels(LABELS) != -100
    hits = (whole.logits.argmax(dim=2) == pad_labels(LABELS))[known]
    assert prediction.metrics["test_accuracy"] == pytest.approx(hits.float().mean().item())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1, 3, 0, 0], [0] * 3, [0] * 4], r"must lie in 0..2, or be -100 where unknown, got 3"),
        ([[0, 1, -1, 0, 0], [0] * 3, [0] * 4], r"must lie in 0..2, or be -100 where unknown, got -1"),
        ([[0, 1, 0.5, 0, 0], [0.0] * 3, [0.0] * 4], r"must lie in 0..2, or be -100 where unknown, got 0.5"),
        ([[0] * 5, [0] * 4, [0] * 4], "labels of sample 1 are 4, but it has 3 origins"),
        ([[0] * 6, [0] * 3, [0] * 4], "labels of sample 0 are 6, but it has 5 origins"),
        ([[0] * 4, [0] * 3, [0] * 4], "labels of sample 0 are 4, but it has 5 origins"),
        ([[0] * 5, [0] * 3], r"must have shape \(3, 5\), one for each origin, got \(2, 5\)"),
    ],
)
def test_bad_labels_are_refused(labels, message) -> None:
    made = processor()
    with pytest.raises(ValueError, match=message):
        model_of(made)(**made(graph=GRAPHS), labels=pad_labels(labels))


def test_labels_that_are_no_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of sample 1 must be numbers in a row, got shape \(1, 2\)"):
        pad_labels([[0, 1], [[0, 1]]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, got -0.1"),
        ({"class_weights": [1.0, -1.0, 1.0]}, "class_weights must be finite numbers, none negative"),
        ({"class_weights": [0.0, 0.0]}, "class_weights must be finite numbers, none negative, not all zero"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        TokenClassificationHeadConfig(**options)


def test_class_weights_must_be_as_many_as_classes() -> None:
    with pytest.raises(ValueError, match="class_weights must be 3 numbers, one a class"):
        model_of(processor(), class_weights=[1.0, 2.0])
