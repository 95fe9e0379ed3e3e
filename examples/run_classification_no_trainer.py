r"""`run_classification.py` without `Trainer`: the loop itself, on one process or several, by accelerate.

    python examples/run_classification_no_trainer.py --data clips/ --modality audio --output_dir outputs/clips
    accelerate launch --config_file examples/accelerate/ddp_cpu.yaml examples/run_classification_no_trainer.py \
        --data clips/ --modality audio --output_dir outputs/clips

The data, the model and what is written are those of `run_classification.py`. A checkpoint of each epoch is written,
whole or not at all; the same command goes on from the last one.
"""

import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from run_classification import ClassificationArguments, prepare
from run_shared import ModelArguments, parse, remember, reported_split, save
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EvalPrediction, get_scheduler, set_seed

from meta_transformer.cli.console import pairs
from meta_transformer.training import DataCollatorForMetaTransformer


@dataclass
class LoopArguments:
    """How to train; names and meaning are those of `TrainingArguments`."""

    output_dir: str = "outputs/run"
    num_train_epochs: int = 20
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Batches whose gradients are added up before a step."}
    )
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: float = field(default=0.1, metadata={"help": "Share of all steps."})
    seed: int = 42
    mixed_precision: str = field(default="no", metadata={"choices": ["no", "bf16", "fp16"]})


def make_loaders(splits: dict[str, Any], collator: Any, arguments: LoopArguments) -> dict[str, DataLoader]:
    """Batches of each split, those of training in another order each epoch."""
    sizes = {"train": arguments.per_device_train_batch_size}
    return {
        name: DataLoader(
            rows,
            batch_size=sizes.get(name, arguments.per_device_eval_batch_size),
            shuffle=name == "train",
            collate_fn=collator,
        )
        for name, rows in splits.items()
    }


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: Any, loader: Any, metrics: Any) -> dict[str, float]:
    """Metrics over all samples, each once, however many processes share them."""
    model.eval()
    found, batches = {}, len(loader)
    for number, batch in enumerate(loader, start=1):
        logits = model(**batch).logits
        both: Any = accelerator.gather_for_metrics((logits, batch["labels"]))
        found = metrics(EvalPrediction(both[0].float(), both[1]), compute_result=number == batches)
    return found


def train_epoch(accelerator: Accelerator, model: Any, loader: Any, optimizer: Any, scheduler: Any, bar: tqdm) -> float:
    """One pass over what is learned from, a step of the bar for each step of the optimizer; the last batch's loss."""
    model.train()
    loss = torch.zeros(())
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            bar.update()
    return loss.item()


def last_epoch(folder: Path) -> int:
    """How many epochs the newest checkpoint has behind it, 0 without any."""
    return max((int(path.name.partition("-")[2]) for path in folder.glob("epoch-*")), default=0)


def save_checkpoint(accelerator: Accelerator, folder: Path, epoch: int) -> None:
    """The state of all that trains, under its name once it is whole; older ones are deleted then."""
    unfinished = folder / "unfinished"
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(unfinished, folder / f"epoch-{epoch}")
        for path in folder.glob("epoch-*"):
            if path.name != f"epoch-{epoch}":
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def main() -> None:
    model_arguments, data, arguments = parse(__doc__, (ModelArguments, ClassificationArguments, LoopArguments))
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        mixed_precision=arguments.mixed_precision,
        cpu=not torch.accelerator.is_available(),  # else several processes on CPUs would not know of each other
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
    )
    folder, epochs = Path(arguments.output_dir), arguments.num_train_epochs
    remember(folder, model_arguments, data, seed=arguments.seed)
    set_seed(arguments.seed)
    # 1. Model, data and optimizer
    model, processor, splits = prepare(model_arguments, data, arguments.seed)
    metrics = model.metrics()
    collator = DataCollatorForMetaTransformer.for_model(model, processor, **pairs(model_arguments.call, "--call"))
    loaders = make_loaders(splits, collator, arguments)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    model, optimizer, *prepared = accelerator.prepare(model, optimizer, *loaders.values())
    loaders = dict(zip(loaders, prepared, strict=True))
    steps = math.ceil(len(loaders["train"]) / arguments.gradient_accumulation_steps)
    # The prepared scheduler goes on by one for each process.
    total = epochs * steps * accelerator.num_processes
    scheduler = accelerator.prepare(get_scheduler("cosine", optimizer, round(arguments.warmup_steps * total), total))
    # 2. Train, or go on
    first = last_epoch(folder)
    if first:
        accelerator.print(f"Going on after epoch {first}")
        accelerator.load_state(str(folder / f"epoch-{first}"))
    bar = tqdm(total=epochs * steps, initial=first * steps, disable=not accelerator.is_main_process)
    for epoch in range(first, epochs):
        loaders["train"].set_epoch(epoch)
        loss = train_epoch(accelerator, model, loaders["train"], optimizer, scheduler, bar)
        found = evaluate(accelerator, model, loaders["validation"], metrics)
        accelerator.print(f"epoch {epoch + 1}: loss {loss:.4f}, validation {found}")
        save_checkpoint(accelerator, folder, epoch + 1)
    bar.close()
    # 3. Measure and save
    reported = reported_split(splits)
    found = evaluate(accelerator, model, loaders[reported], metrics)
    results = {f"{reported}_{name}": value for name, value in found.items()}
    results[f"{reported}_samples"] = len(splits[reported])
    accelerator.print(results)
    if accelerator.is_main_process:
        save(accelerator.unwrap_model(model), processor, folder, reported, results)
    accelerator.wait_for_everyone()  # else one would leave while another saves
    accelerator.end_training()


if __name__ == "__main__":
    main()
