"""Data that come as a stream, of which nobody knows how many."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def rows() -> list[dict[str, Any]]:
    waves = np.random.default_rng(0).normal(size=(12, 2000)).astype(np.float32)
    return [{"audio": wave, "labels": number % 2} for number, wave in enumerate(waves)]


def trained(folder: Path, data: Any, **options: Any) -> tuple[Trainer, list[list[int]]]:
    """The trainer, and the batches that the model was trained on, each sample by its first value."""
    processor = MetaTransformerProcessor(audio=True)
    torch.manual_seed(0)
    model = MetaTransformerForClassification(MetaTransformerConfig(**SHAPE, modalities=processor.tokenizer_configs()))
    collator = DataCollatorForMetaTransformer(processor, {"sampling_rate": 16_000})
    seen: list[list[int]] = []

    def recorded(samples: list[Any]) -> Any:
        seen.append([float(sample["audio"][0]) for sample in samples])
        return collator(samples)

    arguments = TrainingArguments(
        folder, per_device_train_batch_size=4, max_steps=5, learning_rate=1e-2, remove_unused_columns=False,
        report_to=[], use_cpu=True, disable_tqdm=True, train_sampling_strategy="sequential",
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=recorded)
    checkpoint = folder / "checkpoint-2"
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.exists() else None)
    return trainer, seen


def test_a_stream_trains_as_the_rows_in_their_order(tmp_path: Path) -> None:
    """5 steps of 4 rows of 12: the stream starts again when it has ended."""
    stream = datasets.Dataset.from_list(rows()).to_iterable_dataset()
    streamed, seen = trained(tmp_path / "stream", stream)
    listed, _ = trained(tmp_path / "list", rows())
    assert streamed.state.global_step == 5
    firsts = [float(row["audio"][0]) for row in rows()]
    assert [each for batch in seen for each in batch][:20] == (firsts + firsts)[:20]
    for name, value in listed.model.state_dict().items():
        torch.testing.assert_close(streamed.model.state_dict()[name], value)


def test_a_stream_is_resumed_where_it_was(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_list(rows()).to_iterable_dataset()
    whole, _ = trained(tmp_path, stream, save_strategy="steps", save_steps=2)
    resumed, _ = trained(tmp_path, stream)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
