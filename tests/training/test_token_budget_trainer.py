"""`Trainer` with batches by tokens, on sentences of film reviews."""

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import (
    DataCollatorForMetaTransformer,
    TokenBudgetBatchSampler,
    TokenBudgetTrainer,
    count_tokens,
)

BUDGET = 600


@pytest.fixture(scope="module")
def rows():
    """48 sentences of up to 250 bytes; made up where the data is not at hand."""
    folder = os.environ.get("META_TRANSFORMER_DATA")
    if not folder:
        lengths = np.random.default_rng(0).permutation(np.arange(5, 250))[:48]  # no two alike
        return [{"text": "m" * length, "labels": int(length % 2)} for length in lengths]
    with (Path(folder) / "text/sst2/data.csv").open(encoding="utf-8") as file:
        sentences = list(csv.DictReader(file))[:48]
    return [{"text": each["text"][:250], "labels": int(each["label"] == "positive")} for each in sentences]


@pytest.fixture
def model():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    modalities = MetaTransformerProcessor(text=True).tokenizer_configs()
    torch.manual_seed(0)
    return MetaTransformerForClassification(MetaTransformerConfig(**shape, modalities=modalities))


@pytest.fixture
def collator():
    return DataCollatorForMetaTransformer(MetaTransformerProcessor(text=True))


def arguments(folder, **options):
    quiet = {"remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(folder, **{**quiet, "save_strategy": "no", **options})


def trained(model, args, **options):
    """A copy of a model, trained."""
    checkpoint = options.pop("resume_from_checkpoint", None)
    trainer = TokenBudgetTrainer(copy.deepcopy(model), args, max_tokens=BUDGET, **options)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_training_takes_every_sample_once_an_epoch_and_no_batch_beyond_the_budget(model, rows, collator, tmp_path):
    batches = []

    def recorded(samples):
        batches.append(samples)
        return collator(samples)

    lengths = count_tokens(model, rows, collator, progress=False)
    args = arguments(tmp_path, num_train_epochs=2)
    trainer = trained(model, args, train_dataset=rows, data_collator=recorded, lengths=lengths)
    tokens = dict(zip((row["text"] for row in rows), lengths.tolist(), strict=True))
    sums = [sum(tokens[row["text"]] for row in batch) for batch in batches]
    assert max(sums) <= BUDGET
    assert np.mean(sums) > 0.7 * BUDGET
    steps = len(batches) // 2
    assert trainer.state.global_step == len(batches) == 2 * steps
    epochs = [[row["text"] for batch in half for row in batch] for half in (batches[:steps], batches[steps:])]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(tokens)


def test_a_run_resumed_within_an_epoch_ends_with_the_weights_of_one_that_went_through(model, rows, collator, tmp_path):
    options = {"train_dataset": rows, "data_collator": collator}
    common = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "save_strategy": "steps"}
    whole = trained(model, arguments(tmp_path / "whole", save_steps=1, **common), **options)
    middle = whole.state.max_steps * 3 // 4
    resumed = trained(
        model,
        arguments(tmp_path / "resumed", save_steps=1000, **common),
        resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{middle}"),
        **options,
    )
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert any(not torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_accumulated_batches_of_different_size_give_the_step_of_the_big_batch(model, rows, collator, tmp_path):
    sgd = {"max_steps": 1, "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0, "optim": "sgd"}
    lengths = count_tokens(model, rows, collator, progress=False)
    accumulated = arguments(
        tmp_path / "a", gradient_accumulation_steps=len(TokenBudgetBatchSampler(lengths, BUDGET)), **sgd
    )
    found = trained(model, accumulated, train_dataset=rows, data_collator=collator, lengths=lengths).model
    big = Trainer(
        copy.deepcopy(model),
        arguments(tmp_path / "b", per_device_train_batch_size=len(rows), **sgd),
        train_dataset=rows,
        data_collator=collator,
    )
    big.train()
    moved = 0.0
    for (name, start), end in zip(model.named_parameters(), found.parameters(), strict=True):
        assert_close(end, big.model.get_parameter(name), rtol=1e-3, atol=1e-5)
        moved = max(moved, (end - start).abs().max().item())
    assert moved > 1e-3


def test_evaluation_and_prediction_keep_the_order_and_count_each_sample_once(model, rows, collator, tmp_path):
    sizes = []

    def recorded(samples):
        sizes.append(len(samples))
        return collator(samples)

    trainer = TokenBudgetTrainer(
        model, arguments(tmp_path), eval_dataset=rows, data_collator=recorded, max_tokens=BUDGET,
        compute_metrics=model.metrics(),
    )  # fmt: skip
    with torch.no_grad():
        expected = model.eval()(**collator(rows))
    labels = torch.tensor([row["labels"] for row in rows])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(functional.cross_entropy(expected.logits, labels).item(), abs=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx((expected.logits.argmax(-1) == labels).float().mean().item())
    sizes.clear()  # of counting too
    prediction = trainer.predict(rows)
    assert len(set(sizes)) > 1, "the premise: batches of different size"
    assert prediction.label_ids.tolist() == labels.tolist()
    assert_close(torch.from_numpy(prediction.predictions), expected.logits, rtol=1e-4, atol=1e-5)


def test_several_evaluation_sets_are_evaluated_by_name(model, rows, collator, tmp_path):
    sets = {"first": rows[:10], "second": rows[10:]}
    trainer = TokenBudgetTrainer(
        model, arguments(tmp_path), eval_dataset=sets, data_collator=collator, max_tokens=BUDGET
    )
    assert {"eval_first_loss", "eval_second_loss"} <= set(trainer.evaluate())
    assert [index for batch in trainer.get_eval_dataloader("second").batch_sampler for index in batch] == list(
        range(38)
    )


def test_the_column_of_lengths_spares_the_count(model, rows, collator, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(TokenBudgetTrainer, "_count", lambda *_: pytest.fail("counted"))
    data = datasets.Dataset.from_list([{**row, "length": 100 + index} for index, row in enumerate(rows)])
    trainer = TokenBudgetTrainer(
        model, arguments(tmp_path), train_dataset=data, data_collator=collator, max_tokens=BUDGET
    )
    assert trainer.get_train_dataloader().batch_sampler.lengths.tolist() == list(range(100, 148))


def test_a_data_set_is_counted_once(model, rows, collator, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(TokenBudgetTrainer, "_count", lambda self, loader: counted.append(loader.dataset) or [9] * 48)
    trainer = TokenBudgetTrainer(
        model, arguments(tmp_path), eval_dataset=rows, data_collator=collator, max_tokens=BUDGET
    )
    trainer.evaluate()
    trainer.evaluate()
    trainer.predict(rows[::-1])
    assert counted == [rows, rows[::-1]]


def test_processed_columns_are_counted_without_those_that_the_model_does_not_take(model, rows, collator, tmp_path):
    import datasets

    batch = {name: value.tolist() for name, value in collator(rows).items()}
    data = datasets.Dataset.from_dict({**batch, "year": [1980] * len(rows)}).with_format("torch")
    args = arguments(tmp_path, remove_unused_columns=True)
    trainer = TokenBudgetTrainer(model, args, train_dataset=data, max_tokens=BUDGET)
    lengths = trainer.get_train_dataloader().batch_sampler.lengths
    assert lengths.tolist() == count_tokens(model, rows, collator, progress=False).tolist()


def test_options_reach_the_sampler_of_training_and_evaluation_stays_in_order(model, rows, collator, tmp_path):
    def samplers(sampler_kwargs=None, **args):
        trainer = TokenBudgetTrainer(
            model, arguments(tmp_path, **args), train_dataset=rows, eval_dataset=rows, data_collator=collator,
            max_tokens=BUDGET, sampler_kwargs=sampler_kwargs,
        )  # fmt: skip
        return trainer.get_train_dataloader().batch_sampler, trainer.get_eval_dataloader().batch_sampler

    training, evaluation = samplers({"padded": True, "shuffle": True, "seed": 7}, data_seed=3)
    assert (training.padded, training.shuffle, training.seed) == (True, True, 7)
    assert (evaluation.padded, evaluation.shuffle) == (True, False)
    training, _ = samplers(train_sampling_strategy="sequential", data_seed=3, dataloader_drop_last=True)
    assert (training.shuffle, training.seed, training.drop_last) == (False, 3, True)


def test_what_makes_no_batches_by_tokens_is_refused(model, rows, collator, tmp_path):
    def loader(data, **options):
        trainer = TokenBudgetTrainer(
            model, arguments(tmp_path, max_steps=1), train_dataset=data, data_collator=collator, **options
        )
        return trainer.get_train_dataloader()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    with pytest.raises(ValueError, match="lengths has 2 entries for 48 samples"):
        loader(rows, max_tokens=BUDGET, lengths=[1, 2])
    with pytest.raises(ValueError, match="tokens, more than max_tokens=20"):
        loader(rows, max_tokens=20)
    with pytest.raises(TypeError, match="need a data set with a length, got Stream"):
        loader(Stream(), max_tokens=BUDGET)
    for option in ("split_batches", "dispatch_batches"):
        args = arguments(tmp_path, accelerator_config={option: True})
        with pytest.raises(ValueError, match=f"set accelerator_config={{'{option}': False}}"):
            TokenBudgetTrainer(model, args, train_dataset=rows, data_collator=collator, max_tokens=BUDGET)


# What each process sees of two epochs: of a plain loop under accelerate, of training that goes through, and of training
# that is resumed within the second epoch.
PROCESS = """
import json
import os
import sys
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, TokenBudgetBatchSampler, TokenBudgetTrainer

folder, rank = sys.argv[1], os.environ["RANK"]
lengths = list(range(2, 32))
sampler = TokenBudgetBatchSampler(lengths, 82)
loader = Accelerator(cpu=True).prepare(DataLoader(lengths, batch_sampler=sampler, collate_fn=list))
seen = {"batches": len(sampler), "loop": [list(loader), list(loader)]}

shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
processor = MetaTransformerProcessor(text=True)
collator = DataCollatorForMetaTransformer(processor)
rows = [{"text": "m" * length, "labels": length % 2} for length in lengths]
for name, checkpoint in (("whole", None), ("resumed", f"{folder}/whole/checkpoint-7")):
    batches = seen[name] = []

    def recorded(samples):
        batches.append([len(sample["text"]) for sample in samples])
        return collator(samples)

    torch.manual_seed(0)
    arguments = TrainingArguments(
        f"{folder}/{name}", num_train_epochs=2, learning_rate=1e-2, save_strategy="steps", save_steps=7, report_to=[],
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )
    model = MetaTransformerForClassification(MetaTransformerConfig(**shape, modalities=processor.tokenizer_configs()))
    trainer = TokenBudgetTrainer(
        model, arguments, train_dataset=rows, data_collator=recorded, max_tokens=76, lengths=[n + 3 for n in lengths]
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(f"{folder}/{name}/end")
seen["predicted"] = trainer.predict(rows).label_ids.tolist()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(seen, file)
torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, and abort
"""


@pytest.mark.slow
def test_two_processes_share_the_batches_and_go_on_where_they_stopped(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    count = seen[0]["batches"]
    assert count % 2, "the premise: the batches do not go round"
    for epoch in range(2):
        first, second = (each["loop"][epoch] for each in seen)
        assert len(first) == len(second) == count // 2 + 1
        assert second[-1] == first[0], "the one that is repeated"
        assert sorted(np.concatenate(first + second[:-1]).tolist()) == list(range(2, 32))
    assert seen[0]["loop"][0] != seen[0]["loop"][1]
    for each in seen:
        steps = len(each["whole"]) // 2
        assert steps < 7 < 2 * steps, "the premise: stopped within the second epoch"
        assert each["whole"][:steps] != each["whole"][steps:]
        assert each["resumed"][: len(each["whole"]) - 7] == each["whole"][7:]
        assert each["predicted"] == [length % 2 for length in range(2, 32)]
    whole, resumed = (load_file(tmp_path / name / "end/model.safetensors") for name in ("whole", "resumed"))
    for name, weights in whole.items():
        assert torch.equal(resumed[name], weights), name
