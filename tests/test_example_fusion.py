"""The example of fusion: what it learns from, what it measures, and what it says of the means."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RANDOM = np.random.default_rng(0)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("05_multimodal_fusion")
    for name in ("05_multimodal_fusion", "task_runs", "digit_pairs"):
        sys.modules.pop(name, None)
    for name in [name for name in sys.modules if name.split(".")[0] == "recipes"]:
        del sys.modules[name]


@pytest.fixture
def task(example):
    table = pd.DataFrame(
        {
            "image": list(RANDOM.integers(0, 256, (6, 16, 16, 3), np.uint8)),
            "text": [f"word {number}" for number in range(6)],
            "label": [0, 1, 0, 1, 0, 1],
        }
    )
    return example.Task(
        {"train": table, "test": table},
        MetaTransformerProcessor(image=True, text=True),
        MetaTransformerForClassification,
        {},
        lambda predictions, labels: float((predictions.argmax(axis=1) == labels).mean()),
        better=1,
        augment=lambda row, table: {**row, "text": "changed"},
    )


def test_samples_hold_the_modalities_asked_for_and_change_in_training_alone(example, task):
    assert example.Samples(task, "train", ["text"])[1] == {"text": "changed", "labels": 1}
    assert example.Samples(task, "test", ["text"])[1] == {"text": "word 1", "labels": 1}
    assert example.Samples(task, "test", ["image", "text"])[2].keys() == {"image", "text", "labels"}


def test_samples_come_once_with_each_choice_of_modalities(example, task):
    samples = example.Samples(task, "test", *example.ways(["image", "text"]))
    assert len(samples) == 18
    assert [set(samples[index]) - {"labels"} for index in (5, 6, 17)] == [{"image", "text"}, {"image"}, {"text"}]
    assert [samples[index]["labels"] for index in (1, 7, 13)] == [1, 1, 1]


def test_the_measure_is_that_of_each_sample_alone(example, task):
    config = MetaTransformerConfig.tiny(
        num_hidden_layers=1, modalities=task.processor.tokenizer_configs(), num_labels=2, initializer_range=0.2
    )
    model = MetaTransformerForClassification(config).eval()
    for modalities in (["image", "text"], ["text"]):
        right = []
        for _, row in task.splits["test"].iterrows():
            logits = model(**task.processor([{each: row[each] for each in modalities}])).logits
            right.append(int(logits.argmax()) == row["label"])
        assert example.measure(model, task, modalities, batch=4) == pytest.approx(np.mean(right))


def test_gain_and_loss_are_those_beside_single_modalities(example, task):
    means = pd.DataFrame(
        {"image + text": [np.nan, np.nan, 0.95], "image": [0.8, np.nan, 0.79], "text": [np.nan, 0.9, 0.86]},
        index=["image alone", "text alone", "early"],
    )
    (sentence,) = example.check(task, means)
    assert sentence.startswith("early: +0.050 beside the best single modality; with one missing, at worst -0.040")


def test_less_is_better_where_the_metric_is_an_error(example, task):
    task.better = -1
    means = pd.DataFrame(
        {"image + text": [np.nan, np.nan, 0.7], "image": [0.8, np.nan, 0.9], "text": [np.nan, 1.0, 1.0]},
        index=["image alone", "text alone", "early"],
    )
    (sentence,) = example.check(task, means)
    assert sentence.startswith("early: +0.100 beside the best single modality; with one missing, at worst -0.100")
