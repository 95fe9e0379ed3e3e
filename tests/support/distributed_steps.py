"""Steps of SGD that are the same on any number of processes: `accelerate launch distributed_steps.py <folder>`.

Four rows, pictures and sounds. One process has them in one batch; of two, one gets the pictures, one the sounds. Three
of the four have a label, so that a mean of means would differ. Weights go to `<folder>/<kind>.safetensors`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
STEPS = 3


def made() -> tuple[Any, Any, list[dict[str, Any]]]:
    """Model, collator and rows."""
    processor = MetaTransformerProcessor(image=True, audio=True)
    torch.manual_seed(0)
    model = MetaTransformerForClassification(
        MetaTransformerConfig(**SHAPE, modalities=processor.tokenizer_configs(), freeze_encoder="last_1")
    )
    pictures, sounds = processor.image.dummy_samples(2), processor.audio.dummy_samples(2)
    rows: list[dict[str, Any]] = [
        {"image": pictures[0], "labels": 0},
        {"image": pictures[1], "labels": 1},
        {"audio": sounds[0], "labels": 1},
        {"audio": sounds[1], "labels": -100},
    ]
    collator = DataCollatorForMetaTransformer(processor, {"sampling_rate": 16_000})
    return model, collator, rows


def by_loop(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """A loop under accelerate."""
    model, collator, rows = made()
    loader = DataLoader(rows, batch_size=4 // accelerator.num_processes, collate_fn=collator)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    for _ in range(STEPS):
        for batch in loader:
            count = accelerator.reduce((batch["labels"] != -100).sum(), "sum") / accelerator.num_processes
            accelerator.backward(model(**batch, num_items_in_batch=count).loss)
            optimizer.step()
            optimizer.zero_grad()
    return accelerator.get_state_dict(model)


def by_trainer(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """`Trainer`."""
    model, collator, rows = made()
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=4 // processes, max_steps=STEPS, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0, train_sampling_strategy="sequential", save_strategy="no",
        remove_unused_columns=False, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)


def by_shards(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """A loop in which each process holds a part of every weight: FSDP2, wrapped as `fsdp2.yaml` says."""
    model, collator, rows = made()
    for layer in model.model.encoder.layers:
        fully_shard(layer)
    fully_shard(model.train())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    own = collator(rows[2 * accelerator.process_index :][:2])
    count = accelerator.reduce((own["labels"] != -100).sum(), "sum") / accelerator.num_processes
    for _ in range(STEPS):
        model(**own, num_items_in_batch=count).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def main() -> None:
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    ends = {
        "start": made()[0].state_dict(),
        "loop": by_loop(accelerator),
        "trainer": by_trainer(folder / "trainer", accelerator.num_processes),
    }
    if accelerator.num_processes > 1:
        ends["shards"] = by_shards(accelerator)
    if accelerator.is_main_process:
        for kind, weights in ends.items():
            save_file({name: value.contiguous() for name, value in weights.items()}, folder / f"{kind}.safetensors")
    accelerator.end_training()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else its threads may outlive the interpreter, and abort


if __name__ == "__main__":
    main()
