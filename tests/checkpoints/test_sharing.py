"""Saving: what is written, what is kept, what other libraries ask for, and that all of it loads."""

import os

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.checkpoints.model_card import is_generated

SAVED = ["README.md", "config.json", "model.safetensors", "processor_config.json"]


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_holds_weights_configuration_processor_and_card(make_pair, tmp_path):
    model, processor = make_pair()
    model.save_pretrained(tmp_path / "deep" / "model", processor=processor)
    assert sorted(os.listdir(tmp_path / "deep" / "model")) == SAVED
    assert load_file(tmp_path / "deep" / "model" / "model.safetensors").keys() == model.state_dict().keys()


@pytest.mark.slow
def test_auto_classes_load_it_in_a_fresh_process(make_pair, run_python, tmp_path):
    model, processor = make_pair()
    model.save_pretrained(tmp_path, processor=processor)
    samples = processor.image.dummy_samples(3)
    result = run_python(
        f"""
import meta_transformer, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoProcessor
folder = {str(tmp_path)!r}
config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
model, base = AutoModelForImageClassification.from_pretrained(folder), AutoModel.from_pretrained(folder)
batch = processor(image=processor.image.dummy_samples(3))
with torch.no_grad():
    outputs = model(**batch).logits.tolist(), base(**batch).pooler_output.tolist()
result = [[type(each).__name__ for each in (config, processor, model, base)], *outputs]
"""
    )
    names = [
        "MetaTransformerConfig",
        "MetaTransformerProcessor",
        "MetaTransformerForClassification",
        "MetaTransformerModel",
    ]
    assert result[0] == names
    with torch.no_grad():
        batch = processor(image=samples)
        assert_close(torch.tensor(result[1]), model(**batch).logits, rtol=0, atol=1e-6)
        assert_close(torch.tensor(result[2]), model.get_features(**batch), rtol=0, atol=1e-6)


def test_shards_and_a_single_file_take_each_others_place(make_pair, tmp_path):
    """By itself transformers would leave the single file beside the new shards, and load it in their place."""
    for seed, size in enumerate(("1GB", "100KB", "60KB", "1GB")):
        model, _ = make_pair(seed=seed)
        model.save_pretrained(tmp_path, max_shard_size=size)
        sharded = (tmp_path / "model.safetensors.index.json").exists()
        assert sharded == (size != "1GB")
        assert (tmp_path / "model.safetensors").exists() == (not sharded)
        assert same_weights(MetaTransformerForClassification.from_pretrained(tmp_path), model)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.safetensors"]


def test_a_variant_lies_beside_the_weights(make_pair, tmp_path):
    model, other = make_pair(seed=0)[0], make_pair(seed=1)[0]
    model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="ema", max_shard_size="100KB")
    other.save_pretrained(tmp_path, variant="ema")
    assert sorted(os.listdir(tmp_path)) == ["README.md", "config.json", "model.ema.safetensors", "model.safetensors"]
    assert same_weights(MetaTransformerForClassification.from_pretrained(tmp_path, variant="ema"), other)
    assert same_weights(MetaTransformerForClassification.from_pretrained(tmp_path), model)


def test_files_of_others_stay(make_pair, tmp_path):
    for name in ("optimizer.pt", "model-notes.safetensors"):
        (tmp_path / name).write_text("mine")
    make_pair()[0].save_pretrained(tmp_path)
    assert (tmp_path / "optimizer.pt").read_text() == (tmp_path / "model-notes.safetensors").read_text() == "mine"


def test_a_persons_card_is_kept_and_a_generated_one_renewed(make_pair, tmp_path):
    model, _ = make_pair()
    model.save_pretrained(tmp_path)
    assert is_generated((tmp_path / "README.md").read_text())
    model.save_pretrained(tmp_path, metrics={"accuracy": 0.875})
    assert "| accuracy | 0.875 |" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("# What I found out")
    model.save_pretrained(tmp_path, metrics={"accuracy": 0.9})
    assert (tmp_path / "README.md").read_text() == "# What I found out"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"safe_serialization": False}, ValueError, "safe_serialization"),
        ({"metric": {"accuracy": 1}}, TypeError, r"no option \['metric'\]"),
        ({"metrics": 0.5}, TypeError, "metrics must be a dict"),
        ({"processor": "image"}, TypeError, "processor must be"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(options, error, message, make_pair, tmp_path):
    with pytest.raises(error, match=message):
        make_pair()[0].save_pretrained(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_process_that_is_not_the_main_one_writes_nothing(make_pair, tmp_path):
    model, processor = make_pair()
    model.save_pretrained(tmp_path, is_main_process=False, processor=processor)
    assert os.listdir(tmp_path) == []


def test_the_arguments_of_accelerates_scripts_are_taken(make_pair, tmp_path):
    model, other = make_pair(seed=0)[0], make_pair(seed=1)[0]
    weights = other.state_dict()
    model.save_pretrained(
        tmp_path, is_main_process=True, save_function=torch.save, state_dict=weights, safe_serialization=True
    )
    assert same_weights(MetaTransformerForClassification.from_pretrained(tmp_path), other)
    card = (tmp_path / "README.md").read_text()
    assert other.encoder_fingerprint() in card
    assert "## Parameters" in card


def test_trainer_saves_a_model_that_loads(make_pair, tmp_path):
    model, processor = make_pair(num_labels=3)
    batch = processor(image=processor.image.dummy_samples(4))
    rows = [{name: value[i] for name, value in batch.items()} | {"labels": i % 3} for i in range(4)]
    arguments = TrainingArguments(tmp_path, max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    for folder in (tmp_path / "checkpoint-2", tmp_path / "final"):
        assert set(SAVED) <= set(os.listdir(folder))
        assert same_weights(MetaTransformerForClassification.from_pretrained(folder), model)
        assert MetaTransformerProcessor.from_pretrained(folder).to_dict() == processor.to_dict()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_an_adapter_is_saved_without_the_model_and_without_a_card(make_pair, tmp_path):
    from peft import LoraConfig

    model, _ = make_pair()
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]
    again, _ = make_pair()
    again.load_adapter(tmp_path)
    assert same_weights(again, model)


def test_peft_saves_around_the_model(make_pair, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    model, processor = make_pair()
    batch = processor(image=processor.image.dummy_samples(2))
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["head"], init_lora_weights=False)
    ).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_pair()[0], tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_close(loaded(**batch).logits, wrapped(**batch).logits, rtol=0, atol=0)


@pytest.mark.slow
def test_the_main_process_is_the_one_of_rank_zero(make_pair, run_python, tmp_path):
    """Two processes with one folder, both of which say that they are the main one."""
    model, processor = make_pair()
    model.save_pretrained(tmp_path / "source", processor=processor)
    code = f"""
import os, sys
import torch.distributed as distributed
from meta_transformer import MetaTransformerForClassification, MetaTransformerProcessor
model = MetaTransformerForClassification.from_pretrained({str(tmp_path / "source")!r})
processor = MetaTransformerProcessor.from_pretrained({str(tmp_path / "source")!r})
child = os.fork()
rank = 0 if child else 1
distributed.init_process_group("gloo", init_method="file://{tmp_path / "meeting"}", rank=rank, world_size=2)
model.save_pretrained({str(tmp_path)!r} + f"/rank-{{rank}}", processor=processor)
distributed.barrier()
distributed.destroy_process_group()
if not child:
    os._exit(0)
result = os.waitpid(child, 0)[1]
"""
    assert run_python(code) == 0
    assert sorted(os.listdir(tmp_path / "rank-0")) == SAVED
    assert os.listdir(tmp_path / "rank-1") == []
