"""Joint training against naive sums over the samples, and on real data of three modalities."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from torch.nn import functional
from torch.testing import assert_close
from transformers import TrainingArguments

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForMultiTask,
    MetaTransformerProcessor,
)
from meta_transformer.processors.audio import AudioProcessor
from meta_transformer.processors.graph import GraphProcessor
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.processors.tabular import TabularProcessor
from meta_transformer.training import (
    DataCollatorForMetaTransformer,
    MixtureTrainer,
    TaskMixture,
    TemperatureBatchSampler,
)

DATA = os.environ.get("META_TRANSFORMER_DATA")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TASKS = {
    "kind": {"head": "classification", "num_labels": 3, "options": {"dropout": 0.0}, "modalities": ["image"]},
    "size": {"head": "regression", "loss_weight": 0.25, "modalities": ["text"]},
}


def arguments(folder: Path, **options) -> TrainingArguments:
    settings = {"remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True, **options}
    return TrainingArguments(str(folder), **settings)


def make(dropout: float = 0.0):
    """A model of two tasks, its collator, and data of 12 pictures, one without a class, and of 7 texts."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    tasks = {**TASKS, "kind": {**TASKS["kind"], "options": {"dropout": dropout}}}
    modalities = {"image": {"patch_size": 16, "image_size": 32}, "text": {}}
    config = MetaTransformerConfig(**SHAPE, modalities=modalities, heads={"multi_task": {"tasks": tasks}})
    model = MetaTransformerForMultiTask(config)
    processor = MetaTransformerProcessor(image=ImageProcessor(), text=True)
    pictures = random.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    kinds = [index % 3 for index in range(11)] + [-100]
    texts = [{"text": "word " * (1 + index), "labels": float(index)} for index in range(7)]
    images = [{"image": picture, "labels": kind} for picture, kind in zip(pictures, kinds, strict=True)]
    mixture = TaskMixture({"kind": images, "size": texts}, model)
    return model, DataCollatorForMetaTransformer.for_model(model, processor), mixture


def naive_losses(model, collator, mixture) -> dict[str, torch.Tensor]:
    """The mean over all labels of each task of a mixture."""
    found = {}
    for task in mixture.ranges:
        batch = collator(list(mixture.part(task)))
        labels = batch.pop("labels")[task]
        logits = model(**batch).outputs[task].logits
        if task == "kind":
            found[task] = functional.cross_entropy(logits, labels, ignore_index=-100)
        else:
            found[task] = functional.mse_loss(logits[:, 0], labels.to(logits))
    return found


def test_accumulated_batches_take_the_step_of_the_naive_sum(tmp_path: Path) -> None:
    model, collator, mixture = make()
    batches = [[0, 1, 2, 3, 4], [12, 13, 14, 15], [5, 6, 7, 8, 9, 10], [16, 17, 18], [11]]  # the last without a class
    means = naive_losses(model, collator, mixture)
    expected = 3 / 5 * means["kind"] + 2 / 5 * 0.25 * means["size"]
    trained = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
    gradients = torch.autograd.grad(expected, list(trained.values()), allow_unused=True, materialize_grads=True)
    after = {name: (old - step).detach() for (name, old), step in zip(trained.items(), gradients, strict=True)}
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    trainer = MixtureTrainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=5, max_steps=1, logging_steps=1, **options),
        train_dataset=mixture,
        data_collator=collator,
        batch_sampler=batches,
    )
    trainer.train()
    for name, weights in trained.items():
        assert_close(weights.detach(), after[name], rtol=1e-4, atol=1e-5)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert logged["loss_kind"] == pytest.approx(means["kind"].item(), rel=1e-4)
    assert logged["loss_size"] == pytest.approx(means["size"].item(), rel=1e-4)


def test_evaluation_has_losses_and_metrics_of_each_task(tmp_path: Path) -> None:
    model, collator, mixture = make()
    trainer = MixtureTrainer(
        model,
        arguments(tmp_path, per_device_eval_batch_size=12),
        eval_dataset=mixture,
        data_collator=collator,
        compute_metrics=model.metrics(),
    )
    found = trainer.evaluate()
    means = {task: loss.item() for task, loss in naive_losses(model.eval(), collator, mixture).items()}
    assert found["eval_kind_loss"] == pytest.approx(means["kind"], rel=1e-5)
    assert found["eval_size_loss"] == pytest.approx(means["size"], rel=1e-5)
    assert found["eval_loss"] == pytest.approx(means["kind"] + 0.25 * means["size"], rel=1e-5)
    names = {"kind_accuracy", "kind_f1", "size_rmse", "size_mae", "size_r2"}
    assert {f"eval_{name}" for name in names} <= set(found)
    trainer.args.batch_eval_metrics = True
    batched = trainer.evaluate()
    for name in names:
        assert batched[f"eval_{name}"] == pytest.approx(found[f"eval_{name}"], rel=1e-5)


@pytest.mark.parametrize("steps", [3, 8], ids=["in the first epoch", "in the second"])
def test_a_training_that_goes_on_ends_with_the_same_weights(tmp_path: Path, steps: int) -> None:
    def run(checkpoint: str | None) -> dict[str, torch.Tensor]:
        model, collator, mixture = make(dropout=0.3)
        sampler = TemperatureBatchSampler(mixture, 3, temperature=2, seed=5)
        assert len(sampler) == 7, "the premise: no checkpoint lies between epochs"
        options = {"num_train_epochs": 2, "save_steps": steps, "learning_rate": 1e-2, "logging_steps": 1}
        trainer = MixtureTrainer(
            model,
            arguments(tmp_path, **options),
            train_dataset=mixture,
            data_collator=collator,
            batch_sampler=sampler,
        )
        if checkpoint:
            torch.manual_seed(99)
        trainer.train(resume_from_checkpoint=checkpoint)
        return {name: weights.clone() for name, weights in model.state_dict().items()}

    whole = run(None)
    resumed = run(str(tmp_path / f"checkpoint-{steps}"))
    for name, weights in whole.items():
        assert_close(resumed[name], weights, rtol=0, atol=0)


def test_the_default_sampler_takes_size_and_seed_of_the_arguments(tmp_path: Path) -> None:
    model, collator, mixture = make()
    options = arguments(tmp_path, per_device_train_batch_size=5, seed=3)
    trainer = MixtureTrainer(model, options, train_dataset=mixture, data_collator=collator)
    found = [len(next(iter(batch["labels"].values()))) for batch in trainer.get_train_dataloader()]
    assert found == [len(batch) for batch in TemperatureBatchSampler(mixture, 5, seed=3)]


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    model, collator, mixture = make()
    single = MetaTransformerForClassification(MetaTransformerConfig(**SHAPE, modalities=["image"]))
    with pytest.raises(TypeError, match="several tasks"):
        MixtureTrainer(single, arguments(tmp_path), train_dataset=mixture, data_collator=collator)
    for data, kind in (([{}], "list"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"TaskMixture, got {kind}"):
            MixtureTrainer(model, arguments(tmp_path), train_dataset=data, data_collator=collator).train()
    with pytest.raises(ValueError, match=r"tasks \['colour'\], which the model has not"):
        MixtureTrainer(model, arguments(tmp_path), eval_dataset=TaskMixture({"colour": [{}]}))
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        MixtureTrainer(model, arguments(tmp_path, remove_unused_columns=True), train_dataset=mixture)


@pytest.mark.skipif(not DATA, reason="needs META_TRANSFORMER_DATA")
def test_three_modalities_learn_three_tasks_at_once(tmp_path: Path) -> None:
    """Which digit is said, how good is a wine, how soluble is a molecule."""
    data = Path(str(DATA))
    recordings = pd.read_csv(data / "audio/fsdd_small/labels.csv").groupby("split").head(96).reset_index(drop=True)
    waves = [soundfile.read(data / "audio/fsdd_small" / path, dtype="float32")[0] for path in recordings["path"]]
    recordings["audio"], classes = waves, sorted(recordings["label"].unique())
    wines = pd.read_csv(data / "tabular/wine_quality/wine_quality.csv")
    molecules = pd.read_csv(data / "molecules/esol/esol.csv")
    columns = wines.drop(columns=["quality", "split"])

    def mixture(split: str, count: int) -> TaskMixture:
        said, drunk, solved = (table[table["split"] == split][:count] for table in (recordings, wines, molecules))
        cells = columns.loc[drunk.index].to_dict("records")
        return TaskMixture(
            {
                "digit": [
                    {"audio": wave, "labels": classes.index(label)}
                    for wave, label in zip(said["audio"], said["label"], strict=True)
                ],
                "quality": [
                    {"tabular": row, "labels": float(y)} for row, y in zip(cells, drunk["quality"], strict=True)
                ],
                "solubility": [
                    {"graph": smiles, "labels": y} for smiles, y in zip(solved["smiles"], solved["logS"], strict=True)
                ],
            }
        )

    train, test = mixture("train", 96), mixture("test", 40)
    processor = MetaTransformerProcessor(
        audio=AudioProcessor(sampling_rate=8000, num_mel_bins=64).fit(waves[:96], sampling_rate=8000),
        tabular=TabularProcessor().fit(columns[wines["split"] == "train"]),
        graph=GraphProcessor.for_molecules(identifiers="none"),
    )
    modalities = processor.tokenizer_configs()
    modalities["audio"] |= {"patch_size": [64, 8], "stride": [64, 8]}
    modalities["graph"] |= {"edge_tokens": False, "max_degree": 5}
    tasks = {
        "digit": {"head": "classification", "num_labels": len(classes), "options": {"pooling": "mean"}},
        "quality": {"head": "regression", "options": {"target_mean": [5.8], "target_std": [0.9], "pooling": "mean"}},
        "solubility": {"head": "regression", "options": {"target_mean": [-3.0], "target_std": [2.1]}},
    }
    for (_, task), modality in zip(tasks.items(), modalities, strict=True):
        task["modalities"] = [modality]
    torch.manual_seed(0)
    model = MetaTransformerForMultiTask(
        MetaTransformerConfig(**SHAPE, modalities=modalities, heads={"multi_task": {"tasks": tasks}})
    )
    fingerprint = model.encoder_fingerprint()
    trainer = MixtureTrainer(
        model,
        arguments(
            tmp_path,
            num_train_epochs=6,
            learning_rate=1e-2,
            per_device_train_batch_size=16,
            logging_strategy="epoch",
            save_strategy="no",
        ),
        train_dataset=train,
        data_collator=DataCollatorForMetaTransformer.for_model(model, processor, sampling_rate=8000),
        compute_metrics=model.metrics(),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for task in tasks:
        assert logs[-1][f"loss_{task}"] < 0.9 * logs[0][f"loss_{task}"], task
    predicted = trainer.predict(test)
    found, labels = predicted.metrics, predicted.label_ids
    digits = predicted.predictions["digit"]["logits"].argmax(axis=1)
    assert found["test_digit_accuracy"] == pytest.approx(accuracy_score(labels["digit"], digits))
    assert found["test_digit_f1"] == pytest.approx(f1_score(labels["digit"], digits, average="macro"), abs=1e-6)
    for task in ("quality", "solubility"):
        pair = labels[task], predicted.predictions[task]["logits"][:, 0]
        assert found[f"test_{task}_rmse"] == pytest.approx(root_mean_squared_error(*pair), rel=1e-5)
        assert found[f"test_{task}_mae"] == pytest.approx(mean_absolute_error(*pair), rel=1e-5)
        assert found[f"test_{task}_r2"] == pytest.approx(r2_score(*pair), rel=1e-4, abs=1e-4)
    evaluated = trainer.evaluate(test)
    assert evaluated["eval_quality_rmse"] == pytest.approx(found["test_quality_rmse"])
    assert model.encoder_fingerprint() == fingerprint
