"""Several heads on one trunk, against models of one head each."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import EvalPrediction, Trainer, TrainingArguments

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForMultiTask,
    MetaTransformerProcessor,
)
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DEFECT = {"head": "classification", "id2label": {0: "none", 1: "crack", 2: "dust"}, "options": {"pooling": "mean"}}
POWER = {"head": "regression", "options": {"num_targets": 2, "layers": [0, 2]}, "loss_weight": 0.25}
PLACES = {"head": "segmentation", "num_labels": 2, "modalities": ["image"]}
PICTURES = torch.rand(4, 3, 32, 48)
LABELS = {"defect": torch.tensor([0, 2, 1, -100]), "power": torch.randn(4, 2)}


def make(modalities=("image",), **tasks):
    torch.manual_seed(0)
    config = MetaTransformerConfig(**SHAPE, modalities=list(modalities), heads={"multi_task": {"tasks": tasks}})
    return MetaTransformerForMultiTask(config).eval()


def encoder_calls(model):
    calls = []
    model.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_task_gives_what_a_model_of_its_head_alone_gives():
    model = make(defect=DEFECT, power=POWER)
    alone = MetaTransformerForClassification(
        MetaTransformerConfig(**SHAPE, id2label=DEFECT["id2label"], heads={"classification": DEFECT["options"]})
    ).eval()
    alone.model.load_state_dict(model.model.state_dict())
    alone.head.load_state_dict(model.head.tasks["defect"].state_dict())
    expected = alone(pixel_values=PICTURES, labels=LABELS["defect"])
    output = model(pixel_values=PICTURES, labels=LABELS)
    assert_close(output.outputs["defect"].logits, expected.logits)
    assert_close(output.losses["defect"], expected.loss.detach())


def test_the_loss_is_the_weighted_sum():
    output = make(defect=DEFECT, power=POWER)(pixel_values=PICTURES, labels=LABELS)
    assert_close(output.loss.detach(), output.losses["defect"] + 0.25 * output.losses["power"])


def test_a_task_without_labels_adds_nothing_to_the_loss():
    model = make(defect=DEFECT, power=POWER)
    output = model(pixel_values=PICTURES, labels={"power": LABELS["power"]})
    assert_close(output.loss.detach(), 0.25 * output.losses["power"])
    assert set(output.losses) == {"power"}
    assert set(output.outputs) == {"defect", "power"}


def test_tasks_that_share_their_input_share_one_pass_of_the_trunk():
    model = make(defect=DEFECT, power=POWER, places=PLACES)
    calls = encoder_calls(model)
    model(pixel_values=PICTURES)
    assert len(calls) == 1


def test_a_task_reads_its_own_modalities_as_if_they_were_alone():
    model = make(["image", "text"], defect={**DEFECT, "modalities": ["image"]}, power=POWER)
    text = {"input_ids": torch.randint(10, 200, (4, 7))}
    calls = encoder_calls(model)
    both = model(pixel_values=PICTURES, **text)
    assert len(calls) == 2  # image alone, and image with text
    alone = model(pixel_values=PICTURES)
    assert_close(both.outputs["defect"].logits, alone.outputs["defect"].logits)
    assert (both.outputs["power"].logits - alone.outputs["power"].logits).abs().max() > 1e-4


def test_a_task_is_left_out_where_its_input_is_missing():
    model = make(["image", "text"], power=POWER, places=PLACES)
    text = {"input_ids": torch.randint(10, 200, (4, 7))}
    assert set(model(**text).outputs) == {"power"}
    with pytest.raises(ValueError, match="lacks what its head reads"):
        model(**text, labels={"places": torch.zeros(4, 32, 48)})


def test_a_head_that_reads_modalities_apart_finds_its_parts():
    pairs = {"head": "retrieval", "options": {"embed_dim": 8}}
    model = make(["image", "text"], pairs=pairs, power=POWER)
    calls = encoder_calls(model)
    inputs = {"pixel_values": PICTURES, "input_ids": torch.randint(10, 200, (4, 7))}
    output = model(**inputs, labels={"pairs": torch.arange(4)})
    assert output.outputs["pairs"].embeds.shape == (4, 2, 8)
    assert len(calls) == 3  # each alone, and both together for the other task
    assert model.head.couples_samples


def test_labels_that_belong_to_no_task_are_refused():
    model = make(defect=DEFECT)
    with pytest.raises(ValueError, match="unknown task 'colour'"):
        model(pixel_values=PICTURES, labels={"colour": torch.zeros(4)})
    with pytest.raises(TypeError, match="dict"):
        model(pixel_values=PICTURES, labels=torch.zeros(4))


def test_labels_of_a_head_are_checked_by_it():
    with pytest.raises(ValueError, match="must lie in 0..2, got 3"):
        make(defect=DEFECT)(pixel_values=PICTURES, labels={"defect": torch.tensor([0, 1, 2, 3])})


def test_samples_must_have_labels_of_the_same_tasks():
    collate = make(defect=DEFECT, power=POWER).head.label_collator()
    batch = collate([{"defect": 1, "power": [0.0, 1.0]}, {"defect": -100, "power": [2.0, 3.0]}])
    assert batch["defect"].tolist() == [1, -100]
    assert batch["power"].shape == (2, 2)
    with pytest.raises(ValueError, match="where a class is unknown"):
        collate([{"defect": 1}, {"power": [0.0, 1.0]}])
    with pytest.raises(ValueError, match="unknown tasks"):
        collate([{"colour": 1}])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "needs tasks"),
        ({"a b": DEFECT}, "identifier"),
        ({"defect": {"head": "colour"}}, "Unknown head"),
        ({"defect": {**DEFECT, "num_labels": 2}}, "id2label names 3"),
        ({"defect": {**DEFECT, "loss_weight": -1}}, "loss_weight"),
        ({"defect": {**DEFECT, "modalities": ["audio"]}}, "no tokenizer"),
        ({"all": {"head": "multi_task"}}, "beside the others"),
    ],
)
def test_tasks_that_cannot_be_built_are_refused(tasks, message):
    with pytest.raises(Exception, match=message):
        make(**tasks)


def test_a_saved_model_knows_its_tasks(tmp_path):
    model = make(defect=DEFECT, power=POWER)
    model.save_pretrained(tmp_path)
    loaded = MetaTransformerForMultiTask.from_pretrained(tmp_path).eval()
    assert loaded.config.heads["multi_task"] == model.config.heads["multi_task"]
    first = loaded.post_process(loaded(pixel_values=PICTURES), defect={"top_k": 1})[0]
    assert first["defect"][0]["label"] in ("none", "crack", "dust")
    assert len(first["power"]) == 2


def test_metrics_are_those_of_each_task():
    logits, numbers = np.random.default_rng(0).random((2, 5, 3)).astype(np.float32)
    labels = {"defect": np.array([0, 1, 2, 1, 0]), "power": numbers[:, :2]}
    metrics = make(defect=DEFECT, power=POWER).metrics()
    found = metrics(EvalPrediction({"defect": {"logits": logits}, "power": {"logits": numbers[:, :2] + 1}}, labels))
    assert found["defect_accuracy"] == pytest.approx((logits.argmax(1) == labels["defect"]).mean())
    assert found["power_mae"] == pytest.approx(1, abs=1e-5)
    only = metrics(EvalPrediction({"defect": {"logits": logits}}, {"defect": labels["defect"]}))
    assert set(only) == {"defect_accuracy", "defect_f1"}


def test_trainer_reports_every_task(tmp_path):
    random = np.random.default_rng(0)
    rows = [
        {
            "image": random.integers(0, 255, (32, 32, 3), dtype=np.uint8),
            "labels": {"defect": int(index % 3), "power": random.random(2), "places": random.integers(0, 2, (32, 32))},
        }
        for index in range(5)
    ]
    processor = MetaTransformerProcessor(image=ImageProcessor())
    model = make(defect=DEFECT, power=POWER, places=PLACES)
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=2,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=DataCollatorForMetaTransformer.for_model(model, processor),
        compute_metrics=model.metrics(),
    )
    trainer.train()
    assert {"eval_defect_accuracy", "eval_power_rmse", "eval_places_mean_iou"} <= set(trainer.evaluate())
