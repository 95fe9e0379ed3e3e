"""Training of every head on every modality, with the trunk frozen unless the behaviour is about the contrary."""

import copy
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainingArguments


def gradients(model, case, batch=None, labels=None):
    model.train()
    model.zero_grad()
    model(**(batch or case.batch()), labels=case.labels() if labels is None else labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_frozen_trunk_gets_no_gradient_and_everything_else_does(case):
    found = gradients(case.model(), case)
    trainable = {name for name, p in case.model().named_parameters() if p.requires_grad}
    assert not any(".encoder." in name for name in found)
    assert not any(".encoder." in name for name in trainable)
    assert found.keys() == trainable
    assert any(grad.abs().max() > 0 for name, grad in found.items() if ".tokenizers." in name)
    assert any(grad.abs().max() > 0 for name, grad in found.items() if name.startswith("head."))


def test_the_frozen_trunk_is_silent_in_training_mode(case):
    model, batch = case.model(attention_dropout=0.5, drop_path_rate=0.5), case.batch()
    quiet = model.model(**batch).last_hidden_state
    assert_close(model.model.train()(**batch).last_hidden_state, quiet)
    model.unfreeze_encoder()
    model.train()
    assert (model.model(**batch).last_hidden_state - quiet).abs().max() > 1e-3


def test_an_unfrozen_trunk_gets_gradients(costly_case):
    model = costly_case.model(freeze_encoder=False)
    assert any(".encoder." in name for name in gradients(model, costly_case))
    model.freeze_encoder()
    assert not any(".encoder." in name for name in gradients(model, costly_case))


def test_training_leaves_the_fingerprint_and_lowers_the_loss(costly_case):
    model, batch, labels = costly_case.model(), costly_case.batch(), costly_case.labels()
    before = model.encoder_fingerprint()
    # Losses that compare samples collapse at high rates: all embeddings become equal, and the gradient zero.
    rate = 3e-4 if model.head.couples_samples else 1e-2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.1)
    model.train()
    losses = []
    for _ in range(25):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.encoder_fingerprint() == before


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_activation_checkpointing_recomputes_and_changes_no_gradient(costly_case, frozen, reentrant):
    model = costly_case.model(freeze_encoder=frozen)
    plain = gradients(model, costly_case)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for each in model.model.encoder.layers:
        each.layernorm_before.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients(model, costly_case)
    assert len(calls) == 2 * len(model.model.encoder.layers)
    assert checkpointed.keys() == plain.keys()
    for name, grad in plain.items():
        assert_close(checkpointed[name], grad)


def test_accumulated_gradients_equal_those_of_the_big_batch(separable_case, tmp_path):
    """One step of SGD by `Trainer`: a batch of 4, and 4 accumulated batches of 1."""
    data, collator = separable_case.data(), separable_case.collator()
    start = separable_case.model()
    ends = []
    for batch_size in (4, 1):
        model = copy.deepcopy(start)
        arguments = TrainingArguments(
            tmp_path / str(batch_size),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            optim="sgd",
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
        ends.append(dict(model.named_parameters()))
    moved = 0.0
    for name, parameter in start.named_parameters():
        assert_close(ends[1][name], ends[0][name], rtol=1e-3, atol=1e-5)
        moved = max(moved, (ends[0][name] - parameter).abs().max().item())
    assert moved > 1e-3


def test_trainer_trains_evaluates_predicts_and_reloads(costly_case, tmp_path):
    data, model = costly_case.data(8), costly_case.model()
    before = model.encoder_fingerprint()
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=4,
        max_steps=2,
        save_steps=2,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = costly_case.collator()
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collator,
        compute_metrics=model.metrics(),
    )
    trainer.train()
    assert {"eval_loss", *(f"eval_{name}" for name in model.metrics().metrics)} <= set(trainer.evaluate())
    prediction = trainer.predict(data)
    assert len(tree_leaves(prediction.label_ids)[0]) == 8
    loaded = costly_case.model_class.from_pretrained(tmp_path / "checkpoint-2")
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint() == before
    assert not any(p.requires_grad for p in loaded.model.encoder.parameters())
    found, expected = costly_case.prediction(loaded(**collator(data))), tree_leaves(prediction.predictions)[0]
    assert_close(found, torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def test_trainer_finds_processed_columns_in_the_signature(costly_case, tmp_path):
    import datasets

    columns = {name: value.tolist() for name, value in costly_case.batch().items()}
    data = datasets.Dataset.from_dict({**columns, "labels": [0] * 4, "comment": ["x"] * 4})
    trainer = Trainer(
        costly_case.model(), TrainingArguments(report_to=[], use_cpu=True), train_dataset=data.with_format("torch")
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {*columns, "labels"}


def test_lora_on_the_frozen_trunk_keeps_its_fingerprint(costly_case):
    import peft

    model = costly_case.model()
    before = model.encoder_fingerprint()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.1, modules_to_save=["head"])
    )
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    found = gradients(adapted, costly_case)
    assert any("lora_A" in name for name in found)
    optimizer.step()
    assert adapted.encoder_fingerprint() == before


def test_lora_trains_under_reentrant_activation_checkpointing(costly_case):
    import peft

    model = costly_case.model()
    model.activation_checkpointing_enable({"use_reentrant": True})
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, modules_to_save=["head"])
    found = gradients(peft.get_peft_model(model, lora), costly_case)
    assert len([name for name, grad in found.items() if "lora" in name and grad.abs().max() > 0]) == 8


def test_bfloat16_autocast_trains(costly_case):
    model = costly_case.model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**costly_case.batch(), labels=costly_case.labels()).loss
    assert loss.dtype == torch.float32
    loss.backward()


def test_the_summary_counts_every_parameter_once(case):
    model = case.model()
    summary = model.parameter_summary()
    assert summary.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.trainable + summary.frozen == sum(p.numel() for p in model.parameters())
    groups = {group.name: group for group in summary}
    assert {"encoder", "head", f"tokenizers.{case.modality}"} <= set(groups)
    assert groups["encoder"].trainable == 0
    assert all(len(a) == len(b) for a, b in pairwise(str(summary).splitlines()))
