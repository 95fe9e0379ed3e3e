"""`Trainer` on samples that have different modalities."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments, set_seed

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, TokenBudgetTrainer, count_tokens

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (12, 32, 32, 3), np.uint8)
# Pictures, texts, both, and two pictures with a text.
SAMPLES = [
    [{"image": PICTURES[i]}, {"text": "na" * (i + 1)}, {"image": PICTURES[i], "text": "ha" * i + "!"},
     {"image": (PICTURES[i], PICTURES[-1]), "text": "o"}][i % 4]
    | {"labels": i % 3}
    for i in range(12)
]  # fmt: skip
FUSIONS = ["early", "gated", "bottleneck"]


@pytest.fixture
def processor():
    return MetaTransformerProcessor(image=True, text=True)


def make_model(processor, **options):
    set_seed(0)
    config = MetaTransformerConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        modalities=processor.tokenizer_configs(), num_labels=3, initializer_range=0.2, **options,
    )  # fmt: skip
    return MetaTransformerForClassification(config)


def make_trainer(model, processor, folder, trainer=Trainer, more=None, **options):
    settings = {"max_steps": 2, "learning_rate": 1e-2, "remove_unused_columns": False, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(str(folder), save_strategy="no", disable_tqdm=True, **{**settings, **options})
    return trainer(
        model, arguments, train_dataset=SAMPLES, eval_dataset=SAMPLES,
        data_collator=DataCollatorForMetaTransformer(processor), compute_metrics=model.metrics(), **(more or {}),
    )  # fmt: skip


@pytest.mark.parametrize("fusion", FUSIONS)
def test_predictions_are_those_of_each_sample_alone(processor, fusion, tmp_path):
    model = make_model(processor, fusion=fusion).eval()
    found = make_trainer(model, processor, tmp_path, per_device_eval_batch_size=5).predict(SAMPLES)
    rows = [{name: value for name, value in sample.items() if name != "labels"} for sample in SAMPLES]
    with torch.no_grad():
        alone = torch.cat([model(**processor([row])).logits for row in rows])
    assert_close(torch.as_tensor(found.predictions), alone, rtol=1e-5, atol=1e-5)
    right = (alone.argmax(dim=1) == torch.tensor([sample["labels"] for sample in SAMPLES])).float().mean()
    assert found.metrics["test_accuracy"] == pytest.approx(right.item())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_accumulated_steps_are_those_of_the_big_batch(processor, fusion, tmp_path):
    weights = []
    for size, steps in ((12, 1), (3, 4)):
        model = make_model(processor, fusion=fusion)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        make_trainer(model, processor, tmp_path, train_sampling_strategy="sequential", optim="sgd", **options).train()
        weights.append({name: each.detach() for name, each in model.named_parameters() if each.requires_grad})
    start = dict(make_model(processor, fusion=fusion).named_parameters())
    assert any((weights[0][name] - start[name]).abs().max() > 1e-4 for name in weights[0])
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_packed(processor, reentrant, tmp_path):
    weights = []
    for checkpointing in (False, True):
        model = make_model(processor)
        options = {
            "gradient_checkpointing": checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        }
        make_trainer(model, processor, tmp_path, **options).train()
        weights.append({name: each.detach() for name, each in model.named_parameters() if each.requires_grad})
    for name, weight in weights[0].items():
        assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


def test_tokens_of_mixed_samples_are_counted_and_fill_batches(processor, tmp_path):
    model, collator = make_model(processor), DataCollatorForMetaTransformer(processor)
    lengths = count_tokens(model, SAMPLES, collator, batch_size=5, progress=False)
    alone = [model.model.tokenize(**processor([{k: v for k, v in s.items() if k != "labels"}])) for s in SAMPLES]
    assert lengths.tolist() == [len(each) if each.mask is None else int(each.mask.sum()) for each in alone]
    trainer = make_trainer(model, processor, tmp_path, TokenBudgetTrainer, {"max_tokens": 40, "lengths": lengths})
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_sample_longer_than_the_budget_is_refused(processor, tmp_path):
    model = make_model(processor)
    lengths = count_tokens(model, SAMPLES, DataCollatorForMetaTransformer(processor), progress=False)
    with pytest.raises(ValueError, match=f"Sample {lengths.argmax()}.*{lengths.max()}"):
        make_trainer(
            model, processor, tmp_path, TokenBudgetTrainer, {"max_tokens": int(lengths.max()) - 1, "lengths": lengths}
        ).train()


def test_streamed_samples_are_all_seen(processor, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(SAMPLES)

    model, seen = make_model(processor), []
    model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs["labels"].clone()), with_kwargs=True)
    trainer = make_trainer(model, processor, tmp_path, max_steps=4, per_device_train_batch_size=3)
    trainer.train_dataset = Stream()
    trainer.train()
    assert torch.cat(seen).tolist() == [sample["labels"] for sample in SAMPLES]
