"""The feature cache: what it keeps, when it hits, and that a head learns from it as from the trunk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from meta_transformer import (
    MetaTransformerConfig,
    MetaTransformerForClassification,
    MetaTransformerForRetrieval,
    MetaTransformerForTask,
    MetaTransformerProcessor,
)
from meta_transformer.heads.pooling import PoolingMode
from meta_transformer.processors.image import ImageProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, FeatureCache, HeadModel, count_tokens
from meta_transformer.training.feature_files import FeatureWriter

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = [{"text": "na" * (1 + number), "labels": number % 2} for number in range(10)]


def make(processor: MetaTransformerProcessor, **options: Any) -> Any:
    """A model in which every weight matters."""
    torch.manual_seed(0)
    head = {"classification": options.pop("head", {})}
    config = MetaTransformerConfig(**{**TINY, "modalities": processor.tokenizer_configs(), "heads": head, **options})
    model = MetaTransformerForClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.fixture
def text() -> tuple[MetaTransformerForTask, DataCollatorForMetaTransformer]:
    processor = MetaTransformerProcessor(text=True)
    return make(processor), DataCollatorForMetaTransformer(processor)


def passes_of_trunk(model: Any) -> list[int]:
    """A list that gets the samples of each pass."""
    passes: list[int] = []
    tokenize = model.model.tokenize

    def counted(**inputs: Any) -> Any:
        sequence = tokenize(**inputs)
        passes.append(len(sequence.embeddings))
        return sequence

    model.model.tokenize = counted
    return passes


def compute(cache: FeatureCache, model: Any, rows: Any, collator: Any, **options: Any) -> Any:
    return cache.features(model, rows, collator, **{"progress": False, "batch_size": 4, **options})


def logits_from(features: Any, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return HeadModel(model)(**features.collate([features[number] for number in range(len(features))])).logits


PICTURE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
MIXED = [
    {"text": "one", "image": PICTURE, "labels": 0},
    {"text": "a longer text", "labels": 1},
    {"image": PICTURE[:16], "labels": 1},
    {"text": ("two", "texts"), "image": (PICTURE, PICTURE[::-1].copy()), "labels": 0},
]


@pytest.mark.parametrize("fusion", ["early", "concat", "gated", "attention", "bottleneck"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_mixed_samples_give_what_the_whole_model_gives(fusion: str, pooling: PoolingMode, tmp_path: Path) -> None:
    processor = MetaTransformerProcessor(text=True, image=ImageProcessor(size=32))
    model = make(processor, fusion=fusion, head={"pooling": pooling})
    collator = DataCollatorForMetaTransformer(processor)
    features = compute(FeatureCache(tmp_path), model, MIXED, collator, batch_size=2)
    with torch.no_grad():
        wanted = model(**collator(MIXED)).logits
    torch.testing.assert_close(logits_from(features, model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("layers", ["all", [1, -1], [2]])
def test_layers_are_mixed_behind_the_cache(layers: Any, pooling: str, text: Any, tmp_path: Path) -> None:
    model = make(text[1].processor, head={"layers": layers, "pooling": pooling})
    features = compute(FeatureCache(tmp_path), model, TEXT, text[1])
    if model.head.layer_mixture.weights is not None:
        torch.nn.init.normal_(model.head.layer_mixture.weights)  # learned after the features were computed
    with torch.no_grad():
        wanted = model(**text[1](TEXT)).logits
    torch.testing.assert_close(logits_from(features, model), wanted, rtol=1e-5, atol=1e-5)


def test_the_modalities_that_a_head_reads_are_kept_alone(tmp_path: Path) -> None:
    processor = MetaTransformerProcessor(text=True, image=ImageProcessor(size=32))
    model = make(processor, head={"modalities": ["text"], "pooling": "mean"})
    collator = DataCollatorForMetaTransformer(processor)
    rows = [MIXED[0], MIXED[3]]
    features = compute(FeatureCache(tmp_path), model, rows, collator)
    with torch.no_grad():
        wanted = model(**collator(rows)).logits
    torch.testing.assert_close(logits_from(features, model), wanted, rtol=1e-5, atol=1e-5)


def test_a_head_that_pools_gets_two_tokens_of_each_sample(text: Any, tmp_path: Path) -> None:
    features = compute(FeatureCache(tmp_path), text[0], TEXT, text[1])
    assert {tuple(features[number]["features"][""].tokens.shape) for number in range(10)} == {(2, 1, 32)}


def test_another_head_gets_the_real_tokens_of_each_sample(text: Any, tmp_path: Path) -> None:
    model = make(text[1].processor, head={"pooling": "attention"})
    features = compute(FeatureCache(tmp_path), model, TEXT, text[1])
    lengths = [len(features[number]["features"][""].places) for number in range(10)]
    assert lengths == count_tokens(model, TEXT, text[1], progress=False).tolist()


def test_a_second_call_encodes_nothing(text: Any, tmp_path: Path) -> None:
    model, collator = text
    first = compute(FeatureCache(tmp_path), model, TEXT, collator)
    passes = passes_of_trunk(model)
    second = compute(FeatureCache(tmp_path), model, TEXT, collator)
    assert (first.misses, second.misses, passes) == (10, 0, [])
    assert "10 from the cache, 0 encoded" in str(second)


def test_new_samples_alone_are_encoded(text: Any, tmp_path: Path) -> None:
    model, collator = text
    compute(FeatureCache(tmp_path), model, TEXT[:7], collator)
    passes = passes_of_trunk(model)
    features = compute(FeatureCache(tmp_path), model, TEXT, collator)
    assert (features.misses, sum(passes)) == (3, 3)


def test_equal_samples_are_encoded_once_and_keep_their_labels(text: Any, tmp_path: Path) -> None:
    model, collator = text
    rows = [{"text": "same", "labels": number} for number in range(2)] * 3
    passes = passes_of_trunk(model)
    features = compute(FeatureCache(tmp_path), model, rows, collator)
    assert sum(passes) == 1
    assert [features[number]["labels"] for number in range(6)] == [0, 1] * 3


def retrain_trunk(model: Any, collator: Any) -> None:
    with torch.no_grad():
        model.model.encoder.layers[0].mlp.fc1.weight[0, 0] += 1


def retrain_tokenizer(model: Any, collator: Any) -> None:
    with torch.no_grad():
        next(model.model.tokenizers["text"].parameters()).add_(0.1)


def cut_texts(model: Any, collator: Any) -> None:
    collator.processor_kwargs["max_length"] = 4


def read_another_layer(model: Any, collator: Any) -> None:
    model.head.config.layers = [1]


def change_an_option(model: Any, collator: Any) -> None:
    model.config.hidden_act = "relu"


CHANGES = [retrain_trunk, retrain_tokenizer, cut_texts, read_another_layer, change_an_option]


@pytest.mark.parametrize("change", CHANGES)
def test_what_features_depend_on_misses_the_cache(
    change: Callable[[Any, Any], None], text: Any, tmp_path: Path
) -> None:
    model, collator = text
    compute(FeatureCache(tmp_path), model, TEXT, collator)
    before = len(FeatureCache(tmp_path).sizes())
    key = FeatureCache._key(model, collator, None)
    change(model, collator)
    assert before == 1
    assert FeatureCache._key(model, collator, None) != key


def test_training_the_head_misses_nothing(text: Any, tmp_path: Path) -> None:
    model, collator = text
    compute(FeatureCache(tmp_path), model, TEXT, collator)
    with torch.no_grad():
        model.head.classifier.weight.add_(1)
    assert compute(FeatureCache(tmp_path), model, TEXT, collator).misses == 0


def test_a_file_that_changed_is_encoded_again(tmp_path: Path) -> None:
    from PIL import Image

    processor = MetaTransformerProcessor(image=ImageProcessor(size=32))
    model, collator = make(processor), DataCollatorForMetaTransformer(processor)
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    rows, cache = [{"image": str(path), "labels": 0}], FeatureCache(tmp_path / "cache")
    assert compute(cache, model, rows, collator).misses == 1
    assert compute(cache, model, rows, collator).misses == 0
    Image.fromarray(PICTURE[::-1]).save(path)
    os.utime(path, ns=(1, 1))
    assert compute(cache, model, rows, collator).misses == 1


def test_an_interrupted_extraction_goes_on(text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, collator = text
    monkeypatch.setattr("meta_transformer.training.feature_files._FILE_BYTES", 1)  # a file for each sample
    encode, calls = model.encode_parts, []

    def interrupted(**inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(**inputs)

    model.encode_parts = interrupted
    with pytest.raises(KeyboardInterrupt):
        compute(FeatureCache(tmp_path), model, TEXT, collator)
    model.encode_parts = encode
    assert compute(FeatureCache(tmp_path), model, TEXT, collator).misses == 6


def test_a_file_that_was_being_written_is_not_read(text: Any, tmp_path: Path) -> None:
    model, collator = text
    folder = tmp_path / FeatureCache._key(model, collator, None)
    folder.mkdir()
    (folder / "half.tmp").write_bytes(b"\x10")
    assert compute(FeatureCache(tmp_path), model, TEXT, collator).misses == 10


def test_a_damaged_file_is_named(text: Any, tmp_path: Path) -> None:
    model, collator = text
    compute(FeatureCache(tmp_path), model, TEXT, collator)
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file.name} are damaged"):
        compute(FeatureCache(tmp_path), model, TEXT, collator)


def test_files_are_written_before_all_samples_are_encoded(tmp_path: Path, text: Any) -> None:
    features = compute(FeatureCache(tmp_path / "whole"), text[0], TEXT, text[1])
    writer = FeatureWriter(tmp_path / "files")
    for number in range(10):
        writer.add(str(number), features[number]["features"])
        writer.started = -1e9  # long ago
    assert len(list((tmp_path / "files").glob("*.safetensors"))) == 9


def test_features_in_bfloat16_take_half_the_bytes(text: Any, tmp_path: Path) -> None:
    model, collator = text
    whole = compute(FeatureCache(tmp_path), model, TEXT, collator)
    half = compute(FeatureCache(tmp_path), model, TEXT, collator, dtype=torch.bfloat16)
    assert half[0]["features"][""].tokens.dtype == torch.bfloat16
    torch.testing.assert_close(logits_from(half, model), logits_from(whole, model), rtol=0.05, atol=0.05)


def test_sizes_are_told_and_features_cleared(text: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    compute(cache, text[0], TEXT, text[1])
    compute(cache, text[0], TEXT[:3], text[1], dtype=torch.bfloat16)
    sizes = cache.sizes()
    assert sorted(each["samples"] for each in sizes.values()) == [3, 10]
    assert sum(each["bytes"] for each in sizes.values()) == sum(p.stat().st_size for p in tmp_path.rglob("*.safe*"))
    kept = next(iter(sizes))
    cache.clear(keep=[kept])
    assert list(cache.sizes()) == [kept]


def test_keys_take_the_place_of_contents(text: Any, tmp_path: Path) -> None:
    model, collator = text
    compute(FeatureCache(tmp_path), model, TEXT[:2], collator, keys=["a", "b"])
    assert compute(FeatureCache(tmp_path), model, TEXT[2:4], collator, keys=["b", "c"]).misses == 1


@pytest.mark.parametrize(
    ("rows", "keys", "error", "said"),
    [
        (iter(TEXT), None, TypeError, "data with a length"),
        ([], None, ValueError, "no sample"),
        (TEXT[:2], ["a"], ValueError, "2 texts"),
        (TEXT[:2], ["a", "a"], ValueError, "differ"),
        ([{"text": object()}], None, TypeError, "holds a object"),
    ],
)
def test_what_cannot_be_kept_is_refused(rows: Any, keys: Any, error: Any, said: str, text: Any, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        compute(FeatureCache(tmp_path), text[0], rows, text[1], keys=keys)


def test_training_modes_stay_as_they_were(text: Any, tmp_path: Path) -> None:
    model = text[0].train()
    model.head.eval()
    modes = [module.training for module in model.modules()]
    compute(FeatureCache(tmp_path), model, TEXT, text[1])
    assert [module.training for module in model.modules()] == modes


def test_workers_of_a_loader_read_features(text: Any, tmp_path: Path) -> None:
    features = compute(FeatureCache(tmp_path), text[0], TEXT, text[1])
    features[0]  # opened here before
    loader: Any = DataLoader(features, 5, collate_fn=features.collate, num_workers=1, multiprocessing_context="spawn")
    found = [HeadModel(text[0])(**batch).logits for batch in loader]
    torch.testing.assert_close(torch.cat(found), logits_from(features, text[0]))


def test_trainer_teaches_the_head_as_it_does_behind_the_trunk(text: Any, tmp_path: Path) -> None:
    model, collator = text
    alone, whole = make(collator.processor), make(collator.processor)
    for parameter in whole.model.parameters():
        parameter.requires_grad_(False)
    features = compute(FeatureCache(tmp_path / "cache"), alone, TEXT, collator)
    arguments: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.05,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
    }
    for trained, rows, own in ((HeadModel(alone), features, features.collate), (whole, TEXT, collator)):
        Trainer(
            trained, TrainingArguments(str(tmp_path / "run"), **arguments), train_dataset=rows, data_collator=own
        ).train()
    torch.testing.assert_close(alone.head.classifier.weight, whole.head.classifier.weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone.head.classifier.weight, model.head.classifier.weight)


def test_heads_that_read_other_parts_have_features_of_their_own(text: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MetaTransformerConfig(**TINY, modalities=text[1].processor.tokenizer_configs())
    one = MetaTransformerForClassification(config).eval()
    other = MetaTransformerForRetrieval(config).eval()
    other.model.load_state_dict(one.model.state_dict())
    compute(FeatureCache(tmp_path), one, TEXT, text[1])
    assert compute(FeatureCache(tmp_path), other, TEXT, text[1]).misses == 10


def test_adapters_that_are_switched_off_miss_the_cache(text: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    model, collator = text
    model.add_adapter(LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with_adapter = compute(FeatureCache(tmp_path), model, TEXT, collator)
    model.disable_adapters()
    assert (with_adapter.misses, compute(FeatureCache(tmp_path), model, TEXT, collator).misses) == (10, 10)


def test_a_sample_that_retrieval_refuses_is_refused_by_the_cache(tmp_path: Path) -> None:
    processor = MetaTransformerProcessor(text=True, image=ImageProcessor(size=32))
    config = MetaTransformerConfig(**TINY, modalities=processor.tokenizer_configs())
    model = MetaTransformerForRetrieval(config).eval()
    with pytest.raises(ValueError, match=r"the samples \[1\]"):
        compute(FeatureCache(tmp_path), model, MIXED[:3], DataCollatorForMetaTransformer(processor))


def test_what_was_encoded_before_an_error_is_kept(tmp_path: Path) -> None:
    processor = MetaTransformerProcessor(image=ImageProcessor(size=32))
    model, collator = make(processor), DataCollatorForMetaTransformer(processor)
    rows = [{"image": np.full((32, 32, 3), number, np.uint8)} for number in range(8)]
    broken = [*rows, {"image": str(tmp_path / "nothing.png")}]
    with pytest.raises(ValueError, match="nothing.png"):
        compute(FeatureCache(tmp_path), model, broken, collator)
    assert compute(FeatureCache(tmp_path), model, rows, collator).misses == 0


def test_clearing_leaves_what_is_not_the_caches(text: Any, tmp_path: Path) -> None:
    compute(FeatureCache(tmp_path), text[0], TEXT, text[1])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "model.safetensors").write_bytes(b"mine")
    cache = FeatureCache(tmp_path)
    assert len(cache.sizes()) == 1
    cache.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
