"""What the examples of the tasks share: options, and a training that goes on where it was stopped."""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from recipes.base import last_whole_checkpoint, nano_trunk, write_json
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, logging, set_seed

from meta_transformer import MetaTransformerForTask, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer

console = Console()


def arguments(
    file: str, description: str | None, choices: dict[str, list[str]] | None = None, **numbers: int
) -> argparse.Namespace:
    """The options of an example.

    Results of a run with other options, or of other code, are deleted.

    Args:
        file: The example's.
        description: What `--help` shows.
        choices: Options of the example's own with the words they may be, the first one by default. Results of one word
            are kept while others are run, so an example writes them to folders of their own.
        numbers: Options of the example's own that are whole numbers, with their defaults.

    Returns:
        `data`, the folder of the data sets; `trunk`, name or folder of the weights; `output`, the folder of what is
        written; `choices` and `numbers`.
    """
    name = Path(file).stem
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="pretrained weights; without, a small trunk of random weights")
    for option, default in numbers.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    for option, words in (choices or {}).items():
        parser.add_argument(f"--{option}", choices=words, default=words[0], help=f"default: {words[0]}")
    parser.add_argument("--output", type=Path, default=Path("outputs") / name)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run has finished")
    found = parser.parse_args()
    found.data = Path(os.environ.get("META_TRANSFORMER_DATA") or "no-data")
    if not found.data.is_dir():
        sys.exit("Set META_TRANSFORMER_DATA to the folder of the data sets; this example trains on nothing else.")
    logging.set_verbosity_error()
    settings = {
        "encoder": found.encoder,
        **{option: getattr(found, option) for option in numbers},
        "code": [hashlib.sha256(Path(each).read_bytes()).hexdigest() for each in (file, __file__)],
    }
    known = found.output / "settings.json"
    if found.fresh or not known.exists() or json.loads(known.read_text()) != settings:
        shutil.rmtree(found.output, ignore_errors=True)
        write_json(known, settings)
    found.trunk = found.encoder or nano_trunk(found.output / "trunk")
    return found


def train(
    model_class: type[MetaTransformerForTask],
    trunk: str,
    processor: MetaTransformerProcessor,
    splits: tuple[Dataset, Dataset],
    folder: Path,
    *,
    tokenizer: dict[str, Any] | None = None,
    tokenizers: dict[str, dict[str, Any]] | None = None,
    head: dict[str, Any] | None = None,
    id2label: dict[int, str] | None = None,
    call: dict[str, Any] | None = None,
    prepare: Callable[[Any], None] | None = None,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[MetaTransformerForTask, dict[str, Any]]:
    """Train tokenizers and head on the frozen trunk, choose the best epoch on validation data, and save it.

    Args:
        model_class: That of the task.
        trunk: Name or folder of the trunk's weights.
        processor: Fitted, of the modalities to train.
        splits: What is learned from, and what the best epoch is chosen on; rows as the collator takes them.
        folder: Where model and checkpoints go. What is finished there is loaded, what was stopped goes on.
        tokenizer: Options of the tokenizers beside the processor's, the same for all modalities.
        tokenizers: Options by modality, where they differ.
        head: Options of the head.
        id2label: Names of the classes.
        call: Arguments of the processor's call.
        prepare: Sets weights of the fresh model before training.
        config: Further settings of the model, such as `{"fusion": "gated"}`.
        seed: Of new weights and of all that is random in training.
        options: Of `TrainingArguments`; `metric_for_best_model` and `num_train_epochs` among them.

    Returns:
        The model in evaluation mode, and `{"validation": its best metric, "trainable": parameters, "seconds": time}`.
    """
    done = folder / "training.json"
    if done.exists():
        return model_class.from_pretrained(folder).eval(), json.loads(done.read_text())
    set_seed(seed)
    configs = {
        name: {**own, **(tokenizer or {}), **(tokenizers or {}).get(name, {})}
        for name, own in processor.tokenizer_configs().items()
    }
    labels = {"id2label": id2label} if id2label else {}
    model = model_class.from_pretrained(
        trunk,
        modalities=configs,
        heads={model_class.head_name: head or {}},
        ignore_mismatched_sizes=True,  # the trunk may come with a tokenizer of another size
        **labels,
        **(config or {}),
    )
    if prepare:
        prepare(model)
    fingerprint, start = model.encoder_fingerprint(), time.perf_counter()
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "logging_strategy": "epoch",
        "report_to": [],
        "seed": seed,
        **options,
    }
    trainer = Trainer(
        model,
        TrainingArguments(str(folder / "trainer"), **settings),
        train_dataset=splits[0],
        eval_dataset=splits[1],
        data_collator=DataCollatorForMetaTransformer.for_model(model, processor, **(call or {})),
        compute_metrics=model.metrics(),
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder / "trainer"))
    if model.encoder_fingerprint() != fingerprint:
        raise RuntimeError("The frozen trunk has changed during training.")
    row = {
        "validation": trainer.state.best_metric,
        "trainable": model.parameter_summary().trainable,
        "seconds": time.perf_counter() - start,
    }
    model.save_pretrained(folder, processor=processor)
    write_json(done, row)
    shutil.rmtree(folder / "trainer")
    return model.eval(), row


def print_table(title: str, table: pd.DataFrame, file: Path) -> None:
    """Print a table of numbers, its index first, and write it as CSV."""
    shown = Table(title=title, box=SIMPLE)
    for column in ("", *table.columns):
        shown.add_column(str(column), justify="right" if column else "left", no_wrap=not column)
    for name, row in table.iterrows():
        shown.add_row(str(name), *("" if pd.isna(value) else f"{value:.3f}" for value in row))
    console.print(shown)
    table.to_csv(file, float_format="%.4f")
